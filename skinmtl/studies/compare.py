"""What the runs of each setting of a study reach, and by how much two settings differ. NumPy and pandas only.

The unit of replication is one training: its seed and its fold. Where all folds of a seed are there, their test splits
are pooled into one, so that every image is tested once, and the unit is the seed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd

from skinmtl.errors import InputError
from skinmtl.runs.record import dig
from skinmtl.studies.jobs import Job
from skinmtl.tasks import tables
from skinmtl.tasks.resampling import Floats, Resampling
from skinmtl.tasks.scoring import Description, Scoring

UNTOLD = "cannot tell"


@dataclass(frozen=True)
class Compared:
    """A score that a study compares.

    Attributes:
        key: its name, with the task's prefix.
        words: its name for people.
        task: its task's name.
        score: its name within the task.
        title: its task's, for people.
        headline: its place among the scores that a page opens with; None elsewhere.
        lower_is_better: as of an error.
    """

    key: str
    words: str
    task: str
    score: str
    title: str
    headline: int | None
    lower_is_better: bool


def compared(descriptions: Iterable[Description]) -> list[Compared]:
    """The scores that a study compares, those of headlines first, in one order for all studies.

    Args:
        descriptions: of the tasks of its runs; those without a prefix are always among them.
    """
    tasks = {name: scoring.describe() for name, scoring in tables.today().items()}
    tasks |= {task.name: task for task in descriptions}
    found = [
        Compared(
            task.key(score), task.words(score), name, score, task.title, task.headlines.get(score),
            score in task.lower_is_better,
        )
        for name, task in tasks.items()
        for score in task.compared
    ]  # fmt: skip
    return sorted(found, key=lambda one: (one.headline is None, one.headline or 0))


@dataclass(frozen=True)
class Replicate:
    """One training, or a seed's folds pooled (`fold` is then None): its test images and what it reaches there."""

    seed: object
    fold: object
    images: tuple[str, ...]
    lesions: int
    units: tuple[int, ...]  # by image, what is resampled with it
    tasks: tuple[Description, ...]
    classes: dict[str, tuple[str, ...]]  # by score: what its task told apart
    values: dict[str, float]
    draws: dict[str, Floats]  # (DRAWS,) under resampled lesions, the same ones for every replicate of a fold

    @property
    def key(self) -> tuple[str, str]:
        """What the replicates of two settings are paired by."""
        return str(self.seed), str(self.fold)


@dataclass(frozen=True)
class Setting:
    """A setting's replicates; a replicate is a `unit`."""

    name: str
    unit: str
    replicates: Sequence[Replicate]

    @property
    def n(self) -> int:
        """How many replicates there are."""
        return len(self.replicates)

    @property
    def scores(self) -> list[str]:
        """Those that every replicate has."""
        names = [one.key for one in compared_in([self])]
        return [name for name in names if self.n and all(name in each.values for each in self.replicates)]

    def values(self, score: str) -> Floats:
        """(n,) one for each replicate."""
        return np.array([each.values[score] for each in self.replicates])

    def tested(self) -> tuple[int, int] | None:
        """Images and lesions tested by all replicates together; None where test splits overlap in part."""
        parts = self._parts()
        return None if parts is None else (sum(len(part.images) for part in parts), sum(part.lesions for part in parts))

    def interval(self, score: str) -> tuple[float, float]:
        """95% over lesions of the mean over replicates; not a number where their test splits overlap in part."""
        if not self.n or self._parts() is None:
            return float("nan"), float("nan")
        return _percentiles(np.mean([each.draws[score] for each in self.replicates], axis=0))

    def _parts(self) -> list[Replicate] | None:
        """A replicate for each test split, None unless the parts have no image in common."""
        parts = list({each.images: each for each in self.replicates}.values())
        images = [image for part in parts for image in part.images]
        return parts if len(images) == len(set(images)) else None


@dataclass(frozen=True)
class Difference:
    """One setting minus another in a score: mean over pairs of replicates, 95% interval over lesions, each pair's own.

    A pair is one seed and one fold under both settings. `pairs` is empty where the two were tested on different
    images; each is then resampled by itself.
    """

    value: float
    low: float
    high: float
    pairs: tuple[float, ...]
    lower_is_better: bool = False

    @property
    def verdict(self) -> str:
        """`helps` or `hurts` where the interval and each of at least two pairs are on one side of zero.

        The interval takes the trainings as given, so another training could have it elsewhere: hence the second.
        """
        above, below = ("hurts", "helps") if self.lower_is_better else ("helps", "hurts")
        if len(self.pairs) > 1 and self.low > 0 and min(self.pairs) > 0:
            return above
        return below if len(self.pairs) > 1 and self.high < 0 and max(self.pairs) < 0 else UNTOLD

    def __str__(self) -> str:
        return f"{self.value:+.3f} ({self.low:+.3f} to {self.high:+.3f})"


def compared_in(settings: Sequence[Setting]) -> list[Compared]:
    """The scores that a study compares, of the tasks that some settings have."""
    return compared(task for setting in settings for each in setting.replicates for task in each.tasks)


def all_reached(named: Sequence[tuple[str, Sequence[Job]]]) -> list[Setting]:
    """Score the finished runs of settings that are to be compared: folds are pooled in all of them or in none."""
    done = [(name, [job for job in jobs if _is_done(job)]) for name, jobs in named]
    tested = [(name, [(job, _test(job)) for job in jobs]) for name, jobs in done]
    pooled = all(_whole(each) for _, each in tested if each)
    return [_reached(name, each, pooled) for name, each in tested]


