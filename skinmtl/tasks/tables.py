"""Predictions tables with the tasks that they are of: which these are, and whether they can be scored. Without torch.

A table says by its columns which tasks of the kinds of this package it is of; scores.json says it of every task of a
run, those of one's own package too.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from skinmtl.config.schema import find
from skinmtl.errors import ConfigError
from skinmtl.runs import predictions
from skinmtl.runs.predictions import Fault
from skinmtl.runs.record import dig, read_scores
from skinmtl.runs.run import Run
from skinmtl.tasks.classification.scoring import ClassificationScoring
from skinmtl.tasks.regression.scoring import RegressionScoring
from skinmtl.tasks.scoring import Description, Scoring, ordered
from skinmtl.tasks.segmentation.scoring import SegmentationScoring

log = logging.getLogger(__name__)

KINDS: tuple[type[Scoring], ...] = (SegmentationScoring, ClassificationScoring, RegressionScoring)
WANTED = "dice and iou, or prob_<class>"  # without which a table is of no task


# --- which tasks ------------------------------------------------------------------------------------------------------


def recognised(table: pd.DataFrame) -> list[Scoring]:
    """Find the tasks that a table is of, by the names of its columns; those without a prefix are always among them."""
    columns = list(map(str, table))
    return [scoring for kind in KINDS for scoring in kind.found_in(columns)]


def scorings_of(table: pd.DataFrame, scores: Mapping[str, Any] | None = None) -> list[Scoring]:
    """The tasks that a table is of, by its columns and by what scores.json says beside it.

    Args:
        table: predictions.
        scores: what scores.json holds, where there is one.
    """
    found = {scoring.name: scoring for scoring in recognised(table)}
    for name, record in dig(scores, "tasks", default={}).items():
        scoring = made_of(record)
        own = found.get(name)
        if scoring is not None and scoring.is_in(table) and (own is None or own.told_apart == scoring.told_apart):
            found[name] = scoring
    return list(found.values())


def today() -> dict[str, Scoring]:
    """The tasks that a table may have without a prefix, by name."""
    return {scoring.name: scoring for kind in KINDS for scoring in kind.found_in(())}


def made_of(record: Mapping[str, Any]) -> Scoring | None:
    """The scoring that a task's record in scores.json is of; None where its package is not admitted, or gone."""
    node = dict(record.get("scoring") or {})
    target = node.pop("_target_", None)
    try:
        kind = find(target)
    except ConfigError:
        _say_left_out(str(record.get("name")), str(target))
        return None
    if not (isinstance(kind, type) and issubclass(kind, Scoring)):
        return None
    try:
        return kind(**node)
    except TypeError:  # of another version of the package
        return None


@cache
def _say_left_out(name: str, target: str) -> None:
    """Say, once for each, that a task is scored by a class that is not run here."""
    what = "task %s: %s is not admitted here, so scores and sections of its own are left out; fix: SKINMTL_ALLOW=%s"
    log.warning(what, name, target, target.partition(".")[0])


def described(scores: Mapping[str, Any]) -> dict[str, Description]:
    """What scores.json says of each task that it has scores of; in one of before, what is said of its tasks today."""
    recorded = dig(scores, "tasks", default={})
    known = today()
    names = {name: None for part in dig(scores, "parts", default={}).values() for name in dig(part, "scores") or {}}
    found = {}
    for name in names:
        if name in recorded:
            said = {key: value for key, value in recorded[name].items() if key in Description.__dataclass_fields__}
            found[name] = Description(**said)
        else:
            nothing = Description(name, name.capitalize(), f"{name}_", {}, {}, (), ())
            found[name] = known[name].describe() if name in known else nothing
    return found


def scorings_in(scores: Mapping[str, Any]) -> dict[str, Scoring | None]:
    """The scoring of each task that scores.json has scores of; None for a kind that is not admitted here."""
    recorded = dig(scores, "tasks", default={})
    known = today()
    return {name: made_of(recorded[name]) if name in recorded else known.get(name) for name in described(scores)}


def details_of(scoring: Scoring, part: Mapping[str, Any]) -> dict[str, Any]:
    """What a split in scores.json says of a task beside its scores."""
    if scoring.prefix:
        return dict(dig(part, "details", scoring.name, default={}))
    return {key: part[key] for key in scoring.detail_keys if key in part}


# --- whether it can be scored -----------------------------------------------------------------------------------------


def read(path: Path) -> pd.DataFrame:
    """A predictions table from a file, fit to be scored; see `check`.

    Raises:
        Faults: every fault found.
    """
    table = predictions.read(path)
    check(table, str(path), scorings_beside(path, table))
    return table


def scorings_beside(path: Path, table: pd.DataFrame) -> list[Scoring]:
    """The tasks of a table at a path, a run's or anybody's."""
    return scorings_of(table, read_scores(path.parent))


def of_run(run: Run) -> tuple[pd.DataFrame, list[Scoring]]:
    """A run's predictions table, and the tasks that it is of."""
    table = run.predictions()
    return table, scorings_of(table, read_scores(run.path))


def check(table: pd.DataFrame, where: str = "predictions", scorings: Sequence[Scoring] | None = None) -> None:
    """Refuse a table whose scores would mean nothing.

    Every image stands there once, in a named split; measures are such as can be, and agree with the pixels beside them;
    probabilities sum to one and are those of the classes.

    Raises:
        Faults: every fault found, with rows.
    """
    tasks = ordered(recognised(table) if scorings is None else scorings)
    needed = [name for scoring in tasks for name in scoring.needed(table)]
    if not any(scoring.is_in(table) for scoring in tasks) and not set(needed) - set(table):
        needed.append(WANTED)
    predictions.check(table, needed, _faults(table, tasks), where)


def _faults(table: pd.DataFrame, scorings: Sequence[Scoring]) -> Iterator[Fault]:
    for scoring in scorings:
        words = [name for name in scoring.numbers(table) if not pd.api.types.is_numeric_dtype(table[name])]
        for name in words:
            what = f"{name} is {table[name].dropna().iloc[0]!r}"
            yield what, table[name].notna().to_numpy(), "write numbers, or leave cells blank"
        yield from () if words else scoring.faults(table)


def left_out(table: pd.DataFrame, split: str, scorings: Sequence[Scoring]) -> list[str]:
    """What the scores of one split do not count, and what they cannot tell, a sentence each."""
    said = [*predictions.left_out(table), *(line for scoring in scorings for line in scoring.left_out(table))]
    return [f"{split}: {sentence}" for sentence in [*said, *doubts(table, scorings)]]


def doubts(table: pd.DataFrame, scorings: Sequence[Scoring]) -> list[str]:
    """What is read as it stands and may have been meant otherwise, a sentence each."""
    return [*predictions.doubts(table), *(line for scoring in scorings for line in scoring.doubts(table))]
