"""Layouts that people have on disk, read into one case table; the facts of HAM10000."""

from __future__ import annotations

import logging
import os
import re
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import pandas as pd

from skinmtl.errors import Faults, InputError, SkinmtlError

logger = logging.getLogger(__name__)

DX = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")
MASK_CLASSES = ("skin", "lesion")
COLUMNS = ("image_id", "lesion_id", "image", "mask", "dx", "age", "sex", "localization", "dx_type", "source")

Layout = Literal["dataverse", "mirror"]

METADATA = ("HAM10000_metadata.csv", "HAM10000_metadata.tab", "HAM10000_metadata")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
UNKNOWN_AGE = ("", "NA", "nan", "unknown")
HOW_TO_GET = (
    "get HAM10000 from the Harvard Dataverse (doi 10.7910/DVN/DBW86T, CC BY-NC 4.0), unpack it there or point "
    "data.root at it; or try without it: experiment=demo"
)


def read(root: Path, layout: Literal["auto", "dataverse", "mirror"] = "auto", allow_leak: bool = False) -> pd.DataFrame:
    """The case table: one row per photograph, sorted by `image_id`, with the columns of `COLUMNS`.

    `image` and `mask` are absolute paths; `mask` is missing where there is none; `dx` is categorical over the
    diagnoses that occur, in the order of `DX`. `attrs["leaky"]` is True where the layout has no lesion ids and
    `allow_leak` lets each photograph pass for a lesion of its own.

    Raises:
        InputError: nothing usable at `root`, or no lesion ids and no `allow_leak`.
        Faults: everything wrong with the table, with row numbers (the header is row 1).
    """
    root = Path(root).absolute()
    found = recognise(root) if layout == "auto" else layout
    if found == "mirror" and not allow_leak:
        what = "GroundTruth.csv has no lesion ids, so photographs of one lesion would train and test"
        raise InputError(
            str(root), what, "use the Dataverse layout, or set data.allow_leak=true and have scores stamped LEAKY"
        )

    table = _dataverse(root) if found == "dataverse" else _mirror(root)
    present = set(table["dx"])
    table["dx"] = pd.Categorical(table["dx"], categories=[dx for dx in DX if dx in present])
    table = table.sort_values("image_id", kind="stable").reset_index(drop=True)[list(COLUMNS)]
    table.attrs["leaky"] = found == "mirror"
    _report(table, found, root)
    return table


def is_leaky(table: pd.DataFrame) -> bool:
    """Whether lesion ids were made up, so that a lesion may be on two sides of a split."""
    return bool(table.attrs.get("leaky", False)) or bool((table["lesion_id"] == table["image_id"]).all())


def recognise(root: Path) -> Layout:
    """Which layout lies at `root`."""
    if any((root / name).is_file() for name in METADATA):
        return "dataverse"
    if (root / "GroundTruth.csv").is_file():
        return "mirror"
    raise InputError(str(root), "no HAM10000 here (no HAM10000_metadata.csv, no GroundTruth.csv)", HOW_TO_GET)


def _dataverse(root: Path) -> pd.DataFrame:
    """The download as published: images in parts, metadata with lesion ids, masks as <image_id>_segmentation.png."""
    path = _first(root, METADATA)
    raw = _read_csv(path)
    required = ["lesion_id", "image_id", "dx", "dx_type", "age", "sex", "localization"]
    _require(raw, required, path)

    images, faults = _images(sorted(root.glob("HAM10000_images_part_*")), root)
    masks, more = _masks(sorted(root.glob("HAM10000_segmentations*")))
    faults += more
    ages = raw["age"].where(~raw["age"].isin(UNKNOWN_AGE))
    age = pd.to_numeric(ages, errors="coerce")
    faults += _row_faults(
        path,
        raw["image_id"],
        {
            "lesion_id is blank": (raw["lesion_id"] == "", "every photograph needs its lesion"),
            "unknown dx": (~raw["dx"].isin(DX), f"use {', '.join(DX)}"),
            "age is not a number": (ages.notna() & age.isna(), "give years, or leave it blank"),
        },
        images,
    )
    faults += _torn(raw[raw["lesion_id"] != ""], path)
    if faults:
        raise Faults(faults)
    return pd.DataFrame(
        {
            "image_id": raw["image_id"],
            "lesion_id": raw["lesion_id"],
            "image": raw["image_id"].map(images),
            "mask": raw["image_id"].map(masks),
            "dx": raw["dx"],
            "age": age,
            **{name: raw[name].where(raw[name] != "") for name in ("sex", "localization", "dx_type")},
            "source": raw["dataset"].where(raw["dataset"] != "") if "dataset" in raw else None,
        }
    )


