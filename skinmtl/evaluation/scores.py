"""Scores of whole predictions tables, each with an interval from resampling lesions, and differences of two tables.

What is scored is up to the tasks (`tasks.scoring.Scoring`); how lesions are resampled stands in `tasks.resampling`.
Without torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from skinmtl.errors import InputError
from skinmtl.runs import predictions
from skinmtl.runs.labels import stamps
from skinmtl.tasks import tables
from skinmtl.tasks.resampling import DRAWS, INTERVAL, Resampling, Score
from skinmtl.tasks.scoring import Scoring


def evaluate_file(path: Path | str) -> dict[str, Any]:
    """Do `evaluate` on a file; its tasks and classes are those of its columns, and of the scores.json beside it."""
    path = Path(path)
    table = predictions.read(path)
    scorings = tables.scorings_beside(path, table)
    tables.check(table, str(path), scorings)
    return evaluate(table, scorings)


def evaluate(
    table: pd.DataFrame, scorings: Sequence[Scoring] | None = None, draws: int = DRAWS, seed: int = 0
) -> dict[str, Any]:
    """Every score of each split of a predictions table: what scores.json holds.

    A score is {value, low, high}, low and high the 95% interval, or {value: null, reason}; without an interval, low and
    high are null and the reason says why. `notes` are sentences on what was left out; `tasks` says of each task what
    its scores are called and how they are made again.

    Args:
        table: predictions, one row per image; tasks without columns have no scores.
        scorings: its tasks; those that its columns are of, where none are given.
        draws: resamplings of lesions.
        seed: of the resampling.

    Raises:
        Faults: what `tables.check` refuses.
    """
    scorings = tables.recognised(table) if scorings is None else scorings
    tables.check(table, scorings=scorings)
    there = [scoring for scoring in scorings if scoring.is_in(table)]
    splits, notes = {}, []
    for split, rows in table.groupby("split", sort=False):
        sample = Resampling.of(rows.reset_index(drop=True), draws, seed)
        splits[str(split)] = {
            "n_images": len(rows),
            "n_lesions": sample.lesions,
            "n_resampled": sample.units,
            "scores": {scoring.name: sample.all(scoring.scores(sample)) for scoring in there},
            **_details(there, sample),
        }
        notes += tables.left_out(rows, str(split), scorings)
    notes += _on_two_sides(table)
    said = {
        "stamp": stamps(predictions.marks(table)) or None,
        "version": predictions.VERSION,
        "interval": INTERVAL.format(unit=predictions.units(table)[1], draws=draws, seed=seed),
        "notes": notes,
        "tasks": {scoring.name: scoring.record() for scoring in there},
    }
    return said | {"parts": splits}


def _details(scorings: Sequence[Scoring], sample: Resampling) -> dict[str, Any]:
    """What the tasks say of a split beside their scores: those without a prefix by its own keys, others by name."""
    found: dict[str, Any] = {}
    for scoring in sorted(scorings, key=lambda scoring: scoring.place):
        details = scoring.details(sample)
        if not scoring.prefix:
            found |= details
        elif details:
            found.setdefault("details", {})[scoring.name] = details
    return found


def _on_two_sides(table: pd.DataFrame) -> list[str]:
    """A sentence where the splits of a table have lesions in common."""
    unit = predictions.units(table)[0]
    parts = table["split"].groupby(unit.to_numpy()).nunique()
    if count := int((parts > 1).sum()):
        return [f"{count} of {len(parts)} lesions are in several splits: what chose the model, or trained it, tests it"]
    return []


# --- two tables -------------------------------------------------------------------------------------------------------


def paired(
    first: pd.DataFrame,
    second: pd.DataFrame,
    split: str = "test",
    seed: int = 0,
    scorings: Sequence[Sequence[Scoring]] | None = None,
) -> dict[str, dict[str, float]]:
    """First minus second for each score that both tables have, on the same images and the same resampled lesions.

    An image whose target is missing in one table counts in neither; `uncompared` says how many. Gives first, second,
    difference, low and high (95%) by score name, with the task's prefix; low and high are not a number for a score that
    has no interval.

    Args:
        first: predictions.
        second: predictions of the same images.
        split: which rows, `test` say.
        seed: of the resampling.
        scorings: the tasks of the first table and of the second; those that their columns are of, where none are given.

    Raises:
        InputError: the tables are of different images, lesions, classes or sizes, or have no task in common.
    """
    found = _scorings(first, second, scorings)
    common = _common(first, second, found)
    both = _both(first, second, split, found, common)
    samples = [Resampling.of(table.reset_index(), DRAWS, seed) for table in both]
    scores = [{key: score for one in common for key, score in _keyed(one, sample).items()} for sample in samples]
    names = [name for name in scores[0] if name in scores[1]]
    points = [sample.once(each) for sample, each in zip(samples, scores, strict=True)]
    names = [name for name in names if np.isfinite([point[name] for point in points]).all()]
    drawn = [sample.drawn({name: each[name] for name in names}) for sample, each in zip(samples, scores, strict=True)]
    result = {}
    for name in names:
        apart = drawn[0][name] - drawn[1][name]
        told = scores[0][name].no_interval is None and np.isfinite(apart).any()
        low, high = np.nanpercentile(apart, [2.5, 97.5]) if told else (np.nan, np.nan)
        a, b = (point[name] for point in points)
        result[name] = {"first": a, "second": b, "difference": a - b, "low": float(low), "high": float(high)}
    return result


def _keyed(scoring: Scoring, sample: Resampling) -> dict[str, Score]:
    return {scoring.column(name): score for name, score in scoring.scores(sample).items()}


def uncompared(
    first: pd.DataFrame,
    second: pd.DataFrame,
    split: str = "test",
    scorings: Sequence[Sequence[Scoring]] | None = None,
) -> list[str]:
    """What `paired` leaves out of two tables, a sentence each."""
    found = _scorings(first, second, scorings)
    both = [table[table["split"] == split].set_index("image_id").sort_index() for table in (first, second)]
    said = []
    for pair in _by_name(found).values():
        has = [one is not None and one.is_in(table) for one, table in zip(pair, both, strict=True)]
        scoring = next(one for one in pair if one is not None)
        noun = scoring.noun[1]
        if has[0] != has[1]:
            said.append(f"only the {'first' if has[0] else 'second'} table has {noun}: they are not compared")
        elif all(has):
            known = [scoring.known(table) for table in both]
            if count := int((~(known[0] & known[1])).sum()):
                mine, theirs = (int((~each).sum()) for each in known)
                what = f"{count} of {len(both[0])} images left out, whose {scoring.truth} is missing"
                said.append(f"{noun}: {what} ({mine} in the first table, {theirs} in the second)")
    doubts = [tables.doubts(table.reset_index(), own) for table, own in zip(both, found, strict=True)]
    return said + list(dict.fromkeys(sentence for each in doubts for sentence in each))


def _scorings(
    first: pd.DataFrame, second: pd.DataFrame, given: Sequence[Sequence[Scoring]] | None
) -> Sequence[Sequence[Scoring]]:
    return [tables.recognised(table) for table in (first, second)] if given is None else given


def _by_name(scorings: Sequence[Sequence[Scoring]]) -> dict[str, list[Scoring | None]]:
    """The scorings of each task of two tables."""
    each = [{scoring.name: scoring for scoring in own} for own in scorings]
    return {name: [own.get(name) for own in each] for name in {**each[0], **each[1]}}


def _common(first: pd.DataFrame, second: pd.DataFrame, scorings: Sequence[Sequence[Scoring]]) -> list[Scoring]:
    """The tasks that both tables have, as the first scores them: the second's classes may stand in another order."""
    pairs = _by_name(scorings).values()
    return [
        mine
        for mine, theirs in pairs
        if mine is not None and theirs is not None and mine.is_in(first) and theirs.is_in(second)
    ]


