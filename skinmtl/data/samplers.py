"""Which images come and in which order: a function of seed and epoch, cut into ranks, entered at any batch.

An epoch takes as many images of data.root as there are of them in training, cut to whole batches, whatever the sampler.
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
from skinmtl.data.transforms import derive_seed
from skinmtl.errors import ConfigError

SampleKey = tuple[int, int, int]  # epoch, position in the epoch's order over all ranks, row of the case table
Integers = NDArray[np.int64]
Floats = NDArray[np.float64]
# Weights (n,) of images, from the indices of their diagnoses (n,) and of their lesions (n,).
Weigh = Callable[[Integers, Integers], Floats]


class Shuffle:
    """Take every image at most once an epoch, in another order each epoch, cut to whole batches."""

    rebalances = False

    def weights(self, dx: Integers, lesion: Integers) -> Floats:
        """Return how likely each image is to be sampled at any position.

        Args:
            dx: (n,) index of each image's diagnosis; -1 for none.
            lesion: (n,) index of each image's lesion.

        Returns:
            Probabilities (n,), which sum to one.
        """
        return np.full(len(dx), 1 / max(1, len(dx)))

    def order(self, dx: Integers, lesion: Integers, seed: int, epoch: int) -> Integers:
        """Return the order of an epoch, by the arguments alone, so that it is the same on all ranks.

        Args:
            dx: (n,) index of each image's diagnosis; -1 for none.
            lesion: (n,) index of each image's lesion.
            seed: the run's.
            epoch: counted from 0.

        Returns:
            Indices (n,) into the n images.
        """
        return np.random.default_rng(derive_seed(seed, epoch)).permutation(len(dx)).astype(np.int64)


class Weighted(Shuffle):
    """Sample images with replacement; those without a diagnosis keep the share that they have of all.

    Args:
        weigh: relative weights (n,) of images with a diagnosis, from the indices of their diagnoses and lesions.
    """

    rebalances = True

    def __init__(self, weigh: Weigh) -> None:
        self._weigh = weigh

    def weights(self, dx: Integers, lesion: Integers) -> Floats:
        """Return the weights as `Shuffle.weights` does."""
        weights = super().weights(dx, lesion)
        known = dx >= 0
        if known.any():
            relative = _sound(self._weigh(dx[known], lesion[known]), int(known.sum()))
            weights[known] = relative * (known.mean() / relative.sum())
        return weights

    def order(self, dx: Integers, lesion: Integers, seed: int, epoch: int) -> Integers:
        """Return the order as `Shuffle.order` does; an index may occur more than once."""
        weights = self.weights(dx, lesion)
        # Not default_rng(...).choice: it wants weights that sum to one within 1e-8, which many small ones miss.
        edges = np.cumsum(weights)
        points = np.random.default_rng(derive_seed(seed, epoch)).random(len(dx)) * edges[-1]
        sampled: Integers = np.searchsorted(edges, points, side="right").clip(max=len(dx) - 1)
        return sampled


def _sound(weights: Floats, count: int) -> Floats:
    """Return weights of images as they are.

    Raises:
        ConfigError: they cannot be chances, as those of the user's own function may not be.
    """
    if weights.shape != (count,) or not np.isfinite(weights).all() or weights.min() < 0 or not weights.any():
        span = f", from {weights.min():.4g} to {weights.max():.4g}" if weights.size else ""
        what = f"its weights of {count} images with a diagnosis are of shape {weights.shape}{span}"
        raise ConfigError("sampler", what, "give each image a weight, zero or above, and some above zero")
    return weights


def class_balanced() -> Weighted:
    """Sample every diagnosis equally often: an image weighs 1 / n, n the training images of its diagnosis."""
    return Weighted(lambda dx, lesion: 1 / _count_per_image(dx))


def sqrt_balanced() -> Weighted:
    """Go half the way, by 1 / sqrt(n): a diagnosis with a hundredth of the images is sampled a tenth as often."""
    return Weighted(lambda dx, lesion: 1 / np.sqrt(_count_per_image(dx)))


def effective_number(beta: Annotated[float, Interval(ge=0, le=1)] = 0.999) -> Weighted:
    """Weigh images by (1 - beta) / (1 - beta^n): of n images of a diagnosis, as many count as differ.

    Cui et al. 2019, arXiv:1901.05555.

    Args:
        beta: 0 weighs all images alike, 1 all diagnoses.
    """
    return Weighted(lambda dx, lesion: effective_number_weights(_count_per_image(dx), beta))


def class_aware() -> Weighted:
    """Sample a diagnosis, then one of its lesions, then one of its images, each with equal chances.

    Shen, Lin and Huang 2016, arXiv:1512.05830, with a step for lesions: of a lesion seen in several images each
    weighs less. Lesions that duplicates join are one, as in the split.
    """

    def weigh(dx: Integers, lesion: Integers) -> Floats:
        pairs = np.stack([dx, lesion], axis=1)
        distinct, which, images = np.unique(pairs, axis=0, return_inverse=True, return_counts=True)
        lesions = np.bincount(distinct[:, 0], minlength=dx.max() + 1)  # by diagnosis
        return 1 / (lesions[dx] * images[which.reshape(-1)])

    return Weighted(weigh)


def _count_per_image(dx: Integers) -> Floats:
    """Count for each image (n,) how many have its diagnosis."""
    return np.bincount(dx)[dx].astype(float)


@dataclass(frozen=True)
class Portion:
    """The training images of one data set, and how many of them a step takes on all ranks together."""

    rows: Integers  # (n,) rows of the case table
    order: Callable[[int, int], Integers]  # of a seed and an epoch: indices (n,) into `rows`
    places: int


class EpochSampler(Sampler[SampleKey]):
    """Sample this rank's part of one epoch, from the batch where training stands.

    An epoch passes once over the first portion, in whole batches. The other portions fill their places in a batch from
    passes of their own, one after the other across epochs, so that none of their images is sampled less than the rest.
    The order over all ranks is the same on each, a function of seed and epoch; every `world`-th place of a batch from
    `rank` on is this rank's, whichever portion fills it. An epoch that is entered late has the very samples that were
    left in an unbroken one.

    Args:
        portions: what a batch is made of; the first decides how long an epoch is.
        seed: the run's.
        start: called when an epoch begins; returns the epoch, and how many of its batches are already done.
        rank: of this process.
        world: how many processes there are.
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
        """Count the samples of a whole epoch on this rank, wherever it is entered: trainers count batches by it."""
        return self.batches * self.batch_size

    def __iter__(self) -> Iterator[SampleKey]:
        epoch, skip = self._start()
        rows = self._epoch(epoch)
        for position in range(self._rank + skip * self.batch_size * self._world, len(rows), self._world):
            yield epoch, position, int(rows[position])

    def _epoch(self, epoch: int) -> Integers:
        """Return the row at each position of an epoch over all ranks, (batches * batch_size * world,)."""
        columns = []
        for number, portion in enumerate(self._portions):
            count = self.batches * portion.places
            if number == 0:
                chosen = _order(portion, self._seed, epoch)[:count]
            else:
                chosen = _passes(portion, derive_seed(self._seed, number), epoch * count, count)
            columns.append(portion.rows[chosen].reshape(self.batches, portion.places))
        return np.concatenate(columns, axis=1).reshape(-1)


