"""Losses of the diagnosis, from logits (B, K); `class_counts` are the training images of each diagnosis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
import torch
from annotated_types import Interval
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from skinmtl.balancing.class_weights import effective_number_weights
from skinmtl.errors import InputError
from skinmtl.losses.common import at_least_float32, focal, mean_over_labelled
from skinmtl.types import Batch

ClassWeights = Literal["none", "sqrt", "balanced"]


class CrossEntropy(nn.Module):
    """Cross-entropy of the diagnosis, with class weights and label smoothing, as torch.nn.CrossEntropyLoss has them.

    `class_weights` are 1, 1 / sqrt(n) or 1 / n with n the training images of a class, scaled so that the mean
    weight of a training image is one. A class without training images weighs as much as the rarest that has
    some: it may be in the validation. Label smoothing: Szegedy et al. 2015, arXiv:1512.00567; where there are weights,
    torch's: the share of each class in a smoothed target counts by that class's own weight.

    Args:
        label_smoothing: share of a target that is spread over all diagnoses.
        class_counts: training images of each class, (K,).
        class_weights: how far rare diagnoses are brought up.
    """

    weight: Tensor

    def __init__(
        self,
        label_smoothing: Annotated[float, Interval(ge=0, lt=1)] = 0.0,
        *,
        class_counts: Sequence[float],
        class_weights: ClassWeights = "none",
    ) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing
        power = {"none": 0.0, "sqrt": -0.5, "balanced": -1.0}[class_weights]
        weight = torch.from_numpy(counted(class_counts)).float() ** power
        self.register_buffer("weight", with_mean_one(weight, class_counts), persistent=False)

    def forward(self, logits: Tensor, batch: Batch) -> Tensor:
        """Scalar, from (B, K) logits."""
        has, target = labels(batch)
        log_p = at_least_float32(logits).log_softmax(1)
        losses = -log_p.gather(1, target[:, None])[:, 0] * self.weight[target]
        if self.label_smoothing:
            # torch smooths the weighted loss of every class, and divides by the weight of the targets alone.
            spread = -(log_p * self.weight).mean(1)
            losses = (1 - self.label_smoothing) * losses + self.label_smoothing * spread
        return mean_over_labelled(losses, has, self.sample_weights(batch))

    def sample_weights(self, batch: Batch) -> Tensor:
        """(B,) weights in the mean; of a sample without a diagnosis the value says nothing."""
        return self.weight[labels(batch)[1]]


class ClassBalanced(CrossEntropy):
    """Cross-entropy with class weights (1 - beta) / (1 - beta^n), n the training images of a class.

    Between no weights (beta = 0) and balanced ones (beta = 1). Divided, as all class weights here, by the summed
    weights of the batch, so that their scale does not matter. Cui et al. 2019, arXiv:1901.05555.
    """

    def __init__(
        self,
        beta: Annotated[float, Interval(ge=0, le=1)] = 0.999,
        label_smoothing: Annotated[float, Interval(ge=0, lt=1)] = 0.0,
        *,
        class_counts: Sequence[float],
    ) -> None:
        super().__init__(label_smoothing, class_counts=class_counts)
        weight = torch.from_numpy(effective_number_weights(counted(class_counts), beta)).float()
        self.weight = with_mean_one(weight, class_counts)


class FocalCrossEntropy(CrossEntropy):
    """Focal loss of the diagnosis, -(1 - p)^gamma log p with p the probability of its own class, by the softmax.

    gamma = 0 is cross-entropy; class weights as there. Lin et al. 2017, arXiv:1708.02002, whose alpha the class weights
    are, and who divide by the number of foreground boxes, where this divides by the summed weights.
    """

    def __init__(
        self,
        gamma: Annotated[float, Interval(ge=0)] = 2.0,
        *,
        class_counts: Sequence[float],
        class_weights: ClassWeights = "none",
    ) -> None:
        super().__init__(class_counts=class_counts, class_weights=class_weights)
        self.gamma = gamma

    def forward(self, logits: Tensor, batch: Batch) -> Tensor:
        """Scalar, from (B, K) logits."""
        has, target = labels(batch)
        weight = self.sample_weights(batch)
        losses = focal(F.cross_entropy(at_least_float32(logits), target, reduction="none"), self.gamma)
        return mean_over_labelled(losses * weight, has, weight)


class LogitAdjusted(nn.Module):
    """Cross-entropy of logits to which `tau` times the log share of each diagnosis is added, while the loss is taken.

    The logits themselves, which are read without it, then answer as if every diagnosis were equally frequent (tau = 1):
    their probabilities are not those of the training images. Shares are of the training images as they are,
    so a sampler that rebalances would count twice. A class without images has the share of the rarest one.
    Menon et al. 2021, arXiv:2007.07314.
    """

    rebalances = True  # as a sampler says it
    adjustment: Tensor

    def __init__(self, tau: Annotated[float, Interval(gt=0)] = 1.0, *, class_counts: Sequence[float]) -> None:
        super().__init__()
        counts = counted(class_counts)
        self.register_buffer("adjustment", torch.tensor(tau * np.log(counts / counts.sum())).float(), persistent=False)

    def forward(self, logits: Tensor, batch: Batch) -> Tensor:
        """Scalar, from (B, K) logits."""
        has, target = labels(batch)
        adjusted = at_least_float32(logits) + self.adjustment
        return mean_over_labelled(F.cross_entropy(adjusted, target, reduction="none"), has)


class LDAM(nn.Module):
    """Cross-entropy after the logit of the own class is lowered by a margin, the wider the rarer the class.

    Softmax cross-entropy of scale (z - m_y e_y), with margins m_y = margin (n_min / n_y)^(1/4), n the training
    images of a class: `margin`, in units of logits, is that of the rarest, which a class without images has,
    too. Cao et al. 2019, arXiv:1906.07413. There the logits are cosines, of features and class vectors of length one,
    with margin 0.5 and scale 30. Here they are those of a linear head and have no bound: larger logits meet any margin,
    and bring a scale of their own, so `scale` is 1 unless given. The paper's deferred re-weighting is not part of it.
    """

    margins: Tensor

    def __init__(
        self,
        margin: Annotated[float, Interval(gt=0)] = 0.5,
        scale: Annotated[float, Interval(gt=0)] = 1.0,
        *,
        class_counts: Sequence[float],
    ) -> None:
        super().__init__()
        self.scale = scale
        counts = counted(class_counts)
        margins = torch.tensor(margin * (counts.min() / counts) ** 0.25).float()
        self.register_buffer("margins", margins, persistent=False)

    def forward(self, logits: Tensor, batch: Batch) -> Tensor:
        """Scalar, from (B, K) logits."""
        has, target = labels(batch)
        logits = at_least_float32(logits)
        lowered = logits - F.one_hot(target, logits.shape[1]) * self.margins
        return mean_over_labelled(F.cross_entropy(self.scale * lowered, target, reduction="none"), has)


def labels(batch: Batch) -> tuple[Tensor, Tensor]:
    """Which samples have a diagnosis, (B,) bool, and the diagnosis, (B,) int64, 0 where there is none."""
    return batch["dx"] >= 0, batch["dx"].clamp(min=0)


def with_mean_one(weight: Tensor, class_counts: Sequence[float]) -> Tensor:
    """Class weights (K,), scaled so that the mean weight of a training image is one."""
    counts = torch.tensor(class_counts, dtype=torch.float32)
    return weight * counts.sum() / (weight * counts).sum()


def counted(class_counts: Sequence[float]) -> NDArray[np.float64]:
    """Images of each class, (K,), as many as of the rarest where there are none: a loss has to be finite there.

    Raises:
        InputError: there are none of any class.
    """
    counts = np.asarray(class_counts, dtype=np.float64)
    if not (counts > 0).any():
        what = "no training image has a diagnosis"
        raise InputError("class_counts", what, "give diagnoses, or leave cls out of tasks")
    return np.where(counts > 0, counts, counts[counts > 0].min())
