"""What is learned from a photograph: a target, a loss, a score while training, a way to read logits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from skinmtl.tasks.metrics import Confusion, ImageDice
from skinmtl.types import Batch


class Task(nn.Module, ABC):
    """One thing learned; its name is the key of its loss, logits, weight and scores everywhere."""

    name: ClassVar[str]
    score: ClassVar[str]  # the score that selects a checkpoint: in [0, 1], larger is better

    def __init__(self, loss: nn.Module, classes: Sequence[str]) -> None:
        super().__init__()
        self.loss = loss
        self.classes = tuple(classes)

    def forward(self, logits: Tensor, batch: Batch) -> Tensor:
        """The task's loss, a scalar."""
        loss: Tensor = self.loss(logits, batch)
        return loss

    @staticmethod
    @abstractmethod
    def labelled(batch: Batch) -> Tensor:
        """Which samples have the target, (B,) bool."""

    def mass(self, batch: Batch) -> Tensor:
        """What the task's loss of a batch is divided by, a scalar: how many samples have the target, or their weights.

        Means of batches, each times its mass, add up to that of an epoch. Weights are those that the loss gives by a
        method `sample_weights`, (B,) for a batch; a loss without one counts each sample once.
        """
        has = self.labelled(batch)
        weigh = getattr(self.loss, "sample_weights", None)
        return has.float().sum() if weigh is None else torch.where(has, weigh(batch), 0.0).sum()

    @abstractmethod
    def metric(self) -> ImageDice | Confusion:
        """A fresh counter; its `compute()` gives the task's scores by name."""

    @abstractmethod
    def count(self, metric: ImageDice | Confusion, logits: Tensor, batch: Batch) -> None:
        """Add one batch to a counter; samples without the target are left out."""

    @staticmethod
    @abstractmethod
    def probabilities(logits: Tensor) -> Tensor:
        """Probabilities, at least float32, of the same shape as the logits."""


class Segmentation(Task):
    """Outline the lesion: each pixel's class of the largest probability, background first.

    With one class beside the background a pixel is lesion where its probability is above one half.
    """

    name = "seg"
    score = "mean_image_dice"

    @staticmethod
    def labelled(batch: Batch) -> Tensor:
        return batch["has_mask"]

    def metric(self) -> ImageDice:
        return ImageDice(len(self.classes))

    def count(self, metric: ImageDice | Confusion, logits: Tensor, batch: Batch) -> None:
        has = self.labelled(batch)
        metric.update(self.read(self.probabilities(logits))[has], batch["mask"][has])

    @staticmethod
    def probabilities(logits: Tensor) -> Tensor:
        logits = logits.float()
        return logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(1)

    @staticmethod
    def read(probabilities: Tensor) -> Tensor:
        """(B, H, W) uint8 index into the mask classes, from (B, 1, H, W) or (B, M, H, W) probabilities."""
        index = probabilities[:, 0] > 0.5 if probabilities.shape[1] == 1 else probabilities.argmax(1)
        return index.to(torch.uint8)


class Diagnosis(Task):
    """Name the lesion: the class of the largest probability."""

    name = "cls"
    score = "balanced_accuracy"

    def forward(self, logits: Tensor, batch: Batch) -> Tensor:
        """The task's loss, a scalar; where photographs were mixed, that of both diagnoses by their shares."""
        own = super().forward(logits, batch)
        if "dx_other" not in batch:
            return own
        other = super().forward(logits, {**batch, "dx": batch["dx_other"]})
        return batch["share"] * own + (1 - batch["share"]) * other

    def mass(self, batch: Batch) -> Tensor:
        """As of any task; where photographs were mixed, that of both diagnoses by their shares."""
        own = super().mass(batch)
        if "dx_other" not in batch:
            return own
        other = super().mass({**batch, "dx": batch["dx_other"]})
        return batch["share"] * own + (1 - batch["share"]) * other

    @staticmethod
    def labelled(batch: Batch) -> Tensor:
        return batch["dx"] >= 0

    def metric(self) -> Confusion:
        return Confusion(len(self.classes))

    def count(self, metric: ImageDice | Confusion, logits: Tensor, batch: Batch) -> None:
        has = self.labelled(batch)
        metric.update(logits[has].argmax(1), batch["dx"][has])

    @staticmethod
    def probabilities(logits: Tensor) -> Tensor:
        # In float64: rounding would make ties, and the official scorer counts a tie as wrong.
        return logits.double().softmax(1)


TASKS: Mapping[str, type[Task]] = {task.name: task for task in (Segmentation, Diagnosis)}
