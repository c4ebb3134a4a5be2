from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
from scipy.stats import chisquare

from skinmtl.data import samplers
from skinmtl.data.samplers import EpochSampler, Portion, SequentialSampler, Shuffle, Weighted
from skinmtl.errors import ConfigError

ROWS = np.arange(100, 141)  # 41 rows of some larger table
DX = np.repeat([0, 1, 2, -1], [25, 9, 3, 4])
LESION = np.arange(41) // 2  # some lesions stand under two diagnoses, which a table may have
WEIGHTED = [samplers.class_balanced, samplers.sqrt_balanced, samplers.effective_number, samplers.class_aware]


def sampler(
    start: tuple[int, int] = (0, 0),
    seed: int = 0,
    rank: int = 0,
    world: int = 1,
    kind: Shuffle | None = None,
    places: int = 4,
) -> EpochSampler:
    order = partial((kind or Shuffle()).order, DX, LESION)
    return EpochSampler([Portion(ROWS, order, places * world)], seed, lambda: start, rank, world)


def mixed(epoch: int = 0, skip: int = 0, rank: int = 0, world: int = 1) -> EpochSampler:
    """Of each seven places four for the 41 rows, two for seven others, one for 90 more."""
    few, many = np.arange(7), np.arange(200, 290)
    portions = [
        Portion(ROWS, partial(Shuffle().order, DX, LESION), 4 * world),
        Portion(few, partial(Shuffle().order, few, few), 2 * world),
        Portion(many, partial(Shuffle().order, many, many), world),
    ]
    return EpochSampler(portions, 0, lambda: (epoch, skip), rank, world)


def test_an_epoch_has_every_row_once_in_an_order_of_its_own() -> None:
    epochs = [list(sampler((epoch, 0), places=1)) for epoch in range(3)]
    for number, epoch in enumerate(epochs):
        assert [place[:2] for place in epoch] == [(number, position) for position in range(len(ROWS))]
        assert sorted(row for _, _, row in epoch) == ROWS.tolist()
    assert len({tuple(row for _, _, row in epoch) for epoch in epochs}) == 3


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    np.random.seed(0)
    assert list(sampler(seed=5)) == list(sampler(seed=5))
    assert list(sampler(seed=5)) != list(sampler(seed=6))