def _order(portion: Portion, seed: int, epoch: int) -> Integers:
    """Return a sampler's order of an epoch.

    Raises:
        ConfigError: it is no order of these images, as one of the user's own may not be.
    """
    order, size = np.asarray(portion.order(seed, epoch)), len(portion.rows)
    if order.shape != (size,) or order.dtype.kind not in "iu" or order.min() < 0 or order.max() >= size:
        what = f"its order of {size} images is {order.dtype} of shape {order.shape}"
        raise ConfigError("sampler", what, f"let `order` give {size} indices, each from 0 to {size - 1}")
    return order


def _passes(portion: Portion, seed: int, first: int, count: int) -> Integers:
    """Return positions `first` to `first + count` of an order that goes through all images again and again."""
    size = len(portion.rows)
    begin, end = first // size, -(-(first + count) // size)
    order = np.concatenate([_order(portion, seed, number) for number in range(begin, end)])
    return order[first - begin * size :][:count]


class SequentialSampler(Sampler[SampleKey]):
    """Take rows once each, in table order.

    Ranks take turns with whole batches, so that a batch holds the same images as with one process.

    Args:
        rows: rows of the case table.
        rank: of this process.
        world: how many processes there are.
        batch_size: images in a batch of one process.
    """

    def __init__(self, rows: Sequence[int] | Integers, rank: int = 0, world: int = 1, batch_size: int = 1) -> None:
        self._rows = np.asarray(rows)
        self._positions = np.flatnonzero(np.arange(len(rows)) // batch_size % world == rank)

    def __len__(self) -> int:
        return len(self._positions)

    def __iter__(self) -> Iterator[SampleKey]:
        for position in self._positions:
            yield 0, int(position), int(self._rows[position])
