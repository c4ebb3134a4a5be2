"""Files written whole or not at all, told apart by a checksum, and held by one process at a time."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from filelock import lock_descriptor


def write_text(path: Path, text: str, durable: bool = True) -> None:
    """Write a text file in UTF-8 so that a reader sees the old one or the whole new one; as `write_bytes`."""
    write_bytes(path, text.encode("utf-8"), durable)


def write_bytes(path: Path, content: bytes, durable: bool = True) -> None:
    """Write a file beside its place and rename it, so that a reader sees the old one or the whole new one.

    Args:
        path: the file; its folder has to exist.
        content: all of it.
        durable: whether it has to be on the disk before it gets its name, so that a loss of power cannot empty it.
            False is for what is soon made again.

    Raises:
        OSError: it could not be written; what was there before is as it was.
    """
    temp = temporary(path)
    try:
        with temp.open("xb") as file:
            file.write(content)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        temp.replace(path)
    finally:
        temp.unlink(missing_ok=True)


def write_json(path: Path, value: object) -> None:
    """Write plain values as JSON, one a line; not a number, which JSON does not know, is a ValueError."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def temporary(path: Path) -> Path:
    """Name a new file beside `path`, for what gets that name when it is whole: `.<name>.<8 digits>.tmp`."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


def sync_folder(folder: Path) -> None:
    """Make the renames in a folder last through a loss of power."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems sync no folders
            raise
    finally:
        os.close(handle)


def digest(file: Path | BinaryIO, kind: str = "sha256") -> str:
    """Compute the checksum of all that stands in a file, in hexadecimal.

    Args:
        file: a path, or a file opened for reading in binary, which is left at its end.
        kind: a name that hashlib knows, such as "md5".
    """
    if isinstance(file, Path):
        with file.open("rb") as opened:
            return digest(opened, kind)
    file.seek(0)
    return hashlib.file_digest(file, kind).hexdigest()  # type: ignore[arg-type]  # any file opened in binary is one


@contextmanager
def locked(path: Path, patience: float = 0.0) -> Iterator[None]:
    """Hold a file or a folder for this process; it is free again when this ends, however the process ends.

    The lock is on the file itself: nothing is written, so a folder that may only be read can be held, too.

    Args:
        path: what is there already.
        patience: seconds to wait for another process.

    Raises:
        BlockingIOError: another process holds it.
        OSError: it cannot be opened, or its file system knows no locks.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        until = time.monotonic() + patience
        while not lock_descriptor(handle, blocking=False):
            if time.monotonic() >= until:
                raise BlockingIOError(errno.EWOULDBLOCK, "another process holds it", str(path))
            time.sleep(min(0.05, patience))
        yield
    finally:
        os.close(handle)
