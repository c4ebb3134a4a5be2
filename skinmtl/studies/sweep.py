"""The jobs of a sweep: each is a process of its own, on its own frozen config."""

from __future__ import annotations

import csv
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from skinmtl.config.overrides import quoted
from skinmtl.distributed.launch import clean_environment
from skinmtl.distributed.signals import STOPS, handled
from skinmtl.errors import ConfigError, SkinmtlError, first_line
from skinmtl.files import write_text
from skinmtl.runs.labels import stamps
from skinmtl.runs.run import Run
from skinmtl.studies.jobs import read_jobs
from skinmtl.studies.results import leak_gap, sharing

COLUMNS = ("job", "overrides", "status", "exit_code", "score", "stamp", "seconds", "folder")
PATIENCE = 60  # seconds for a job to end after Ctrl-C, which leaves it time to save


class JobFailed(SkinmtlError):
    """A job of a sweep that ended with an exit code of its own."""

    def __init__(self, where: str, what: str, fix: str, exit_code: int) -> None:
        super().__init__(where, what, fix)
        self.exit_code = exit_code


def job(cfg: DictConfig, script: Path) -> float:
    """Train one job of a sweep in a child process.

    The config is written resolved to `<job>/.hydra/config.yaml`, so that nothing edited later changes the job. What the
    child prints goes to `<job>/log.txt`. One row is added to `<sweep>/sweep.csv`, whatever happens.

    Args:
        cfg: the job's config as Hydra composed it.
        script: train.py.

    Returns:
        The run's validation score, for a sweeper that looks for the best.

    Raises:
        KeyboardInterrupt: it was stopped.
        JobFailed: the child ended with another exit code than 0, which this error carries on.
    """
    hydra = HydraConfig.get()
    sweep, folder = Path(hydra.sweep.dir).resolve(), Path(hydra.runtime.output_dir).resolve()
    number, words = str(hydra.job.num), " ".join(hydra.overrides.task)
    config = folder / ".hydra" / "config.yaml"
    config.parent.mkdir(parents=True, exist_ok=True)
    console = Console(stderr=True, highlight=False)
    console.print(f"job {number}  {words}", soft_wrap=True, markup=False)
    start = time.monotonic()
    try:
        frozen = OmegaConf.to_yaml(cfg, resolve=True)
        if not Run(folder).info_file.exists():  # else the child says what may be done with the folder
            write_text(config, frozen)
        code, stopped = _child(script, config.parent, folder)
    except OmegaConfBaseException as error:
        refusal = ConfigError(str(error.full_key or "config"), first_line(error), "mend what it points to")
        write_text(folder / "log.txt", f"skinmtl: error: {refusal}\n")
        code, stopped = refusal.exit_code, False
    seconds = time.monotonic() - start
    info = Run(folder).info() if code == 0 else {}
    score = info.get("score")
    status = "finished" if code == 0 else "interrupted" if stopped or code == 75 else "failed"
    row = (number, words, status, code, score, stamps(info), round(seconds, 1), folder.name)
    _add_row(sweep, dict(zip(COLUMNS, row, strict=True)))
    if stopped:
        raise KeyboardInterrupt
    if code != 0:
        last = _last_error(folder / "log.txt")
        console.print(
            f"job {number}  failed after {seconds:.0f} s, exit code {code}: {last}", soft_wrap=True, markup=False
        )
        raise JobFailed(
            f"job {number}", f"exit code {code}: {last}", f"see {os.path.relpath(folder / 'log.txt')}", code
        )
    assert isinstance(score, float)
    console.print(f"job {number}  score {score:.4f} after {seconds:.0f} s  {stamps(info)}".rstrip(), soft_wrap=True)
    return score


def _child(script: Path, config: Path, folder: Path) -> tuple[int, bool]:
    """Train on a frozen config; gives the exit code, and whether it was stopped through us.

    The code is 128 + the signal's number where a signal killed it. The child has a session of its own, so that Ctrl-C,
    which a terminal sends to all of a session, reaches it once: from here.
    """
    command = [sys.executable, str(script), "--config-path", str(config), "--config-name", "config"]
    command += [f"hydra.run.dir={quoted(folder.as_posix())}", "hydra.output_subdir=null"]
    command += ["hydra/job_logging=none", "hydra/hydra_logging=none"]
    with (folder / "log.txt").open("a", encoding="utf-8") as log:
        child = subprocess.Popen(
            command, env=clean_environment(), stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        with _handed_on(child) as stopped:
            code = child.wait()
    return (128 - code if code < 0 else code), bool(stopped)


@contextmanager
def _handed_on(child: subprocess.Popen[bytes]) -> Iterator[list[int]]:
    """Hand a stop on to the child as Ctrl-C, and kill it at the second or when it does not end in time."""
    stopped: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        if number != signal.SIGALRM:
            stopped.append(number)
        if len(stopped) == 1 and number != signal.SIGALRM:
            child.send_signal(signal.SIGINT)
            signal.alarm(PATIENCE)
        else:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)

    with handled((*STOPS, signal.SIGALRM), stop):
        try:
            yield stopped
        finally:
            signal.alarm(0)


def _last_error(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    said = [line for line in lines if line.startswith("skinmtl: error: ")]
    return said[-1].removeprefix("skinmtl: error: ") if said else (lines[-1] if lines else "it printed nothing")


def _add_row(sweep: Path, row: dict[str, Any]) -> None:
    file = sweep / "sweep.csv"
    before = file.read_text(encoding="utf-8") if file.exists() else ",".join(COLUMNS) + "\n"
    line = io.StringIO()
    csv.DictWriter(line, COLUMNS, lineterminator="\n").writerow(row)
    write_text(file, before + line.getvalue())


def print_table(sweep: Path) -> None:
    """Print all jobs of a sweep: overrides, score, seconds, how each ended; below, what the sweep says about leaks."""
    if not (sweep / "sweep.csv").is_file():
        return
    table = Table("job", "overrides", "score", "stamp", "seconds", "status", title=os.path.relpath(sweep))
    with (sweep / "sweep.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            score = f"{float(row['score']):.4f}" if row["score"] else ""
            ending = row["status"] if row["exit_code"] == "0" else f"{row['status']}, exit code {row['exit_code']}"
            table.add_row(
                row["job"], escape(row["overrides"]), score, row["stamp"], f"{float(row['seconds']):.0f}", ending
            )
    console = Console(stderr=True, highlight=False)
    console.print(table)
    for line in (*leak_gap(jobs := read_jobs(sweep)), *sharing(jobs)):
        console.print(line, markup=False)