class Tested(NamedTuple):
    """The test rows of a run, in the order of their images, and the tasks that they are of."""

    table: pd.DataFrame
    scorings: Sequence[Scoring]


def _is_done(job: Job) -> bool:
    return job.status == "finished" and job.run.predictions_file.is_file()


def _reached(name: str, tested: Sequence[tuple[Job, Tested]], pooled: bool) -> Setting:
    if not tested:
        return Setting(name, "none finished", [])
    if not pooled:
        return Setting(name, "run (seed and fold)", [_scored(job.seed, job.fold, test) for job, test in tested])
    replicates = []
    for seed in _seeds(tested):
        mine = [test for job, test in tested if job.seed == seed]
        table = pd.concat([test.table for test in mine]).sort_values("image_id", ignore_index=True)
        replicates.append(_scored(seed, None, Tested(table, mine[0].scorings)))
    return Setting(name, f"seed, {len(tested) // len(replicates)} folds pooled", replicates)


def _seeds(tested: Sequence[tuple[Job, Tested]]) -> list[object]:
    return list(dict.fromkeys(job.seed for job, _ in tested))


def _whole(tested: Sequence[tuple[Job, Tested]]) -> bool:
    """Whether every seed has all of its folds, so that each image is tested once."""
    for seed in _seeds(tested):
        mine = [(job, test.table) for job, test in tested if job.seed == seed]
        wanted = sorted(map(str, range(dig(mine[0][0].info, "split", "folds", default=0))))
        together = pd.concat([table["image_id"] for _, table in mine])
        if sorted(str(job.fold) for job, _ in mine) != wanted or len(mine) < 2 or together.duplicated().any():
            return False
    return True


def difference(one: Setting, other: Setting, score: str) -> Difference | None:
    """`one` minus `other`; None where either lacks the score, they tell other classes apart, or no draw has both.

    Raises:
        InputError: a pair's draws are not of the same lesions, for one was evaluated before groups stood in its table.
    """
    theirs = {each.key: each for each in other.replicates}
    both = [
        (mine, theirs[mine.key])
        for mine in one.replicates
        if mine.key in theirs and mine.images == theirs[mine.key].images
    ]
    if score not in one.scores or score not in other.scores or (one._parts() is None and both):
        return None
    if one.replicates[0].classes[score] != other.replicates[0].classes[score]:
        return None
    if any(mine.units != theirs.units for mine, theirs in both):
        what = "the same images are resampled by groups in one and by lesions in the other"
        raise InputError(f"{one.name} and {other.name}", what, "run `skinmtl evaluate` on the older runs")
    is_error = next(each.lower_is_better for each in compared_in([one]) if each.key == score)
    if both:
        pairs = tuple(a.values[score] - b.values[score] for a, b in both)
        draws = np.mean([a.draws[score] - b.draws[score] for a, b in both], axis=0)
        return _with_interval(float(np.mean(pairs)), draws, pairs, is_error)
    if np.isnan([*one.interval(score), *other.interval(score)]).any():
        return None
    mine, others = (np.mean([each.draws[score] for each in setting.replicates], axis=0) for setting in (one, other))
    # Both were drawn from one seed; in another order they have nothing to do with each other.
    draws = mine - np.random.default_rng(0).permutation(others)
    return _with_interval(float(one.values(score).mean() - other.values(score).mean()), draws, (), is_error)


def _with_interval(value: float, draws: Floats, pairs: tuple[float, ...], is_error: bool) -> Difference | None:
    low, high = _percentiles(draws)
    return Difference(value, low, high, pairs, is_error) if np.isfinite(low) else None


def _percentiles(draws: Floats) -> tuple[float, float]:
    """The 2.5th and 97.5th of the draws that are numbers; not a number where none is."""
    if not np.isfinite(draws).any():
        return float("nan"), float("nan")
    low, high = np.nanpercentile(draws, [2.5, 97.5])
    return float(low), float(high)


def _test(job: Job) -> Tested:
    table, scorings = tables.of_run(job.run)
    test = table[table["split"] == "test"].sort_values("image_id", ignore_index=True)
    return Tested(test, [scoring for scoring in scorings if scoring.is_in(table)])


def _scored(seed: object, fold: object, test: Tested) -> Replicate:
    table = test.table
    # By fold, so that one fold's draws say nothing of another's.
    sample = Resampling.of(table, seed=int(str(fold)) if str(fold).isdigit() else 0)
    by_task = {scoring: scoring.scores(sample) for scoring in test.scorings}
    scores = {scoring.column(name): one for scoring, each in by_task.items() for name, one in each.items()}
    classes = {scoring.column(name): scoring.told_apart for scoring, each in by_task.items() for name in each}
    tasks = tuple(scoring.describe() for scoring in test.scorings)
    values = sample.once({one.key: scores[one.key] for one in compared(tasks) if one.key in scores})
    values = {name: value for name, value in values.items() if np.isfinite(value)}
    draws = sample.drawn({name: scores[name] for name in values})
    images, units = tuple(table["image_id"]), tuple(sample.unit_of.tolist())
    return Replicate(seed, fold, images, sample.lesions, units, tasks, classes, values, draws)
