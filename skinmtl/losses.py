"""Losses by task: each a mean over the samples that carry the task's target, in float32, finite whatever the batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from annotated_types import Interval
from torch import Tensor, nn
from torch.nn import functional as F

from skinmtl.types import Batch


def mean_over_labelled(per_sample: Tensor, has: Tensor, weight: Tensor | None = None) -> Tensor:
    """Sum of (B,) losses where `has` (B,) is true, over their number or, with `weight` (B,), over their summed weights.

    Losses come with their weights multiplied in. While training, the denominator is that of all processes and the
    result is multiplied by their number: averaged over processes, as gradients are, it is the loss of one process that
    holds all samples. Elsewhere each process answers for its own samples, since it may hold more batches than another.
    No labelled sample anywhere gives zero, joined to the graph so that every parameter gets a gradient.
    """
    total = (has.float() if weight is None else has.float() * weight).sum()
    world = 1
    if torch.is_grad_enabled() and torch.distributed.is_available() and torch.distributed.is_initialized():
        world = torch.distributed.get_world_size()
        torch.distributed.all_reduce(total)
    # where() and not a product: a loss that is not finite on an unlabelled sample must not reach the sum.
    losses = torch.where(has, per_sample, 0.0)
    return losses.sum() * world / total.clamp(min=torch.finfo(torch.float32).tiny)


class BCE(nn.Module):
    """Binary cross-entropy of each pixel's logit, mean over the pixels of an image, then over images."""

    def forward(self, logits: Tensor, batch: Batch) -> Tensor:
        """Scalar, from (B, 1, H, W) logits."""
        return mean_over_labelled(bce_per_image(logits, batch["mask"]), batch["has_mask"])


class Dice(nn.Module):
    """One minus soft Dice of each image, mean over images.

    1 - (2 sum(p t) + s) / (sum(p) + sum(t) + s) over an image's pixels, p the probability, t the target and s the
    `smooth` in pixels, which makes the loss of an empty mask depend on what is predicted. Milletari et al. 2016,
    arXiv:1606.04797, with sums in place of sums of squares.
    """

    def __init__(self, smooth: Annotated[float, Interval(gt=0)] = 1.0) -> None:
        super().__init__()
        self.smooth = smooth

    def forward(self, logits: Tensor, batch: Batch) -> Tensor:
        """Scalar, from (B, 1, H, W) logits."""
        return mean_over_labelled(dice_per_image(logits, batch["mask"], self.smooth), batch["has_mask"])


class DiceBCE(nn.Module):
    """`dice` times the Dice loss plus `bce` times binary cross-entropy: the outline and every pixel."""

    def __init__(
        self,
        dice: Annotated[float, Interval(ge=0)] = 1.0,
        bce: Annotated[float, Interval(ge=0)] = 1.0,
        smooth: Annotated[float, Interval(gt=0)] = 1.0,
    ) -> None:
        super().__init__()
        if dice == bce == 0:
            raise ValueError("dice and bce are both 0, so nothing would be learned")
        self.dice, self.bce, self.smooth = dice, bce, smooth

    def forward(self, logits: Tensor, batch: Batch) -> Tensor:
        """Scalar, from (B, 1, H, W) logits."""
        dice = dice_per_image(logits, batch["mask"], self.smooth)
        bce = bce_per_image(logits, batch["mask"])
        return mean_over_labelled(self.dice * dice + self.bce * bce, batch["has_mask"])


class CrossEntropy(nn.Module):
    """Cross-entropy of the diagnosis, with class weights and label smoothing, as torch.nn.CrossEntropyLoss has them.

    `class_weights` are 1, 1 / sqrt(n) or 1 / n with n the training photographs of a class, scaled so that the mean
    weight of a training photograph is one; a class without photographs weighs nothing.
    """

    weight: Tensor

    def __init__(
        self,
        class_weights: Literal["none", "sqrt", "balanced"] = "none",
        label_smoothing: Annotated[float, Interval(ge=0, lt=1)] = 0.0,
        *,
        class_counts: Sequence[float],
    ) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing
        counts = torch.tensor(class_counts, dtype=torch.float32)
        power = {"none": 0.0, "sqrt": -0.5, "balanced": -1.0}[class_weights]
        weight = torch.where(counts > 0, counts**power, 0)
        self.register_buffer("weight", weight * counts.sum() / (weight * counts).sum(), persistent=False)

    def forward(self, logits: Tensor, batch: Batch) -> Tensor:
        """Scalar, from (B, K) logits."""
        has = batch["dx"] >= 0
        target = batch["dx"].clamp(min=0)
        log_p = F.log_softmax(logits.float(), dim=1)
        own = -log_p.gather(1, target[:, None])[:, 0] * self.weight[target]
        spread = -(log_p * self.weight).mean(1)
        # torch smooths the weighted loss of every class, and divides by the weight of the targets alone.
        smoothed = (1 - self.label_smoothing) * own + self.label_smoothing * spread
        return mean_over_labelled(smoothed, has, self.weight[target])


def bce_per_image(logits: Tensor, mask: Tensor) -> Tensor:
    """(B,) mean over pixels, from (B, 1, H, W) logits and a (B, H, W) mask of 0 and 1."""
    return F.binary_cross_entropy_with_logits(logits[:, 0].float(), mask.float(), reduction="none").mean((1, 2))


def dice_per_image(logits: Tensor, mask: Tensor, smooth: float) -> Tensor:
    """(B,) soft Dice losses in [0, 1], from (B, 1, H, W) logits and a (B, H, W) mask of 0 and 1."""
    p, target = logits[:, 0].float().sigmoid(), mask.float()
    overlap, total = (p * target).sum((1, 2)), (p + target).sum((1, 2))
    return 1 - (2 * overlap + smooth) / (total + smooth)
