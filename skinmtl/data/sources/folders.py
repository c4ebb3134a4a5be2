"""Photographs and masks by their ids: one listing per folder, for a look at each file costs minutes on a slow disk."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from skinmtl.data.sources.tables import most, shown
from skinmtl.errors import InputError, SkinmtlError

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
MASK_ENDINGS = ("", "_segmentation", "_mask")  # of a mask's name, between its photograph's id and .png
NAMES_OF_MASKS = "<id>.png, <id>_segmentation.png or <id>_mask.png"
PICTURES = (*IMAGE_SUFFIXES, ".bmp", ".gif", ".tif", ".tiff", ".webp")
ALSO_PICTURES = (".jpe", ".jfif", ".heic", ".heif", ".hif", ".avif", ".jp2", ".dng", ".dcm")  # of photographs


def named(root: Path, name: str) -> list[Path]:
    """Folders in `root` of this name, in any case."""
    return [folder for folder in parts(root, name) if folder.name.lower() == name.lower()]


def parts(root: Path, name: str) -> list[Path]:
    """Folders in `root` whose names begin with `name`, in any case.

    After each comes the folder of the same name within it, where unpacking has made one.
    """
    found = (root / part for part in _names(root) if part.lower().startswith(name.lower()))
    return [folder for part in found if part.is_dir() for folder in (part, *_inner(part))]


def _inner(folder: Path) -> list[Path]:
    named = (folder / name for name in _names(folder) if name.lower() == folder.name.lower())
    return [inner for inner in named if inner.is_dir()]


def photographs(folders: Sequence[Path], where: Path) -> tuple[dict[str, str], list[SkinmtlError]]:
    """Paths of photographs by id, the name without its suffix, and a fault for each id that lies there twice.

    A second copy of a folder, within the first or spelt in another case, as some downloads have it, is no fault.
    What else lies there is left out, and counted in the log. Where there is none at all, the fault is at `where`.
    """
    found: dict[str, str] = {}
    faults: list[SkinmtlError] = []
    copies = 0
    others: Counter[str] = Counter()
    for stem, suffix, path in _listing(folders):
        if suffix not in IMAGE_SUFFIXES:
            if Path(path) not in folders:
                others["folders" if os.path.isdir(path) else suffix or "files without an ending"] += 1
            continue
        first = found.setdefault(stem, path)
        if first == path:
            continue
        if _is_copy(path, first):
            copies += 1
        else:
            faults.append(InputError(path, f"the photograph {shown(stem)} is also {first}", "keep one of them"))
    if copies:
        logger.info("%s photographs lie there again in a second copy of their folder", f"{copies:,}")
    left = ", ".join(f"{count:,} {shown(kind)}" for kind, count in others.most_common())
    if left:
        level = logging.INFO if others.keys().isdisjoint((*PICTURES, *ALSO_PICTURES)) else logging.WARNING
        logger.log(level, "%s: left out, for photographs are %s here: %s", where, ", ".join(IMAGE_SUFFIXES), left)
    if not found:
        there = f", but {left}" if left else ""
        fix = f"unpack the images there, as {', '.join(IMAGE_SUFFIXES)}"
        faults.append(InputError(str(where), f"no photographs here{there}", fix))
    return found, most(faults)


def masks(folders: Sequence[Path], images: Mapping[str, str]) -> tuple[dict[str, str], list[SkinmtlError]]:
    """Paths of masks by the id of their photograph: `<id>.png`, `<id>_segmentation.png` or `<id>_mask.png`.

    Files that belong to no photograph are counted in the log, with a warning where there are photographs without a
    mask. It is a fault when two belong to one, or when none of them belongs to any: a photograph without a
    mask is allowed, so a wrong ending would pass for missing masks.
    """
    found: dict[str, str] = {}
    strays: list[str] = []
    faults: list[SkinmtlError] = []
    ours = set(images.values())
    for stem, suffix, path in _listing(folders):
        if suffix not in PICTURES or path in ours:
            continue
        image_id = _photograph_of(stem, images) if suffix == ".png" else None
        if image_id is None:
            strays.append(path)
        elif not _is_copy(path, first := found.setdefault(image_id, path)):
            faults.append(InputError(path, f"the mask of {shown(image_id)} is also {first}", "keep one of them"))
    without = images.keys() - found.keys()
    if strays and images and not found:
        what = f"none of {len(strays):,} files is the mask of a photograph, such as {shown(next(iter(images)))}"
        faults.append(InputError(strays[0], what, f"name a mask {NAMES_OF_MASKS}"))
    elif nearly := [path for path in strays if _begins_with(Path(path).stem, without)]:
        what = "%s files of masks are named after photographs without a mask, such as %s; a mask is named %s"
        logger.warning(what, f"{len(nearly):,}", nearly[0], NAMES_OF_MASKS)
    elif strays and without:
        what = "%s files of masks belong to no photograph, such as %s, and %s photographs have no mask, such as %s"
        logger.warning(what, f"{len(strays):,}", strays[0], f"{len(without):,}", shown(min(without)))
    elif strays and images:
        logger.info("%s files of masks belong to no photograph, such as %s", f"{len(strays):,}", strays[0])
    return found, most(faults)


def _photograph_of(stem: str, images: Collection[str]) -> str | None:
    """The id that a mask's name begins with; the longest, where ids end like masks."""
    ids = (stem.removesuffix(ending) for ending in MASK_ENDINGS if stem.endswith(ending))
    return next((image_id for image_id in ids if image_id in images), None)


def _begins_with(stem: str, ids: Collection[str]) -> bool:
    """Whether an id is the beginning of a name, and no digit follows: photo 1 is not that of photo 10_seg."""
    return any(stem[:end] in ids and not stem[end : end + 1].isdigit() for end in range(1, len(stem) + 1))


def _is_copy(path: str, first: str) -> bool:
    """Whether this is the very file, or one of its name and size in a folder of its folder's name."""
    if path == first:
        return True
    names = [(os.path.basename(file).lower(), Path(file).parent.name.lower()) for file in (path, first)]
    try:
        return names[0] == names[1] and os.path.getsize(path) == os.path.getsize(first)
    except OSError:  # a link to nowhere
        return False


def existing(paths: Iterable[str]) -> set[str]:
    """Those of some absolute paths that are there."""
    paths = list(paths)
    there = {folder: set(_names(Path(folder))) for folder in {os.path.dirname(path) for path in paths}}
    return {path for path in paths if os.path.basename(path) in there[os.path.dirname(path)]}


def _listing(folders: Iterable[Path]) -> Iterator[tuple[str, str, str]]:
    """(name without suffix, suffix in lower case, path) of every file that is not hidden, by name."""
    for folder in folders:
        for name in _names(folder):
            stem, suffix = os.path.splitext(name)
            if not name.startswith("."):  # a Mac adds a ._<name> to what it packs
                yield stem, suffix.lower(), os.path.join(folder, name)


def _names(folder: Path) -> list[str]:
    """What lies in a folder, sorted; nothing where there is none."""
    try:
        return sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError, ValueError):  # the last for a name with a zero byte
        return []
    except OSError as error:
        what = f"cannot be listed ({error.strerror})"
        raise InputError(str(folder), what, "give a folder that can be read") from error
