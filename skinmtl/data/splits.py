"""Which images train, validate and test: a file made once, with no lesion in two splits."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from skinmtl.data import lesion_groups
from skinmtl.data.lesion_groups import DuplicatePair
from skinmtl.data.sources.tables import row_faults
from skinmtl.errors import FORBIDDEN, FULL, ConfigError, Faults, InputError, SkinmtlError
from skinmtl.files import write_text
from skinmtl.runs.cells import is_missing
from skinmtl.terminal import first

logger = logging.getLogger(__name__)

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
VAL_SHARE = 1 / 8  # of the images outside the test fold
SHOWN = 5  # images of a fault; the others are counted
VERSION = 2  # raise when `make_split` gives another split for the same table


def make_split(table: pd.DataFrame, folds: int, seed: int, pairs: Sequence[DuplicatePair] = ()) -> pd.DataFrame:
    """Assign every image to train, val or test, in each fold, whole lesions at a time.

    Test folds are those of scikit-learn's StratifiedGroupKFold(folds, shuffle=True, random_state=seed) on dx by group;
    inside the rest, an eighth of each diagnosis' images is validation. Images without a diagnosis count as one more.

    Args:
        table: a case table.
        folds: how many, at least two; each image is in the test split of one.
        seed: of the shuffling, in [0, 2^32).
        pairs: known duplicates, whose lesions are kept together as one group.

    Returns:
        One row per image: `image_id`, `group` (its lesion, or the lesions that duplicates join), and a column
        `fold_0`, `fold_1`, ... for each fold that says train, val or test.

    Raises:
        ConfigError: there are fewer groups than folds.
    """
    names_of_groups = lesion_groups.groups(table, pairs)
    groups = pd.factorize(names_of_groups, sort=True)[0]
    classes, names = pd.factorize(_words(table["dx"]), sort=True)
    lesions = pd.Series(groups).groupby(classes).nunique()
    if len(set(groups)) < folds:
        raise ConfigError("data.folds", f"{folds} folds of {len(set(groups))} lesions", "ask for fewer folds")
    for code in lesions.index[lesions < folds]:
        name = names[code] or "no diagnosis"
        logger.warning("%s has %d lesions: not every one of %d folds can test it", name, lesions[code], folds)

    test = stratified_group_folds(classes, groups, folds, seed)
    split = pd.DataFrame({"image_id": table["image_id"], "group": names_of_groups})
    for fold in range(folds):
        rest = np.flatnonzero(test != fold)
        assigned = np.where(test == fold, "test", "train").astype(object)
        assigned[rest[_validation(classes[rest], groups[rest], np.random.RandomState([seed, fold]))]] = "val"
        split[f"fold_{fold}"] = assigned
    return split


def _words(column: pd.Series) -> pd.Series:
    """Return a column as text; a missing value is a blank one."""
    return column.astype(object).where(column.notna(), "")


def stratified_group_folds(
    classes: NDArray[np.int64], groups: NDArray[np.int64], folds: int, seed: int
) -> NDArray[np.int64]:
    """Assign rows to test folds exactly as scikit-learn's StratifiedGroupKFold with shuffling does.

    Written out because scikit-learn's takes seconds at 10,000 rows, and because a split should not change with the
    version of a package. Greedy: groups with the most uneven classes first, each to the fold where it evens out the
    classes' shares best, the smaller fold on a tie.

    Args:
        classes: (N,) index of each row's class among the sorted classes.
        groups: (N,) index of each row's group among the sorted groups.
        folds: how many.
        seed: of the shuffling.

    Returns:
        (N,) int64, the fold in which each row is tested.
    """
    counts = np.zeros((groups.max() + 1, classes.max() + 1))
    np.add.at(counts, (groups, classes), 1)
    totals = counts.sum(axis=0)

    shuffled = np.arange(len(counts))
    np.random.RandomState(seed).shuffle(shuffled)
    counts = counts[shuffled]

    held = np.zeros((folds, counts.shape[1]))
    fold_of = np.empty(len(counts), dtype=np.int64)
    for group in np.argsort(-np.std(counts, axis=1), kind="mergesort"):
        fold_of[shuffled[group]] = best = _best_fold(held, counts[group], totals)
        held[best] += counts[group]
    return fold_of[groups]


def _best_fold(held: NDArray[np.float64], group: NDArray[np.float64], totals: NDArray[np.float64]) -> int:
    """Choose a fold for a group.

    Args:
        held: (folds, K) counts of each class that the folds hold already.
        group: (K,) counts of the group.
        totals: (K,) counts of all rows.
    """
    folds = len(held)
    tried = np.repeat(held[None], folds, axis=0)  # (folds, folds, K): the counts if fold i took the group
    tried[np.arange(folds), np.arange(folds)] += group
    uneven = (tried / totals).std(axis=1).mean(axis=1).tolist()
    sizes = held.sum(axis=1).tolist()

    best = 0
    for fold in range(1, folds):
        tie = abs(uneven[fold] - uneven[best]) <= 1e-8 + 1e-5 * abs(uneven[best])
        if uneven[fold] < uneven[best] or (tie and sizes[fold] < sizes[best]):
            best = fold
    return best


def _validation(classes: NDArray[np.int64], groups: NDArray[np.int64], rng: np.random.RandomState) -> NDArray[np.int64]:
    """Choose validation rows: of each class whole groups in random order, up to what is nearest to its share.

    Args:
        classes: (n,) index of each row's class.
        groups: (n,) index of each row's group.
        rng: shuffles the groups.

    Returns:
        Positions of the chosen rows.
    """
    _, groups = np.unique(groups, return_inverse=True)
    sizes = np.bincount(groups)
    group_class = np.zeros(len(sizes), dtype=np.int64)
    group_class[groups] = classes  # a group of several classes counts for one of them

    chosen = []
    for code in np.unique(group_class):
        members = rng.permutation(np.flatnonzero(group_class == code))
        taken = np.concatenate([[0], sizes[members].cumsum()])
        target = VAL_SHARE * taken[-1]
        count = int(np.abs(taken - target).argmin())
        if abs(taken[count] - target) > target / 20:  # few images: pass over lesions that would be too many
            members, count = _fitting_first(members, sizes, target)
        chosen.append(members[: min(max(count, 1), len(members) - 1)])  # train and val have each class where they can
    return np.flatnonzero(np.isin(groups, np.concatenate(chosen)))


def _fitting_first(
    members: NDArray[np.int64], sizes: NDArray[np.int64], target: float
) -> tuple[NDArray[np.int64], int]:
    """Put those groups first that fit into `target` images, in their order, and count them."""
    fits, held = np.zeros(len(members), dtype=bool), 0
    for place, size in enumerate(sizes[members]):
        fits[place] = held + size <= target + 0.5
        held += size * fits[place]
    return np.concatenate([members[fits], members[~fits]]), int(fits.sum())


def save(split: pd.DataFrame, path: Path) -> None:
    """Write a table as CSV, whole or not at all.

    Args:
        split: as `make_split` returns it.
        path: the file; its folder is made where it is missing.

    Raises:
        ConfigError: no folder can be made there.
        OSError: its disk is full, or it may not be written to.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno in (*FULL, *FORBIDDEN):  # another answer, which is the command line's
            raise
        what = f"{path.parent}: cannot be written to ({error.strerror})"
        raise ConfigError("data.split_dir", what, "give a folder of your own") from error
    write_text(path, split.to_csv(index=False, lineterminator="\n"))


