"""The predictions table, one row per photograph: read as it was written, and refused where it cannot be so.

Names come back as they stand, whatever they look like (`0`, `True`, `NA`, `1.0`): a blank cell is missing, and nothing
else is; where a word such as NA would be one lesion of many photographs, `check` refuses it. Only the columns that hold
measures are numbers, and only `leaky`, `synthetic` and `shuffled` are yes or no.
"""

from __future__ import annotations

import csv
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from skinmtl.errors import Faults, InputError
from skinmtl.runs.cells import MISSING, is_missing, spelled_in_several_ways

logger = logging.getLogger(__name__)

Floats = NDArray[np.float64]

VERSION = 2  # of the columns' meaning, in `table_version`; 1 had no such column, and pooled distances in `hd95`
MARKS = ("leaky", "synthetic", "shuffled")
SHARES = ("dice", "iou", "dice_input")
LENGTHS = ("hd95", "hd95_pooled", "assd")
COUNTS = ("tp", "fp", "fn", "tn")
NUMBERS = (*SHARES, *LENGTHS, "height", "width")
MAY_BE_NUMBERS = ("fold", "age", "table_version")  # numbers where every cell is one; no score depends on them
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
        elif is_number(name) or name in MAY_BE_NUMBERS:
            columns[name], wrong = _numbers(column)
            if name in MAY_BE_NUMBERS and wrong:
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


def dx_classes(table: pd.DataFrame) -> tuple[str, ...]:
    """The diagnoses that a table has probabilities of."""
    return tuple(name.removeprefix("prob_") for name in map(str, table) if name.startswith("prob_"))


