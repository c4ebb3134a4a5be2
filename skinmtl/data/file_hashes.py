"""Which bytes stand in a file: a sha256, kept in a small file, and made again only where the file may have changed."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import stat
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from skinmtl.files import digest, write_text
from skinmtl.terminal import tracked

logger = logging.getLogger(__name__)

COLUMNS = {"image": "image_sha256", "mask": "mask_sha256"}  # of a case table: a file's path, and what stands in it
SETTLED = 2_000_000_000  # ns without a change after which one that follows has another time, on any disk
LONG = 200_000_000  # bytes from which on reading is announced


class Known(NamedTuple):
    """What is kept of a file: by what one sees that it changed, and the sha256 of its bytes."""

    size: int
    mtime_ns: int
    ctime_ns: int  # which nobody sets: an archive's times, or `touch`, cannot hide a change
    inode: int
    sha256: str


def with_digests(table: pd.DataFrame, folder: Path | None) -> pd.DataFrame:
    """Add to a case table the sha256 of each image and of each mask, missing where there is no readable file.

    Args:
        table: a case table; one that has them already is given back.
        folder: where they are kept, so that a file is read again only where it may have changed; None keeps nothing.

    Returns:
        The table with the columns of `COLUMNS`.
    """
    if set(COLUMNS.values()) <= set(table):
        return table
    columns = {}
    for name, into in COLUMNS.items():
        found = digests([path for path in table[name] if isinstance(path, str)], folder)
        columns[into] = pd.Series([found.get(path) for path in table[name]], index=table.index, dtype="str")
    out = table.assign(**columns)
    out.attrs = dict(table.attrs)
    return out


def digests(paths: Iterable[str], folder: Path | None) -> dict[str, str]:
    """Compute the sha256 of files.

    Args:
        paths: absolute ones.
        folder: as `with_digests` has it.

    Returns:
        The sha256 by path; without what cannot be read, which decoding names.
    """
    paths = list(dict.fromkeys(paths))
    if not paths:
        return {}
    kept_in = folder and folder / f"files-{hashlib.sha256(os.fsencode(_home(paths))).hexdigest()[:16]}.json"
    kept = _load(kept_in) if kept_in else {}
    seen = {path: found for path in paths if (found := _look(path))}
    same = {path: kept[path] for path, found in seen.items() if path in kept and kept[path][:4] == found}
    changed = [path for path in seen if path not in same]
    read = _read(changed, sum(seen[path][0] for path in changed))
    if kept_in and (new := {path: known for path, known in read.items() if _is_settled(known)}):
        _save(kept_in, kept | new)
    return {path: known.sha256 for path, known in (same | read).items()}


def _home(paths: Sequence[str]) -> str:
    """The folder that holds all of them, which names the file where they are kept."""
    return os.path.commonpath([os.path.dirname(path) for path in paths])


def _look(path: str) -> tuple[int, int, int, int] | None:
    with suppress(OSError, ValueError):
        return _seen(os.stat(path))
    return None


def _seen(found: os.stat_result) -> tuple[int, int, int, int] | None:
    if not stat.S_ISREG(found.st_mode):  # a pipe would be waited for
        return None
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino


def _read(paths: Sequence[str], size: int) -> dict[str, Known]:
    """Read files whole, by as many threads as there are cores, within reason."""
    if size > LONG:
        what = "%s files (%.2f GB) are read once to know them by content; later only those that change"
        logger.info(what, f"{len(paths):,}", size / 1e9)
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        found = tracked(pool.map(_digest, paths), "reading files", len(paths))
        return {path: known for path, known in zip(paths, found, strict=True) if known}


def _digest(path: str) -> Known | None:
    """What stands in a file now; seen before it is read, so that what changes meanwhile is read again."""
    with suppress(OSError), open(path, "rb") as file:
        if found := _seen(os.fstat(file.fileno())):
            return Known(*found, digest(file))
    return None


def _is_settled(known: Known) -> bool:
    """Whether a later change of the file would show: within one tick of a disk's clock it would have the same time."""
    return known.ctime_ns < time.time_ns() - SETTLED


def _load(path: Path) -> dict[str, Known]:
    """What was kept; nothing where that cannot be read, for then files are read again."""
    with suppress(OSError, ValueError, TypeError, AttributeError):
        rows = json.loads(path.read_text(encoding="utf-8")).items()
        return {name: Known(int(a), int(b), int(c), int(d), str(sha)) for name, (a, b, c, d, sha) in rows}
    return {}


def _save(path: Path, kept: Mapping[str, Known]) -> None:
    """Write a file whole or not at all; where that cannot be, files are read again next time."""
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(kept), durable=False)
