"""The file of the cache: records, their checksums, and a claim to build it that ends with its process.

A .npy of one record per image: `image` (H, W, 3), `mask` (H, W) and `check`.
"""

from __future__ import annotations

import io
import logging
import os
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from filelock import lock_descriptor
from numpy.typing import NDArray

from skinmtl.data.images.reading import Size
from skinmtl.files import locked

logger = logging.getLogger(__name__)

LANES = 1021  # a prime, so that no block of a disk lies a whole number of rows from another
PROBES = 32  # records looked at when a file is opened; the others are looked at as they are read

Records = NDArray[np.void]  # (N,)


def record(size: Size) -> np.dtype[np.void]:
    """Describe what is kept of one image at `size`, (height, width), as a NumPy type."""
    return np.dtype([("image", "u1", (*size, 3)), ("mask", "u1", size), ("check", "<u4")])


def header(count: int, size: Size) -> bytes:
    """Give the bytes that a .npy file of `count` records at `size` begins with."""
    file = io.BytesIO()
    layout: dict[str, Any] = {"descr": record(size).descr, "fortran_order": False, "shape": (count,)}
    np.lib.format.write_array_header_1_0(file, layout)
    return file.getvalue()


def open_records(path: Path, count: int, size: Size) -> Records | None:
    """Map the records of a cache file. Its header is compared, not read: nothing that stands in it is believed.

    Args:
        path: the file.
        count: how many records it has to have.
        size: (height, width) of each.

    Returns:
        (count,) records, not to be written to; None where the file is gone, or broken as far as a look at 32 of them
        shows.
    """
    begin, each = header(count, size), record(size)
    try:
        with path.open("rb") as file:
            begins, length = file.read(len(begin)), os.fstat(file.fileno()).st_size
            if begins != begin or length != len(begin) + count * each.itemsize:
                return None
            records: Records = np.memmap(file, each, "r", len(begin), (count,)).view(np.ndarray)
    except OSError:
        return None
    probes = {*range(0, count, max(1, count // PROBES)), count - 1}
    return records if all(is_sound(records, row) for row in probes) else None


def checksum(records: Records, row: int) -> int:
    """Compute a record's checksum: a CRC over the sums of every `LANES`th 32-bit word and over the words left.

    Five times as fast as a CRC over all, and not blind to order as a sum is: a disk's blocks that changed places show.
    """
    words = records[row : row + 1].view("<u4")[:-1]
    full = len(words) // LANES * LANES
    sums = np.add.reduce(words[:full].reshape(-1, LANES), axis=0, dtype=np.uint32)
    return zlib.crc32(words[full:].tobytes(), zlib.crc32(sums.tobytes()))


def is_sound(records: Records, row: int) -> bool:
    """Say whether the pixels of a record are those that were written."""
    return checksum(records, row) == int(records["check"][row])


def claim(temporary: Path) -> int:
    """Open a file to build it in, and wait for whoever builds it already.

    Returns:
        A handle; no other process has the claim until it is closed, or the process ends.
    """
    while True:
        handle = os.open(temporary, os.O_RDWR | os.O_CREAT, 0o644)
        if not lock_descriptor(handle, blocking=False):
            logger.info("waiting for another process that builds %s", temporary)
            lock_descriptor(handle)
        if is_at(handle, temporary):
            return handle
        os.close(handle)  # renamed or removed while we waited


def is_at(handle: int, path: Path) -> bool:
    """Say whether a path still names an open file."""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


def sweep(folder: Path) -> None:
    """Remove the unfinished files of processes that are no more."""
    for temporary in folder.glob(".*.tmp"):
        with suppress(OSError), locked(temporary):  # else claimed, removed meanwhile, or another user's
            temporary.unlink()