def load(path: Path) -> pd.DataFrame:
    """Read a split file.

    Args:
        path: a CSV file, as `save` writes it or made by hand.

    Returns:
        The table as `make_split` returns it.

    Raises:
        InputError: no file is there, or it is no table with these columns.
        Faults: rows without an id or a group, or that say something else than train, val or test.
    """
    if not os.path.isfile(path):
        raise InputError(str(path), "no split file here", "give a path in data.split, or null to have one made")
    try:
        split = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except (ValueError, OSError) as error:
        raise InputError(str(path), f"not a table ({error})", "give a CSV file") from error

    folds = [name for name in split.columns if name.startswith("fold_")]
    missing = [name for name in ("image_id", "group") if name not in split]
    if missing or not folds:
        what = f"no column {', '.join(missing or ['fold_0'])}"
        raise InputError(str(path), what, "a split has the columns image_id, group, fold_0, fold_1, ...")
    rows = split.set_axis(split.index + 2)
    ids, groups = rows["image_id"], rows["group"]
    checks = {
        "image_id is missing": (ids == "", "every image needs its id"),
        # A name such as unknown would join strangers; an image of that name may be a group of its own.
        "group is missing": (is_missing(groups) & (groups != ids), "give the image's lesion"),
    }
    faults = row_faults(path, ids, checks)
    for name in folds:
        for row in np.flatnonzero(~split[name].isin(SPLITS))[:10]:
            what = f"row {row + 2}, {name}: {split[name][row]!r}"
            faults.append(InputError(str(path), what, "use train, val or test"))
    if faults:
        raise Faults(faults)
    return split


