"""Words that people and programs write into a cell of which nothing is known."""

from __future__ import annotations

import pandas as pd

# Of R, Excel, pandas, SQL and people, in any case.
MISSING = ("", "na", "n/a", "n.a.", "#n/a", "<na>", "nan", "none", "null", "nil", "unknown", "unk", "missing", "-", "?")


def is_missing(cells: pd.Series) -> pd.Series:
    """Which cells of text say that nothing is known."""
    return cells.str.strip().str.lower().isin(MISSING)
