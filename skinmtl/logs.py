"""How much a room says."""

from __future__ import annotations

import logging
from collections.abc import Iterator
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
