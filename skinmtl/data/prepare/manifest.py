"""`manifest.csv`: every file below a folder, its size and its sha256, so that a changed byte is found."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from skinmtl.errors import InputError, SkinmtlError
from skinmtl.files import write_text

NAME = "manifest.csv"
HEADER = ["path", "bytes", "sha256"]


class Sum(NamedTuple):
    """A file's size in bytes and its sha256 in hexadecimal."""

    bytes: int
    sha256: str


def write(root: Path, sums: Mapping[str, Sum]) -> None:
    """Write a folder's manifest, whole or not at all.

    Args:
        root: the folder.
        sums: size and sha256 of each file, by its path below `root`, with `/`.
    """
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(HEADER)
    rows.writerows((path, *found) for path, found in sorted(sums.items()))
    write_text(root / NAME, text.getvalue())


def read(root: Path) -> dict[str, Sum]:
    """Read a folder's manifest, as `write` takes it.

    Raises:
        InputError: it cannot be read as one.
    """
    path = root / NAME
    try:
        with path.open(encoding="utf-8", newline="") as file:
            header, *rows = csv.reader(file, strict=True)
        if header != HEADER:
            raise ValueError(f"its header is not {','.join(HEADER)}")
        return {name: Sum(int(size), digest) for name, size, digest in rows}
    except (OSError, ValueError, csv.Error) as error:
        what = " ".join(f"not a manifest ({error})".split())
        raise InputError(str(path), what, "restore it, or remove it and check without it") from error


def faults(root: Path, expected: Mapping[str, Sum], found: Mapping[str, Sum]) -> Iterator[tuple[str, SkinmtlError]]:
    """Name each file that changed, is missing or is new.

    Args:
        root: the folder.
        expected: what its manifest says.
        found: what is there now.

    Yields:
        Its path below `root`, and what is wrong.
    """
    for path in sorted(expected.keys() | found.keys()):
        before, now = expected.get(path), found.get(path)
        if before == now:
            continue
        if now is None:
            yield path, InputError(str(root / path), f"missing, and in {NAME}", "restore it")
        elif before is None:
            yield path, InputError(str(root / path), f"not in {NAME}", "remove it")
        else:
            how = "its size" if before.bytes != now.bytes else "a byte of it"
            yield path, InputError(str(root / path), f"{how} changed since {NAME} was written", "restore it")
