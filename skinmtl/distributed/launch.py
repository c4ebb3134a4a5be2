"""Several processes that train one run: started, watched and ended together by the one that the user started.

They are told nothing but what to call, so a sweep's jobs, which are processes with a frozen config themselves, start
them as a single run does. The command line is never run again.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import pickle
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path

from skinmtl.distributed.signals import STOPS, handled
from skinmtl.errors import SkinmtlError, first_line

# What launchers of distributed training leave behind: a process must not take the place of one of theirs.
FOREIGN = ("HYDRA_", "PL_", "TORCHELASTIC_", "GROUP_", "LOCAL_", "ROLE_", "MASTER_")
FOREIGN_NAMES = {"NODE_RANK", "RANK", "WORLD_SIZE"}
PATIENCE = 25.0  # seconds for the others to end by themselves after a failure or Ctrl-C
TOGETHER = 0.5  # seconds in which processes that fail for one reason do so
Work = Callable[[Path, int, int, str], object]  # of the meeting place, rank, world size and device


class ProcessDied(SkinmtlError):
    """A process that ended without a word; carries 128 + the signal's number as a shell does."""

    def __init__(self, where: str, what: str, fix: str, exit_code: int) -> None:
        super().__init__(where, what, fix)
        self.exit_code = exit_code


def clean_environment() -> dict[str, str]:
    """Copy the environment, without what other launchers left in it."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    return {name: value for name, value in kept.items() if name not in FOREIGN_NAMES}


def keep_memory() -> None:
    """Keep what a training step frees for the next one, where the C library can be told so (glibc).

    By default every large tensor is given back to the system when freed, and its pages are cleared again a moment
    later.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, TypeError, AttributeError):  # another C library
        return
    trim_threshold, mmap_max = -1, -4  # names and numbers of malloc.h
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, 2**31 - 1)


