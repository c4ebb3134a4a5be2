"""Which photographs train, validate and test: a file drawn once, with no lesion on two sides."""

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
from skinmtl.data.lesion_groups import Pair
from skinmtl.data.sources.tables import row_faults
from skinmtl.errors import FORBIDDEN, FULL, ConfigError, Faults, InputError, SkinmtlError
from skinmtl.files import write_text
from skinmtl.runs.cells import is_missing
from skinmtl.terminal import first

logger = logging.getLogger(__name__)

Stage = Literal["train", "val", "test"]
STAGES: tuple[Stage, ...] = ("train", "val", "test")
VAL_SHARE = 1 / 8  # of the photographs outside the test fold
SHOWN = 5  # images of a fault; the others are counted
VERSION = 2  # raise when `draw` gives another split for the same table


def draw(table: pd.DataFrame, folds: int, seed: int, pairs: Sequence[Pair] = ()) -> pd.DataFrame:
    """One row per photograph: `image_id`, `group`, and `fold_0` ... each train, val or test.

    A group is a lesion, or several that `pairs` of duplicates join. Test folds are those of scikit-learn's
    StratifiedGroupKFold(folds, shuffle=True, random_state=seed) on dx by group; inside the rest, an eighth of each
    diagnosis' photographs is validation, whole groups at a time. Those without a diagnosis count as one more.
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
        stage = np.where(test == fold, "test", "train").astype(object)
        stage[rest[_val(classes[rest], groups[rest], np.random.RandomState([seed, fold]))]] = "val"
        split[f"fold_{fold}"] = stage
    return split


def _words(column: pd.Series) -> pd.Series:
    """A column of words; what is missing is a blank one."""
    return column.astype(object).where(column.notna(), "")


def stratified_group_folds(
    classes: NDArray[np.int64], groups: NDArray[np.int64], folds: int, seed: int
) -> NDArray[np.int64]:
    """The test fold of each row, (N,), exactly as scikit-learn's StratifiedGroupKFold with shuffling gives it.

    Written out because scikit-learn's takes seconds at 10,000 rows, and because a split should not change with the
    version of a package. Greedy: groups with the most uneven classes first, each to the fold where it evens out the
    classes' shares best, the smaller fold on a tie. `classes` and `groups` are codes from 0 in sorted order.
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
    """Where the group goes, from the class counts that each fold holds already, (folds, K)."""
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


def _val(classes: NDArray[np.int64], groups: NDArray[np.int64], rng: np.random.RandomState) -> NDArray[np.int64]:
    """Positions of the validation rows: of each class whole groups in random order, up to nearest its share."""
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
        if abs(taken[count] - target) > target / 20:  # few photographs: pass over lesions that would be too many
            members, count = _filled(members, sizes, target)
        chosen.append(members[: min(max(count, 1), len(members) - 1)])  # both sides see each class where they can
    return np.flatnonzero(np.isin(groups, np.concatenate(chosen)))


def _filled(members: NDArray[np.int64], sizes: NDArray[np.int64], target: float) -> tuple[NDArray[np.int64], int]:
    """The groups with those first that fit into `target` photographs, in their order, and how many these are."""
    fits, held = np.zeros(len(members), dtype=bool), 0
    for place, size in enumerate(sizes[members]):
        fits[place] = held + size <= target + 0.5
        held += size * fits[place]
    return np.concatenate([members[fits], members[~fits]]), int(fits.sum())


