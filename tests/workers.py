"""What processes of one run do in tests of their start and end; light, since each of them imports it."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from skinmtl.errors import Diverged, InputError

LONG = 10_000.0  # seconds that a process sleeps which somebody else has to end


def note(folder: Path, meeting: Path, rank: int, world_size: int, device: str) -> None:
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "OMP_NUM_THREADS", "MASTER_PORT", "GROUP_RANK")
    words = [str(os.environ.get(name)) for name in names]
    (folder / str(rank)).write_text(" ".join([*words, str(world_size), device, str("torch" in sys.modules)]))
    print(f"said by {rank}")


def fail(kind: str, who: int, meeting: Path, rank: int, world_size: int, device: str) -> None:
    if rank != who:
        time.sleep(LONG)
    if kind == "input":
        raise InputError("a.jpg", "half an image", "fetch it again")
    if kind == "bug":
        raise ValueError("a mistake of ours")
    if kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)


def fail_in_turn(meeting: Path, rank: int, world_size: int, device: str) -> None:
    """The first hears of the second's end, as a peer of a broken connection does, and is first to be looked at."""
    ended = meeting.with_name("ended")
    if rank:
        ended.touch()
        raise Diverged("loss", "not a number", "lower the rate")
    while not ended.exists():
        time.sleep(0.01)
    time.sleep(0.1)
    raise RuntimeError("Connection closed by peer")


def ignore_stops(meeting: Path, rank: int, world_size: int, device: str) -> None:
    ignoring = meeting.with_name("ignoring")
    if rank:
        while not ignoring.exists():
            time.sleep(0.01)
        raise InputError("b.jpg", "no image", "remove it")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ignoring.touch()
    time.sleep(LONG)


def wait_long(folder: Path, meeting: Path, rank: int, world_size: int, device: str) -> None:
    (folder / str(os.getpid())).touch()
    time.sleep(LONG)