def _mirror(root: Path) -> pd.DataFrame:
    """A public mirror: images/, masks/, GroundTruth.csv with one column per diagnosis and no lesion ids."""
    path = _first(root, ("GroundTruth.csv",))
    raw = _read_csv(path)
    names = {name.lower(): name for name in raw.columns}
    _require(raw.rename(columns=str.lower), ["image", *DX], path)

    images, faults = _images([root / "images"], root)
    masks, more = _masks([root / "masks"])
    faults += more
    ids = raw[names["image"]]
    hot = raw[[names[dx] for dx in DX]].set_axis(list(DX), axis=1).apply(pd.to_numeric, errors="coerce")
    wrong = ~(hot.isin([0, 1]).all(axis=1) & (hot.sum(axis=1) == 1))
    faults += _row_faults(path, ids, {"not one-hot": (wrong, "exactly one diagnosis is 1, the others 0")}, images)
    if faults:
        raise Faults(faults)
    blank = dict.fromkeys(("sex", "localization", "dx_type", "source"), pd.Series(pd.NA, index=raw.index, dtype="str"))
    return pd.DataFrame(
        {
            "image_id": ids,
            "lesion_id": ids,
            "image": ids.map(images),
            "mask": ids.map(masks),
            "dx": hot.idxmax(axis=1),
            "age": float("nan"),
            **blank,
        }
    )


def _first(root: Path, names: Sequence[str]) -> Path:
    for name in names:
        if (root / name).is_file():
            return root / name
    raise InputError(str(root), f"no {names[0]} here", HOW_TO_GET)


def _read_csv(path: Path) -> pd.DataFrame:
    """Every cell as stripped text; a byte-order mark and Windows line ends are fine."""
    separator = "\t" if path.suffix == ".tab" else ","
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # cells beyond the header would be shifted
            raw = pd.read_csv(
                path,
                sep=separator,
                dtype=str,
                keep_default_na=False,
                encoding="utf-8-sig",
                index_col=False,
                skip_blank_lines=False,  # the index stays the line in the file, for messages
            )
    except UnicodeDecodeError as error:
        raise InputError(str(path), "not UTF-8 text", "save it as UTF-8 CSV") from error
    except (ValueError, OSError, pd.errors.ParserWarning) as error:
        raise InputError(str(path), " ".join(f"not a table: {error}".split()), "save it as UTF-8 CSV") from error
    raw = raw.rename(columns=str.strip)
    for name in raw:
        raw[name] = raw[name].fillna("").str.strip()
    raw = raw[(raw != "").any(axis=1)]
    if raw.empty:
        raise InputError(str(path), "no rows", "give one row per photograph")
    return raw


def _require(raw: pd.DataFrame, required: Iterable[str], path: Path) -> None:
    missing = [name for name in required if name not in raw]
    if missing:
        fix = "separate columns by commas" if len(raw.columns) == 1 else f"there are {', '.join(raw.columns[:12])}"
        raise InputError(str(path), f"no column {', '.join(missing)}", fix)


