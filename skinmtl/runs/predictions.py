"""The predictions table, one row per image: read as it was written, and refused where it cannot be so.

Names come back as they stand, whatever they look like (`0`, `True`, `NA`, `1.0`): a blank cell is missing, and nothing
else is; where a word such as NA would be one lesion of many images, `check` refuses it. Only the columns that hold
measures are numbers, and only `leaky`, `synthetic` and `shuffled` are yes or no.
"""

from __future__ import annotations

import csv
import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from skinmtl.errors import Faults, InputError
from skinmtl.runs.cells import MISSING, is_missing, spelled_in_several_ways

logger = logging.getLogger(__name__)

Floats = NDArray[np.float64]

Fault = tuple[str, NDArray[np.bool_], str]  # what is wrong, in which rows, and how it is mended

IDENTITY = ("image_id", "lesion_id", "split")  # what every table says of an image
VERSION = 2  # of the columns' meaning, in `table_version`; 1 had no such column, and pooled distances in `hd95`
MARKS = ("leaky", "synthetic", "shuffled")
SHARES = ("dice", "iou", "dice_input")
LENGTHS = ("hd95", "hd95_pooled", "assd")
COUNTS = ("tp", "fp", "fn", "tn")
NUMBERS = (*SHARES, *LENGTHS, "height", "width")
MAY_BE_NUMBERS = ("fold", "age", "table_version")  # numbers where every cell is one; no score depends on them
VALUE = "_value"  # how a column of a further task ends that holds numbers, unless `_prob_` is in its name
NO_NUMBER = {*MISSING, "-nan"}  # what others write for no measure
TRUTHS = {"true": True, "1": True, "1.0": True, "yes": True, "false": False, "0": False, "0.0": False, "no": False}
ROUNDING = 0.0051  # a score of two decimals is not contradicted by the pixels that it came from
NAMED = 5  # rows of one fault; the rest is counted


# --- reading ----------------------------------------------------------------------------------------------------------


def read(path: Path) -> pd.DataFrame:
    """Read a predictions table, its names as they were written; see `check` for whether it can be scored.

    Raises:
        InputError: no such file, or no table in it. Faults: rows of another length, or cells that are no number.
    """
    if not path.is_file():
        raise InputError(str(path), "no such file", "give a predictions.csv")
    header, rows = _cells(path)
    cells = list(zip(*rows.values(), strict=True)) or [()] * len(header)
    lines, faults = list(rows), list[InputError]()
    columns: dict[str, Any] = {}
    for name, column in zip(header, cells, strict=True):
        if name in MARKS:
            columns[name], wrong = _marks(column)
        elif is_number(name) or may_be_number(name):
            columns[name], wrong = _numbers(column)
            if wrong and not is_number(name):
                columns[name], wrong = _text(column), []
        else:
            columns[name], wrong = _text(column), []
        if wrong:
            what = f"{name} is {_shown(column[wrong[0]])} in row {lines[wrong[0]]} ({len(wrong)} rows)"
            fix = "write true or false" if name in MARKS else "write a number, or leave the cell blank"
            faults.append(InputError(str(path), what, fix))
    if faults:
        raise Faults(faults)
    columns.pop("", None)
    return _of_today(pd.DataFrame(columns), path)


def is_number(name: str) -> bool:
    """Whether a column holds a measure."""
    starts = ("prob_", "pixels_", "dice_", "iou_", *(f"{count}_" for count in COUNTS))
    return name in NUMBERS or name.startswith(starts)


def may_be_number(name: str) -> bool:
    """Whether a column holds numbers where every cell is one: of a task with a prefix, or one that no score needs."""
    rest = [name[place + 1 :] for place, letter in enumerate(name) if letter == "_"]
    return name in MAY_BE_NUMBERS or name.endswith(VALUE) or any(is_number(own) for own in rest)


