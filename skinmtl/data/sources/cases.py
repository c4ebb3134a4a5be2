"""The case table: any layout in, one shape out, checked once, on arrival."""

from __future__ import annotations

import logging
from collections.abc import Collection
from pathlib import Path
from typing import Literal

import pandas as pd

from skinmtl.data.sources.folders import find_masks
from skinmtl.data.sources.ham10000 import DX
from skinmtl.data.sources.layouts import LAYOUTS, Cases, Layout, join_lesions, recognise
from skinmtl.data.sources.tables import first_faults, printable, row_faults
from skinmtl.errors import Faults, InputError, SkinmtlError
from skinmtl.runs.cells import spelled_in_several_ways

logger = logging.getLogger(__name__)

COLUMNS = ("image_id", "lesion_id", "image", "mask", "dx", "age", "sex", "localization", "dx_type", "source")
OLDEST = 120  # years
ALIKE = "write letters, accents and spaces alike"
IMAGE_ID = r"\w[\w .,()+-]*"  # no folders, nothing that a page or a spreadsheet could take for its own


def read(
    root: Path,
    layout: Literal["auto"] | Layout = "auto",
    allow_leak: bool = False,
    masks: Path | None = None,
    lesions: Path | None = None,
    names: Collection[str] = (),
) -> pd.DataFrame:
    """Read a data set into a case table: one row per image, sorted by `image_id`.

    The columns are those of `COLUMNS`, then any others that the table has, as text.

    `image` and `mask` are absolute paths; `mask` is missing where there is none; `dx` is categorical over the diagnoses
    that occur, those of HAM10000 in the order of `DX` and before any others, and missing where none is known.
    `attrs["layout"]` is what was read; `attrs["leaky"]` is True where nobody gave lesion ids and `allow_leak` lets each
    image pass for a lesion of its own.

    Args:
        root: the folder, or a table of the user's own.
        layout: which layout lies there; auto looks.
        allow_leak: whether a layout without lesion ids is read at all.
        masks: a folder of masks, instead of the layout's own.
        lesions: a table that says which image shows which lesion, for a layout that does not.
        names: diagnoses that are such even where their name is a word for missing, such as none.

    Raises:
        InputError: nothing usable at `root`.
        Faults: everything wrong with the table, with row numbers (the header is row 1).
    """
    root = Path(root).absolute()
    found = recognise(root) if layout == "auto" else layout
    cases = LAYOUTS[found](root, names)
    faults = [*cases.faults, *_cell_faults(cases)]
    faults += _add_lesion_ids(cases, found, lesions)
    leaky = "lesion_id" not in cases.rows
    if leaky and not allow_leak:
        faults.append(_leak(cases, found))
    mask_of, more = _masks(cases, masks)
    faults += [*more, *_misspelt_lesions(cases), *_contradicting_diagnoses(cases)]
    if faults:
        raise Faults(faults)

    table = _table(cases, mask_of).sort_values("image_id", kind="stable").reset_index(drop=True)
    table.attrs |= {"leaky": leaky, "layout": found}
    if unnamed := sorted(cases.images.keys() - set(cases.rows["image_id"])):
        what = "%s: %s images are left out, for no row names them, such as %s"
        logger.warning(what, cases.file, f"{len(unnamed):,}", printable(unnamed[0]))
    _report(table, root)
    return table


def is_leaky(table: pd.DataFrame) -> bool:
    """Tell whether lesion ids were made up, so that a lesion may be in more than one split.

    Args:
        table: a case table. What `read` noted in its attrs counts: a table may say itself that each of its images shows
            a lesion of its own. One that has lost its attrs, as by pd.concat, is judged by its ids.
    """
    return bool(table.attrs.get("leaky", (table["lesion_id"] == table["image_id"]).all()))


def _cell_faults(cases: Cases) -> list[SkinmtlError]:
    """Find what is wrong with single cells, and ids that occur twice."""
    rows, ids = cases.rows, cases.rows["image_id"]
    blank = ids == ""
    odd = ~ids.str.fullmatch(IMAGE_ID) & ~blank
    checks = {
        "image_id is missing": (blank, "every image needs its id"),
        "not an image id": (odd, "begin with a letter or digit; use letters, digits, spaces and . , _ - + ( ) only"),
        "the same id twice": (ids.duplicated(keep=False) & ~odd & ~blank, "keep one row per image"),
        "no such image": (
            ~ids.isin(list(cases.images)) & ~odd & ~blank,
            "unpack all image folders, or remove the rows",
        ),
    }
    if "lesion_id" in rows:
        checks["lesion_id is missing"] = (rows["lesion_id"] == "", "every image needs its lesion")
    if "dx" in rows and cases.dx is not None:
        checks["dx is missing"] = (rows["dx"] == "", f"use {', '.join(cases.dx)}")
        checks["unknown dx"] = (~rows["dx"].isin([*cases.dx, ""]), f"use {', '.join(cases.dx)}")
    elif "dx" in rows:
        checks["not the name of a diagnosis"] = (~rows["dx"].map(str.isprintable), "use letters, digits and spaces")
        checks["a dx in two spellings"] = (spelled_in_several_ways(rows["dx"]), ALIKE)
    if "age" in rows:
        wrong = (rows["age"] != "") & ~_years(rows["age"]).between(0, OLDEST)
        checks["age is not a number of years"] = (wrong, f"give 0 to {OLDEST}, or leave it blank")
    return row_faults(cases.file, ids, checks)


