"""In which order photographs come: a function of seed and epoch, cut into ranks, entered at any batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from skinmtl.data.transforms import mix

Place = tuple[int, int, int]  # epoch, position in the epoch's order over all ranks, row of the case table
Order = Callable[[int, int, int], NDArray[np.int64]]


class Shuffle:
    """Every photograph once an epoch, in an order of its own each epoch."""

    def order(self, n: int, seed: int, epoch: int) -> NDArray[np.int64]:
        """A permutation of 0 ... n-1 that depends on the arguments alone, so all ranks draw the same."""
        return np.random.default_rng(mix(seed, epoch)).permutation(n).astype(np.int64)


class EpochSampler(Sampler[Place]):
    """This rank's share of one epoch, from the batch where training stands.

    The order over all ranks is drawn alike on each, cut to a multiple of `world` (equal steps for all), and every
    `world`-th place from `rank` on is this rank's. `start` gives (epoch, batches of it already done) when an epoch
    begins; after those batches the remaining places are the very ones that an unbroken epoch would have had.
    """

    def __init__(
        self,
        order: Order,
        rows: Sequence[int] | NDArray[np.int64],
        seed: int,
        start: Callable[[], tuple[int, int]],
        batch_size: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self._order, self._rows, self._seed, self._start = (order, np.asarray(rows), seed, start)
        self._batch_size, self._rank, self._world = batch_size, rank, world

    def __len__(self) -> int:
        """Places of a whole epoch on this rank, wherever it is entered: trainers count batches by it."""
        return len(self._rows) // self._world

    def __iter__(self) -> Iterator[Place]:
        epoch, skip = self._start()
        order = self._order(len(self._rows), self._seed, epoch)
        places = range(self._rank, len(self) * self._world, self._world)[skip * self._batch_size :]
        for position in places:
            yield epoch, position, int(self._rows[order[position]])


class InOrder(Sampler[Place]):
    """Rows once each, in table order; ranks share them out without repeating one, so their shares may differ by one."""

    def __init__(self, rows: Sequence[int] | NDArray[np.int64], rank: int = 0, world: int = 1) -> None:
        self._rows, self._positions = np.asarray(rows), range(rank, len(rows), world)

    def __len__(self) -> int:
        return len(self._positions)

    def __iter__(self) -> Iterator[Place]:
        for position in self._positions:
            yield 0, position, int(self._rows[position])