def find_or_make(table: pd.DataFrame, folds: int, seed: int, folder: Path, pairs: Sequence[DuplicatePair] = ()) -> Path:
    """Return the split file of a table, which is made the first time and never again.

    Args:
        table: a case table.
        folds: as `make_split` takes it.
        seed: as `make_split` takes it.
        folder: where split files are kept, each named by a hash of what it was made from.
        pairs: known duplicates, as `make_split` takes them.
    """
    facts = hashlib.sha256(f"{VERSION} {folds} {seed}\n".encode())
    for column in ("image_id", "lesion_id", "dx"):
        facts.update("\n".join(_words(table[column])).encode())
    if pairs:
        facts.update("\n".join(lesion_groups.groups(table, pairs)).encode())
    path = folder / f"{folds}_folds_seed_{seed}_{facts.hexdigest()[:12]}.csv"
    if not os.path.exists(path):  # Path.exists() raises where a folder may not be entered
        save(make_split(table, folds, seed, pairs), path)
    return path


def same_files(table: pd.DataFrame, path: Path) -> list[DuplicatePair]:
    """Find the pairs of `lesion_groups.same_files` once, and read them from a file from then on.

    Args:
        table: a case table with the sha256 of files, as `file_hashes.with_digests` returns it.
        path: the CSV file that keeps the pairs.
    """
    if not os.path.exists(path):
        save(pd.DataFrame(lesion_groups.same_files(table), columns=["first", "second"]), path)
    kept = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8")  # our own: names as they stand
    pairs = list(zip(kept["first"], kept["second"], strict=True))
    if pairs:
        logger.warning("%d pairs of images are one file under two lesion ids, see %s", len(pairs), path)
    return pairs


def joined(split: pd.DataFrame, table: pd.DataFrame) -> list[DuplicatePair]:
    """Return pairs of images that join the lesions of each group of a split.

    Args:
        split: as `load` returns it.
        table: the case table that it splits.
    """
    by_group = split["image_id"].groupby(split["group"], sort=False)
    return lesion_groups.apart((pair for _, ids in by_group for pair in pairwise(ids)), table)


def check(
    split: pd.DataFrame,
    table: pd.DataFrame,
    path: Path | str = "split",
    pairs: Sequence[DuplicatePair] = (),
    given: bool = False,
) -> None:
    """Check that a split is one of this table, and keeps lesions and duplicates together.

    Args:
        split: as `load` returns it.
        table: the case table.
        path: the split's file, for messages.
        pairs: known duplicates.
        given: whether the user named the file; it may be another run's, so it is not to be deleted.

    Raises:
        Faults: images that are missing, unknown or there twice; lesions or duplicates in more than one split of a fold.
    """
    where, remake = str(path), "delete the split file to have it made anew, or give another in data.split"
    if given:
        remake = "give one that was made for this data in data.split, or leave data.split out to have one made"
    faults: list[SkinmtlError] = []
    ids, known = split["image_id"], table["image_id"]
    for what, found in (
        ("images twice", ids[ids.duplicated()]),
        ("images that are not in the data", ids[~ids.isin(known)]),
        ("images of the data that are missing", known[~known.isin(ids)]),
    ):
        if len(found):
            faults.append(InputError(where, f"{what}: {first(found, SHOWN)}", remake))

    groupings = _groupings(split, table, pairs)
    for name in (column for column in split.columns if column.startswith("fold_")):
        for what, groups in groupings.items():
            spread = groups_across_splits(split[name], groups)
            if len(spread):
                images = first(ids[(groups == spread[0]).to_numpy()], SHOWN)
                said = f"{name}: {len(spread)} {what} in more than one split, such as {spread[0]} (images {images})"
                other = what == "groups of duplicates" and "mend the split file, or set data.duplicates=none"
                faults.append(InputError(where, said, other or remake))
                break
    if faults:
        raise Faults(faults)


def _groupings(split: pd.DataFrame, table: pd.DataFrame, pairs: Sequence[DuplicatePair]) -> dict[str, pd.Series]:
    """Name for each row of the split what has to stay together, by kind; missing where it is not known."""
    ids = split["image_id"]

    def of_rows(names: pd.Series) -> pd.Series:
        return ids.map(dict(zip(table["image_id"], names, strict=True)))

    given = {"lesions": of_rows(table["lesion_id"]), "groups of the file": split["group"]}
    return given | ({"groups of duplicates": of_rows(lesion_groups.groups(table, pairs))} if pairs else {})


def groups_across_splits(splits: pd.Series, groups: pd.Series) -> pd.Index:
    """Find the groups whose images are in more than one split.

    Args:
        splits: train, val or test of each image in one fold.
        groups: the group of each image, in the same order; a missing one is in no group.

    Returns:
        Their names, in order.
    """
    count = splits.groupby(groups.to_numpy()).nunique()
    return count.index[count > 1]
