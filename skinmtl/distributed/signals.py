"""Signals that ask a run to stop, heard from its first moment."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType

# The last is what SLURM can send beforehand. Windows lacks it, and has to be told so before anything uses it.
STOPS = tuple(signal.Signals[name] for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name))
ENDS = tuple(name for name in STOPS if name.name in ("SIGTERM", "SIGHUP"))  # what is no Ctrl-C by itself


def heeded(names: Iterable[signal.Signals]) -> list[signal.Signals]:
    """Choose those signals that nohup, or a shell that put us in its background, has not switched off.

    Only a process's first thread can hear any: in another one it is none of them.
    """
    if threading.current_thread() is not threading.main_thread():
        return []
    return [name for name in names if signal.getsignal(name) != signal.SIG_IGN]


@contextmanager
def handled(names: Iterable[signal.Signals], handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    """Answer signals with a handler while this holds; those before are back afterwards.

    Args:
        names: the signals; what nohup or a shell's background has switched off stays so.
        handler: takes the signal's number and the frame that it came in.
    """
    before = {name: signal.signal(name, handler) for name in heeded(names)}
    try:
        yield
    finally:
        for name, old in before.items():
            signal.signal(name, old)


class Stop:
    """Whether this process was asked to stop. A signal is Ctrl-C; where somebody looks, it waits for them, once.

    Asked in two ways, as by SLURM and by the process that started this one, it still waits.
    """

    def __init__(self) -> None:
        self.number: int | None = None  # of the first signal
        self.looked_for = False
        self._heard: set[int] = set()

    @property
    def asked(self) -> bool:
        """Whether a signal came."""
        return self.number is not None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """What a signal does."""
        again = number in self._heard
        self._heard.add(number)
        self.number = self.number or number
        if again or not self.looked_for:
            raise KeyboardInterrupt
        if number == signal.SIGINT and sys.stderr.isatty():
            os.write(2, b"skinmtl: stopping as soon as all is saved; once more stops at once\n")

    def hear(self) -> None:
        """Take the signals from whoever has them now."""
        for name in heeded(STOPS):
            signal.signal(name, self)


@contextmanager
def stoppable(stop: Stop | None = None) -> Iterator[Stop]:
    """Hear every way to be asked to stop; the handlers before are back afterwards.

    Args:
        stop: what hears them; a new one by default.

    Yields:
        It.
    """
    stop = stop or Stop()
    with handled(STOPS, stop):
        yield stop
