"""What is said on the terminal: progress bars, lists cut short, and which log messages are heard by whom."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import DownloadColumn, MofNCompleteColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

Item = TypeVar("Item")


@contextmanager
def only(level: int, name: str) -> Iterator[None]:
    """Log nothing below a level, such as `logging.WARNING`, from the logger of a name while this holds."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)


@contextmanager
def spoken() -> Iterator[None]:
    """Print the package's log on stderr while this holds, unless whoever called it has a handler of their own."""
    logger = logging.getLogger("skinmtl")
    handler = None if logger.hasHandlers() else logging.StreamHandler(sys.stderr)
    if handler is not None:
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger.addHandler(handler)
    try:
        with only(logging.INFO, "skinmtl"):
            yield
    finally:
        if handler is not None:
            logger.removeHandler(handler)


def to_a_reader(command: Callable[[], int]) -> int:
    """Run a command whose reader may leave early, as `| head` does: then it ends in silence, as a shell's own tools do.

    Returns:
        The command's exit code; 141, which is 128 + SIGPIPE, where nobody read on.
    """
    try:
        try:
            return command()
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        pass
    except SystemExit as error:  # what rich makes of it
        if not isinstance(error.__context__, BrokenPipeError):
            raise
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more when it ends
    return 141


@contextmanager
def bar(what: str, total: int | None, in_bytes: bool = False) -> Iterator[Callable[[int], None]]:
    """Show a progress bar on stderr while this holds: on a terminal alone, and once it has taken more than a second.

    Args:
        what: the words beside it, such as "decoding".
        total: of what; None where nobody knows.
        in_bytes: whether it counts bytes, which are shown with their rate.

    Yields:
        A function to call with how many of `total` are done by now.
    """
    amount = (DownloadColumn(), TransferSpeedColumn()) if in_bytes else (MofNCompleteColumn(),)
    columns = (*Progress.get_default_columns()[:2], *amount, TimeRemainingColumn())
    began = time.monotonic()
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task(what, total=total, visible=False)
        yield lambda done: progress.update(task, completed=done, visible=time.monotonic() - began > 1)


def tracked(items: Iterable[Item], what: str, total: int | None = None) -> Iterator[Item]:
    """Yield each item, with a progress bar beside; see `bar`.

    Args:
        items: whatever is worked on.
        what: the words beside the bar.
        total: how many items there are, where they have no length.
    """
    with bar(what, len(items) if isinstance(items, Sized) else total) as step:
        for done, item in enumerate(items, 1):
            yield item
            step(done)


def first(words: Iterable[object], most: int) -> str:
    """Join the first words of a list for a message, and count the others: "a, b and 1,203 more"."""
    words = list(words)
    more = f" and {len(words) - most:,} more" if len(words) > most else ""
    return ", ".join(map(str, words[:most])) + more
