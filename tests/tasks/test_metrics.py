"""Scores while training against scikit-learn and NumPy, however the samples are dealt into batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score

from skinmtl.tasks.metrics import Confusion, ImageDice, Means


def masks() -> tuple[torch.Tensor, torch.Tensor]:
    """17 pairs of masks, two of them empty on both sides, one empty on one."""
    draw = torch.Generator().manual_seed(0)
    a, b = (torch.randint(0, 2, (17, 9, 7), generator=draw, dtype=torch.uint8) for _ in range(2))
    a[:2], b[:3] = 0, 0
    return a, b


@pytest.mark.parametrize("size", [1, 4, 17])
def test_mean_image_dice_is_numpys_for_any_batch_size(size: int) -> None:
    a, b = masks()
    metric = ImageDice()
    for i in range(0, 17, size):
        metric.update(a[i : i + size], b[i : i + size])
    each = []
    for x, y in zip(a.numpy() > 0, b.numpy() > 0, strict=True):
        each.append(2 * (x & y).sum() / (x.sum() + y.sum()) if (x | y).any() else 1.0)
    assert each[:3] == [1, 1, 0]
    assert float(metric.compute()["mean_image_dice"]) == pytest.approx(np.mean(each), abs=1e-6)


@pytest.mark.parametrize("size", [1, 4, 17])
def test_dice_of_several_classes_is_the_mean_over_all_but_the_background(size: int) -> None:
    draw = torch.Generator().manual_seed(1)
    a, b = (torch.randint(0, 4, (17, 9, 7), generator=draw, dtype=torch.uint8) for _ in range(2))
    a[0], b[0], a[1], b[2] = 0, 0, 0, 1
    metric = ImageDice(4)
    for i in range(0, 17, size):
        metric.update(a[i : i + size], b[i : i + size])
    each = []
    for x, y in zip(a.numpy().reshape(17, -1), b.numpy().reshape(17, -1), strict=True):
        each.append(f1_score(y, x, labels=[1, 2, 3], average="macro", zero_division=1))  # the Dice of a class is its F1
    assert each[0] == 1
    assert float(metric.compute()["mean_image_dice"]) == pytest.approx(np.mean(each), abs=1e-6)
    lesion_or_not = ImageDice()
    lesion_or_not.update((a > 0).to(torch.uint8), (b > 0).to(torch.uint8))
    assert float(lesion_or_not.compute()["mean_image_dice"]) != pytest.approx(np.mean(each), abs=0.05)


@pytest.mark.parametrize("size", [1, 7, 50])
def test_accuracies_are_scikit_learns_over_classes_that_occur(size: int) -> None:
    draw = np.random.default_rng(0)
    true, predicted = draw.choice([0, 2, 3], 50), draw.integers(0, 5, 50)  # 1 and 4 are predicted and never true
    metric = Confusion(5)
    for i in range(0, 50, size):
        metric.update(torch.tensor(predicted[i : i + size]), torch.tensor(true[i : i + size]))
    found = metric.compute()
    with pytest.warns(UserWarning, match="y_pred contains classes not in y_true"):
        balanced = balanced_accuracy_score(true, predicted)
    assert float(found["balanced_accuracy"]) == pytest.approx(balanced)
    assert float(found["accuracy"]) == pytest.approx(accuracy_score(true, predicted))


def test_counts_of_two_processes_add_up() -> None:
    a, b = masks()
    whole, first, second = ImageDice(), ImageDice(), ImageDice()
    whole.update(a, b)
    first.update(a[:5], b[:5])
    second.update(a[5:], b[5:])
    first.merge_state(second)
    assert torch.equal(first.compute()["mean_image_dice"], whole.compute()["mean_image_dice"])


def test_a_batch_without_targets_counts_nothing() -> None:
    dice, confusion = ImageDice(), Confusion(3)
    dice.update(torch.zeros(0, 4, 4, dtype=torch.uint8), torch.zeros(0, 4, 4, dtype=torch.uint8))
    confusion.update(torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64))
    assert {float(value) for value in (dice.compute() | confusion.compute()).values()} == {0.0}


def test_means_are_over_the_images_that_a_value_is_of_or_their_weights() -> None:
    means = Means(2)
    nan = float("nan")
    for values, images in (([1.0, 0.0], [4, 0]), ([3.0, 5.0], [2, 1]), ([nan, 7.0], [9, 9]), ([0.0, 2.0], [0, 0.5])):
        means.update(torch.tensor(values), torch.tensor(images), torch.tensor(values).isfinite().all())
    np.testing.assert_allclose(means.compute(), [[(4 + 6) / 6, (5 + 1) / 1.5], [6, 1.5]])
    means.reset()
    means.update(torch.tensor([1.0, 0.0]), torch.tensor([4, 0]), torch.tensor(True))
    assert means.compute().tolist() == [[1, 0], [4, 0]], "of none it is 0"
