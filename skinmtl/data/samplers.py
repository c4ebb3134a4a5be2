"""Which photographs come and in which order: a function of seed and epoch, cut into ranks, entered at any batch.

An epoch has as many places for the photographs at data.root as there are of them in training, cut to whole batches,
whatever the sampler.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from annotated_types import Interval
from numpy.typing import NDArray
from torch.utils.data import Sampler

from skinmtl.balancing.class_weights import effective_number_weights
from skinmtl.data.transforms import mix

Place = tuple[int, int, int]  # epoch, position in the epoch's order over all ranks, row of the case table
Integers = NDArray[np.int64]
Floats = NDArray[np.float64]
# Weights (n,) of photographs, from their diagnoses (n,) and lesions (n,), both counted from 0.
Weigh = Callable[[Integers, Integers], Floats]


class Shuffle:
    """Every photograph at most once an epoch, in an order of its own each epoch, of which whole batches are taken."""

    rebalances = False

    def weights(self, dx: Integers, lesion: Integers) -> Floats:
        """How likely each photograph is at a place, (n,), summing to one."""
        return np.full(len(dx), 1 / max(1, len(dx)))

    def order(self, dx: Integers, lesion: Integers, seed: int, epoch: int) -> Integers:
        """Indices (n,) into the n photographs, by the arguments alone, so all ranks draw the same.

        Args:
            dx: diagnoses (n,), counted from 0; -1 for none.
            lesion: lesions (n,), counted from 0.
            seed: the run's.
            epoch: counted from 0.
        """
        return np.random.default_rng(mix(seed, epoch)).permutation(len(dx)).astype(np.int64)


class Weighted(Shuffle):
    """Photographs drawn with replacement; those without a diagnosis keep the share that they have of all."""

    rebalances = True

    def __init__(self, weigh: Weigh) -> None:
        self._weigh = weigh

    def weights(self, dx: Integers, lesion: Integers) -> Floats:
        """As `Shuffle.weights`."""
        weights = super().weights(dx, lesion)
        known = dx >= 0
        if known.any():
            relative = self._weigh(dx[known], lesion[known])
            weights[known] = relative * (known.mean() / relative.sum())
        return weights

    def order(self, dx: Integers, lesion: Integers, seed: int, epoch: int) -> Integers:
        """As `Shuffle.order`; an index may occur more than once."""
        weights = self.weights(dx, lesion)
        # Not default_rng(...).choice: it wants weights that sum to one within 1e-8, which many small ones miss.
        edges = np.cumsum(weights)
        places = np.random.default_rng(mix(seed, epoch)).random(len(dx)) * edges[-1]
        drawn: Integers = np.searchsorted(edges, places, side="right").clip(max=len(dx) - 1)
        return drawn


def class_balanced() -> Weighted:
    """Every diagnosis equally often: a photograph weighs 1 / n, n the training photographs of its diagnosis."""
    return Weighted(lambda dx, lesion: 1 / _number(dx))


def sqrt_balanced() -> Weighted:
    """Half the way: 1 / sqrt(n). A diagnosis with a hundredth of the photographs is drawn a tenth as often."""
    return Weighted(lambda dx, lesion: 1 / np.sqrt(_number(dx)))


def effective_number(beta: Annotated[float, Interval(ge=0, le=1)] = 0.999) -> Weighted:
    """(1 - beta) / (1 - beta^n), 1 / n at beta = 1: of n photographs, as many count as tell apart.

    Cui et al. 2019, arXiv:1901.05555.
    """
    return Weighted(lambda dx, lesion: effective_number_weights(_number(dx), beta))


def class_aware() -> Weighted:
    """A diagnosis, then one of its lesions, then one of its photographs, each with equal chances.

    Shen, Lin and Huang 2016, arXiv:1512.05830, with a step for lesions: of a lesion seen in several photographs each
    weighs less. Lesions that duplicates join are one, as in the split.
    """

    def weigh(dx: Integers, lesion: Integers) -> Floats:
        pairs = np.stack([dx, lesion], axis=1)
        distinct, which, photographs = np.unique(pairs, axis=0, return_inverse=True, return_counts=True)
        lesions = np.bincount(distinct[:, 0], minlength=dx.max() + 1)  # by diagnosis
        return 1 / (lesions[dx] * photographs[which.reshape(-1)])

    return Weighted(weigh)


def _number(dx: Integers) -> Floats:
    """For each photograph (n,), how many have its diagnosis."""
    return np.bincount(dx)[dx].astype(float)


@dataclass(frozen=True)
class Portion:
    """The photographs of one source, and how many places they fill of a step's batch, that of all ranks together."""

    rows: Integers  # (n,) rows of the case table
    order: Callable[[int, int], Integers]  # of a seed and an epoch: indices (n,) into `rows`
    places: int


class EpochSampler(Sampler[Place]):
    """This rank's share of one epoch, from the batch where training stands.

    An epoch passes once over the first portion, in whole batches. The other portions fill their places from passes of
    their own, one after the other across epochs, so that none of their photographs is drawn less than the rest. The
    order over all ranks is drawn alike on each, a function of seed and epoch, as one process would draw it; every
    `world`-th place of a batch from `rank` on is this rank's, whichever portion fills it. `start` gives (epoch, batches
    of it already done) when an epoch begins; after those batches the remaining places are the very ones that an
    unbroken epoch would have had.
    """

    def __init__(
        self,
        portions: Sequence[Portion],
        seed: int,
        start: Callable[[], tuple[int, int]],
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self._portions, self._seed, self._start, self._rank, self._world = portions, seed, start, rank, world
        self.batch_size = sum(portion.places for portion in portions) // world
        self.batches = len(portions[0].rows) // portions[0].places

    def __len__(self) -> int:
        """Places of a whole epoch on this rank, wherever it is entered: trainers count batches by it."""
        return self.batches * self.batch_size

    def __iter__(self) -> Iterator[Place]:
        epoch, skip = self._start()
        rows = self._epoch(epoch)
        for position in range(self._rank + skip * self.batch_size * self._world, len(rows), self._world):
            yield epoch, position, int(rows[position])

    def _epoch(self, epoch: int) -> Integers:
        """The row at each place of an epoch over all ranks, (batches * batch_size * world,)."""
        parts = []
        for number, portion in enumerate(self._portions):
            count = self.batches * portion.places
            if number == 0:
                drawn = portion.order(self._seed, epoch)[:count]
            else:
                drawn = _passes(portion, mix(self._seed, number), epoch * count, count)
            parts.append(portion.rows[drawn].reshape(self.batches, portion.places))
        return np.concatenate(parts, axis=1).reshape(-1)


def _passes(portion: Portion, seed: int, first: int, count: int) -> Integers:
    """Places `first` to `first + count` of the order that goes through all photographs again and again."""
    size = len(portion.rows)
    begin, end = first // size, -(-(first + count) // size)
    drawn = np.concatenate([portion.order(seed, number) for number in range(begin, end)])
    return drawn[first - begin * size :][:count]


class InOrder(Sampler[Place]):
    """Rows once each, in table order; ranks take turns with whole batches, so that a batch is as it is on one rank."""

    def __init__(self, rows: Sequence[int] | Integers, rank: int = 0, world: int = 1, batch_size: int = 1) -> None:
        self._rows = np.asarray(rows)
        self._positions = np.flatnonzero(np.arange(len(rows)) // batch_size % world == rank)

    def __len__(self) -> int:
        return len(self._positions)

    def __iter__(self) -> Iterator[Place]:
        for position in self._positions:
            yield 0, int(position), int(self._rows[position])
