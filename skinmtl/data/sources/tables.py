"""Tables in text files, read as they stand, and faults that name their rows."""

from __future__ import annotations

import csv
import difflib
import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

import pandas as pd

from skinmtl.errors import Faults, InputError, SkinmtlError
from skinmtl.runs.cells import is_missing
from skinmtl.terminal import first

logger = logging.getLogger(__name__)

MOST_BYTES = 2**20  # of one line: what is longer is no table, and reading on could fill the memory
NAMED = ("dx", "first", "second")  # columns of names that may be such words
MOST_NAMED = 10  # rows of one fault, or faults of one kind; the rest is counted


def read_table(
    path: Path, known: Sequence[str] = (), names: Collection[str] = (), may_be_empty: bool = False
) -> tuple[pd.DataFrame, list[SkinmtlError]]:
    """Read every cell of a table as stripped text.

    The header is row 1. Blank lines and columns without a name are left out, rows of a wrong length too. A byte-order
    mark and Windows line ends are fine. Tabs separate cells where the name ends in .tab or .tsv, else commas.
    A cell that holds a word for missing (`cells.is_missing`) is blank, in every column alike.

    Args:
        path: the file.
        known: the columns that are read; of these the log says which words were taken for missing.
        names: diagnoses, or images in a table of pairs, which stay even where they are such a word.
        may_be_empty: whether the header alone will do.

    Returns:
        The table, indexed by row number, and a fault where rows have too many or too few cells.

    Raises:
        InputError: no such file, or no table in it.
    """
    _refuse_long_lines(path)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter="\t" if path.suffix in (".tab", ".tsv") else ",", strict=True)
            header, *lines = [[cell.strip() for cell in line] for line in reader] or [[]]
    except UnicodeDecodeError as error:
        raise InputError(str(path), "not UTF-8 text", "save it as UTF-8 CSV") from error
    except (OSError, csv.Error) as error:
        raise InputError(str(path), f"not a table: {printable(str(error))}", "save it as UTF-8 CSV") from error
    _check_header(header, path)

    rows = {row: cells for row, cells in enumerate(lines, start=2) if any(cells)}
    if not rows and not may_be_empty:
        raise InputError(str(path), "no rows", "give one row per image")
    whole = {row: cells for row, cells in rows.items() if len(cells) == len(header)}
    ragged = [f"row {row} ({len(cells)} cells)" for row, cells in rows.items() if row not in whole]
    fix = "give every row the header's columns, and put text with commas in quotes"
    faults = list_fault(path, f"not the header's {len(header)} cells", ragged, fix)
    if faults and not whole:
        raise Faults(faults)
    table = pd.DataFrame(list(whole.values()), index=list(whole), columns=header, dtype="str")
    table = table.loc[:, [bool(name) for name in header]]
    return _without_missing(table, known, names, path), faults


def _without_missing(table: pd.DataFrame, known: Sequence[str], names: Collection[str], path: Path) -> pd.DataFrame:
    """Blank the words for missing, and count them in the log."""
    counted: list[str] = []
    blanks = {}
    for column, cells in table.items():
        gone = is_missing(cells) & ~(cells.isin(list(names)) & (str(column).lower() in NAMED))
        blanks[column] = cells.mask(gone, "")
        if column in known:
            counts = cells[gone & (cells != "")].value_counts()
            counted += [f"{column} {printable(str(word))} ({count:,} rows)" for word, count in counts.items()]
    if counted:
        is_dx = any(words.startswith("dx ") for words in counted)
        more = "; if a diagnosis is called so, name it in data.diagnoses" if is_dx else ""
        logger.info("%s: taken for missing: %s%s", path, first(counted, MOST_NAMED), more)
    return pd.DataFrame(blanks, index=table.index, columns=table.columns, dtype="str")


def _refuse_long_lines(path: Path) -> None:
    """Look for line ends in small pieces, for a parser would hold a whole line in memory first."""
    since = 0  # bytes since the last line end
    try:
        with path.open("rb") as file:
            while piece := file.read(2**16):
                before, end, _ = piece.partition(b"\n")
                since += len(before)
                if since > MOST_BYTES:
                    what = f"a line of more than {MOST_BYTES:,} bytes"
                    raise InputError(str(path), what, "give a table, one line per image")
                if end:
                    since = len(piece) - piece.rfind(b"\n") - 1
    except OSError as error:
        raise InputError(str(path), f"cannot be read ({error.strerror})", "give a file that can be read") from error