def _both(
    first: pd.DataFrame,
    second: pd.DataFrame,
    split: str,
    scorings: Sequence[Sequence[Scoring]],
    common: Sequence[Scoring],
) -> list[pd.DataFrame]:
    """Two tables by image id, each without what the other does not know of an image."""
    both = [table[table["split"] == split].set_index("image_id").sort_index() for table in (first, second)]
    _check_comparable(both, split, scorings, common)
    for name in dict.fromkeys(name for scoring in common for name in scoring.measures(both[0])):
        if name in both[0] and name in both[1]:
            known = both[0][name].notna() & both[1][name].notna()
            both = [table.assign(**{name: table[name].where(known)}) for table in both]
    grouped = next((table["group"] for table in both if "group" in table), None)
    return both if grouped is None else [table.assign(group=grouped) for table in both]


def _check_comparable(
    both: Sequence[pd.DataFrame], split: str, scorings: Sequence[Sequence[Scoring]], common: Sequence[Scoring]
) -> None:
    """Refuse two tables, by image id, that do not speak of the same things."""
    first, second = both
    fix = "compare tables of one split"
    if not first.index.equals(second.index):
        count = len(first.index.symmetric_difference(second.index))
        raise InputError("predictions", f"{count} images are in one table only", fix)
    if first.empty:
        raise InputError("predictions", f"no {split} rows", "evaluate the runs first")
    truths = dict.fromkeys(scoring.truth for own in scorings for scoring in own if not scoring.is_measured)
    for name in ("lesion_id", "group", *truths):
        _check_same(first, second, name, name in truths, fix)
    if not common:
        has = [
            " and ".join(one.noun[1] for one in own if one.is_in(table))
            for own, table in zip(scorings, both, strict=True)
        ]
        what = f"nothing to compare: the first table has {has[0]}, the second {has[1]}"
        raise InputError("predictions", what, "compare tables of the same task")
    others = {scoring.name: scoring for scoring in scorings[1]}
    for scoring in sorted(common, key=lambda scoring: scoring.place):
        scoring.check_comparable(first, second, others[scoring.name])


def _check_same(first: pd.DataFrame, second: pd.DataFrame, name: str, is_truth: bool, fix: str) -> None:
    """Refuse a column of names that differs; a target that one table does not know counts in neither."""
    if name not in first or name not in second:
        return
    a, b = (table[name].astype("object") for table in (first, second))
    differ = (a != b) & ~(a.isna() & b.isna())
    if is_truth:
        differ &= a.notna() & b.notna()
    if differ.any():
        raise InputError("predictions", f"{name} of {int(differ.sum())} images differs", fix)
