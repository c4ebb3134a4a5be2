"""A cache of images and masks: decoded once, at training size, in one file that all workers and runs share."""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import PIL
from numpy.typing import NDArray
from PIL import features

from skinmtl.data.cache_file import Records, checksum, claim, header, is_at, is_sound, open_records, record, sweep
from skinmtl.data.file_hashes import COLUMNS, with_digests
from skinmtl.data.images import icc_profiles, jpeg, reading
from skinmtl.data.images.reading import Size, read_fitted, read_pair
from skinmtl.data.mask_classes import BINARY, MaskClasses
from skinmtl.errors import Faults, SkinmtlError
from skinmtl.files import digest
from skinmtl.terminal import tracked

logger = logging.getLogger(__name__)

SPARE = 1.2  # of the file's size has to be free on the disk
BY_CONTENT = "v2-"  # begins a fingerprint that knows what stands in files; one without it knows their sizes
MOST_FAULTS = 50  # unreadable images to list before giving up


class Images:
    """Images and their masks at network size, by row of the case table.

    Decoded at each call, or read from a cache file; the pixels are the same. A file that has gone, or whose pixels are
    no longer what was written, is given up for decoding, with a warning.

    Args:
        images: paths, one a row.
        masks: paths, one a row; None for an image without a mask.
        size: (height, width) in pixels.
        cache: a file of `get`; None decodes at each call.
        mask_classes: what is told apart in a mask.
    """

    def __init__(
        self,
        images: Sequence[str],
        masks: Sequence[str | None],
        size: Size,
        cache: Path | None = None,
        mask_classes: MaskClasses = BINARY,
    ) -> None:
        self._images, self._masks, self._size, self._cache = list(images), list(masks), size, cache
        self._mask_classes = mask_classes
        # An array, not the list: to look at a Python object writes to its count, and a forked worker copies that page.
        self._has_mask = np.array([mask is not None for mask in masks], dtype=bool)
        self._records: Records | None = None

    @classmethod
    def of(
        cls, table: pd.DataFrame, size: Size, cache: Path | None = None, mask_classes: MaskClasses = BINARY
    ) -> Images:
        """Take the images and masks of a case table; the other arguments are the constructor's."""
        masks = [mask if isinstance(mask, str) else None for mask in table["mask"]]
        return cls(table["image"].tolist(), masks, size, cache, mask_classes)

    def __len__(self) -> int:
        return len(self._images)

    def name(self, row: int) -> str:
        """Name the file of a row's image."""
        return self._images[row]

    def has_mask(self, row: int) -> bool:
        """Say whether a row has a mask; where not, `read` gives zeros for it."""
        return bool(self._has_mask[row])

    def read(self, row: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Read a row.

        Returns:
            The image, (H, W, 3) uint8 RGB, and the mask, (H, W) uint8 of indices into the mask classes; neither is to
            be written to, for they may be the file itself.

        Raises:
            InputError: a file that cannot be decoded.
        """
        if self._cache is not None and self._records is None:  # opened in each worker; nothing large is ever pickled
            self._records = open_records(self._cache, len(self), self._size)
            if self._records is None:
                self._give_up("is gone, or is no cache of these images")
        if self._records is not None:
            if is_sound(self._records, row):
                return self._records["image"][row], self._records["mask"][row]
            self._give_up(f"was damaged after it had been written (row {row})")
        return read_fitted(self._images[row], self._masks[row], self._size, self._mask_classes)

    def _give_up(self, what: str) -> None:
        logger.warning("the cache %s %s: images are decoded instead, the next run builds it anew", self._cache, what)
        assert self._cache is not None
        with suppress(OSError):
            self._cache.unlink()
        self._cache = self._records = None

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_records": None}


def get(table: pd.DataFrame, size: Size, folder: Path, mask_classes: MaskClasses = BINARY) -> Path | None:
    """Find the cache file of a table, and build it where it is missing.

    Named by two hashes: of the images' places, `size` and the mask classes, and of what stands in the files and
    the code that decodes. One that is broken, or stale (the first hash alone is the same), is built anew.

    Args:
        table: a case table.
        size: (height, width) in pixels.
        folder: where caches are kept.
        mask_classes: what is told apart in a mask.

    Returns:
        The file; None where there is no room for it or it cannot be written, which the log says.

    Raises:
        Faults: images or masks that cannot be decoded; there is no file then.
    """
    table = with_digests(table, folder)
    images = Images.of(table, size, mask_classes=mask_classes)
    derived = [type(mask_classes).__qualname__, str(sorted(vars(mask_classes).items()))]
    place = _digest([size, table["image"].tolist(), images._masks, derived])[:16]
    path = folder / f"{place}-{_digest([_code(mask_classes), *_contents(table)])[:16]}.npy"
    if open_records(path, len(table), size) is not None:
        return path
    if path.exists():
        logger.warning("the cache %s is broken: it is built anew", path)
    if stale := [old for old in folder.glob(f"{place}-*.npy") if old != path]:
        logger.info("the cache %s is stale, for images or the code have changed: it is built anew", stale[0])
    need, free = len(table) * record(size).itemsize, _free(folder)
    if free < need * SPARE:
        logger.info("no cache: %s needs %.1f GB, %.1f GB are free", folder, need * SPARE / 1e9, free / 1e9)
        return None
    try:
        _build(images, size, path)
        for old in stale:
            old.unlink(missing_ok=True)
    except OSError as error:
        logger.warning("no cache: %s cannot be written (%s)", path, error)
        return None
    return path


def _build(images: Images, size: Size, path: Path) -> None:
    """Decode all into a file beside `path`, then rename it: `path` is never half a cache.

    Another process that builds the same is waited for; what killed ones left is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep(path.parent)
    temporary = path.with_name(f".{path.stem}.tmp")
    handle = claim(temporary)
    try:
        if open_records(path, len(images), size) is not None:
            return
        begin = header(len(images), size)
        length = len(begin) + len(images) * record(size).itemsize
        logger.info("decoding %s images once, into %s (%.2f GB)", f"{len(images):,}", path, length / 1e9)
        os.truncate(handle, 0)
        if hasattr(os, "posix_fallocate"):  # a disk that fills up later would kill the process, with no exception
            os.posix_fallocate(handle, 0, length)
        os.truncate(handle, length)
        os.pwrite(handle, begin, 0)
        mapped = np.memmap(temporary, record(size), "r+", len(begin), (len(images),))
        _fill(mapped.view(np.ndarray), images)
        _say_inverted(_holds_corners(mapped["mask"]), int(images._has_mask.sum()))
        mapped.flush()
        os.fsync(handle)
        os.replace(temporary, path)
    finally:
        if is_at(handle, temporary):  # else it is the cache now
            temporary.unlink()
        os.close(handle)


def check(table: pd.DataFrame, folder: Path) -> None:
    """Decode every image with its mask, where no cache did: what training or evaluation could not read is named.

    Done once: an empty file in `folder`, named by what stands in the files, says that they could be decoded.

    Args:
        table: a case table.
        folder: where caches are kept.

    Raises:
        Faults: images or masks that cannot be decoded.
    """
    table = with_digests(table, folder)
    done = folder / f"decoded-{_digest([_code(BINARY), *_contents(table)])[:16]}"
    if os.path.exists(done):
        return
    logger.info("decoding %s images once, to see that all can be read", f"{len(table):,}")
    pairs = list(zip(table["image"], table["mask"], strict=True))
    held = np.zeros(len(pairs), dtype=bool)

    def read(row: int) -> None:
        mask = read_pair(*pairs[row])[1]
        held[row] = mask is not None and bool(_holds_corners(mask))

    _each(len(pairs), read)
    _say_inverted(held, int(table["mask"].notna().sum()))
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        done.touch()


def _holds_corners(masks: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Whether all four corners of masks (..., H, W) are lesion, (...)."""
    corners: NDArray[np.bool_] = np.all(masks[..., [0, 0, -1, -1], [0, -1, 0, -1]] > 0, axis=-1)
    return corners


def _say_inverted(held: NDArray[np.bool_], masks: int) -> None:
    """Warn where most masks hold all four corners of their images, as skin does and a lesion seldom."""
    if 2 * (count := int(held.sum())) > masks:
        what = "%s of %s masks hold all four corners of their image: is white (255, or 1) the lesion, not the skin?"
        logger.warning(what, f"{count:,}", f"{masks:,}")


def _fill(records: Records, images: Images) -> None:
    """Decode into the records; as `_each`."""

    def put(row: int) -> None:
        records["image"][row], records["mask"][row] = images.read(row)
        records["check"][row] = checksum(records, row)

    _each(len(images), put)


def _each(count: int, decode: Callable[[int], object]) -> None:
    """Decode row by row, on all cores; what cannot be decoded is listed, up to `MOST_FAULTS` of it."""

    def tried(row: int) -> SkinmtlError | None:
        try:
            decode(row)
        except SkinmtlError as fault:
            return fault
        return None

    faults: list[SkinmtlError] = []
    with ThreadPoolExecutor(_cores()) as pool:
        for fault in tracked(pool.map(tried, range(count)), "decoding", count):
            if fault:
                faults.append(fault)
            if len(faults) == MOST_FAULTS:
                pool.shutdown(cancel_futures=True)
                break
    if faults:
        raise Faults(faults)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def fingerprint(table: pd.DataFrame, folder: Path | None = None) -> str:
    """Compute what tells one data set from another, wherever it lies, from ids, lesions, diagnoses and bytes of files.

    Args:
        table: a case table.
        folder: where it is kept what stands in files, as `file_hashes.with_digests` has it.

    Returns:
        `v2-` and a sha256 in hexadecimal.
    """
    columns = [*_known(table), *_contents(with_digests(table, folder))]
    return f"{BY_CONTENT}{_digest(list(map(list, zip(*columns, strict=True))))}"


def is_of(kept: str, table: pd.DataFrame, folder: Path | None = None) -> bool:
    """Say whether a kept fingerprint is that of a table; an older one, without `v2-`, knows files by their sizes alone.

    Args:
        kept: what `fingerprint` gave, in this version or in one before.
        table: a case table.
        folder: as `fingerprint` has it.
    """
    if kept.startswith(BY_CONTENT):
        return kept == fingerprint(table, folder)
    sizes = ([_size(path) for path in table[name].tolist()] for name in ("image", "mask"))
    same = kept == _digest(list(map(list, zip(*_known(table), *sizes, strict=True))))
    if same:
        logger.warning("the data hash %s is of an older version: files are compared by size, not by content", kept[:12])
    return same


def _known(table: pd.DataFrame) -> list[list[str]]:
    return [table["image_id"].tolist(), table["lesion_id"].tolist(), list(map(str, table["dx"].tolist()))]


def _contents(table: pd.DataFrame) -> list[list[str | None]]:
    """The sha256 of every image's file, and of every mask's; None for no file."""
    return [[sha if isinstance(sha, str) else None for sha in table[name]] for name in COLUMNS.values()]


def _size(path: object) -> int:
    if isinstance(path, str):
        with suppress(OSError):
            return os.stat(path).st_size
    return -1


def _code(mask_classes: MaskClasses) -> list[object]:
    """What the pixels depend on beside the files: our decoding, the mask classes, and the packages that both call."""
    files = reading.__file__, jpeg.__file__, icc_profiles.__file__, inspect.getfile(type(mask_classes))
    sources = [digest(Path(file)) for file in files]
    return [*sources, cv2.__version__, PIL.__version__, features.version("littlecms2")]


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def _free(folder: Path) -> int:
    """Free bytes on the disk that would hold `folder`."""
    there = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    return shutil.disk_usage(there).free
