"""Every photograph and mask decoded once, at training size, in one file that all workers and runs share."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

from skinmtl.data.images import Size, fit_image, fit_mask, read_image, read_mask
from skinmtl.errors import Faults, SkinmtlError

logger = logging.getLogger(__name__)

VERSION = 1  # raise when decoding or fitting gives other pixels
SPARE = 1.2  # of the file's size has to be free on the disk
MOST_FAULTS = 20  # unreadable photographs to list before giving up


class Photographs:
    """Photographs and masks at network size, by row of the case table.

    Decoded at each call, or read from a cache file; the pixels are the same. Paths are kept as plain lists, so that
    forked workers do not copy a table each time they touch it.
    """

    def __init__(
        self, images: Sequence[str], masks: Sequence[str | None], size: Size, cache: Path | None = None
    ) -> None:
        self._images, self._masks, self._size, self._cache = list(images), list(masks), size, cache
        self._map: NDArray[np.uint8] | None = None

    @classmethod
    def of(cls, table: pd.DataFrame, size: Size, cache: Path | None = None) -> Photographs:
        """The photographs of a case table."""
        return cls(table["image"].tolist(), [m if isinstance(m, str) else None for m in table["mask"]], size, cache)

    def __len__(self) -> int:
        return len(self._images)

    def has_mask(self, row: int) -> bool:
        """Whether the photograph has a mask; where not, `read` gives zeros for it."""
        return self._masks[row] is not None

    def read(self, row: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Image (H, W, 3) and mask (H, W), uint8, arrays of the caller's own."""
        if self._cache is None:
            return self._decode(row)
        if self._map is None:  # opened in each worker: the pages are shared, and nothing large is ever pickled
            self._map = np.load(self._cache, mmap_mode="r")
        pixels = self._map[row]
        return np.ascontiguousarray(pixels[..., :3]), np.ascontiguousarray(pixels[..., 3])

    def _decode(self, row: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        path = self._masks[row]
        image = read_image(Path(self._images[row]), has_mask=path is not None)
        if path is None:
            return fit_image(image, self._size), np.zeros(self._size, dtype=np.uint8)
        mask = read_mask(Path(path), size=(image.shape[0], image.shape[1]))
        return fit_image(image, self._size), fit_mask(mask, self._size)

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_map": None}


def get(table: pd.DataFrame, size: Size, root: Path, folder: Path) -> Path | None:
    """The cache file of this table at this size in `folder`, built where it is missing; None where it does not fit.

    Named by a hash of paths under `root`, file sizes, times of change and `size`: a changed photograph makes a new
    file.
    """
    path = folder / f"{_key(table, size, root)}.npy"
    if path.exists():
        return path
    need, free = len(table) * size[0] * size[1] * 4, _free(folder)
    if free < need * SPARE:
        logger.info("no cache: %s needs %.1f GB, %.1f GB are free", folder, need * SPARE / 1e9, free / 1e9)
        return None
    logger.info("decoding %s photographs once, into %s (%.2f GB)", f"{len(table):,}", path, need / 1e9)
    try:
        _build(Photographs.of(table, size), size, path)
    except OSError as error:
        logger.warning("no cache: %s cannot be written (%s)", path, error)
        return None
    return path


def _build(photographs: Photographs, size: Size, path: Path) -> None:
    """Decode all into a file beside `path`, then rename it: `path` is never half a cache."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.", suffix=".tmp")
    try:
        pixels = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=(len(photographs), *size, 4))
        if hasattr(os, "posix_fallocate"):  # a disk that fills up later would kill the process, with no exception
            os.posix_fallocate(handle, 0, os.fstat(handle).st_size)
        _fill(pixels, photographs)
        pixels.flush()
        os.fchmod(handle, 0o644)
        os.replace(temporary, path)
    finally:
        os.close(handle)
        Path(temporary).unlink(missing_ok=True)


def _fill(pixels: NDArray[np.uint8], photographs: Photographs) -> None:
    """Decode into (N, H, W, 4); what cannot be decoded is listed, up to `MOST_FAULTS` of it."""

    def put(row: int) -> SkinmtlError | None:
        try:
            pixels[row, ..., :3], pixels[row, ..., 3] = photographs.read(row)
        except SkinmtlError as fault:
            return fault
        return None

    faults: list[SkinmtlError] = []
    with ThreadPoolExecutor(_cores()) as pool, _progress(len(photographs)) as step:
        for fault in pool.map(put, range(len(photographs))):
            step()
            if fault:
                faults.append(fault)
            if len(faults) == MOST_FAULTS:
                pool.shutdown(cancel_futures=True)
                break
    if faults:
        raise Faults(faults)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def fingerprint(table: pd.DataFrame) -> str:
    """A sha256 over ids, lesions, diagnoses and file sizes: what a run trained on, wherever it lay."""
    lines = [
        [row.image_id, row.lesion_id, str(row.dx), _stat(row.image)[0], _stat(row.mask)[0]]
        for row in table.itertuples(index=False)
    ]
    return hashlib.sha256(json.dumps(lines).encode()).hexdigest()


def _key(table: pd.DataFrame, size: Size, root: Path) -> str:
    files = [[os.path.relpath(path, root), *_stat(path)] for path in [*table["image"], *table["mask"].dropna()]]
    return hashlib.sha256(json.dumps([VERSION, list(size), files]).encode()).hexdigest()[:24]


def _stat(path: object) -> tuple[int, int]:
    """Size in bytes and time of change in ns; (-1, -1) for no file."""
    if not isinstance(path, str):
        return -1, -1
    found = os.stat(path)
    return found.st_size, found.st_mtime_ns


def _free(folder: Path) -> int:
    """Free bytes on the disk that would hold `folder`."""
    there = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    return shutil.disk_usage(there).free


@contextmanager
def _progress(total: int) -> Iterator[Callable[[], None]]:
    """A bar on the terminal's error stream, if it takes longer than a second."""
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    began = time.monotonic()
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("decoding", total=total, visible=False)

        def step() -> None:
            bar.update(task, advance=1, visible=time.monotonic() - began > 1)

        yield step
