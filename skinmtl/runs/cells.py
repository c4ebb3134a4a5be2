"""Text of table cells: what counts as missing, and names that differ only in how they are written."""

from __future__ import annotations

import unicodedata

import pandas as pd

# Words of R, Excel, pandas, SQL and people for a cell of which nothing is known, in any case.
MISSING = {
    *("", "na", "n/a", "n.a.", "#n/a", "<na>", "nan", "none", "null", "nil", "unknown", "unk", "missing"),
    *("not available", "#value!", "#ref!", "#name?", "#div/0!", "#num!", "#null!"),
}
# Dots (as of SAS and Stata), dashes and question marks: nobody filled that in.
PLACEHOLDER = "[?._\u2026\u2010-\u2015\u2212-]+"


def is_missing(cells: pd.Series) -> pd.Series:
    """Tell which cells say that nothing is known.

    Args:
        cells: text; a blank cell is missing, too.

    Returns:
        Booleans, indexed alike.
    """
    words = cells.str.strip().str.lower()
    return words.isin(MISSING) | words.str.fullmatch(PLACEHOLDER)


def canonical_spelling(name: str) -> str:
    """Write a name so that names which people read as one become one text.

    Args:
        name: any text.

    Returns:
        Small letters, composed (NFC), with single spaces and nothing invisible.
    """
    seen = "".join(sign for sign in unicodedata.normalize("NFKC", name) if unicodedata.category(sign) != "Cf")
    return " ".join(unicodedata.normalize("NFC", seen.casefold()).split())


def spelled_in_several_ways(names: pd.Series) -> pd.Series:
    """Tell which names differ from another one only in what `canonical_spelling` takes away.

    Args:
        names: text, such as lesion ids.

    Returns:
        Booleans, indexed alike.
    """
    distinct = {name: canonical_spelling(name) for name in names.unique()}
    return names.groupby(names.map(distinct)).transform("nunique") > 1
