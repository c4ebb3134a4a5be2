"""The files of a folder, links and all, each of them once."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from skinmtl.data.prepare.names import is_clutter, is_picture, is_table
from skinmtl.errors import Faults, InputError, SkinmtlError

Identity = tuple[int, int]  # device and inode of a file or folder


def walk(root: Path) -> Iterator[Path]:
    """List every file below a folder once, by name. Links are followed, each folder is entered once: circles end.

    A link to a file that lies below `root` itself is passed over.

    Raises:
        Faults: every folder that cannot be listed, every image or table that cannot be read.
    """
    files: list[Path] = []
    links: list[tuple[Identity, Path]] = []
    inodes: set[Identity] = set()
    seen: set[Identity] = set()
    faults: list[SkinmtlError] = []
    left = [root]
    while left:
        folder = left.pop()
        try:
            here = _identity(folder)
            entries = [] if here in seen else _entries(folder)
        except OSError as error:
            faults.append(InputError(str(folder), f"cannot be listed ({error.strerror})", "make it readable"))
            continue
        seen.add(here)
        for entry in entries:
            match _kind(entry):
                case "folder":
                    left.append(Path(entry.path))
                case "file":
                    inodes.add((here[0], entry.inode()))
                    files.append(Path(entry.path))
                case "link":
                    links.append((_identity(Path(entry.path)), Path(entry.path)))
                case what if is_picture(entry.name) or is_table(entry.name):
                    faults.append(InputError(entry.path, what, "replace it with the file"))
    files += _once(links, inodes)
    faults += _unreadable(files)
    if faults:
        raise Faults(sorted(faults, key=lambda fault: fault.where))
    yield from sorted(files)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as found:
        return [entry for entry in found if not entry.name.startswith(".") and not is_clutter(entry.name)]


def _kind(entry: os.DirEntry[str]) -> str:
    """folder, file, link (to a file), or what is wrong with it."""
    try:
        if entry.is_dir():
            return "folder"
        if entry.is_file():
            return "link" if entry.is_symlink() else "file"
    except OSError:  # a link in a circle of links
        pass
    return "a link to nowhere" if entry.is_symlink() else "not a file"


def _once(links: Iterable[tuple[Identity, Path]], known: set[Identity]) -> Iterator[Path]:
    for identity, path in sorted(links, key=lambda link: link[1]):
        if identity not in known:
            known.add(identity)
            yield path


def _unreadable(files: Iterable[Path]) -> Iterator[SkinmtlError]:
    for file in files:
        if (is_picture(file.name) or is_table(file.name)) and not os.access(file, os.R_OK):
            yield InputError(str(file), "cannot be read", "make it readable")


def _identity(path: Path) -> Identity:
    found = os.stat(path)
    return found.st_dev, found.st_ino
