"""Losses of a number, from logits (B, 1) and the batch's `value` (B,), NaN where missing.

Both are less the mean of the training images and over their standard deviation, so that a loss does not depend on the
unit, and 1 is what a constant guess is off by.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Annotated

import torch
from annotated_types import Gt
from torch import Tensor, nn
from torch.nn import functional as F

from skinmtl.losses.common import at_least_float32, mean_over_labelled
from skinmtl.types import Batch


class ErrorLoss(nn.Module, ABC):
    """The mean over samples with a number of what an error costs."""

    def forward(self, logits: Tensor, batch: Batch) -> Tensor:
        """Scalar, from (B, 1) logits."""
        predicted = at_least_float32(logits)[:, 0]
        has = torch.isfinite(batch["value"])
        # Zeros in the place of what is missing: the slope at NaN is NaN, and would reach the weights.
        value = torch.where(has, batch["value"], 0.0).to(predicted.dtype)
        return mean_over_labelled(self.costs(predicted, value), has)

    @abstractmethod
    def costs(self, predicted: Tensor, value: Tensor) -> Tensor:
        """(B,) costs, from (B,) predictions and values."""


class AbsoluteError(ErrorLoss):
    """|p - v|, whose best constant guess is the median: far values do not rule it."""

    def costs(self, predicted: Tensor, value: Tensor) -> Tensor:
        """As of any loss of a number."""
        return (predicted - value).abs()


class SquaredError(ErrorLoss):
    """(p - v)^2, whose best constant guess is the mean."""

    def costs(self, predicted: Tensor, value: Tensor) -> Tensor:
        """As of any loss of a number."""
        return (predicted - value).square()


class Huber(ErrorLoss):
    """(p - v)^2 / 2 where the error is below `delta`, in standard deviations, and delta |p - v| - delta^2 / 2 beyond.

    Huber 1964, Annals of Mathematical Statistics 35(1).

    Args:
        delta: the error, in standard deviations, from which on a cost grows no faster than the error.
    """

    def __init__(self, delta: Annotated[float, Gt(0)] = 1.0) -> None:
        super().__init__()
        self.delta = delta

    def costs(self, predicted: Tensor, value: Tensor) -> Tensor:
        """As of any loss of a number."""
        return F.huber_loss(predicted, value, reduction="none", delta=self.delta)