def _cells(path: Path) -> tuple[list[str], dict[int, list[str]]]:
    """The names of the columns, and the cells of each row by the number of the line that it ends in."""
    rows: dict[int, list[str]] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = next(reader, [])
            for row in reader:
                if any(row):  # a spreadsheet leaves rows of blanks behind a table
                    rows[reader.line_num] = row
    except UnicodeDecodeError:
        raise InputError(str(path), "not UTF-8 text", "save it as UTF-8 CSV") from None
    except csv.Error as error:
        raise InputError(str(path), f"not a table: {error}", "save it as UTF-8 CSV") from None
    if not any(header):
        raise InputError(str(path), "empty: row 1 names no columns", "give a predictions.csv")
    if twice := sorted({name for name in header if name and header.count(name) > 1}):
        raise InputError(str(path), f"two columns are called {', '.join(twice)}", "keep one of them")
    if torn := [line for line, row in rows.items() if len(row) != len(header)]:
        what = f"row {torn[0]} has {len(rows[torn[0]])} cells for {len(header)} columns ({len(torn)} rows)"
        whole = "give every row the header's columns; is the file whole?"
        raise InputError(str(path), what, "separate columns by commas" if len(header) == 1 else whole)
    return header, rows


def _text(cells: Sequence[str]) -> pd.Series:
    return pd.Series([cell or None for cell in cells], dtype="str")


def _numbers(cells: Sequence[str]) -> tuple[NDArray[Any], list[int]]:
    """The cells as numbers, whole ones where all are written so, and the places of those that are none."""
    try:
        return np.array([int(cell) for cell in cells], dtype=np.int64), []
    except (ValueError, OverflowError):
        values, wrong = np.full(len(cells), np.nan), []
    for place, cell in enumerate(cells):
        try:
            values[place] = float(cell)
        except ValueError:
            if cell.strip().lower() not in NO_NUMBER:
                wrong.append(place)
    return values, wrong


def _marks(cells: Sequence[str]) -> tuple[list[bool], list[int]]:
    found = [TRUTHS.get(cell.strip().lower(), None if cell.strip() else False) for cell in cells]
    return [value is True for value in found], [place for place, value in enumerate(found) if value is None]


def _shown(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:40]}...")


