from __future__ import annotations

import numpy as np
import pytest

from skinmtl.data.samplers import EpochSampler, InOrder, Shuffle

ROWS = np.arange(100, 141)  # 41 rows of some larger table


def sampler(start: tuple[int, int] = (0, 0), seed: int = 0, rank: int = 0, world: int = 1) -> EpochSampler:
    return EpochSampler(Shuffle().order, ROWS, seed, lambda: start, batch_size=4, rank=rank, world=world)


def test_an_epoch_has_every_row_once_in_an_order_of_its_own() -> None:
    epochs = [list(sampler((epoch, 0))) for epoch in range(3)]
    for number, epoch in enumerate(epochs):
        assert [place[:2] for place in epoch] == [(number, position) for position in range(len(ROWS))]
        assert sorted(row for _, _, row in epoch) == ROWS.tolist()
    assert len({tuple(row for _, _, row in epoch) for epoch in epochs}) == 3


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    np.random.seed(0)
    assert list(sampler(seed=5)) == list(sampler(seed=5))
    assert list(sampler(seed=5)) != list(sampler(seed=6))


def test_every_permutation_of_three_is_as_likely_as_another() -> None:
    orders = np.array([Shuffle().order(3, seed=0, epoch=epoch) for epoch in range(600)])
    _, counts = np.unique(orders, axis=0, return_counts=True)
    assert len(counts) == 6
    assert ((counts - 100) ** 2 / 100).sum() < 20.5  # chi-square, 5 degrees of freedom, p > 0.001


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("skip", [0, 1, 3, 6])
def test_entered_late_an_epoch_is_the_rest_of_the_unbroken_one(world: int, skip: int) -> None:
    for rank in range(world):
        whole = list(sampler((2, 0), rank=rank, world=world))
        assert list(sampler((2, skip), rank=rank, world=world)) == whole[skip * 4 :]
        assert len(sampler((2, skip), rank=rank, world=world)) == len(whole)


@pytest.mark.parametrize("world", [2, 3, 4])
def test_ranks_share_one_draw_with_equal_steps(world: int) -> None:
    alone = list(sampler())
    ranks = [list(sampler(rank=rank, world=world)) for rank in range(world)]
    assert {len(places) for places in ranks} == {len(ROWS) // world}
    together = [place for step in zip(*ranks, strict=True) for place in step]
    assert together == alone[: len(ROWS) // world * world]


@pytest.mark.parametrize("n", range(18))
def test_evaluation_sees_each_row_once_on_whatever_ranks(n: int) -> None:
    for world in (1, 2, 3):
        shares = [list(InOrder(ROWS[:n], rank, world)) for rank in range(world)]
        assert sorted(row for share in shares for _, _, row in share) == ROWS[:n].tolist()
        assert [len(share) for share in shares] == [len(InOrder(ROWS[:n], rank, world)) for rank in range(world)]
    assert [row for _, _, row in InOrder(ROWS)] == ROWS.tolist()
