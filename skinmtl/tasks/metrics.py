"""Scores while training: counts kept as tensors, added up over batches and processes, read once an epoch."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric


class Means(Metric):
    """Means of several values over batches, each batch counted by the images that a value is of, or their weights."""

    total: Tensor
    mass: Tensor
    full_state_update = False

    def __init__(self, values: int) -> None:
        super().__init__()
        self.add_state("total", torch.zeros(values, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("mass", torch.zeros(values, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, values: Tensor, mass: Tensor, sound: Tensor) -> None:
        """Count the (V,) values of a batch by their (V,) `mass`, images or weights, where () `sound`.

        What is not sound is left out: one batch would be all.
        """
        self.total += torch.where(sound, values.double() * mass, 0.0)
        self.mass += mass * sound

    def compute(self) -> Tensor:
        """(2, V) means, zero where nothing has been counted, and what they were counted by."""
        means = self.total / torch.where(self.mass > 0, self.mass, 1.0)
        return torch.stack([means, self.mass]).float()


class ImageDice(Metric):
    """Mean over images of 2 |A and B| / (|A| + |B|) at network size; where both are empty they agree, so count one.

    A and B are a class's predicted and true pixels. Of several classes beside the background an image counts with the
    mean over them. The predictions table has the Dice that is reported, at the image's own size.
    """

    total: Tensor
    images: Tensor
    full_state_update = False

    def __init__(self, classes: int = 2) -> None:
        super().__init__()
        self.classes = classes
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("images", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, predicted: Tensor, target: Tensor) -> None:
        """Count (B, H, W) masks of class indices, background 0."""
        for index in range(1, self.classes):
            a, b = predicted == index, target == index
            both, sizes = (a & b).sum((1, 2)), a.sum((1, 2)) + b.sum((1, 2))
            dice = torch.where(sizes > 0, 2 * both.double() / sizes.clamp(min=1), 1.0)
            self.total += dice.sum() / (self.classes - 1)
        self.images += len(predicted)

    def compute(self) -> dict[str, Tensor]:
        """`mean_image_dice` in [0, 1]; zero before any image."""
        return {"mean_image_dice": (self.total / self.images.clamp(min=1)).float()}


class Confusion(Metric):
    """Counts of (true, predicted) classes, read as accuracy and balanced accuracy."""

    counts: Tensor
    full_state_update = False

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.add_state("counts", torch.zeros((classes, classes), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, predicted: Tensor, target: Tensor) -> None:
        """Count (B,) predicted and true class indices."""
        places = target * self.classes + predicted
        self.counts += torch.bincount(places, minlength=self.classes**2).reshape(self.classes, self.classes)

    def compute(self) -> dict[str, Tensor]:
        """`balanced_accuracy`, the mean recall over classes that occur, and `accuracy`; both zero before any sample."""
        hits, support = self.counts.diagonal().double(), self.counts.sum(1)
        present = support > 0
        recall = hits / support.clamp(min=1)
        balanced = (recall * present).sum() / present.sum().clamp(min=1)
        accuracy = hits.sum() / support.sum().clamp(min=1)
        return {"balanced_accuracy": balanced.float(), "accuracy": accuracy.float()}


class AbsoluteError(Metric):
    """Sum of absolute errors, read as their mean, and as `closeness` = 1 / (1 + mean / spread).

    Args:
        spread: the mean absolute error of a constant guess, in the unit of the values; above 0.
    """

    total: Tensor
    images: Tensor
    full_state_update = False

    def __init__(self, spread: float) -> None:
        super().__init__()
        self.spread = spread
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("images", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, predicted: Tensor, target: Tensor) -> None:
        """Count (B,) predicted and true values."""
        self.total += (predicted.double() - target.double()).abs().sum()
        self.images += len(predicted)

    def compute(self) -> dict[str, Tensor]:
        """`closeness` in (0, 1] and `mean_absolute_error`; both zero before any sample."""
        mean = self.total / self.images.clamp(min=1)
        closeness = torch.where(self.images > 0, 1 / (1 + mean / self.spread), 0.0)
        return {"closeness": closeness.float(), "mean_absolute_error": mean.float()}
