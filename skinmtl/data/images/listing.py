"""Which files of a folder are photographs, and what the others are, by their endings and else by their content."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from skinmtl.errors import InputError
from skinmtl.terminal import first

ENDINGS = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".tif", ".tiff", ".webp")
# Pictures that are not read here, for nobody said what their pixels should look like: named, never passed over.
FOREIGN = {
    "HEIC": (".heic", ".heif", ".hif"),
    "AVIF": (".avif",),
    "GIF": (".gif",),
    "JPEG 2000": (".jp2", ".j2k", ".jpf", ".jpx"),
    "JPEG XL": (".jxl",),
    "raw": (".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2", ".pef", ".srw"),
    "Photoshop": (".psd", ".psb"),
    "SVG": (".svg",),
    "DICOM": (".dcm", ".dicom"),
}
FOREIGN_ENDINGS = {ending: kind for kind, endings in FOREIGN.items() for ending in endings}
# How files begin, at which byte.
PICTURES = ((0, b"\xff\xd8\xff"), (0, b"\x89PNG\r\n\x1a\n"), (0, b"II*\0"), (0, b"MM\0*"), (8, b"WEBP"))
FOREIGN_BEGINNINGS = (
    *((4, b"ftyp" + brand, "HEIC") for brand in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1")),
    *((4, b"ftyp" + brand, "AVIF") for brand in (b"avif", b"avis")),
    (0, b"GIF8", "GIF"),
    (4, b"jP  ", "JPEG 2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000"),
    (4, b"JXL ", "JPEG XL"),
    (0, b"\xff\x0a", "JPEG XL"),
    (0, b"8BPS", "Photoshop"),
    (128, b"DICM", "DICOM"),
)
OTHERS = (
    (0, b"%PDF", "a PDF"),
    *((0, start, "an archive") for start in (b"PK\3\4", b"\x1f\x8b", b"7z\xbc\xaf", b"Rar!", b"BZh", b"\xfd7zXZ")),
    (257, b"ustar", "an archive"),
)
BMP_HEADERS = (12, 16, 40, 52, 56, 64, 108, 124)  # bytes; two letters alone begin many a text


class Listing(NamedTuple):
    """What to predict, in order; and what was passed over, each by its name within its folder and why."""

    photographs: list[Path]
    passed_over: list[tuple[str, str]]


def listed(paths: Sequence[Path]) -> Listing:
    """Files as given, each once; of folders the photographs in them, in order of name, and what else lies there.

    Pictures that cannot be read are among the photographs: they are to be named as such.

    Raises:
        InputError: no photograph is there, or two would have one name.
    """
    found: dict[Path, Path] = {}
    passed_over: list[tuple[str, str]] = []
    for path in paths:
        for file, why in _looked_at(path):
            if why is None:
                found.setdefault(file.parent.resolve() / file.name, file)  # a link has a name, and so a row, of its own
            else:
                passed_over.append((f"{shown(file.name)}/" if file.is_dir() else shown(file.name), why))
    photographs = list(found.values())
    if not photographs:
        what = "no photograph there"
        if passed_over:
            what += f", but {some(passed_over)}"
        raise InputError(", ".join(map(str, paths)), what, f"give files such as {', '.join(ENDINGS)}")
    # The names of what is written; some systems do not tell A from a.
    names = Counter(path.stem.casefold() for path in photographs)
    if twice := sorted(path.name for path in photographs if names[path.stem.casefold()] > 1):
        what = "have one name but for their ending or folder, and so would what is written"
        fix = "rename them, or predict them in calls of their own, each with --out"
        raise InputError(first(twice, 4), what, fix)
    return Listing(photographs, passed_over)


def foreign(path: Path) -> InputError | None:
    """What to say of a picture in a format that is not read here; None for everything else."""
    head = _head(path)
    kind = _foreign_beginning(head) or FOREIGN_ENDINGS.get(path.suffix.lower())
    if kind is None or (_is_picture(head) and kind != "raw"):  # many raw formats are TIFF, with a thumbnail to be read
        return None
    return InputError(str(path), f"a {kind} picture, which is not read here", "save it as JPEG or PNG")


def shown(name: str) -> str:
    """A file's name as a table can hold it, whatever its bytes."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def some(passed_over: Sequence[tuple[str, str]], most: int = 6) -> str:
    """A few of what was passed over in a line, and how many more there are."""
    return first((f"{name!r} ({why})" for name, why in passed_over), most)


def _looked_at(path: Path) -> Iterator[tuple[Path, str | None]]:
    """A path, or what lies in a folder, each with why it is passed over; None for what is to be predicted."""
    if not path.is_dir():
        yield path, None
        return
    for file in sorted(path.iterdir()):
        yield file, _why_not(file)


def _why_not(file: Path) -> str | None:
    """Why a file in a folder is no photograph; None for one, or for what claims to be one."""
    if file.name.startswith("."):
        return "hidden"
    if file.suffix.lower() in (*ENDINGS, *FOREIGN_ENDINGS):
        return None
    if file.is_dir():
        return "a folder; give it by its name"
    if not file.is_file():
        return "no file"
    head = _head(file)
    if _is_picture(head) or _foreign_beginning(head) is not None:
        return None
    if not head:
        return "empty, or not to be read"
    return next((what for place, start, what in OTHERS if head.startswith(start, place)), "no picture")


def _head(file: Path) -> bytes:
    """The first bytes of a regular file, as many as tell; none where it cannot be read."""
    try:
        if not file.is_file():  # opening a pipe would wait for ever
            return b""
        with file.open("rb") as content:
            return content.read(264)
    except OSError:
        return b""


def _is_picture(head: bytes) -> bool:
    bmp = head.startswith(b"BM") and int.from_bytes(head[14:18], "little") in BMP_HEADERS
    return bmp or any(head.startswith(start, place) for place, start in PICTURES)


def _foreign_beginning(head: bytes) -> str | None:
    return next((kind for place, start, kind in FOREIGN_BEGINNINGS if head.startswith(start, place)), None)
