"""A bar on the terminal for what takes longer than a second."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import DownloadColumn, MofNCompleteColumn, Progress, TimeRemainingColumn, TransferSpeedColumn


@contextmanager
def bar(what: str, total: int | None, in_bytes: bool = False) -> Iterator[Callable[[int], None]]:
    """Gives a function to call with how many of `total` are done by now."""
    amount = (DownloadColumn(), TransferSpeedColumn()) if in_bytes else (MofNCompleteColumn(),)
    columns = (*Progress.get_default_columns()[:2], *amount, TimeRemainingColumn())
    began = time.monotonic()
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task(what, total=total, visible=False)
        yield lambda done: progress.update(task, completed=done, visible=time.monotonic() - began > 1)
