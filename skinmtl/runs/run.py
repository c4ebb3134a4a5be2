"""What a run folder holds, as files: written whole or not at all, read without torch."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from skinmtl.errors import InputError, first_line
from skinmtl.files import locked, write_json
from skinmtl.runs import aliases, predictions

KILLED = "killed"  # the status of a run that ended without a word
PATIENCE = 2.0  # seconds for what a killed process had started to let go of its folder


@dataclass(frozen=True)
class Run:
    """One training's folder.

    .hydra/config.yaml  the whole config, resolved
    run.json            what it ran on and how it went: versions, hashes, seconds, status, exit code
    split.csv           which image was in which split, its sha256 in run.json and in every checkpoint
    seen.csv            what its weights have seen beside that: of auxiliary data, and of the run that it started from
    split.json          its certificate: sizes and class shares of each split, what was merged, that no lesion is in two
    metrics.csv         one row per epoch and split, and per logged step
    checkpoints/        best.ckpt, last.ckpt and the one before it, last.previous.ckpt; sha256.json vouches for them
    predictions.csv, scores.json, figures/, report.html
    """

    path: Path

    @classmethod
    def open(cls, path: Path | str) -> Run:
        """Open the run at a folder.

        Raises:
            InputError: the folder is not there, or has no run.json.
        """
        run = cls(Path(path).expanduser().resolve())
        if not run.info_file.is_file():
            what = "no run.json in this folder" if run.path.is_dir() else "no such folder"
            raise InputError(str(path), what, "give a run's folder, such as outputs/demo/<run_id>")
        return run

    @property
    def info_file(self) -> Path:
        """run.json."""
        return self.path / "run.json"

    @property
    def split_file(self) -> Path:
        """split.csv."""
        return self.path / "split.csv"

    @property
    def predictions_file(self) -> Path:
        """predictions.csv."""
        return self.path / "predictions.csv"

    @property
    def figures(self) -> Path:
        """The folder of figures."""
        return self.path / "figures"

    def checkpoint(self, which: str = "best") -> Path:
        """Give the path of a checkpoint.

        Args:
            which: `best` or `last`.

        Raises:
            InputError: it was never saved.
        """
        path = self.path / "checkpoints" / f"{which}.ckpt"
        if not path.is_file():
            raise InputError(str(path), "no such checkpoint", "let the run train for at least one epoch")
        return path

    @contextmanager
    def held(self) -> Iterator[None]:
        """Lock the folder for this process and tidy it up; the lock is released however that ends.

        Raises:
            InputError: another process has locked it.
        """
        with ExitStack() as stack:
            try:
                # What a killed process had started may hold it for a moment longer.
                stack.enter_context(locked(self.path, PATIENCE))
            except BlockingIOError:
                what = "another process is training this run"
                raise InputError(str(self.path), what, "wait for it, or stop it first") from None
            # What a killed process was writing.
            for stray in [*self.path.glob(".*.tmp"), *self.figures.glob(".*.tmp")]:
                stray.unlink(missing_ok=True)
            yield

    def is_held(self) -> bool:
        """Tell whether a process is at work on this run."""
        try:
            with self.held():
                return False
        except InputError:
            return True

    @property
    def status(self) -> str:
        """Say how the run stands: what run.json says, but `killed` where that is running and nobody locks the folder.

        A process that was killed, or whose machine went down, could not write how it ended.
        """
        said = str(self.info().get("status", ""))
        return KILLED if said == "running" and not _is_locked(self.path) else said

    def info(self) -> dict[str, Any]:
        """Read run.json.

        Raises:
            InputError: it is no JSON, or holds no dict.
        """
        try:
            info: dict[str, Any] = json.loads(self.info_file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(str(self.info_file), f"not JSON ({error})", "restore it or train again") from None
        if not isinstance(info, dict):
            raise InputError(
                str(self.info_file), f"holds a {type(info).__name__}, no facts", "restore it or train again"
            )
        return info

    def update(self, facts: Mapping[str, Any]) -> None:
        """Add facts to run.json; a later value of a key replaces the earlier."""
        before = self.info() if self.info_file.exists() else {}
        write_json(self.info_file, before | dict(facts))

    def config(self) -> DictConfig:
        """Read the resolved config that the run was started with, by the names of today.

        Raises:
            InputError: it is missing, cannot be read, or is not resolved.
        """
        path = self.path / ".hydra" / "config.yaml"
        if not path.is_file():
            raise InputError(str(path), "no such file", "restore the run folder's .hydra")
        try:
            config = OmegaConf.load(path)
        except (YAMLError, OmegaConfBaseException, ValueError) as error:
            raise InputError(str(path), first_line(error), "restore the run folder's .hydra") from None
        if not isinstance(config, DictConfig):
            raise InputError(str(path), "not a mapping", "restore the run folder's .hydra")
        # A run saves its config resolved. What is left to resolve would read the environment of whoever opens it.
        if (key := _unresolved(OmegaConf.to_container(config))) is not None:
            raise InputError(str(path), f"{key} is an interpolation", "write its value, or restore the run's .hydra")
        return aliases.renamed(config)

    def predictions(self) -> pd.DataFrame:
        """Read the predictions table, one row per image of validation and test.

        Raises:
            InputError: it is missing or cannot be read.
        """
        if not self.predictions_file.is_file():
            raise InputError(str(self.predictions_file), "no such file", f"run `skinmtl evaluate {self.path}`")
        return predictions.read(self.predictions_file)

    def write_scores(self, scores: Mapping[str, Any]) -> None:
        """Write scores.json; not a number is refused."""
        write_json(self.path / "scores.json", scores)


def _is_locked(folder: Path) -> bool:
    """Tell whether a process has locked a folder at this moment, or nobody can tell."""
    try:
        with locked(folder, patience=0.05):  # another one that only looks, as this does, holds it for no time
            return False
    except BlockingIOError:
        return True
    except OSError:  # of a file system without locks
        return folder.is_dir()


def _unresolved(node: object, where: str = "") -> str | None:
    """Find the first key whose value is an interpolation; None where there is none."""
    if isinstance(node, str):
        return where if re.search(r"(?<!\\)\$\{", node) else None
    inside = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    found = (_unresolved(value, f"{where}.{place}".lstrip(".")) for place, value in inside)
    return next((key for key in found if key is not None), None)


def find(folder: Path) -> Iterator[Run]:
    """Yield every run at or below a folder, in the order of their paths."""
    for file in sorted(folder.rglob("run.json")):
        yield Run(file.parent)
