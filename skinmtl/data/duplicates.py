"""Photographs of one lesion under several lesion ids: which are known, and the groups that they join."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from skinmtl.errors import InputError

Pair = tuple[str, str]  # two image ids

# HAM10000's pairs of lesion ids that show one lesion, as published: Abhishek et al., Investigating the quality
# of DermaMNIST and Fitzpatrick17k, Sci Data 2025, doi 10.1038/s41597-025-04382-5, newly_discovered_duplicates.csv of
# their repository kakumarabhishek/Corrected-Skin-Image-Datasets at df006b58.
PUBLISHED: tuple[Pair, ...] = (
    ("ISIC_0033481", "ISIC_0033421"),
    ("ISIC_0033556", "ISIC_0032634"),
    ("ISIC_0029152", "ISIC_0033173"),
    ("ISIC_0029036", "ISIC_0027027"),
    ("ISIC_0027820", "ISIC_0028209"),
    ("ISIC_0027689", "ISIC_0032647"),
    ("ISIC_0030906", "ISIC_0024879"),
    ("ISIC_0033391", "ISIC_0034186"),
    ("ISIC_0025226", "ISIC_0030074"),
    ("ISIC_0026087", "ISIC_0025664"),
    ("ISIC_0024736", "ISIC_0029748"),
    ("ISIC_0024770", "ISIC_0027811"),
    ("ISIC_0027162", "ISIC_0029061"),
    ("ISIC_0024602", "ISIC_0032283"),
    ("ISIC_0029625", "ISIC_0024629"),
    ("ISIC_0030000", "ISIC_0031392"),
    ("ISIC_0024437", "ISIC_0031299"),
    ("ISIC_0033374", "ISIC_0033417"),
)


def pairs(choice: str, table: pd.DataFrame) -> list[Pair]:
    """The duplicates of a choice whose photographs are both in the case table, under two lesion ids.

    `known` gives the published ones of HAM10000, `none` none, anything else is a CSV file with the columns first and
    second, as `skinmtl audit` writes it.
    """
    chosen = PUBLISHED if choice == "known" else () if choice == "none" else read(Path(choice))
    lesion_of = dict(zip(table["image_id"], table["lesion_id"].fillna(table["image_id"]), strict=True))
    here = [pair for pair in chosen if lesion_of.keys() >= set(pair)]
    return [(first, second) for first, second in here if lesion_of[first] != lesion_of[second]]


def read(path: Path) -> list[Pair]:
    """The pairs of image ids in a CSV file."""
    path = path.expanduser()
    fix = "give known, none, or a CSV file with the columns first and second"
    if not path.is_file():
        raise InputError(f"data.duplicates={path}", "no such file", fix)
    try:
        raw = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except (ValueError, OSError) as error:
        raise InputError(str(path), " ".join(f"not a table ({error})".split()), fix) from error
    if missing := [name for name in ("first", "second") if name not in raw]:
        raise InputError(str(path), f"no column {', '.join(missing)}", fix)
    return list(zip(raw["first"].str.strip(), raw["second"].str.strip(), strict=True))


def groups(table: pd.DataFrame, pairs: Sequence[Pair]) -> pd.Series:
    """The group of each photograph, (N,): its lesion, or all the lesions that duplicates join, by + in order of name.

    Groups are the connected components of lesions and pairs, so that a chain of pairs is one group. A photograph
    without a lesion id is a lesion of its own.
    """
    lesions = table["lesion_id"].fillna(table["image_id"])
    if not pairs:
        return lesions.rename("group")
    codes, names = pd.factorize(lesions, sort=True)
    lesion_of = dict(zip(table["image_id"], codes, strict=True))
    edges = np.array([[lesion_of[first], lesion_of[second]] for first, second in pairs]).T  # (2, pairs)
    graph = coo_array((np.ones(edges.shape[1]), edges), shape=(len(names), len(names)))
    component = connected_components(graph, directed=False)[1]  # (lesions,)
    joined = pd.Series(names).groupby(component).agg("+".join)
    return pd.Series(joined.to_numpy()[component[codes]], index=table.index, name="group")