def _of_today(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    """A table of our own from before `table_version`, its distances by the name that they have today."""
    ours = {"hd95", "assd", "dice_input"} <= set(table)
    if not ours or "table_version" in table or "hd95_pooled" in table:
        return table
    logger.warning(
        "%s: from before HD95 was the larger of its two directions; its hd95 is read as hd95_pooled", path.name
    )
    return table.rename(columns={"hd95": "hd95_pooled"})


# --- what a table says of itself --------------------------------------------------------------------------------------


def is_leaky(table: pd.DataFrame) -> bool:
    """Whether a table says of itself that images of one lesion may have trained and been tested."""
    return marks(table)["leaky"]


def marks(table: pd.DataFrame) -> dict[str, bool]:
    """What a table says of itself: leaky, synthetic, shuffled."""
    return {name: name in table and bool(table[name].isin([True, 1, "True", "true"]).any()) for name in MARKS}


def units(table: pd.DataFrame) -> tuple[pd.Series, str]:
    """What is resampled, a name for each row, and in words what that is.

    The groups that the split kept together, where the table has them; else lesions; else images.
    """
    lesions = table["lesion_id"].fillna(table["image_id"])
    if "group" in table and table["group"].notna().any():
        return table["group"].fillna(lesions), "lesions, those that duplicates join as one (column group)"
    if table["lesion_id"].notna().any():
        return lesions, "lesions (column lesion_id)"
    return lesions, "images, for no row names a lesion"


# --- whether it can be so ---------------------------------------------------------------------------------------------


def check(
    table: pd.DataFrame, needed: Sequence[str] = (), faults: Iterable[Fault] = (), where: str = "predictions"
) -> None:
    """Refuse a table whose scores would mean nothing: every image stands there once, in a named split.

    Args:
        table: the predictions.
        needed: columns that its tasks want beside `image_id`, `lesion_id` and `split`, by name or in words.
        faults: what its tasks find wrong; asked for once the columns are there.
        where: the table's name in a message.

    Raises:
        Faults: every fault found, with rows.
    """
    missing = [name for name in (*IDENTITY, *needed) if name not in table]
    if missing:
        alone = len(table.columns) == 1
        fix = "separate columns by commas" if alone else "add them"
        raise Faults([InputError(where, f"columns missing: {', '.join(missing)}", fix)])
    found = [] if len(table) else [InputError(where, "no rows", "give one row per image")]
    for what, rows, fix in (*_wrong_names(table), *faults):
        if rows.any():
            first, *others = _names(table, rows)
            count = f"{int(rows.sum())} rows" if others else "1 row"
            also = f", also {', '.join(others)}" if others else ""
            found.append(InputError(where, f"{first}: {what} ({count}){also}", fix))
    if found:
        raise Faults(found)


def _names(table: pd.DataFrame, rows: NDArray[np.bool_]) -> list[str]:
    """The first rows, by their images."""
    places = np.flatnonzero(rows)[:NAMED]
    ids = table["image_id"].iloc[places]
    return [f"row {place + 2}" if pd.isna(name) else str(name) for place, name in zip(places, ids, strict=True)]


def _wrong_names(table: pd.DataFrame) -> Iterator[Fault]:
    yield "no image_id", _missing(table, "image_id"), "name every image"
    twice = (table["image_id"].duplicated() & table["image_id"].notna()).to_numpy()
    yield "stands there twice", twice, "keep one row per image"
    yield "no split", _missing(table, "split"), "write the part that an image is in, such as test"
    parts = table["split"].dropna().astype(str)
    spelt = parts.str.strip().str.casefold()
    for name, same in parts.groupby(spelt):
        if same.nunique() > 1:
            what = f"split is spelt {' and '.join(map(repr, sorted(set(same))))}"
            yield what, (table["split"].isin(set(same))).to_numpy(), f"write {name} everywhere"
    for name in (name for name in ("lesion_id", "group") if name in table):
        cells = table[name].astype("str")
        # An image of that name may be a lesion of its own; shared, it would join strangers.
        word = (is_missing(cells) & table[name].notna() & (cells != table["image_id"])).to_numpy(dtype=bool)
        yield f"{name} is a word for missing", word, "leave the cell blank where nobody knows"
    if "group" in table:
        of = table["group"].groupby(table["lesion_id"].to_numpy()).nunique()
        torn = table["lesion_id"].isin(of.index[of > 1]).to_numpy()
        yield "its lesion is in several groups", torn, "a group holds whole lesions: mend the column group"


def _missing(table: pd.DataFrame, name: str) -> NDArray[np.bool_]:
    blank: NDArray[np.bool_] = table[name].isna().to_numpy()
    return blank


def measure(table: pd.DataFrame, name: str) -> Floats:
    """A column of numbers, (N,); not a number where a cell is blank."""
    values: Floats = table[name].to_numpy(dtype=np.float64)
    return values


def left_out(table: pd.DataFrame) -> Iterator[str]:
    """Images that name no lesion, in a sentence."""
    if not table["lesion_id"].notna().any():
        yield "no row names a lesion: images are resampled, and intervals are too narrow"
    elif blank := int(table["lesion_id"].isna().sum()):
        yield f"{blank} of {len(table)} images name no lesion, and count as one each"


def doubts(table: pd.DataFrame) -> Iterator[str]:
    """Names that are read as they stand and may have been meant otherwise, a sentence each."""
    for column in ("image_id", "lesion_id", "group"):
        names = table[column].dropna().astype(str) if column in table else pd.Series(dtype="str")
        if alike := names[spelled_in_several_ways(names)].nunique():
            yield f"{alike} names in {column} differ from another in letters or spaces alone, and count as others"
    grouped, lesions = units(table)[0].nunique(), table["lesion_id"].nunique()
    if 2 * grouped < lesions:
        what = f"{lesions} lesions are in {grouped} groups, which are what is resampled"
        yield f"{what}: take the column group out if it says something else than what stays together"
