"""Weights & Biases beside metrics.csv: online with a key, offline without; it never stops a training.

No image leaves the machine unasked, nor do host, user, folders, code or the machine's load.
"""

from __future__ import annotations

import http.client
import json
import logging
import netrc
import os
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from pytorch_lightning.loggers.logger import Logger
from pytorch_lightning.utilities import rank_zero_only

from skinmtl.errors import first_line
from skinmtl.runs.record import flat
from skinmtl.runs.redaction import shareable
from skinmtl.runs.run import Run

log = logging.getLogger(__name__)

PROJECT = "skinmtl"
UNIQUE = re.compile(r"\d_[0-9a-f]{4}$")  # how a run id ends
PATIENCE = 8  # seconds that a server has to answer, and then to open the run, before the run goes on offline
OFFLINE = "this run is kept offline; upload it later with `wandb sync`"
UPLOAD = 60  # seconds that the end of a run waits for a server that has gone; W&B itself would wait for ever


class WandB(Logger):
    """A run on W&B under the run's own id, or a folder `wandb/` in the run folder that `wandb sync` uploads later.

    `mode` auto is online where there is a key (WANDB_API_KEY or netrc) and a server that answers, else offline; it
    heeds WANDB_MODE. Nothing ever asks for a key. WANDB_MODE=disabled and WANDB_DISABLED switch every mode off: then
    nothing is written. WANDB_PROJECT, WANDB_ENTITY, WANDB_RUN_GROUP and WANDB_TAGS stand in for what is left as it
    comes, and WANDB_SILENT=false has W&B print what it likes.
    Overlays are uploaded for synthetic images only, for others with `images` true. `group` is null or a word that
    puts runs together; jobs of one sweep are put together anyway.
    """

    def __init__(
        self,
        project: str = PROJECT,
        entity: str | None = None,
        mode: Literal["auto", "online", "offline"] = "auto",
        images: bool = False,
        group: str | None = None,
        tags: list[str] | None = None,
        *,
        folder: Path,
        run_id: str,
    ) -> None:
        super().__init__()
        if project == PROJECT:
            project = os.environ.get("WANDB_PROJECT") or project
        if tags is None and (words := os.environ.get("WANDB_TAGS")):
            tags = words.split(",")
        self._place: dict[str, Any] = {"project": project, "entity": entity, "tags": tags}
        self._mode, self._images = mode, images
        self._folder = folder
        # A job of a sweep is a numbered folder: its sweep is the group. A folder that somebody named is one of many of
        # that name, a run id is the only one.
        self._group = group or (folder.parent.name if run_id.isdigit() else None)
        unique = run_id if UNIQUE.search(run_id) else f"{folder.parent.name}-{run_id}"
        self._id = re.sub(r"[^\w.-]+", "-", unique)
        self._run: Any = None

    @property
    def name(self) -> str:
        """What Lightning calls this logger."""
        return "wandb"

    @property
    def version(self) -> str:
        """The run's id on W&B."""
        return self._id

    @rank_zero_only  # of several processes the first one speaks
    def start(self, config: Mapping[str, Any], stamps: str = "") -> None:
        """Open the run with a config: words under keys like `token` are struck out, and so are paths.

        `stamps` are words that its scores have to be shown with, such as LEAKY: they become tags.
        """
        if (switch := _switched_off()) is not None:
            log.warning("W&B is switched off by %s: metrics.csv has everything", switch)
            return
        self._place["tags"] = [*(self._place["tags"] or ()), *stamps.split()]
        # Read by wandb when it is imported: nothing on the terminal, and no reports of its own about its errors.
        os.environ.setdefault("WANDB_SILENT", "true")
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        try:
            import wandb
        except ImportError:
            log.warning("wandb is not installed: metrics.csv has everything; pip install wandb adds the dashboard")
            return
        clean = {key: shareable(key, value) for key, value in flat(config).items()}
        if self._online():
            try:
                self._run = self._init(wandb, "online", clean)
                return
            except Exception as error:  # a wrong key, a server in trouble: of many kinds
                log.warning("W&B does not take this run (%s): %s", first_line(error), OFFLINE)
                self._safely(wandb.teardown)  # else the id counts as in use
        self._run = self._safely(lambda: self._init(wandb, "offline", clean))

    def _online(self) -> bool:
        if self._mode == "offline" or (self._mode == "auto" and os.environ.get("WANDB_MODE", "online") != "online"):
            return False
        if not _has_key():
            if self._mode == "online":
                log.warning("W&B has no key in WANDB_API_KEY or netrc: %s", OFFLINE)
            return False
        if not _answers():
            log.warning("W&B does not answer: %s", OFFLINE)
            return False
        return True

    def _init(self, wandb: Any, mode: str, config: Mapping[str, Any]) -> Any:
        settings = wandb.Settings(
            silent=os.environ["WANDB_SILENT"].lower() not in ("false", "0", "no", "off"),
            console="off",
            init_timeout=PATIENCE,
            finish_timeout=UPLOAD,
            disable_git=True,
            save_code=False,
            x_disable_meta=True,
            x_disable_stats=True,
            x_disable_machine_info=True,
            x_save_requirements=False,
            host="",
            username="",
        )
        resume = {"resume": "allow"} if mode == "online" else {}
        return wandb.init(
            **self._place, **resume, mode=mode, id=self._id, name=self._id, group=self._group, dir=self._folder,
            job_type="train", config=dict(config), settings=settings,
        )  # fmt: skip

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """The config was given at the start; nothing to do."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """The values of one row of metrics.csv, under the same names."""
        if self._run is not None:
            self._safely(lambda: self._run.log(dict(metrics) | {"trainer/step": step}))

    def log_run(self, run: Run) -> None:
        """What the run ended with: test scores as the summary, the confusion matrix as a table, figures."""
        if self._run is not None:
            self._safely(lambda: self._log_run(run))

    def _log_run(self, run: Run) -> None:
        import wandb

        scores = json.loads((run.path / "scores.json").read_text(encoding="utf-8"))
        test = scores["parts"]["test"]
        for task, values in test["scores"].items():
            for name, score in values.items():
                if score["value"] is not None:
                    self._run.summary[f"test/{task}/{name}"] = score["value"]
                    self._run.summary[f"test/{task}/{name}_low"] = score["low"]
                    self._run.summary[f"test/{task}/{name}_high"] = score["high"]
        of_tasks = {f"test/{task}/confusion": details for task, details in test.get("details", {}).items()}
        for name, details in ({"test/confusion": test} | of_tasks).items():
            if "confusion" in details:
                names = list(details["classes"])
                table = pd.DataFrame(np.array(details["confusion"]), columns=names).assign(true=names)
                self._run.log({name: wandb.Table(dataframe=table[["true", *names]])})
        overlays = self._images or bool(run.info()["synthetic"])
        for file in sorted(run.figures.iterdir()):
            # A figure that shows images is a .jpg (`Scoring.galleries`); `gallery` is in the names of our own.
            if overlays or not (file.suffix == ".jpg" or "gallery" in file.name):
                self._run.log({f"figures/{file.stem}": wandb.Image(str(file))})

    def finish(self, exit_code: int) -> None:
        """Close the run, as failed where the exit code is not zero."""
        if self._run is not None:
            self._safely(lambda: self._run.finish(exit_code=exit_code))
            self._run = None

    def _safely(self, act: Callable[[], Any]) -> Any:
        """Do it; after the first failure say so once and leave W&B alone."""
        try:
            return act()
        except Exception as error:  # whatever a dashboard does, the training goes on
            log.warning("W&B failed (%s): the run continues without it", first_line(error))
            self._run = None
            return None


def _switched_off() -> str | None:
    """What of the environment switches W&B off, in words; None where nothing does."""
    if os.environ.get("WANDB_MODE", "").lower() == "disabled":
        return "WANDB_MODE=disabled"
    word = os.environ.get("WANDB_DISABLED", "")
    return f"WANDB_DISABLED={word}" if word.lower() not in ("", "false", "0", "no", "off") else None


def _server() -> str:
    return os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")


def _has_key() -> bool:
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    try:
        hosts = netrc.netrc(os.environ.get("NETRC")).hosts
    except (OSError, netrc.NetrcParseError):
        return False
    return urllib.parse.urlparse(_server()).netloc in hosts


def _answers() -> bool:
    """Whether the server says anything at all within `PATIENCE` seconds; W&B itself would wait for minutes."""
    try:
        urllib.request.urlopen(_server(), timeout=PATIENCE).close()
    except urllib.error.HTTPError:
        return True
    except (OSError, ValueError, http.client.HTTPException):
        return False
    return True