def _images(folders: Sequence[Path], root: Path) -> tuple[dict[str, str], list[SkinmtlError]]:
    """Photographs by id over the folders, and a fault for each id that lies there twice."""
    found: dict[str, str] = {}
    faults: list[SkinmtlError] = []
    for stem, suffix, path in _listing(folders):
        if suffix not in IMAGE_SUFFIXES:
            continue
        if stem in found:
            faults.append(InputError(path, f"the photograph {stem} is also {found[stem]}", "keep one of them"))
        found[stem] = path
    if not found:
        where = str(folders[0] if folders else root / "HAM10000_images_part_1")
        faults.append(InputError(where, "no photographs here", "unpack the images there"))
    return found, faults


def _masks(folders: Sequence[Path]) -> tuple[dict[str, str], list[SkinmtlError]]:
    """Mask files, `<id>_segmentation.png` or `<id>.png`, by the id of their photograph, and a fault for each second."""
    found: dict[str, str] = {}
    faults: list[SkinmtlError] = []
    for stem, suffix, path in _listing(folders):
        image_id = stem.removesuffix("_segmentation")
        if suffix != ".png":
            continue
        if image_id in found:
            faults.append(InputError(path, f"the mask of {image_id} is also {found[image_id]}", "keep one of them"))
        found[image_id] = path
    return found, faults


def _listing(folders: Sequence[Path]) -> Iterable[tuple[str, str, str]]:
    """(stem, lower-case suffix, path) of every file: one listing per folder, for a stat per file costs minutes."""
    for folder in folders:
        if not folder.is_dir():
            continue
        for name in sorted(os.listdir(folder)):
            stem, suffix = os.path.splitext(name)
            yield stem, suffix.lower(), os.path.join(folder, name)


def _row_faults(
    path: Path, ids: pd.Series, checks: dict[str, tuple[pd.Series, str]], images: dict[str, str]
) -> list[SkinmtlError]:
    """One fault per kind, with its rows; row 2 is the first below the header."""
    odd = ~ids.map(lambda text: bool(re.fullmatch(r"[\w.-]+", text)))
    common = {
        "not an image id": (odd, "use letters, digits, _ - and . only"),
        "the same id twice": (ids.duplicated(keep=False) & ~odd, "keep one row per photograph"),
        "no such photograph": (~ids.isin(list(images)) & ~odd, "unpack all image folders, or remove the rows"),
    }
    faults: list[SkinmtlError] = []
    for what, (wrong, fix) in (common | checks).items():
        rows = [f"row {row + 2} ({ids[row]})" for row in ids.index[wrong]]
        if rows:
            more = f" and {len(rows) - 10:,} more" if len(rows) > 10 else ""
            faults.append(InputError(str(path), f"{what}: {', '.join(rows[:10])}{more}", fix))
    return faults


def _torn(raw: pd.DataFrame, path: Path) -> list[SkinmtlError]:
    """A fault for each lesion with more than one diagnosis."""
    faults: list[SkinmtlError] = []
    several = raw.groupby("lesion_id")["dx"].transform("nunique") > 1
    for lesion, rows in raw[several].groupby("lesion_id"):
        where = ", ".join(f"{dx} (row {row + 2})" for row, dx in zip(rows.index, rows["dx"], strict=True))
        faults.append(InputError(str(path), f"lesion {lesion} has several diagnoses: {where}", "mend dx or lesion_id"))
    return faults


def _report(table: pd.DataFrame, layout: str, root: Path) -> None:
    counts = ", ".join(f"{dx} {count:,}" for dx, count in table["dx"].value_counts(sort=False).items())
    logger.info(
        "%s layout at %s: %s photographs, %s lesions, %s without a mask; %s",
        layout,
        root,
        f"{len(table):,}",
        f"{table['lesion_id'].nunique():,}",
        f"{table['mask'].isna().sum():,}",
        counts,
    )
    if table.attrs["leaky"]:
        logger.warning("LEAKY: no lesion ids, so photographs of one lesion may train and test; scores are too good")
