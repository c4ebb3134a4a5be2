"""Images and masks of a data set by their ids, from one listing per folder: to ask for each file takes minutes."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from skinmtl.data.images.formats import DATASET_ENDINGS, ENDINGS, UNSUPPORTED_ENDINGS
from skinmtl.data.sources.tables import first_faults, printable
from skinmtl.errors import InputError, SkinmtlError

logger = logging.getLogger(__name__)

MASK_ENDINGS = ("", "_segmentation", "_mask")  # of a mask's name, between its image's id and .png
NAMES_OF_MASKS = "<id>.png, <id>_segmentation.png or <id>_mask.png"
IMAGE_ENDINGS = frozenset((*ENDINGS, *UNSUPPORTED_ENDINGS))


def folders_named(root: Path, name: str) -> list[Path]:
    """List the folders in `root` of this name, in any case.

    Args:
        root: a folder, which need not be there.
        name: such as images.
    """
    return [folder for folder in folders_starting_with(root, name) if folder.name.lower() == name.lower()]


def folders_starting_with(root: Path, name: str) -> list[Path]:
    """List the folders in `root` whose names begin with `name`, in any case.

    After each comes the folder of the same name within it, where unpacking has made one.

    Args:
        root: a folder, which need not be there.
        name: such as HAM10000_images_part.
    """
    found = (root / part for part in _names(root) if part.lower().startswith(name.lower()))
    return [folder for part in found if part.is_dir() for folder in (part, *_inner(part))]


def _inner(folder: Path) -> list[Path]:
    named = (folder / name for name in _names(folder) if name.lower() == folder.name.lower())
    return [inner for inner in named if inner.is_dir()]


def find_images(folders: Sequence[Path], where: Path) -> tuple[dict[str, str], list[SkinmtlError]]:
    """Find the images of a data set.

    A second copy of a folder, within the first or spelt in another case, as some downloads have it, is no fault.
    Other files are left out, and counted in the log.

    Args:
        folders: which are listed, not what is below them.
        where: the place that is named where there is no image at all.

    Returns:
        Paths by image id, which is the name without its ending; and a fault for each id that is there twice.
    """
    found: dict[str, str] = {}
    faults: list[SkinmtlError] = []
    copies = 0
    others: Counter[str] = Counter()
    for stem, suffix, path in _listing(folders):
        if suffix not in DATASET_ENDINGS:
            if Path(path) not in folders:
                others["folders" if os.path.isdir(path) else suffix or "files without an ending"] += 1
            continue
        first = found.setdefault(stem, path)
        if first == path:
            continue
        if _is_copy(path, first):
            copies += 1
        else:
            faults.append(InputError(path, f"the image {printable(stem)} is also {first}", "keep one of them"))
    if copies:
        logger.info("%s images are there again, in a second copy of their folder", f"{copies:,}")
    left = ", ".join(f"{count:,} {printable(kind)}" for kind, count in others.most_common())
    if left:
        level = logging.INFO if others.keys().isdisjoint(IMAGE_ENDINGS) else logging.WARNING
        logger.log(level, "%s: left out, for images are %s here: %s", where, ", ".join(DATASET_ENDINGS), left)
    if not found:
        there = f", but {left}" if left else ""
        fix = f"unpack the images there, as {', '.join(DATASET_ENDINGS)}"
        faults.append(InputError(str(where), f"no images here{there}", fix))
    return found, first_faults(faults)


def find_masks(folders: Sequence[Path], images: Mapping[str, str]) -> tuple[dict[str, str], list[SkinmtlError]]:
    """Find the masks of images: `<id>.png`, `<id>_segmentation.png` or `<id>_mask.png`.

    Files that belong to no image are counted in the log, with a warning where there are images without a mask. An image
    without a mask is allowed, so a wrong ending would pass for missing masks, were it no fault.

    Args:
        folders: which are listed, not what is below them.
        images: paths of the images by their ids.

    Returns:
        Paths of masks by image id; and a fault where two belong to one image, or where none belongs to any.
    """
    found: dict[str, str] = {}
    strays: list[str] = []
    faults: list[SkinmtlError] = []
    ours = set(images.values())
    for stem, suffix, path in _listing(folders):
        if suffix not in IMAGE_ENDINGS or path in ours:
            continue
        image_id = _image_id_of_mask(stem, images) if suffix == ".png" else None
        if image_id is None:
            strays.append(path)
        elif not _is_copy(path, first := found.setdefault(image_id, path)):
            faults.append(InputError(path, f"the mask of {printable(image_id)} is also {first}", "keep one of them"))
    without = images.keys() - found.keys()
    if strays and images and not found:
        what = f"none of {len(strays):,} files is the mask of an image, such as {printable(next(iter(images)))}"
        faults.append(InputError(strays[0], what, f"name a mask {NAMES_OF_MASKS}"))
    elif nearly := [path for path in strays if _starts_with_an_id(Path(path).stem, without)]:
        what = "%s files of masks are named after images without a mask, such as %s; a mask is named %s"
        logger.warning(what, f"{len(nearly):,}", nearly[0], NAMES_OF_MASKS)
    elif strays and without:
        what = "%s files of masks belong to no image, such as %s, and %s images have no mask, such as %s"
        logger.warning(what, f"{len(strays):,}", strays[0], f"{len(without):,}", printable(min(without)))
    elif strays and images:
        logger.info("%s files of masks belong to no image, such as %s", f"{len(strays):,}", strays[0])
    return found, first_faults(faults)


def _image_id_of_mask(stem: str, images: Collection[str]) -> str | None:
    """Return the id that a mask's name begins with; the longest, where ids end like masks; None for no mask."""
    ids = (stem.removesuffix(ending) for ending in MASK_ENDINGS if stem.endswith(ending))
    return next((image_id for image_id in ids if image_id in images), None)


def _starts_with_an_id(stem: str, ids: Collection[str]) -> bool:
    """Tell whether a name begins with an id, and no digit follows: photo 1 does not begin photo 10_seg."""
    return any(stem[:end] in ids and not stem[end : end + 1].isdigit() for end in range(1, len(stem) + 1))


def _is_copy(path: str, first: str) -> bool:
    """Tell whether a path is the first file itself, or one of its name and size in a folder of its folder's name."""
    if path == first:
        return True
    names = [(os.path.basename(file).lower(), Path(file).parent.name.lower()) for file in (path, first)]
    try:
        return names[0] == names[1] and os.path.getsize(path) == os.path.getsize(first)
    except OSError:  # a link to nowhere
        return False


def existing(paths: Iterable[str]) -> set[str]:
    """Return those of some paths that are there.

    Args:
        paths: absolute paths; each folder is listed once.
    """
    paths = list(paths)
    there = {folder: set(_names(Path(folder))) for folder in {os.path.dirname(path) for path in paths}}
    return {path for path in paths if os.path.basename(path) in there[os.path.dirname(path)]}


def _listing(folders: Iterable[Path]) -> Iterator[tuple[str, str, str]]:
    """Yield (name without ending, ending in lower case, path) of every file that is not hidden, by name."""
    for folder in folders:
        for name in _names(folder):
            stem, suffix = os.path.splitext(name)
            if not name.startswith("."):  # a Mac adds a ._<name> to what it packs
                yield stem, suffix.lower(), os.path.join(folder, name)


def _names(folder: Path) -> list[str]:
    """List the names in a folder, sorted; none where there is no folder."""
    try:
        return sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError, ValueError):  # the last for a name with a zero byte
        return []
    except OSError as error:
        what = f"cannot be listed ({error.strerror})"
        raise InputError(str(folder), what, "give a folder that can be read") from error
