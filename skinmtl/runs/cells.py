"""Cells that say nothing, and names that people read as one although they are not the same text."""

from __future__ import annotations

import unicodedata

import pandas as pd

# Words of R, Excel, pandas, SQL and people for a cell of which nothing is known, in any case.
MISSING = {
    *("", "na", "n/a", "n.a.", "#n/a", "<na>", "nan", "none", "null", "nil", "unknown", "unk", "missing"),
    *("not available", "#value!", "#ref!", "#name?", "#div/0!", "#num!", "#null!"),
}
# Dots (as of SAS and Stata), dashes and question marks: nobody filled that in.
BARE = "[?._\u2026\u2010-\u2015\u2212-]+"


def is_missing(cells: pd.Series) -> pd.Series:
    """Which cells of text say that nothing is known."""
    words = cells.str.strip().str.lower()
    return words.isin(MISSING) | words.str.fullmatch(BARE)


def spelling(name: str) -> str:
    """What names that people read as one have in common: small letters, composed, single spaces, nothing invisible."""
    seen = "".join(sign for sign in unicodedata.normalize("NFKC", name) if unicodedata.category(sign) != "Cf")
    return " ".join(unicodedata.normalize("NFC", seen.casefold()).split())


def in_two_spellings(names: pd.Series) -> pd.Series:
    """Which names differ from another only in what `spelling` takes away."""
    distinct = {name: spelling(name) for name in names.unique()}
    return names.groupby(names.map(distinct)).transform("nunique") > 1