def threads(world_size: int) -> int:
    """Count the threads that each process may use: what OMP_NUM_THREADS says, else its part of the cores.

    Args:
        world_size: how many processes train together.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    given = os.environ.get("OMP_NUM_THREADS", "")
    return int(given) if given.isdigit() else max(1, cores // world_size)


def together(work: Work, devices: Sequence[str], logs: Path) -> None:
    """Call `work` in a process for each device and wait until all have returned.

    The first process has this terminal; what another prints goes to `rank_<n>.log` in `logs`, when it prints anything.
    When one fails, or this process is stopped, all end: they get Ctrl-C, and are killed after `PATIENCE` seconds.

    Args:
        work: takes the meeting place, its process's number, how many there are, and its device.
        devices: one for each process, such as "cpu" or "cuda:1".
        logs: a folder that is there.

    Raises:
        KeyboardInterrupt: this process was stopped by Ctrl-C, SIGTERM or SIGHUP.
        ProcessDied: a process was killed.
        Exception: what the first process to fail raised, its traceback added as a note.
    """
    stopped: list[int] = []  # the numbers of the signals that asked this process to stop, as they come
    with (
        tempfile.TemporaryDirectory(prefix="skinmtl-") as folder,
        handled(STOPS, lambda number, frame: stopped.append(number)),
    ):
        ranks = _start(work, devices, Path(folder) / "meeting", logs)
        try:
            cause = _watch(ranks, stopped)
        finally:
            for rank in ranks:
                rank.kill()
            for log in logs.glob("rank_*.log"):
                if log.stat().st_size == 0:
                    log.unlink()
    if stopped and any(rank.process.exitcode for rank in ranks):  # else all was done before
        raise KeyboardInterrupt(stopped[0])
    if cause is not None:
        raise cause


@dataclass
class _Rank:
    """One of the processes as its parent sees it."""

    number: int
    process: SpawnProcess
    news: Connection
    error: BaseException | None = None
    when: float = float("inf")  # it failed, on the clock that all processes of a machine share

    def listen(self) -> BaseException | None:
        """What it raised, or how it died; None while it works and after a good end."""
        ended = not self.process.is_alive()
        with suppress(EOFError):
            if self.error is None and self.news.poll():
                self.error, trace, self.when = self.news.recv()
                assert self.error is not None
                self.error.add_note(f"process {self.number}:\n{trace}")
        code = self.process.exitcode
        if self.error is None and ended and code:
            what = f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
            fix = "look for its cause in the system's log (out of memory?), then resume with resume="
            self.error = ProcessDied(f"process {self.number}", what, fix, 128 - code if code < 0 else code)
        return self.error

    def interrupt(self) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.process.pid or 0, signal.SIGINT)

    def kill(self) -> None:
        """End it and the workers that it started, which share its session."""
        if self.process.pid is None:
            return
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        if self.process.is_alive():
            self.process.kill()  # it may not have a session of its own yet
        self.process.join()


def _start(work: Work, devices: Sequence[str], meeting: Path, logs: Path) -> list[_Rank]:
    context = multiprocessing.get_context("spawn")
    resource_tracker.ensure_running()  # else the first start would, and let signals through
    ranks = []
    # Ctrl-C reaches a terminal's whole group: it waits until each has a session of its own and can say that it stopped.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
    try:
        for number, device in enumerate(devices):
            news, speaker = context.Pipe(duplex=False)
            log = logs / f"rank_{number}.log" if number else None
            place = (meeting, number, len(devices), device)
            process = context.Process(target=_begin, args=(speaker, log, work, place))
            with _environment(_for_rank(number, len(devices))):
                process.start()
            speaker.close()
            ranks.append(_Rank(number, process, news))
    except BaseException:
        for rank in ranks:
            rank.kill()
        raise
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return ranks


def _for_rank(number: int, world_size: int) -> dict[str, str]:
    """The environment of one process; Lightning takes it for one that somebody else started."""
    count = str(threads(world_size))
    own = {"LOCAL_RANK": str(number), "RANK": str(number), "NODE_RANK": "0", "WORLD_SIZE": str(world_size)}
    own |= {"OMP_NUM_THREADS": count, "TORCH_CPP_LOG_LEVEL": os.environ.get("TORCH_CPP_LOG_LEVEL", "ERROR")}
    # All are on this machine: what its name resolves to may be an address that it does not have.
    loopback = [name for _, name in socket.if_nameindex() if name in ("lo", "lo0")]
    if loopback and "GLOO_SOCKET_IFNAME" not in os.environ:
        own["GLOO_SOCKET_IFNAME"] = loopback[0]
    return clean_environment() | own


@contextmanager
def _environment(wanted: Mapping[str, str]) -> Iterator[None]:
    """This environment, for a process that starts now: it has to be there before torch is imported."""
    before = dict(os.environ)
    try:
        os.environ.clear()
        os.environ.update(wanted)
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _watch(ranks: Sequence[_Rank], stopped: Sequence[int]) -> BaseException | None:
    """Wait for all to end, and end them when one fails or the run is stopped; gives the cause."""
    cause: BaseException | None = None
    deadline: float | None = None
    while alive := [rank for rank in ranks if rank.process.is_alive()]:
        wait([rank.process.sentinel for rank in alive] + [rank.news for rank in alive if rank.error is None], 0.2)
        failed = any(rank.listen() is not None for rank in ranks)
        if deadline is None and (failed or stopped):
            cause = None if stopped else _cause(ranks)
            deadline = time.monotonic() + PATIENCE
            for rank in alive:
                rank.interrupt()
        if deadline is not None and (time.monotonic() > deadline or len(stopped) > 1):
            for rank in alive:
                rank.kill()
    return cause or (None if stopped else _cause(ranks, patience=0))


def _cause(ranks: Sequence[_Rank], patience: float = TOGETHER) -> BaseException | None:
    """Of several failures the one that is no answer to another: an error of ours, a death, then any other."""
    time.sleep(patience if len(ranks) > 1 else 0)
    failed = sorted((rank for rank in ranks if rank.listen() is not None), key=lambda rank: rank.when)
    errors = [rank.error for rank in failed]
    known = [error for error in errors if isinstance(error, SkinmtlError) and not isinstance(error, ProcessDied)]
    died = [error for error in errors if isinstance(error, ProcessDied)]
    return next(iter([*known, *died, *errors]), None)


def _begin(news: Connection, log: Path | None, work: Work, place: tuple[Path, int, int, str]) -> None:
    """What each of the processes does: a session of its own, the work, a word when it fails."""
    os.setsid()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        if log is not None:
            file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            for stream in (1, 2):
                os.dup2(file, stream)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # only our parent sends it here, whatever it ignores
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
        work(*place)
    except BaseException as error:
        when = time.monotonic()
        news.send((_portable(error), "".join(traceback.format_exception(error)), when))
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)  # what would be tidied up now may wait for the others


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.killpg(os.getpid(), signal.SIGKILL)


def _portable(error: BaseException) -> BaseException:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # an exception of another library may refuse in any way
        return RuntimeError(first_line(error))
    return error
