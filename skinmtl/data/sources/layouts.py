"""Layouts that data sets have on disk: how each is recognised, and a function that reads it."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

import pandas as pd

from skinmtl.data.images.formats import DATASET_ENDINGS
from skinmtl.data.sources.folders import (
    MASK_ENDINGS,
    existing,
    find_images,
    folders_named,
    folders_starting_with,
)
from skinmtl.data.sources.ham10000 import DX, HOW_TO_GET
from skinmtl.data.sources.tables import (
    MOST_NAMED,
    further_columns,
    list_fault,
    log_ignored_columns,
    misspelt_columns,
    printable,
    read_table,
    require_columns,
    row_faults,
)
from skinmtl.errors import InputError, SkinmtlError

logger = logging.getLogger(__name__)

Layout = Literal["dataverse", "kaggle", "mirror", "isic2018_task3", "isic2018_task1", "csv", "folder"]

METADATA = ("HAM10000_metadata.csv", "HAM10000_metadata.tab", "HAM10000_metadata")
IMAGES, SEGMENTATIONS = "HAM10000_images_part", "HAM10000_segmentations"
TASK1, TASK3 = "ISIC2018_Task1-2_Training", "ISIC2018_Task3_Training"
HOW_TO_GET_ISIC = "unpack the files of the ISIC 2018 challenge there, or point data.root at them"
PUBLISHED = ("lesion_id", "image_id", "dx", "dx_type", "age", "sex", "localization")
OWN = ("image_id", "image", "mask", "lesion_id", "dx", "age", "sex", "localization", "dx_type", "source")


@dataclass
class Cases:
    """What a layout says of its images, before it is checked.

    Attributes:
        file: the table, or the folder where there is none, for messages.
        rows: one row per image, in text and blank where nothing is said: `image_id` and those columns of the case table
            that the layout has. The index is the row in `file`.
        images: paths by image id.
        mask_folders: where the layout keeps masks.
        dx: the diagnoses that may occur; None where any may, and none at all.
        faults: what was wrong so far.
    """

    file: Path
    rows: pd.DataFrame
    images: dict[str, str]
    mask_folders: list[Path] = field(default_factory=list)
    dx: Sequence[str] | None = None
    faults: list[SkinmtlError] = field(default_factory=list)


def recognise(root: Path) -> Layout:
    """Recognise the layout at a place; the first of `Layout` where several fit, with a warning that names the others.

    Args:
        root: a folder, or a table.

    Raises:
        InputError: nothing is there, or nothing that fits.
    """
    for layout, fits in _SIGNS:
        if fits(root):
            others = [other for other, also in _WITH_IMAGES if other not in ("kaggle", layout) and also(root)]
            if others:
                read = ", ".join(f"data={other}" for other in others)
                logger.warning("%s: the layout %s is read; these are here, too: %s", root, layout, read)
            return layout
    what = f"none of the layouts {', '.join(get_args(Layout))} is here" if root.exists() else "nothing is here"
    raise InputError(str(root), what, HOW_TO_GET)


def dataverse(root: Path, names: Collection[str] = ()) -> Cases:
    """Read HAM10000 as published: images in parts, metadata with lesion ids, masks.

    Args:
        root: the folder; so for every layout.
        names: diagnoses that are such even where their name is a word for missing; so for every layout.
    """
    cases = kaggle(root, names)
    cases.mask_folders = folders_starting_with(root, SEGMENTATIONS)
    return cases


def kaggle(root: Path, names: Collection[str] = ()) -> Cases:
    """Read HAM10000 from Kaggle, kmader/skin-cancer-mnist-ham10000: as published, but without masks."""
    file = _first(root, METADATA, HOW_TO_GET)
    raw, faults = read_table(file, PUBLISHED, names)
    require_columns(raw, PUBLISHED, file)
    further = further_columns(raw, [*PUBLISHED, "dataset", *OWN], file)
    log_ignored_columns(raw, [*PUBLISHED, "dataset", *further], file)
    images, more = find_images(folders_starting_with(root, IMAGES), root / f"{IMAGES}_1")
    columns = [*(name for name in (*PUBLISHED, "dataset") if name in raw), *further]
    return Cases(file, raw[columns].rename(columns={"dataset": "source"}), images, dx=DX, faults=faults + more)


def mirror(root: Path, names: Collection[str] = ()) -> Cases:
    """Read a public mirror of HAM10000: images/, masks/, GroundTruth.csv with a column per diagnosis, no lesion ids."""
    file = _first(root, ("GroundTruth.csv",), HOW_TO_GET)
    rows, faults = _one_hot(file)
    images, more = find_images(folders_named(root, "images"), root / "images")
    return Cases(file, rows, images, folders_named(root, "masks"), DX, faults + more)


def isic2018_task3(root: Path, names: Collection[str] = ()) -> Cases:
    """Read HAM10000 from the ISIC 2018 challenge, Task 3: no masks; lesion ids where LesionGroupings.csv is there."""
    name = f"{TASK3}_GroundTruth"
    file = _first(root, (f"{name}/{name}.csv", f"{name}.csv"), HOW_TO_GET_ISIC)
    rows, faults = _one_hot(file)
    images, more = find_images(folders_starting_with(root, f"{TASK3}_Input"), root / f"{TASK3}_Input")
    faults += more
    if (groupings := root / f"{TASK3}_LesionGroupings.csv").is_file():
        raw, more = read_table(groupings, ("diagnosis_confirm_type",))
        require_columns(raw, ("image", "lesion_id", "diagnosis_confirm_type"), groupings)
        rows["lesion_id"], again = join_lesions(groupings, rows["image_id"])
        confirmed = dict(zip(raw["image"], raw["diagnosis_confirm_type"], strict=True))
        rows["dx_type"] = rows["image_id"].map(confirmed).fillna("")
        faults += again
    return Cases(file, rows, images, dx=DX, faults=faults)


def isic2018_task1(root: Path, names: Collection[str] = ()) -> Cases:
    """Read ISIC 2018, Task 1: images and masks; no diagnoses, no lesion ids."""
    images, faults = find_images(folders_starting_with(root, f"{TASK1}_Input"), root / f"{TASK1}_Input")
    return Cases(
        root, _ids(images), images, folders_starting_with(root, "ISIC2018_Task1_Training_GroundTruth"), faults=faults
    )


def csv(root: Path, names: Collection[str] = ()) -> Cases:
    """Read a table of the user's own: the column `image`, any others of `OWN`.

    Paths are absolute, begin at the table's folder, or with ~. Without `image_id`, ids are file names without ending.

    Args:
        root: the table, or a folder that holds a single one.
        names: diagnoses that are such even where their name is a word for missing.

    Raises:
        InputError: no table, several tables, or no column `image`.
    """
    file = root if root.is_file() else _only_table(root)
    raw, faults = read_table(file, OWN, names)
    require_columns(raw, ("image",), file)
    faults += misspelt_columns(raw, OWN, file)
    further = further_columns(raw, OWN, file)

    rows = raw[[*(name for name in OWN if name in raw), *further]].copy()
    names = raw["image"]
    if "image_id" not in rows:
        rows["image_id"] = names.map(lambda name: Path(name).stem)
    checks: dict[str, tuple[pd.Series, str]] = {}
    for kind in ("image", "mask"):
        if kind in rows:
            given = rows[kind] != ""
            paths = rows[kind].map(lambda name: os.path.abspath(file.parent / os.path.expanduser(name)))
            checks[f"no such {kind}"] = (given & ~paths.isin(existing(paths[given])), "give a path from this file on")
            rows[kind] = paths.where(given, "")
    if "mask" in rows:
        shared = rows["mask"].duplicated(keep=False) & (rows["mask"] != "")
        checks["the mask of several images"] = (shared, "give each the mask that belongs to it")
    checks["image is missing"] = (names == "", "give the image's path")
    checks["the same image twice"] = (rows["image"].duplicated(keep=False) & (names != ""), "keep one of them")
    faults += row_faults(file, names, checks)
    return Cases(file, rows, dict(zip(rows["image_id"], rows["image"], strict=True)), faults=faults)


def folder(root: Path, names: Collection[str] = ()) -> Cases:
    """Read a folder of images of which nothing is known; masks among them, by their names, are left out."""
    images, faults = find_images([root], root)
    own = {image_id: path for image_id, path in images.items() if not _is_mask(image_id, images)}
    return Cases(root, _ids(own), own, faults=faults)


LAYOUTS: dict[Layout, Callable[[Path, Collection[str]], Cases]] = {
    "dataverse": dataverse,
    "kaggle": kaggle,
    "mirror": mirror,
    "isic2018_task3": isic2018_task3,
    "isic2018_task1": isic2018_task1,
    "csv": csv,
    "folder": folder,
}


def join_lesions(file: Path, ids: pd.Series) -> tuple[pd.Series, list[SkinmtlError]]:
    """Look up the lesion of each image in a table.

    Args:
        file: a table with `image_id` (or `image`) and `lesion_id`; other images may be in it.
        ids: the image ids.

    Returns:
        Lesion ids, indexed as `ids`, and faults, such as images without a row.
    """
    rows, faults = lesion_rows(file, ids)
    return rows["lesion_id"], faults


def lesion_rows(file: Path, ids: pd.Series) -> tuple[pd.DataFrame, list[SkinmtlError]]:
    """Look up all that a table of lesions says of images.

    Args:
        file: as `join_lesions` takes it.
        ids: the image ids.

    Returns:
        A row for each of `ids`, indexed alike, blank where the table has none; and faults.

    Raises:
        InputError: the file is no such table.
    """
    raw, faults = read_table(file, ("image_id", "image", "lesion_id"))
    key = "image" if "image" in raw and "image_id" not in raw else "image_id"
    require_columns(raw, (key, "lesion_id"), file)
    names = raw[key].map(without_suffix)
    mine = names.isin(ids)
    several = raw["lesion_id"].groupby(names).transform("nunique") > 1
    checks = {
        "lesion_id is missing": (mine & (raw["lesion_id"] == ""), "every image needs its lesion"),
        "several lesions for one image": (mine & several, "keep one row per image"),
    }
    faults += row_faults(file, names, checks)
    absent = list(ids[~ids.isin(names)])
    faults += list_fault(file, "no row for these images", [printable(image_id) for image_id in absent], "add them")
    rows = raw.set_axis(names)
    rows = rows[~rows.index.duplicated()].reindex(ids).fillna("")
    return rows.set_axis(ids.index), faults


def _one_hot(file: Path) -> tuple[pd.DataFrame, list[SkinmtlError]]:
    """Read `image_id` and `dx` of a table with one column per diagnosis, of which one is 1 and the others are 0."""
    raw, faults = read_table(file, ("image",))
    raw = raw.rename(columns=str.lower)
    require_columns(raw, ("image", *DX), file)
    log_ignored_columns(raw, ("image", *DX), file)
    hot = raw[list(DX)].apply(pd.to_numeric, errors="coerce").fillna(-1)
    wrong = ~(hot.isin([0, 1]).all(axis=1) & (hot.sum(axis=1) == 1))
    faults += row_faults(file, raw["image"], {"not one-hot": (wrong, "exactly one diagnosis is 1, the others 0")})
    return pd.DataFrame({"image_id": raw["image"], "dx": hot.idxmax(axis=1)}), faults


def _ids(images: dict[str, str]) -> pd.DataFrame:
    return pd.DataFrame({"image_id": list(images)}, dtype="str")


def _first(root: Path, names: Sequence[str], fix: str) -> Path:
    for name in names:
        if (root / name).is_file():
            return root / name
    raise InputError(str(root), f"no {names[0]} here", fix)


def _tables(root: Path) -> list[Path]:
    return sorted(file for file in root.glob("*.csv") if not file.name.startswith("."))


def _only_table(root: Path) -> Path:
    found = _tables(root)
    if len(found) == 1:
        return found[0]
    names = ", ".join(printable(file.name) for file in found[:MOST_NAMED])
    what = f"several tables, {names}" if found else "no .csv file here"
    raise InputError(str(root), what, "point data.root at the table itself")


def _has_images(root: Path) -> bool:
    return root.is_dir() and any(name.lower().endswith(DATASET_ENDINGS) for name in os.listdir(root))


def _is_mask(name: str, images: dict[str, str]) -> bool:
    return any(name.removesuffix(ending) in images for ending in MASK_ENDINGS if ending and name.endswith(ending))


def without_suffix(name: str) -> str:
    """Make an image id of a file's name.

    Args:
        name: with an ending such as .jpg or without; other dots stay.
    """
    stem, suffix = os.path.splitext(name)
    return stem if suffix.lower() in DATASET_ENDINGS else name


def _has_metadata(root: Path) -> bool:
    return any((root / name).is_file() for name in METADATA)


def _has_truth(root: Path) -> bool:
    return (root / "GroundTruth.csv").is_file()


# Tables with their images first: metadata may be beside another layout, to join lesion ids from. Then a table
# alone, for what is said about the missing images.
_WITH_IMAGES: tuple[tuple[Layout, Callable[[Path], bool]], ...] = (
    (
        "dataverse",
        lambda root: (
            _has_metadata(root)
            and bool(folders_starting_with(root, IMAGES) and folders_starting_with(root, SEGMENTATIONS))
        ),
    ),
    ("kaggle", lambda root: _has_metadata(root) and bool(folders_starting_with(root, IMAGES))),
    ("mirror", lambda root: _has_truth(root) and bool(folders_named(root, "images"))),
    ("isic2018_task3", lambda root: bool(folders_starting_with(root, f"{TASK3}_Input"))),
    ("isic2018_task1", lambda root: bool(folders_starting_with(root, f"{TASK1}_Input"))),
)
_SIGNS: tuple[tuple[Layout, Callable[[Path], bool]], ...] = (
    *_WITH_IMAGES,
    ("dataverse", _has_metadata),
    ("mirror", _has_truth),
    ("csv", lambda root: root.is_file() or len(_tables(root)) == 1),
    ("folder", _has_images),
)