def _years(text: pd.Series) -> pd.Series:
    return pd.to_numeric(text.where(text != ""), errors="coerce").astype("float64")


def _add_lesion_ids(cases: Cases, layout: Layout, file: Path | None) -> list[SkinmtlError]:
    """Add the lesion ids of another file to the rows."""
    if file is None:
        return []
    if "lesion_id" in cases.rows:
        return [InputError("data.lesions", f"{cases.file} has lesion ids of its own ({layout})", "leave it null")]
    cases.rows["lesion_id"], faults = join_lesions(Path(file).absolute(), cases.rows["image_id"])
    return faults


def _leak(cases: Cases, layout: Layout) -> InputError:
    what = f"no lesion ids in the layout {layout}, so images of one lesion would train and test"
    fix = "join them with data.lesions=<HAM10000_metadata.csv or LesionGroupings.csv>, use the Dataverse layout, "
    return InputError(str(cases.file), what, f"{fix}or set data.allow_leak=true and have scores marked LEAKY")


def _masks(cases: Cases, folder: Path | None) -> tuple[dict[str, str], list[SkinmtlError]]:
    """Find masks by image id: in the folder if one is given, else the layout's own."""
    if folder is None and "mask" in cases.rows:
        named = cases.rows[cases.rows["mask"] != ""]
        return dict(zip(named["image_id"], named["mask"], strict=True)), []
    if folder is None:
        return find_masks(cases.mask_folders, cases.images)
    if not Path(folder).is_dir():
        return {}, [InputError(f"data.masks={folder}", "no such folder", "give a folder of masks, or null")]
    if "mask" in cases.rows and (count := int((cases.rows["mask"] != "").sum())):
        logger.warning("data.masks=%s is read instead of the %s masks that %s names", folder, f"{count:,}", cases.file)
    found, faults = find_masks([Path(folder).absolute()], cases.images)
    if not found and not faults:
        faults = [InputError(f"data.masks={folder}", "no masks here", "give a folder of masks, or null")]
    return found, faults


def _misspelt_lesions(cases: Cases) -> list[SkinmtlError]:
    """Refuse lesion ids that differ only in how they are written: one lesion would train and test."""
    if "lesion_id" not in cases.rows:
        return []
    wrong = spelled_in_several_ways(cases.rows["lesion_id"])
    fix = f"{ALIKE}, or give lesions that are others ids that differ in more"
    return row_faults(cases.file, cases.rows["image_id"], {"a lesion_id in two spellings": (wrong, fix)})


def _contradicting_diagnoses(cases: Cases) -> list[SkinmtlError]:
    """Refuse lesions with more than one diagnosis, a fault for each."""
    if not {"lesion_id", "dx"} <= set(cases.rows):
        return []
    rows = cases.rows[(cases.rows["lesion_id"] != "") & (cases.rows["dx"] != "")]
    several = rows.groupby("lesion_id")["dx"].transform("nunique") > 1
    faults: list[SkinmtlError] = []
    for lesion, images in rows[several].groupby("lesion_id"):
        where = ", ".join(f"{printable(dx)} (row {row})" for row, dx in zip(images.index, images["dx"], strict=True))
        what = f"lesion {printable(str(lesion))} has several diagnoses: {where}"
        faults.append(InputError(str(cases.file), what, "mend dx or lesion_id"))
    return first_faults(faults)


def _table(cases: Cases, mask_of: dict[str, str]) -> pd.DataFrame:
    """Bring the rows into the shape of the case table."""
    rows, ids = cases.rows, cases.rows["image_id"]
    table = pd.DataFrame({"image_id": ids, "image": ids.map(cases.images)})
    table["mask"] = pd.Series([mask_of.get(image_id) for image_id in ids], index=rows.index, dtype="str")
    table["lesion_id"] = rows.get("lesion_id", ids)
    for name in ("dx", "sex", "localization", "dx_type", "source"):
        blank = pd.Series(pd.NA, index=rows.index, dtype="str")
        table[name] = rows[name].where(rows[name] != "") if name in rows else blank
    table["age"] = _years(rows["age"]) if "age" in rows else float("nan")
    present = set(table["dx"].dropna())
    names = [dx for dx in DX if dx in present] + sorted(present.difference(DX))
    table["dx"] = pd.Categorical(table["dx"], categories=names)
    further = [str(name) for name in rows if name not in (*COLUMNS, *table)]  # for tasks that name them
    return table[list(COLUMNS)].assign(**{name: rows[name].where(rows[name] != "") for name in further})


def _report(table: pd.DataFrame, root: Path) -> None:
    counts = ", ".join(f"{dx} {count:,}" for dx, count in table["dx"].value_counts(sort=False).items())
    logger.info(
        "%s layout at %s: %s images, %s lesions, %s without a mask, %s without a diagnosis; %s",
        table.attrs["layout"],
        root,
        f"{len(table):,}",
        "unknown" if table.attrs["leaky"] else f"{table['lesion_id'].nunique():,}",
        f"{table['mask'].isna().sum():,}",
        f"{table['dx'].isna().sum():,}",
        counts or "no diagnoses",
    )
