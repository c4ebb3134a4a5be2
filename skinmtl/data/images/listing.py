"""Images to predict: those among files and folders that a user names, and why the other files are skipped."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from skinmtl.data.images.formats import (
    ENDINGS,
    UNSUPPORTED_ENDINGS,
    is_image,
    other_kind,
    read_head,
    unsupported_kind,
)
from skinmtl.errors import InputError
from skinmtl.terminal import first


class FoundImages(NamedTuple):
    """The images to predict, in order, and what was skipped: each file's name within its folder, and why."""

    images: list[Path]
    skipped: list[tuple[str, str]]


def list_images(paths: Sequence[Path]) -> FoundImages:
    """Collect the images among files and folders, each once.

    Args:
        paths: files, which are taken as they are given, and folders, whose images are taken in order of name.

    Returns:
        The images, among them those that cannot be read, for prediction names them; and what else is in the folders.

    Raises:
        InputError: no image is there, or two would have one name.
    """
    found: dict[Path, Path] = {}
    skipped: list[tuple[str, str]] = []
    for path in paths:
        for file, why in _candidates(path):
            if why is None:
                found.setdefault(file.parent.resolve() / file.name, file)  # a link has a name, and so a row, of its own
            else:
                skipped.append((f"{printable_name(file.name)}/" if file.is_dir() else printable_name(file.name), why))
    images = list(found.values())
    if not images:
        what = "no image there"
        if skipped:
            what += f", but {summarise_skipped(skipped)}"
        raise InputError(", ".join(map(str, paths)), what, f"give files such as {', '.join(ENDINGS)}")
    # The names of what is written; some systems do not tell A from a.
    names = Counter(path.stem.casefold() for path in images)
    if twice := sorted(path.name for path in images if names[path.stem.casefold()] > 1):
        what = "have one name but for their ending or folder, and so would what is written"
        fix = "rename them, or predict them in calls of their own, each with --out"
        raise InputError(first(twice, 4), what, fix)
    return FoundImages(images, skipped)


def unsupported_format(path: Path) -> InputError | None:
    """Return the error for an image in a format that is not read here; None for everything else.

    Args:
        path: the file, which need not be readable.
    """
    head = read_head(path)
    kind = unsupported_kind(head) or UNSUPPORTED_ENDINGS.get(path.suffix.lower())
    if kind is None or (is_image(head) and kind != "raw"):  # many raw formats are TIFF, with a thumbnail to be read
        return None
    return InputError(str(path), f"a {kind} image, which is not read here", "save it as JPEG or PNG")


def printable_name(name: str) -> str:
    """Write a file's name so that a table can hold it, whatever its bytes.

    Args:
        name: as the system gives it; what is no UTF-8 is escaped.
    """
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def summarise_skipped(skipped: Sequence[tuple[str, str]], most: int = 6) -> str:
    """Name some of what was skipped in a line, and count the rest.

    Args:
        skipped: names and reasons.
        most: how many are named.
    """
    return first((f"{name!r} ({why})" for name, why in skipped), most)


def _candidates(path: Path) -> Iterator[tuple[Path, str | None]]:
    """Yield a path, or what is in a folder, each with why it is skipped; None for what is to be predicted."""
    if not path.is_dir():
        yield path, None
        return
    for file in sorted(path.iterdir()):
        yield file, _reason_to_skip(file)


def _reason_to_skip(file: Path) -> str | None:
    """Say why a file in a folder is no image; None for an image, and for what claims to be one."""
    if file.name.startswith("."):
        return "hidden"
    if file.suffix.lower() in (*ENDINGS, *UNSUPPORTED_ENDINGS):
        return None
    if file.is_dir():
        return "a folder; give it by its name"
    if not file.is_file():
        return "no file"
    head = read_head(file)
    if is_image(head) or unsupported_kind(head) is not None:
        return None
    if not head:
        return "empty, or not to be read"
    return other_kind(head) or "no image"
