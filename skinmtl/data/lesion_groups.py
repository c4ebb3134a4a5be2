"""Duplicates: images of one lesion under several lesion ids, and the groups of lesions that they join."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from skinmtl.data.sources.layouts import without_suffix
from skinmtl.data.sources.tables import printable, read_table, row_faults
from skinmtl.errors import Faults, InputError

logger = logging.getLogger(__name__)

DuplicatePair = tuple[str, str]  # two image ids

# HAM10000's pairs of lesion ids that show one lesion, as published: Abhishek et al., Investigating the quality
# of DermaMNIST and Fitzpatrick17k, Sci Data 2025, doi 10.1038/s41597-025-04382-5, newly_discovered_duplicates.csv of
# their repository kakumarabhishek/Corrected-Skin-Image-Datasets at df006b58.
PUBLISHED: tuple[DuplicatePair, ...] = (
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
# Those that `skinmtl audit` found in all of HAM10000, each looked at by eye, by no dermatologist: the first two columns
# of experiments/leak_audit/duplicates.csv. Eleven are among the published ones.
AUDITED: tuple[DuplicatePair, ...] = (
    ("ISIC_0024479", "ISIC_0028756"),
    ("ISIC_0024602", "ISIC_0031468"),
    ("ISIC_0024602", "ISIC_0032283"),
    ("ISIC_0024658", "ISIC_0028487"),
    ("ISIC_0024774", "ISIC_0027559"),
    ("ISIC_0024877", "ISIC_0029518"),
    ("ISIC_0024879", "ISIC_0030906"),
    ("ISIC_0025143", "ISIC_0025415"),
    ("ISIC_0025226", "ISIC_0030074"),
    ("ISIC_0025281", "ISIC_0026904"),
    ("ISIC_0025312", "ISIC_0028123"),
    ("ISIC_0025387", "ISIC_0029880"),
    ("ISIC_0026069", "ISIC_0028180"),
    ("ISIC_0026272", "ISIC_0028487"),
    ("ISIC_0026524", "ISIC_0027435"),
    ("ISIC_0027027", "ISIC_0029036"),
    ("ISIC_0027162", "ISIC_0029061"),
    ("ISIC_0027608", "ISIC_0028449"),
    ("ISIC_0027619", "ISIC_0028332"),
    ("ISIC_0027636", "ISIC_0027994"),
    ("ISIC_0027820", "ISIC_0028209"),
    ("ISIC_0027820", "ISIC_0030835"),
    ("ISIC_0028014", "ISIC_0028585"),
    ("ISIC_0028209", "ISIC_0030835"),
    ("ISIC_0028487", "ISIC_0028957"),
    ("ISIC_0029130", "ISIC_0031799"),
    ("ISIC_0029152", "ISIC_0033173"),
    ("ISIC_0029477", "ISIC_0030637"),
    ("ISIC_0031890", "ISIC_0033460"),
    ("ISIC_0032631", "ISIC_0033176"),
    ("ISIC_0032634", "ISIC_0033556"),
    ("ISIC_0033374", "ISIC_0033417"),
    ("ISIC_0033391", "ISIC_0034186"),
    ("ISIC_0033421", "ISIC_0033481"),
    ("ISIC_0034228", "ISIC_0034248"),
)
KNOWN = (*PUBLISHED, *(pair for pair in AUDITED if set(pair) not in list(map(set, PUBLISHED))))


def pairs(choice: str, table: pd.DataFrame) -> list[DuplicatePair]:
    """Return known duplicates whose images are both in a case table, under two lesion ids.

    Args:
        choice: `known` for those of HAM10000, published or found by our audit; `none`; or a CSV file with the columns
            first and second, as `skinmtl audit` writes it. Endings such as .jpg are taken off.
        table: the case table.

    Raises:
        InputError: no such file, no table, or one of other images.
        Faults: rows that name no two images.
    """
    if choice in ("known", "none"):
        return apart(KNOWN, table) if choice == "known" else []
    ids, path = set(table["image_id"]), Path(choice).expanduser()

    def known(name: str) -> str:
        return name if name in ids else without_suffix(name)

    given = [(known(first), known(second)) for first, second in read(path, ids)]
    here = [pair for pair in given if ids >= set(pair)]
    logger.info("%s: of %d pairs, %d are of images at data.root", path, len(given), len(here))
    if given and not here:
        what = f"none of its {len(given):,} pairs is of images at data.root, the first is {printable(given[0][0])}"
        raise InputError(str(path), what, f"use image ids such as {table['image_id'].iloc[0]}, or data.duplicates=none")
    return apart(here, table)


def apart(pairs: Iterable[DuplicatePair], table: pd.DataFrame) -> list[DuplicatePair]:
    """Return those pairs whose images are both in a case table, under two lesion ids.

    Args:
        pairs: of image ids.
        table: the case table.
    """
    lesion_of = dict(zip(table["image_id"], table["lesion_id"].fillna(table["image_id"]), strict=True))
    here = (pair for pair in pairs if lesion_of.keys() >= set(pair))
    return [(first, second) for first, second in here if lesion_of[first] != lesion_of[second]]


def read(path: Path, ids: Collection[str] = ()) -> list[DuplicatePair]:
    """Read the pairs in a CSV file, as they stand there; it may hold none.

    Args:
        path: the file.
        ids: images that are such even where their name is a word for missing, such as none.

    Raises:
        InputError: no such file, or no table of pairs.
        Faults: rows that name no two images.
    """
    fix = "give known, none, or a CSV file with the columns first and second"
    if not path.is_file():
        raise InputError(f"data.duplicates={path}", "no such file", fix)
    raw, faults = read_table(path, ("first", "second"), ids, may_be_empty=True)
    if missing := [name for name in ("first", "second") if name not in raw]:
        raise InputError(str(path), f"no column {', '.join(missing)}", fix)
    checks = {f"{name} is missing": (raw[name] == "", "name two images a row") for name in ("first", "second")}
    faults += row_faults(path, raw["first"].where(raw["first"] != "", raw["second"]), checks)
    if faults:
        raise Faults(faults)
    return list(zip(raw["first"], raw["second"], strict=True))


def same_files(table: pd.DataFrame) -> list[DuplicatePair]:
    """Find images whose files are the same, byte for byte, under two lesion ids.

    What cannot be read is no duplicate here: decoding names all such images together.

    Args:
        table: a case table with the sha256 of files, as `file_hashes.with_digests` returns it.
    """
    digests = table.set_index("image_id")["image_sha256"].dropna()
    alike = digests.index.to_series().groupby(digests.to_numpy(), sort=False)
    return apart((pair for _, ids in alike for pair in pairwise(ids)), table)


def groups(table: pd.DataFrame, pairs: Sequence[DuplicatePair]) -> pd.Series:
    """Return the group of each image: its lesion, or all the lesions that duplicates join.

    Groups are the connected components of lesions and pairs, so that a chain of pairs is one group. An image
    without a lesion id is a lesion of its own.

    Args:
        table: a case table of N images.
        pairs: of image ids, both in the table.

    Returns:
        (N,) names, indexed as the table: a lesion id, or several in order, joined by +.
    """
    lesions = table["lesion_id"].fillna(table["image_id"])
    if not pairs:
        return lesions.rename("group")
    codes, names = pd.factorize(lesions, sort=True)
    lesion_of = dict(zip(table["image_id"], codes, strict=True))
    edges = np.array([[lesion_of[first], lesion_of[second]] for first, second in pairs]).T  # (2, pairs)
    graph = coo_array((np.ones(edges.shape[1]), edges), shape=(len(names), len(names)))
    component = connected_components(graph, directed=False)[1]  # (lesions,)
    several = np.bincount(component)[component] > 1  # few: a join for each of thousands would be felt at every start
    group = names.to_numpy(dtype=object, copy=True)
    for one in np.unique(component[several]):
        group[component == one] = "+".join(names[component == one])
    return pd.Series(group[codes], index=table.index, name="group")