def mask_classes(table: pd.DataFrame) -> tuple[str, ...]:
    """The mask classes that a table counts pixels of, background first; none where it has no such columns."""
    names = list(map(str, table))
    pairs = [name.removeprefix("pixels_") for name in names if name.startswith("pixels_")]
    if pairs:
        halves = [(pair[: (len(pair) - 4) // 2], pair) for pair in pairs]
        return tuple(name for name, pair in halves if pair == f"{name}_as_{name}")
    foreground = tuple(name.removeprefix("tp_") for name in names if name.startswith("tp_"))
    return ("skin", *foreground) if foreground else ()


def pixel_columns(classes: Sequence[str]) -> list[str]:
    """Columns of a pixel confusion matrix, row by row."""
    return [f"pixels_{true}_as_{predicted}" for true in classes for predicted in classes]


def is_leaky(table: pd.DataFrame) -> bool:
    """Whether a table says of itself that photographs of one lesion may have trained and been tested."""
    return marks(table)["leaky"]


def marks(table: pd.DataFrame) -> dict[str, bool]:
    """What a table says of itself: leaky, synthetic, shuffled."""
    return {name: name in table and bool(table[name].isin([True, 1, "True", "true"]).any()) for name in MARKS}


def units(table: pd.DataFrame) -> tuple[pd.Series, str]:
    """What is resampled, a name for each row, and in words what that is.

    The groups that the split kept together, where the table has them; else lesions; else photographs.
    """
    lesions = table["lesion_id"].fillna(table["image_id"])
    if "group" in table and table["group"].notna().any():
        return table["group"].fillna(lesions), "lesions, those that duplicates join as one (column group)"
    if table["lesion_id"].notna().any():
        return lesions, "lesions (column lesion_id)"
    return lesions, "photographs, for no row names a lesion"


# --- whether it can be so ---------------------------------------------------------------------------------------------


def check(table: pd.DataFrame, where: str = "predictions") -> None:
    """Refuse a table whose scores would mean nothing.

    Every photograph stands there once, in a named split; measures are such as can be, and agree with the pixels beside
    them; probabilities sum to one and are those of the diagnoses.

    Raises:
        Faults: every fault found, with rows.
    """
    classes, masks = dx_classes(table), mask_classes(table)
    needed = ["image_id", "lesion_id", "split", *(["dx"] if classes else [])]
    if "dice" in table:
        needed += ["iou", *(f"{count}_{name}" for name in masks[1:] for count in COUNTS)]
        needed += pixel_columns(masks) if len(masks) > 2 else []
    missing = [name for name in needed if name not in table]
    if "dice" not in [*table, *missing] and not classes:
        missing.append("dice and iou, or prob_<class>")
    if missing:
        alone = len(table.columns) == 1
        fix = "separate columns by commas" if alone else "add them"
        raise Faults([InputError(where, f"columns missing: {', '.join(missing)}", fix)])
    faults = [] if len(table) else [InputError(where, "no rows", "give one row per photograph")]
    found = [*_wrong_names(table), *_wrong_measures(table, masks), *_wrong_diagnoses(table, classes)]
    for what, rows, fix in found:
        if rows.any():
            first, *others = _names(table, rows)
            count = f"{int(rows.sum())} rows" if others else "1 row"
            also = f", also {', '.join(others)}" if others else ""
            faults.append(InputError(where, f"{first}: {what} ({count}){also}", fix))
    if faults:
        raise Faults(faults)


Fault = tuple[str, NDArray[np.bool_], str]  # what is wrong, in which rows, and how it is mended


def _names(table: pd.DataFrame, rows: NDArray[np.bool_]) -> list[str]:
    """The first rows, by their photographs."""
    places = np.flatnonzero(rows)[:NAMED]
    ids = table["image_id"].iloc[places]
    return [f"row {place + 2}" if pd.isna(name) else str(name) for place, name in zip(places, ids, strict=True)]


def _wrong_names(table: pd.DataFrame) -> Iterator[Fault]:
    yield "no image_id", _missing(table, "image_id"), "name every photograph"
    twice = (table["image_id"].duplicated() & table["image_id"].notna()).to_numpy()
    yield "stands there twice", twice, "keep one row per photograph"
    yield "no split", _missing(table, "split"), "write the part that a photograph is in, such as test"
    parts = table["split"].dropna().astype(str)
    spelt = parts.str.strip().str.casefold()
    for name, same in parts.groupby(spelt):
        if same.nunique() > 1:
            what = f"split is spelt {' and '.join(map(repr, sorted(set(same))))}"
            yield what, (table["split"].isin(set(same))).to_numpy(), f"write {name} everywhere"
    for name in (name for name in ("lesion_id", "group") if name in table):
        cells = table[name].astype("str")
        # A photograph of that name may be a lesion of its own; shared, it would join strangers.
        word = (is_missing(cells) & table[name].notna() & (cells != table["image_id"])).to_numpy(dtype=bool)
        yield f"{name} is a word for missing", word, "leave the cell blank where nobody knows"
    if "group" in table:
        of = table["group"].groupby(table["lesion_id"].to_numpy()).nunique()
        torn = table["lesion_id"].isin(of.index[of > 1]).to_numpy()
        yield "its lesion is in several groups", torn, "a group holds whole lesions: mend the column group"


def _missing(table: pd.DataFrame, name: str) -> NDArray[np.bool_]:
    blank: NDArray[np.bool_] = table[name].isna().to_numpy()
    return blank


def _wrong_measures(table: pd.DataFrame, masks: Sequence[str]) -> Iterator[Fault]:
    """Values that no masks have. A blank cell is none and no fault."""
    each = [f"{score}_{name}" for name in masks[1:] for score in ("dice", "iou")]
    counts = [f"{count}_{name}" for name in masks[1:] for count in COUNTS]
    counts += pixel_columns(masks) if len(masks) > 2 else []
    tests: Mapping[str, tuple[Sequence[str], Callable[[Floats], NDArray[np.bool_]]]] = {
        "is below 0 or above 1": ((*SHARES, *each), lambda v: (v < 0) | (v > 1)),
        "is below 0 or infinite": (LENGTHS, lambda v: (v < 0) | np.isinf(v)),
        "is no number of pixels": (
            (*counts, "height", "width"),
            lambda v: (v < 0) | np.isinf(v) | (~np.isnan(v) & (v != np.rint(v))),
        ),
    }
    possible = True
    for what, (names, is_wrong) in tests.items():
        for name in (name for name in names if name in table):
            rows = is_wrong(_measure(table, name))
            possible &= not rows.any()
            yield f"{name} {what}", rows, "look at what made the table"
    if {"height", "width"} <= set(table) and possible:
        diagonal = np.hypot(_measure(table, "height"), _measure(table, "width"))
        for name in (name for name in LENGTHS if name in table):
            rows = _measure(table, name) > diagonal + ROUNDING
            yield f"{name} is above the photograph's diagonal", rows, "give distances in pixels of the photograph"
    if "dice" in table and possible:
        rows = _measure(table, "iou") > _measure(table, "dice") + ROUNDING
        yield "iou is above dice", rows, "IoU is never above Dice: look at both"
        if masks:
            yield from _contradicted(table, masks)


def _contradicted(table: pd.DataFrame, masks: Sequence[str]) -> Iterator[Fault]:
    """Scores that are not those of the pixels beside them, and pixels that do not add up."""
    fix = "give the counts and the scores of the same masks"
    each = [[_measure(table, f"{count}_{name}") for count in COUNTS] for name in masks[1:]]
    both = [tp for tp, *_ in each], [tp + fp + fn for tp, fp, fn, _ in each]
    dice = [_share(2 * tp, union + tp) for tp, union in zip(*both, strict=True)]
    iou = [_share(tp, union) for tp, union in zip(*both, strict=True)]
    for score, values in (("dice", dice), ("iou", iou)):
        rows = np.abs(np.mean(values, axis=0) - _measure(table, score)) > ROUNDING
        yield f"{score} is not that of the pixels beside it", rows, fix
    totals = [np.sum(counts, axis=0) for counts in each]
    if {"height", "width"} <= set(table):
        totals.append(_measure(table, "height") * _measure(table, "width"))
    if len(masks) > 2:
        totals.append(np.sum([_measure(table, name) for name in pixel_columns(masks)], axis=0))
    for total in totals[1:]:
        rows = np.isfinite(totals[0]) & np.isfinite(total) & (total != totals[0])
        yield "its pixels do not add up to one size of photograph", rows, fix


def _measure(table: pd.DataFrame, name: str) -> Floats:
    values: Floats = table[name].to_numpy(dtype=np.float64)
    return values


def _share(part: Floats, whole: Floats) -> Floats:
    """One where there is nothing to share, as of two empty masks."""
    return np.divide(part, whole, out=np.ones(len(part)), where=whole != 0)


def _wrong_diagnoses(table: pd.DataFrame, classes: Sequence[str]) -> Iterator[Fault]:
    if not classes:
        return
    p: Floats = table[[f"prob_{name}" for name in classes]].to_numpy(dtype=np.float64)
    total: Floats = p.sum(axis=1, keepdims=True)
    yield "a probability is not a number", _any(~np.isfinite(p)), "look at the model that made it"
    yield "a probability is below 0 or above 1", _any((p < 0) | (p > 1)), "give probabilities, not logits"
    yield "probabilities do not sum to one", _any(np.abs(total - 1) > 1e-3), "normalise them"
    strange = table["dx"].notna() & ~table["dx"].isin(classes)
    names = ", ".join(sorted(map(str, set(table["dx"][strange]))))
    fix = f"the classes are {', '.join(classes)}"
    yield f"dx is {names}, which has no column of probabilities", strange.to_numpy(dtype=bool), fix


def _any(cells: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Whether any cell of a row is, (N,)."""
    rows: NDArray[np.bool_] = np.any(cells, axis=1)
    return rows


def left_out(table: pd.DataFrame, part: str) -> list[str]:
    """What the scores of one part do not count, and what they cannot tell, a sentence each."""
    said = []
    if not table["lesion_id"].notna().any():
        said.append("no row names a lesion: photographs are resampled, and intervals are too narrow")
    elif blank := int(table["lesion_id"].isna().sum()):
        said.append(f"{blank} of {len(table)} photographs name no lesion, and count as one each")
    blanks: dict[int, list[str]] = {}  # what as many photographs lack, most often all for want of a mask
    for name in ("dice", "iou", *LENGTHS, "dice_input"):
        if name in table and (blank := int(table[name].isna().sum())):
            blanks.setdefault(blank, []).append(name)
    for blank, names in blanks.items():
        said.append(f"{blank} of {len(table)} photographs have no {', '.join(names)}, and count in no score of it")
    if dx_classes(table) and (blank := int(table["dx"].isna().sum())):
        said.append(f"{blank} of {len(table)} photographs have no diagnosis, and count in no score of it")
    if mask_classes(table) and "dice" not in table:
        said.append("pixels are counted and there is no dice: masks are not scored")
    if dx_classes(table) and table["dx"].nunique() == 1:
        only = table["dx"].dropna().iloc[0]
        said.append(f"{only} is the only diagnosis: how well diagnoses are told apart is undefined")
    return [f"{part}: {sentence}" for sentence in [*said, *doubts(table)]]


def doubts(table: pd.DataFrame) -> list[str]:
    """What is read as it stands and may have been meant otherwise, a sentence each."""
    said = []
    for column in ("image_id", "lesion_id", "group"):
        names = table[column].dropna().astype(str) if column in table else pd.Series(dtype="str")
        if alike := names[spelled_in_several_ways(names)].nunique():
            said.append(
                f"{alike} names in {column} differ from another in letters or spaces alone, and count as others"
            )
    grouped, lesions = units(table)[0].nunique(), table["lesion_id"].nunique()
    if 2 * grouped < lesions:
        said.append(
            f"{lesions} lesions are in {grouped} groups, which are what is resampled: "
            "take the column group out if it says something else than what stays together"
        )
    return [*said, *_doubtful_guesses(table), *_doubtful_masks(table)]


def _doubtful_guesses(table: pd.DataFrame) -> list[str]:
    """Guesses of another kind than the largest probability, which is what is scored."""
    names = [f"prob_{name}" for name in dx_classes(table)]
    if "predicted_dx" not in table or not names:
        return []
    p = table[names].to_numpy(dtype=np.float64)
    guess = table["predicted_dx"].map({name.removeprefix("prob_"): i for i, name in enumerate(names)})
    given = guess.notna().to_numpy()
    own = p[np.arange(len(p)), guess.fillna(0).astype(int)]
    count = int((table["predicted_dx"].notna() & ~(given & (own >= p.max(axis=1)))).sum())
    what = f"predicted_dx is not the diagnosis of the largest probability in {count} of {len(table)} rows; the latter"
    return [f"{what} is scored"] if count else []


def _doubtful_masks(table: pd.DataFrame) -> list[str]:
    """True masks without a lesion, and those that are nothing else."""
    names = mask_classes(table)[1:]
    if "dice" not in table or not names:
        return []
    tp, fp, fn, tn = (np.stack([_measure(table, f"{count}_{name}") for name in names]) for count in COUNTS)
    known = np.isfinite(tp).all(axis=0)
    lesion, whole = (tp + fn).sum(axis=0)[known], (tp + fp + fn + tn)[0][known]
    said = []
    if empty := int((lesion == 0).sum()):
        said.append(f"{empty} of {known.sum()} masks are empty: their Dice is 1 where nothing is predicted, else 0")
    if full := int((lesion == whole).sum()):
        said.append(f"{full} of {known.sum()} masks are lesion throughout")
    return said
