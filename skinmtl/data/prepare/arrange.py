"""The layout in which the Dataverse has HAM10000, made of what was brought together."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path

import pandas as pd

from skinmtl.data import sources
from skinmtl.data.prepare.names import is_table
from skinmtl.data.sources.folders import find_masks
from skinmtl.data.sources.layouts import lesion_rows
from skinmtl.data.sources.tables import first_faults, list_fault, printable
from skinmtl.errors import Faults, InputError, SkinmtlError
from skinmtl.terminal import only

IMAGES, MASKS, METADATA = "HAM10000_images_part", "HAM10000_segmentations_lesion_tschandl", "HAM10000_metadata"
HAM10000 = ("dataverse", "kaggle", "mirror", "isic2018_task3")  # layouts of the same images
PUBLISHED = ("lesion_id", "image_id", "dx", "dx_type", "age", "sex", "localization", "dataset")
OF_MASKS = re.compile(r"(mask|segmentation)[^/]*/[^/]*\.png$|_(mask|segmentation)\.png$", re.IGNORECASE)
LABELS = re.compile(r"GroundTruth|LesionGroupings")


def arrange(found: Path, ready: Path, lesions: Path | None = None) -> dict[str, str]:
    """Move the files of a data set to a new folder.

    HAM10000 with lesion ids goes into the Dataverse layout. Without them it keeps the layout that it has, for that
    layout's metadata could not be written; so does a data set that is not HAM10000. Masks that the Dataverse layout
    lacks come from any other folder, by their names. Files that belong to no row stay behind.

    Args:
        found: where they are.
        ready: the new folder.
        lesions: a table with `image_id` (or `image`) and `lesion_id`, joined to images; the published columns that the
            layout lacks come along.

    Returns:
        Where each file came from, by where it is now; paths below `found` and `ready`.

    Raises:
        InputError: no such data set, or a table that cannot be read.
        Faults: everything wrong with the tables.
    """
    with _unwarned():
        layout = sources.recognise(found)
    if layout in ("csv", "folder"):
        what = "images, but no table of HAM10000 (no HAM10000_metadata.csv, no GroundTruth.csv)"
        raise InputError(str(found), what, "give the table too; images of your own need no import")
    with _unwarned():
        table = sources.read(found, layout, allow_leak=True)
    if lesions is not None:
        table = join(table, lesions)

    if layout in HAM10000 and not sources.is_leaky(table):
        table = _with_masks(table, found)
        moves = _dataverse(table)
        published = next((file for file in found.glob(f"{METADATA}*") if is_table(file.name)), None)
        if published and lesions is None:
            moves[f"{METADATA}.tab" if published.suffix == ".tab" else f"{METADATA}.csv"] = published
        else:
            ready.mkdir(parents=True)
            _metadata(table).to_csv(ready / f"{METADATA}.csv", index=False)
    else:
        labels = [file for file in found.rglob("*") if is_table(file.name) and LABELS.search(file.name)]
        pictures = [Path(path) for path in [*table["image"], *table["mask"].dropna()]]
        moves = {path.relative_to(found).as_posix(): path for path in [*labels, *pictures]}
    return _move(moves, found, ready)


def _unwarned() -> AbstractContextManager[None]:
    """Without warnings of masks and layouts that are passed over: more is about to come, and the rest is counted."""
    return only(logging.ERROR, sources.__name__)


def join(table: pd.DataFrame, file: Path) -> pd.DataFrame:
    """Add lesion ids to a case table, and what else it lacks, from a metadata file.

    Args:
        table: a case table.
        file: a table with `image_id` (or `image`) and `lesion_id`.

    Returns:
        The table, which is no longer leaky.

    Raises:
        InputError: the file is no such table.
        Faults: images without a row or a lesion, or with several; a diagnosis that is another; a lesion with two.
    """
    rows, faults = lesion_rows(file, table["image_id"])
    joined = table.assign(lesion_id=rows["lesion_id"])
    if "dx" in rows:
        other = (rows["dx"] != "") & table["dx"].notna() & (rows["dx"] != table["dx"].astype("str"))
        ids = list(table["image_id"][other])
        faults += list_fault(file, "another dx than the images' own table", ids, "mend one of them")
    faults += _torn(joined, file)
    if faults:
        raise Faults(faults)

    for theirs in ("dx_type", "age", "sex", "localization", "dataset"):
        ours = "source" if theirs == "dataset" else theirs
        if theirs in rows and table[ours].isna().all():
            values = rows[theirs].where(rows[theirs] != "")
            joined[ours] = pd.to_numeric(values, errors="coerce") if theirs == "age" else values
    joined.attrs["leaky"] = False
    return joined


def _torn(table: pd.DataFrame, file: Path) -> list[SkinmtlError]:
    """A fault for each lesion that the file makes of images with different diagnoses."""
    known = table[(table["lesion_id"] != "") & table["dx"].notna()]
    several = known["dx"].astype("str").groupby(known["lesion_id"]).transform("nunique") > 1
    faults: list[SkinmtlError] = []
    for lesion, torn in known[several].groupby("lesion_id"):
        where = ", ".join(f"{dx} ({image_id})" for dx, image_id in zip(torn["dx"], torn["image_id"], strict=True))
        what = f"lesion {printable(str(lesion))} has several diagnoses: {where}"
        faults.append(InputError(str(file), what, "mend its lesion_id"))
    return first_faults(faults)


def _with_masks(table: pd.DataFrame, found: Path) -> pd.DataFrame:
    """The case table with masks for images that have none, from further folders that are named after masks."""
    if table["mask"].notna().all():
        return table
    folders = {path.parent for path in found.rglob("*") if OF_MASKS.search(f"{path.parent.name}/{path.name}")}
    folders -= {Path(mask).parent for mask in table["mask"].dropna()}
    with _unwarned():
        masks, faults = find_masks(sorted(folders), dict(zip(table["image_id"], table["image"], strict=True)))
    if faults:
        raise Faults(faults)
    if not masks:
        return table
    return table.assign(mask=table["mask"].fillna(table["image_id"].map(masks)))


def _dataverse(table: pd.DataFrame) -> dict[str, Path]:
    """Images in their own part where they are in one, otherwise in the first; masks in one folder."""
    moves: dict[str, Path] = {}
    for image_id, path, mask in table[["image_id", "image", "mask"]].to_numpy().tolist():
        image = Path(path)
        part = image.parent.name
        number = part[len(IMAGES) :] if part.lower().startswith(IMAGES.lower()) else "_1"
        moves[f"{IMAGES}{number}/{image_id}{image.suffix.lower()}"] = image
        if isinstance(mask, str):
            moves[f"{MASKS}/{image_id}_segmentation.png"] = Path(mask)
    return moves


def _metadata(table: pd.DataFrame) -> pd.DataFrame:
    return table.rename(columns={"source": "dataset"})[list(PUBLISHED)]


def _move(moves: Mapping[str, Path], found: Path, ready: Path) -> dict[str, str]:
    for target, path in moves.items():
        (ready / target).parent.mkdir(parents=True, exist_ok=True)
        path.rename(ready / target)
    return {target: path.relative_to(found).as_posix() for target, path in moves.items()}
