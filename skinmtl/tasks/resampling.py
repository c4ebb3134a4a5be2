"""Scores as functions of sums over images, and their intervals from resampling lesions. Without torch.

A lesion's images are alike, so the lesion is the unit that is resampled, or the lesions that duplicates join: intervals
from resampling images would be too narrow. Every score is a function of sums over images, so that 2,000 resamplings are
a few products of matrices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import csr_array

from skinmtl.runs import predictions

Floats = NDArray[np.float64]
Columns: TypeAlias = Floats | csr_array  # (C, N): of each image what is summed
Key = TypeVar("Key")

DRAWS = 2000
AT_ONCE = 4_000_000  # images times resamplings that are summed at a time: some 100 MB
INTERVAL = "95%, percentile bootstrap over {unit}, {draws} draws, seed {seed}"
ABSENT = "undefined here: a class or a mask that it needs does not occur"


@dataclass(frozen=True, eq=False)
class Score:
    """A score as a function of sums over images.

    Attributes:
        columns: what is summed; those that several scores share are summed once.
        of: the score in each of D samples, (D,), from the sums of each of the columns, (C, D); not a number where it is
            undefined. None where it is, whatever the sample.
        undefined: why, where it is undefined.
        no_interval: why its percentiles are no interval, where they are none.
    """

    columns: tuple[Columns, ...]
    of: Callable[..., Floats] | None
    undefined: str = ABSENT
    no_interval: str | None = None


@dataclass(frozen=True, eq=False)
class Resampling:
    """The rows of one split, N images, and how often each of its U units is counted in each of D resamplings."""

    table: pd.DataFrame
    lesions: int
    unit_of: NDArray[np.int64]  # (N,)
    counts: NDArray[np.uint8]  # (U, D); of 256 or more units none is drawn 256 times in the age of the universe
    read: dict[str, Any] = field(default_factory=dict)  # by task, what its scores have read off the table

    @classmethod
    def of(cls, table: pd.DataFrame, draws: int = DRAWS, seed: int = 0) -> Resampling:
        """Take one split of a table, its lesions, or the groups that hold several, resampled `draws` times."""
        unit_of, names = pd.factorize(predictions.units(table)[0])
        units = len(names)
        counts, rng = np.empty((units, draws), dtype=np.uint8), np.random.default_rng(seed)
        for place in _portions(draws, len(table)):
            size = place.stop - place.start
            counts[:, place] = rng.multinomial(units, np.full(units, 1 / units), size=size).T
        lesions = int(table["lesion_id"].fillna(table["image_id"]).nunique())
        return cls(table, lesions, unit_of.astype(np.int64), counts)

    @property
    def units(self) -> int:
        """How many there are to be resampled."""
        return len(self.counts)

    def once(self, scores: Mapping[Key, Score]) -> dict[Key, float]:
        """Each score of the images themselves, every one counted once."""
        ones, sums = np.ones((1, len(self.table))), dict[int, Floats]()
        for columns in _distinct(scores):
            if isinstance(columns, csr_array):
                sums[id(columns)] = columns @ ones.T
            else:
                sums[id(columns)] = np.array([ones @ column for column in columns])
        return {key: float(_scored(score, sums, 1)[0]) for key, score in scores.items()}

    def drawn(self, scores: Mapping[Key, Score]) -> dict[Key, Floats]:
        """Each score in each resampling, (D,)."""
        unit = csr_array((np.ones(len(self.unit_of)), (np.arange(len(self.unit_of)), self.unit_of)))  # (N, U)
        by_unit: dict[int, Columns] = {id(columns): columns @ unit for columns in _distinct(scores)}
        dense = {name: columns for name, columns in by_unit.items() if not isinstance(columns, csr_array)}
        stacked = np.concatenate(list(dense.values())) if dense else np.empty((0, self.units))
        ends = np.cumsum([len(columns) for columns in dense.values()])[:-1]
        draws = self.counts.shape[1]
        found = {key: np.empty(draws) for key in scores}
        for place in _portions(draws, len(self.table)):
            weights = self.counts[:, place].astype(np.float64)  # (U, D)
            sums = dict(zip(dense, np.split(stacked @ weights, ends), strict=True)) if dense else {}
            sums |= {name: columns @ weights for name, columns in by_unit.items() if name not in dense}
            for key, score in scores.items():
                found[key][place] = _scored(score, sums, weights.shape[1])
        return found

    def all(self, scores: Mapping[Key, Score]) -> dict[Key, dict[str, Any]]:
        """Each score's value and interval; null with a reason where it is undefined. Undefined draws are left out."""
        values = self.once(scores)
        wanted = {key: score for key, score in scores.items() if np.isfinite(values[key]) and not score.no_interval}
        drawn = self.drawn(wanted) if self.units > 1 else {}
        found: dict[Key, dict[str, Any]] = {}
        for key, score in scores.items():
            value = values[key]
            if not np.isfinite(value):
                found[key] = {"value": None, "reason": score.undefined}
            elif key in drawn and np.isfinite(drawn[key]).any():
                low, high = np.nanpercentile(drawn[key], [2.5, 97.5])
                found[key] = {"value": value, "low": float(low), "high": float(high)}
            else:
                reason = score.no_interval or "no interval: too few lesions to resample"
                found[key] = {"value": value, "low": None, "high": None, "reason": reason}
        return found

    def value(self, score: Score) -> dict[str, Any]:
        """`all` of one score."""
        return self.all({"": score})[""]


def _portions(draws: int, images: int) -> Iterator[slice]:
    size = min(200, max(16, AT_ONCE // max(1, images)))
    return (slice(start, min(start + size, draws)) for start in range(0, draws, size))


def _distinct(scores: Mapping[Key, Score]) -> list[Columns]:
    """The columns of scores, each once."""
    return list({id(columns): columns for score in scores.values() for columns in score.columns}.values())


def _scored(score: Score, sums: Mapping[int, Floats], draws: int) -> Floats:
    return np.full(draws, np.nan) if score.of is None else score.of(*(sums[id(columns)] for columns in score.columns))


# --- parts of scores --------------------------------------------------------------------------------------------------


def mean(values: Floats) -> Score:
    """Weighted mean of the values that there are."""
    has = np.isfinite(values)
    return Score((np.stack([np.where(has, values, 0), has]),), lambda s: ratio(s[0], s[1]))


def quantiles(values: Floats, shares: Sequence[float]) -> list[Score]:
    """For each share the smallest value with at least that share of the weight at or below it."""
    places = np.flatnonzero(np.isfinite(values))
    distinct, rank = np.unique(values[places], return_inverse=True)
    columns = csr_array((np.ones(len(places)), (rank, places)), shape=(len(distinct), len(values)))

    def of(q: float) -> Callable[[Floats], Floats]:
        def score(s: Floats) -> Floats:
            cumulated = np.cumsum(s, axis=0)
            below = (cumulated < q * cumulated[-1] - 1e-9).sum(0)
            return np.where(cumulated[-1] > 0, distinct[below], np.nan)

        return score

    return [Score((columns,), of(q)) if len(places) else Score((), None) for q in shares]


def ratio(a: Floats, b: Floats) -> Floats:
    """a / b, place by place; not a number where b is zero."""
    ratio: Floats = np.divide(a, b, out=np.full(np.broadcast(a, b).shape, np.nan), where=b != 0)
    return ratio


def mean_known(values: Sequence[Floats]) -> Floats:
    """The mean, place by place, of those of several arrays that are numbers there; not a number where none is."""
    stacked = np.stack(values)
    known = np.isfinite(stacked)
    return ratio(np.where(known, stacked, 0).sum(0), known.sum(0).astype(float))
