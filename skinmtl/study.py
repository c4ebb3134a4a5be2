"""Several runs and one answer: each job of a sweep is a process of its own, on its own frozen config."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from skinmtl.errors import SkinmtlError
from skinmtl.runs import Run, write_text

COLUMNS = ("job", "overrides", "status", "exit_code", "score", "seconds", "folder")
# What launchers of distributed training leave behind: a job must not take the place of one of the sweep's processes.
FOREIGN = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "RANK", "WORLD_SIZE", "PL_GLOBAL_SEED")


class JobFailed(SkinmtlError):
    """A job of a sweep that ended with an exit code of its own."""

    def __init__(self, where: str, what: str, fix: str, exit_code: int) -> None:
        super().__init__(where, what, fix)
        self.exit_code = exit_code


def job(cfg: DictConfig, script: Path) -> float:
    """Train one job of a sweep in a child process; gives its score.

    The config is written resolved to `<job>/.hydra/config.yaml`, so that nothing edited later changes the job. What the
    child prints goes to `<job>/log.txt`. One row is added to `<sweep>/sweep.csv`, whatever happens.

    Raises:
        JobFailed: the child ended with another exit code than 0, which this error carries on.
    """
    hydra = HydraConfig.get()
    sweep, folder = Path(hydra.sweep.dir).resolve(), Path(hydra.runtime.output_dir).resolve()
    number, words = str(hydra.job.num), " ".join(hydra.overrides.task)
    config = folder / ".hydra" / "config.yaml"
    config.parent.mkdir(parents=True, exist_ok=True)
    write_text(config, OmegaConf.to_yaml(cfg, resolve=True))
    console = Console(stderr=True, highlight=False)
    console.print(f"job {number}  {words}", soft_wrap=True)
    start = time.monotonic()
    code = _child(script, config.parent, folder)
    seconds = time.monotonic() - start
    score = Run(folder).info().get("score") if code == 0 else None
    status = "finished" if code == 0 else "failed"
    _add_row(sweep, dict(zip(COLUMNS, (number, words, status, code, score, round(seconds, 1), folder.name), strict=True)))
    if code != 0:
        last = _last_error(folder / "log.txt")
        console.print(f"job {number}  failed after {seconds:.0f} s, exit code {code}: {last}", soft_wrap=True)
        raise JobFailed(f"job {number}", f"exit code {code}: {last}", f"see {os.path.relpath(folder / 'log.txt')}", code)
    assert isinstance(score, float)
    console.print(f"job {number}  score {score:.4f} after {seconds:.0f} s", soft_wrap=True)
    return score


def _child(script: Path, config: Path, folder: Path) -> int:
    """Run the door on a frozen config; gives its exit code, 128 + the signal's number where one killed it."""
    command = [sys.executable, str(script), "--config-path", str(config), "--config-name", "config"]
    command += [f"hydra.run.dir={folder.as_posix()!r}", "hydra.output_subdir=null"]
    env = {key: value for key, value in os.environ.items() if key not in FOREIGN}
    with (folder / "log.txt").open("w", encoding="utf-8") as log:
        child = subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT)
        try:
            code = child.wait()
        except BaseException:  # Ctrl-C reaches the child too; wait until it has ended, then stop the sweep
            child.terminate()
            child.wait()
            raise
    return 128 - code if code < 0 else code


def _last_error(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    said = [line for line in lines if line.startswith("skinmtl: error: ")]
    return said[-1].removeprefix("skinmtl: error: ") if said else (lines[-1] if lines else "it printed nothing")


def _add_row(sweep: Path, row: dict[str, Any]) -> None:
    file = sweep / "sweep.csv"
    rows = list(csv.DictReader(file.open(newline=""))) if file.exists() else []
    table = pd.DataFrame([*rows, row], columns=list(COLUMNS))
    write_text(file, table.to_csv(index=False))


def print_table(sweep: Path) -> None:
    """All jobs of a sweep on the terminal: overrides, score, seconds, and how each ended."""
    if not (sweep / "sweep.csv").is_file():
        return
    table = Table("job", "overrides", "score", "seconds", "status", title=os.path.relpath(sweep))
    for row in pd.read_csv(sweep / "sweep.csv").itertuples():
        score = "" if pd.isna(row.score) else f"{row.score:.4f}"
        ending = row.status if row.exit_code == 0 else f"{row.status}, exit code {row.exit_code}"
        table.add_row(str(row.job), str(row.overrides), score, f"{row.seconds:.0f}", ending)
    Console(stderr=True).print(table)