def save(split: pd.DataFrame, path: Path) -> None:
    """Write a table as CSV, whole or not at all.

    Raises:
        ConfigError: the folder is none.
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
    """The split of a file, as `draw` gives it; every stage is checked to be train, val or test."""
    if not os.path.isfile(path):
        raise InputError(str(path), "no split file here", "give a path in data.split, or null to have one drawn")
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
        "image_id is missing": (ids == "", "every photograph needs its id"),
        # A name such as unknown would join strangers; a photograph of that name may be a group of its own.
        "group is missing": (is_missing(groups) & (groups != ids), "give the photograph's lesion"),
    }
    faults = row_faults(path, ids, checks)
    for name in folds:
        for row in np.flatnonzero(~split[name].isin(STAGES))[:10]:
            what = f"row {row + 2}, {name}: {split[name][row]!r}"
            faults.append(InputError(str(path), what, "use train, val or test"))
    if faults:
        raise Faults(faults)
    return split


def get(table: pd.DataFrame, folds: int, seed: int, folder: Path, pairs: Sequence[Pair] = ()) -> Path:
    """The split file of this table, folds, seed and duplicates in `folder`; drawn the first time, never again."""
    facts = hashlib.sha256(f"{VERSION} {folds} {seed}\n".encode())
    for column in ("image_id", "lesion_id", "dx"):
        facts.update("\n".join(_words(table[column])).encode())
    if pairs:
        facts.update("\n".join(lesion_groups.groups(table, pairs)).encode())
    path = folder / f"{folds}_folds_seed_{seed}_{facts.hexdigest()[:12]}.csv"
    if not os.path.exists(path):  # Path.exists() raises where a folder may not be entered
        save(draw(table, folds, seed, pairs), path)
    return path


def same_files(table: pd.DataFrame, path: Path) -> list[Pair]:
    """The pairs of `duplicates.same_files`, looked for once and then read from the file at `path`."""
    if not os.path.exists(path):
        save(pd.DataFrame(lesion_groups.same_files(table), columns=["first", "second"]), path)
    kept = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8")  # our own: names as they stand
    pairs = list(zip(kept["first"], kept["second"], strict=True))
    if pairs:
        logger.warning("%d pairs of photographs are one file under two lesion ids, see %s", len(pairs), path)
    return pairs


def joined(split: pd.DataFrame, table: pd.DataFrame) -> list[Pair]:
    """Photographs of two lesions that are in one group of a split file, enough of them to join each group."""
    by_group = split["image_id"].groupby(split["group"], sort=False)
    return lesion_groups.apart((pair for _, ids in by_group for pair in pairwise(ids)), table)


def check(
    split: pd.DataFrame,
    table: pd.DataFrame,
    path: Path | str = "split",
    pairs: Sequence[Pair] = (),
    given: bool = False,
) -> None:
    """Raise Faults where the split is not one of this table, or a lesion or a pair of duplicates is on two sides.

    A split that is `given` may be another run's, which needs it: nobody is told to delete it.
    """
    where, redraw = str(path), "delete the split file to have it drawn anew, or give another in data.split"
    if given:
        redraw = "give one that was drawn for this data in data.split, or leave data.split out to have one drawn"
    faults: list[SkinmtlError] = []
    ids, known = split["image_id"], table["image_id"]
    for what, found in (
        ("images twice", ids[ids.duplicated()]),
        ("images that are not in the data", ids[~ids.isin(known)]),
        ("images of the data that are missing", known[~known.isin(ids)]),
    ):
        if len(found):
            faults.append(InputError(where, f"{what}: {first(found, SHOWN)}", redraw))

    groupings = _groupings(split, table, pairs)
    for name in (column for column in split.columns if column.startswith("fold_")):
        for what, groups in groupings.items():
            torn = on_two_sides(split[name], groups)
            if len(torn):
                images = ids[(groups == torn[0]).to_numpy()]
                told = f"{name}: {len(torn)} {what} on two sides, such as {torn[0]} (images {first(images, SHOWN)})"
                other = what == "groups of duplicates" and "mend the split file, or set data.duplicates=none"
                faults.append(InputError(where, told, other or redraw))
                break
    if faults:
        raise Faults(faults)


def _groupings(split: pd.DataFrame, table: pd.DataFrame, pairs: Sequence[Pair]) -> dict[str, pd.Series]:
    """What has to stay together, by what it is: a name for each row of the split; missing where nobody knows."""
    ids = split["image_id"]

    def of_rows(names: pd.Series) -> pd.Series:
        return ids.map(dict(zip(table["image_id"], names, strict=True)))

    given = {"lesions": of_rows(table["lesion_id"]), "groups of the file": split["group"]}
    return given | ({"groups of duplicates": of_rows(lesion_groups.groups(table, pairs))} if pairs else {})


def on_two_sides(stages: pd.Series, groups: pd.Series) -> pd.Index:
    """The groups whose photographs are in more than one of train, val and test, in order of name."""
    sides = stages.groupby(groups.to_numpy()).nunique()
    return sides.index[sides > 1]
