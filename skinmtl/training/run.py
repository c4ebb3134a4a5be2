"""One run: a config in, a folder out."""

from __future__ import annotations

import logging
import os
import shlex
import shutil
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from skinmtl.config.run_config import RunConfig
from skinmtl.distributed import collectives
from skinmtl.distributed.launch import ProcessDied, keep_memory, together
from skinmtl.distributed.signals import stoppable
from skinmtl.errors import InputError, Interrupted, ResourceError, SkinmtlError, answer_to
from skinmtl.files import write_text
from skinmtl.runs.checkpoints import ELSEWHERE, LAST, newest
from skinmtl.runs.record import flat
from skinmtl.runs.redaction import shareable, without_paths_in
from skinmtl.runs.run import Run
from skinmtl.terminal import spoken
from skinmtl.training.build import build_data, devices_of
from skinmtl.training.dry_run import checked
from skinmtl.training.failures import exit_code
from skinmtl.training.fit import train
from skinmtl.training.quiet import calm
from skinmtl.training.record import origin, seconds_with_former
from skinmtl.training.resume import Start, beginning, choose_run
from skinmtl.training.slurm import requeue

log = logging.getLogger(__name__)


def run(given: Mapping[str, Any], folder: Path, command: str | None = None) -> Run:
    """Train, evaluate and report as a config says.

    Whoever calls it, the command line, a sweep or a notebook, gets the same: the config is checked, resolved and kept
    in the folder, the folder is locked, what happens is said, a stop is heard, and run.json tells how it ended.

    Args:
        given: the top-level keys (`skinmtl.config.run_config.RunConfig`) and their values; a composed config is one.
        folder: where the run writes, unless it resumes another.
        command: how it was started, for its record.

    Returns:
        The run: that of `folder`, or the one that was resumed.

    Raises:
        SkinmtlError: an answer for the user, with its exit code.
    """
    with spoken(), calm():
        config = checked(given)
        keep_memory()
        devices = devices_of(config.trainer)
        here = _folder(config, Run(Path(os.path.abspath(folder))), len(devices))
        if threading.current_thread() is not threading.main_thread():
            log.warning("not in this process's first thread: Ctrl-C, SIGTERM and SIGUSR1 do not stop and save this run")
        _attempt(config, here, devices, command)
    return here


def _folder(config: RunConfig, fresh: Run, world_size: int) -> Run:
    """Give the run to write into, whose folder then exists: the fresh one, or the one that is resumed."""
    here = choose_run(fresh, config.resume, config.as_dict(), world_size, config.allow_change)
    if here != fresh and [path.name for path in fresh.path.glob("*")] == [".hydra"]:
        shutil.rmtree(fresh.path)  # which Hydra made before it was known that another run is resumed
    here.path.mkdir(parents=True, exist_ok=True)
    return here


def _attempt(config: RunConfig, here: Run, devices: Sequence[str], command: str | None) -> None:
    """Train in a folder that is locked meanwhile; record there what began and how it ended.

    Args:
        config: a checked config.
        here: the run; its folder exists.
        devices: such as `cuda:0`; with several, each trains in a process of its own.
        command: how it was started.

    Raises:
        SkinmtlError: the training failed; `Interrupted` where it was asked to stop.
    """
    began = time.perf_counter()
    with here.held(), stoppable() as stop:
        try:
            start = beginning(here, config.init_from, config.allow_change)
            if not start.resumed:
                (here.path / ".hydra").mkdir(exist_ok=True)
                write_text(here.path / ".hydra" / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(config.as_dict())))
            here.update(origin(config, here, len(devices), command))
            if len(devices) == 1:
                train(config, here, start, stop)
            else:
                _train_together(config, here, start, devices)
        except BaseException as raised:
            answer = answer_to(raised, here.path, ELSEWHERE)
            # Asked to stop, compiled code answers in ways of its own.
            stopped = isinstance(raised, KeyboardInterrupt) or (stop.asked and answer is None)
            error = _interrupted(here) if stopped else answer or raised
            with suppress(OSError):  # a full disk takes this neither
                _keep_ending(here, config, error, time.perf_counter() - began)
            if stopped:
                requeue(stop.number or next(iter(raised.args), None))
            if error is raised:
                raise
            raise error from (None if stopped else raised)


def _keep_ending(here: Run, config: RunConfig, error: BaseException, seconds: float) -> None:
    """Write into run.json how a run ended that did not finish, without private paths.

    Args:
        here: the run.
        config: its config, whose paths and secrets are taken out of the error's text.
        error: what ended it.
        seconds: how long this attempt took.
    """
    code = exit_code(error)
    told = flat(config.recorded()).items()
    private = [value for key, value in told if isinstance(value, str) and shareable(key, value) != value]
    private += [os.path.abspath(value) for value in private if value]  # errors name folders from the root
    status = "interrupted" if code == 75 else "failed"
    facts = {
        "status": status,
        "exit_code": code,
        "error": without_paths_in(str(error).replace(f"{here.path}/", ""), private),
    }
    here.update(facts | {"seconds": seconds_with_former(here, fit=seconds)})


def _train_together(config: RunConfig, here: Run, start: Start, devices: Sequence[str]) -> None:
    """Train in a process for each device; this one makes, splits and caches the data before, then only watches them.

    Raises:
        Interrupted: a process died after something was saved.
        ResourceError: it died before.
    """
    build_data(config)
    try:
        together(partial(_train_rank, config, here.path, start), devices, here.path)
    except ProcessDied as died:
        raise _left_by(died, here) from None


def _train_rank(
    config: RunConfig, folder: Path, start: Start, meeting: Path, rank: int, world_size: int, device: str
) -> None:
    """Train as one of several processes; the parent locks the folder and says how the run ended.

    Args:
        config: a checked config.
        folder: the run's.
        start: where the run begins.
        meeting: the file by which the processes find each other.
        rank: of this process, from 0.
        world_size: how many processes there are.
        device: this process's, such as `cuda:0`.
    """
    logging.basicConfig(level=logging.WARNING if rank else logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.getLogger("skinmtl.data").setLevel(logging.WARNING)  # the parent has said it
    keep_memory()
    with calm(), stoppable() as stop:
        collectives.join(meeting, rank, world_size, device)
        train(config, Run(folder), start, stop)


def _interrupted(here: Run, what: str = "stopped from outside") -> Interrupted:
    """Give the error of a run that was stopped, with the words that resume it."""
    saved = (here.path / "checkpoints" / LAST).exists()
    fix = f"the same command with {shlex.quote(f'resume={os.path.relpath(here.path)}')} "
    fix += "resumes from the last save" if saved else "begins again, for nothing was saved yet"
    return Interrupted(here.path.name, what, fix)


def _left_by(died: ProcessDied, here: Run) -> SkinmtlError:
    """Give the error that the death of one of several processes stands for: a run to be resumed, or nothing saved."""
    try:
        newest(here.path / "checkpoints")
    except InputError:
        return ResourceError(died.where, died.what, died.fix)
    return _interrupted(here, f"{died.where} {died.what}")
