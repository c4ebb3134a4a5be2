"""How much a room says, and who hears it."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def only(level: int, name: str) -> Iterator[None]:
    """Nothing below a level, such as `logging.WARNING`, from the logger of a name while this holds."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)


@contextmanager
def spoken() -> Iterator[None]:
    """What the house has to say on stderr while this holds, unless who called us has a place for it already."""
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