def _check_header(header: Sequence[str], path: Path) -> None:
    names = [name.lower() for name in header if name]
    if not names:
        raise InputError(str(path), "not a table: row 1 names no columns", "begin with the names of the columns")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(str(path), f"two columns are called {', '.join(map(printable, twice))}", "keep one of them")


def require_columns(table: pd.DataFrame, columns: Iterable[str], path: Path) -> None:
    """Refuse a table that lacks a column.

    Args:
        table: as `read_table` returns it.
        columns: their names.
        path: the table's file, for the message.

    Raises:
        InputError: naming all that are missing, and those that are there.
    """
    missing = [name for name in columns if name not in table]
    if missing:
        there = f"there are {', '.join(printable(name) for name in table.columns[:12])}"
        fix = "separate columns by commas" if len(table.columns) == 1 else there
        raise InputError(str(path), f"no column {', '.join(missing)}", fix)


def log_ignored_columns(table: pd.DataFrame, known: Iterable[str], path: Path) -> None:
    """Name in the log the columns that are not read.

    Args:
        table: as `read_table` returns it.
        known: the columns that are read.
        path: the table's file.
    """
    ignored = [printable(name) for name in table.columns if name not in set(known)]
    if ignored:
        logger.info("%s: ignored columns: %s", path, ", ".join(ignored))


def further_columns(table: pd.DataFrame, known: Iterable[str], path: Path) -> list[str]:
    """Find the columns that only a task which names them reads, and name them in the log.

    Args:
        table: as `read_table` returns it.
        known: the columns that are read in any case.
        path: the table's file.
    """
    further = [str(name) for name in table.columns if name not in set(known)]
    if further:
        logger.info("%s: columns that only tasks read: %s", path, ", ".join(map(printable, further)))
    return further


def misspelt_columns(table: pd.DataFrame, known: Sequence[str], path: Path) -> list[SkinmtlError]:
    """Find columns whose names are nearly those of columns that could be there and are not.

    Args:
        table: as `read_table` returns it.
        known: names of the columns that could be there.
        path: the table's file, for messages.

    Returns:
        A fault for each.
    """
    faults: list[SkinmtlError] = []
    absent = [name for name in known if name not in table]
    for name in table.columns.difference(list(known)):
        if near := difflib.get_close_matches(name.lower(), absent, 1, 0.75):
            fix = f"call it {near[0]!r}, or something unlike it if it holds something else"
            faults.append(InputError(str(path), f"column {printable(name)}: did you mean {near[0]!r}?", fix))
    return faults


def row_faults(path: Path, ids: pd.Series, checks: Mapping[str, tuple[pd.Series, str]]) -> list[SkinmtlError]:
    """Turn checks of rows into faults that name the rows.

    Args:
        path: the table's file.
        ids: what each row is called, indexed by row number.
        checks: by what is wrong: which rows are (booleans, indexed alike), and how to fix it.

    Returns:
        A fault for each check that some rows fail.
    """
    faults: list[SkinmtlError] = []
    for what, (wrong, fix) in checks.items():
        faults += list_fault(path, what, [f"row {row} ({printable(ids[row])})" for row in ids.index[wrong]], fix)
    return faults


def list_fault(path: Path, what: str, found: Sequence[str], fix: str) -> list[SkinmtlError]:
    """Put what was found into one fault that names the first and counts the rest; none where nothing was found.

    Args:
        path: where it was found.
        what: what is wrong.
        found: each place, such as a row with its id.
        fix: how to mend it.
    """
    if not found:
        return []
    return [InputError(str(path), f"{what}: {first(found, MOST_NAMED)}", fix)]


def first_faults(faults: Sequence[SkinmtlError]) -> list[SkinmtlError]:
    """Keep the first faults of one kind and count the others, so that a thousand of them leave room for other kinds."""
    left = len(faults) - MOST_NAMED
    if left <= 0:
        return list(faults)
    last = faults[-1]
    return [*faults[:MOST_NAMED], InputError(last.where, f"{left:,} more faults like the one above", last.fix)]


def printable(text: str, most: int = 80) -> str:
    """Make text of a user's file fit for one line of a message.

    Args:
        text: any; what cannot be printed is escaped.
        most: characters from which on it is cut.
    """
    text = text if text.isprintable() else ascii(text)
    return text if len(text) <= most else f"{text[:most]}..."