def test_every_permutation_of_three_is_as_likely_as_another() -> None:
    orders = np.array([Shuffle().order(DX[:3], DX[:3], seed=0, epoch=epoch) for epoch in range(600)])
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
@pytest.mark.parametrize("make", [Shuffle, *WEIGHTED])
def test_ranks_share_one_draw_with_equal_steps(world: int, make: Callable[[], Shuffle]) -> None:
    alone = list(sampler(kind=make(), places=1))
    ranks = [list(sampler(rank=rank, world=world, kind=make())) for rank in range(world)]
    assert {len(places) for places in ranks} == {len(ROWS) // (4 * world) * 4}
    together = [place for step in zip(*ranks, strict=True) for place in step]
    assert together == alone[: len(together)]


@pytest.mark.parametrize("n", range(18))
def test_evaluation_sees_each_row_once_on_whatever_ranks(n: int) -> None:
    for world in (1, 2, 3):
        shares = [list(SequentialSampler(ROWS[:n], rank, world)) for rank in range(world)]
        assert sorted(row for share in shares for _, _, row in share) == ROWS[:n].tolist()
        assert [len(share) for share in shares] == [
            len(SequentialSampler(ROWS[:n], rank, world)) for rank in range(world)
        ]
    assert [row for _, _, row in SequentialSampler(ROWS)] == ROWS.tolist()


def test_ranks_take_turns_with_whole_batches_of_evaluation() -> None:
    shares = [[row for _, _, row in SequentialSampler(ROWS[:11], rank, 2, batch_size=4)] for rank in (0, 1)]
    assert shares == [[*ROWS[:4], *ROWS[8:11]], [*ROWS[4:8]]]


@pytest.mark.parametrize("make", WEIGHTED)
def test_weighted_draws_have_the_intended_shares_and_no_epoch_repeats_another(make: Callable[[], Weighted]) -> None:
    kind = make()
    epochs = np.array([kind.order(DX, LESION, seed=0, epoch=epoch) for epoch in range(400)])
    expected = kind.weights(DX, LESION)
    assert expected.sum() == pytest.approx(1)
    counts = np.bincount(epochs.ravel(), minlength=41)
    assert chisquare(counts, expected * epochs.size).pvalue > 1e-3
    uniform = np.full(41, epochs.size / 41)
    assert chisquare(counts, uniform).pvalue < 1e-6, "the test tells an unweighted sampler apart"
    assert len(np.unique(epochs, axis=0)) == 400


def shares(kind: Weighted, dx: np.ndarray = DX) -> np.ndarray:
    """Expected share of each diagnosis among the labelled places of an epoch."""
    weights = kind.weights(dx, LESION)
    drawn = np.bincount(dx[dx >= 0], weights[dx >= 0])
    return drawn / drawn.sum()


def test_shares_are_those_of_the_papers() -> None:
    n = np.array([25, 9, 3])
    np.testing.assert_allclose(shares(samplers.class_balanced()), 1 / 3)
    np.testing.assert_allclose(shares(samplers.class_aware()), 1 / 3)
    np.testing.assert_allclose(shares(samplers.sqrt_balanced()), np.sqrt(n) / np.sqrt(n).sum())
    for beta in (0.0, 0.9, 0.999):
        by_hand = n * (1 - beta) / (1 - beta**n)
        np.testing.assert_allclose(shares(samplers.effective_number(beta)), by_hand / by_hand.sum())
    np.testing.assert_allclose(shares(samplers.effective_number(0.0)), n / n.sum())


def test_class_aware_takes_lesions_equally_and_images_within_them() -> None:
    dx, lesion = np.array([0, 0, 0, 1]), np.array([0, 0, 1, 2])
    np.testing.assert_allclose(samplers.class_aware().weights(dx, lesion), [1 / 8, 1 / 8, 1 / 4, 1 / 2])


@pytest.mark.parametrize("make", WEIGHTED)
def test_images_without_a_diagnosis_keep_their_share(make: Callable[[], Weighted]) -> None:
    np.testing.assert_allclose(make().weights(DX, LESION)[DX < 0], 1 / 41)
    none = np.full(41, -1)
    np.testing.assert_allclose(make().weights(none, LESION), 1 / 41)


@pytest.mark.parametrize("world", [1, 2])
def test_each_batch_holds_every_source_by_its_places(world: int) -> None:
    ranks = [np.array([row for _, _, row in mixed(rank=rank, world=world)]).reshape(-1, 7) for rank in range(world)]
    rows = np.hstack(ranks)
    assert len(rows) == 41 // (4 * world)
    sources = np.searchsorted([7, 200], rows, side="right")
    assert (np.sort(sources) == np.sort([0, 0, 1, 1, 1, 1, 2] * world)).all()


def test_sources_small_and_large_come_evenly_however_long_an_epoch_is() -> None:
    drawn = np.array([row for epoch in range(9) for _, _, row in mixed(epoch)])
    assert len(drawn) == 9 * 10 * 7
    for low, high in ((0, 7), (200, 290)):
        counts = np.bincount(drawn)[low:high]
        assert counts.max() - counts.min() <= 1 and counts.sum() == (drawn >= low).sum() - (drawn >= high).sum()
    shuffled = [drawn[epoch * 70 : (epoch + 1) * 70] for epoch in range(9)]
    assert len({tuple(rows[rows < 7]) for rows in shuffled}) == 9


def test_mixed_ranks_share_one_draw_and_late_entry_changes_nothing() -> None:
    ranks = [list(mixed(1, rank=rank, world=2)) for rank in range(2)]
    positions = sorted(position for places in ranks for _, position, _ in places)
    assert positions == list(range(5 * 14))
    for rank in range(2):
        assert list(mixed(1, skip=3, rank=rank, world=2)) == ranks[rank][3 * 7 :]
    # The first source's draw is what it is alone, and on both ranks together what one process draws.
    first = [row for step in zip(*ranks, strict=True) for _, _, row in step if 100 <= row < 141]
    assert first == [row for _, _, row in sampler((1, 0))][: len(first)]


@pytest.mark.parametrize("kind", WEIGHTED)
def test_a_diagnosis_without_images_takes_nothing_from_the_others(kind: Callable[[], Weighted]) -> None:
    without, close = DX.copy(), np.where(DX == 2, 1, DX)
    without[DX == 1], close[DX == 1] = 0, 0  # of diagnosis 1 there are none; the same with the number 1 for 2
    weights = kind().weights(without, LESION)
    np.testing.assert_array_equal(weights, kind().weights(close, LESION))
    assert np.isfinite(weights).all() and weights.sum() == pytest.approx(1)


def test_at_the_ends_of_beta_the_effective_number_is_shuffle_and_class_balanced() -> None:
    for beta, other in ((0.0, Shuffle()), (1.0, samplers.class_balanced())):
        np.testing.assert_allclose(samplers.effective_number(beta).weights(DX, LESION), other.weights(DX, LESION))


@pytest.mark.parametrize(
    "weights",
    [
        lambda dx, lesion: 1.0 - dx,  # some below zero
        lambda dx, lesion: np.zeros(len(dx)),
        lambda dx, lesion: np.full(len(dx), np.nan),
        lambda dx, lesion: np.ones(len(dx) - 1),
    ],
)
def test_weights_that_are_no_chances_are_refused(weights: samplers.Weigh) -> None:
    with pytest.raises(
        ConfigError, match="sampler: its weights of 37 images .*; fix: give each image a weight, zero or"
    ):
        Weighted(weights).order(DX, LESION, 0, 0)
    assert len(Weighted(lambda dx, lesion: (dx == 1).astype(float)).order(DX, LESION, 0, 0)) == len(DX), "zeros may be"


@pytest.mark.parametrize("order", [np.arange(20), np.arange(1, 42), np.linspace(0, 40, 41), np.arange(-1, 40)])
def test_an_order_that_is_none_of_these_images_is_refused(order: np.ndarray) -> None:
    class Own(Shuffle):
        def order(self, dx: samplers.Integers, lesion: samplers.Integers, seed: int, epoch: int) -> samplers.Integers:
            return order

    with pytest.raises(ConfigError, match="sampler: its order of 41 images is .*; fix: let `order` give 41 indices"):
        list(sampler(kind=Own()))
