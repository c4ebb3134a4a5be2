"""What every loss is made of: its precision, its mean over labelled samples; and the focal factor, which two share."""

from __future__ import annotations

import torch
from torch import Tensor


def mean_over_labelled(per_sample: Tensor, has: Tensor, weight: Tensor | None = None) -> Tensor:
    """Sum of (B,) losses where `has` (B,) is true, over their number or, with `weight` (B,), over their summed weights.

    Losses come with their weights multiplied in; a loss with weights gives them by a method `sample_weights`, too, so
    that an epoch's loss is the mean over the samples of all its batches, whatever their size. While training, the
    denominator is that of all processes and the result is multiplied by their number: averaged over processes, as
    gradients are, it is the loss of one process that holds all samples. Elsewhere each process answers for its own
    samples, since it may hold more batches than another. No labelled sample anywhere, or none that weighs anything,
    gives zero, joined to the graph so that every parameter gets a gradient.
    """
    total = (has.float() if weight is None else has.float() * weight).sum()
    world = 1
    if torch.is_grad_enabled() and torch.distributed.is_available() and torch.distributed.is_initialized():
        world = torch.distributed.get_world_size()
        torch.distributed.all_reduce(total)
    # where() and not a product: a loss that is not finite on an unlabelled sample must not reach the sum.
    losses = torch.where(has & (total > 0), per_sample, 0.0)
    return losses.sum() * world / total.clamp(min=torch.finfo(torch.float32).tiny)


def at_least_float32(logits: Tensor) -> Tensor:
    """Logits in float32, or as they are where they are finer: float64 is how a derivative is checked."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def focal(cross_entropy: Tensor, gamma: float) -> Tensor:
    """Cross-entropies -log p times (1 - p)^gamma, which takes weight from what is already right.

    Lin et al. 2017, arXiv:1708.02002, without their weight alpha. From cross-entropies of any shape.
    """
    # 1 - p to full precision; held above zero, where a power below one has no finite slope.
    wrong = (-torch.expm1(-cross_entropy)).clamp(min=torch.finfo(torch.float32).tiny)
    return wrong**gamma * cross_entropy
