"""Names of files from elsewhere: which of them may become a file here, and what a name says of its file."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

from skinmtl.data.images.formats import DATASET_ENDINGS
from skinmtl.errors import InputError

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
TABLES = (".csv", ".tab")
BARE_TABLES = ("HAM10000_metadata",)  # published without an ending for years
OURS = re.compile(r"(^|/)(HAM10000|ISIC|SYN_)|GroundTruth|LesionGroupings", re.IGNORECASE)
FRESH = "get the archive again"


def is_archive(name: str) -> bool:
    """Say whether a file's name is that of a zip or tar file."""
    return name.lower().endswith(SUFFIXES)


def stem(name: str) -> str:
    """Take an archive's name without what makes it one."""
    ending = max((suffix for suffix in SUFFIXES if name.lower().endswith(suffix)), key=len, default="")
    return name[: len(name) - len(ending)]


def is_picture(name: str) -> bool:
    """Say whether a file is an image or a mask, by its name."""
    return name.lower().endswith(DATASET_ENDINGS)


def is_table(name: str) -> bool:
    """Say whether a file is a table, by its name."""
    return name.lower().endswith(TABLES) or name in BARE_TABLES


def is_ours(name: str) -> bool:
    """Say whether a path in an archive is that of a file of HAM10000, ISIC 2018, or of our synthetic data."""
    in_it = is_picture(name) or is_table(name.rpartition("/")[2]) or is_archive(name)
    return in_it and OURS.search(name) is not None


def checked_name(name: str, where: Path) -> str:
    """Check the name of an archive's member.

    Args:
        name: as the archive has it.
        where: the archive, for what is said of it.

    Returns:
        A relative path with `/`, without `.`; empty for the archive's own root.

    Raises:
        InputError: it leads out of the folder, or cannot be a file's name everywhere.
    """
    parts = [part for part in name.removesuffix("/").split("/") if part != "."]
    if name.startswith("/") or re.match(r"[A-Za-z]:", name) or "\\" in name or ".." in parts:
        raise InputError(f"{where}: {shown(name)}", "a name that leads out of the archive", FRESH)
    long = any(len(part.encode("utf-8", "surrogateescape")) > 255 for part in parts)
    if long or len(name) > 1024 or "" in parts[:-1] or any(unicodedata.category(c) in ("Cc", "Cs") for c in name):
        raise InputError(f"{where}: {shown(name)}", "not a name for a file", FRESH)
    return "/".join(parts)


def is_clutter(name: str) -> bool:
    """Say whether a path is something that a Mac or Windows adds and nobody means."""
    parts = name.split("/")
    return "__MACOSX" in parts or parts[-1].startswith("._") or parts[-1] in (".DS_Store", "Thumbs.db", "desktop.ini")


def folded(name: str) -> str:
    """Spell a name as a disk compares it that overlooks case and how accents are written."""
    return unicodedata.normalize("NFC", name).casefold()


def shown(name: str) -> str:
    """Spell a name for a message: on one line, and not too long."""
    return ascii(name)[1:-1][:120]
