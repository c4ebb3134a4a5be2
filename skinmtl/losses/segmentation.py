"""Losses of the mask, from logits of one foreground class or of several.

All take logits (B, 1, H, W) of one foreground class, or (B, M, H, W) of M mask classes with the background first, and
the batch's mask (B, H, W) of indices into them. What is measured on regions is measured on each foreground class of
an image, also where the image does not show it, and averaged over these classes.
"""

from __future__ import annotations

import math
from typing import Annotated

import cv2
import numpy as np
import torch
from annotated_types import Interval
from numpy.typing import NDArray
from segmentation_models_pytorch.losses import BINARY_MODE, MULTICLASS_MODE, LovaszLoss
from torch import Tensor, nn
from torch.nn import functional as F

from skinmtl.losses.common import at_least_float32, focal, mean_over_labelled
from skinmtl.types import Batch

# By how much a focal Tversky loss is moved before its root is taken: with a root's endless slope at zero, a perfect
# prediction would have no gradient that is finite.
AWAY_FROM_ZERO = 1e-6


class BCE(nn.Module):
    """Cross-entropy of each pixel, mean over the pixels of an image, then over images.

    Binary for one foreground class, the softmax's over all classes for more.
    """

    def forward(self, logits: Tensor, batch: Batch) -> Tensor:
        """Scalar, from (B, 1, H, W) or (B, M, H, W) logits."""
        return mean_over_labelled(bce_per_image(logits, batch["mask"]), batch["has_mask"])


class Dice(nn.Module):
    """One minus soft Dice of each foreground class of an image, mean over them, then over images.

    1 - (2 sum(p t) + s) / (sum(p) + sum(t) + s) over an image's pixels, p the probability, t the target and s the
    `smooth` in pixels, which makes the loss of an empty mask depend on what is predicted. Milletari et al. 2016,
    arXiv:1606.04797, with sums in place of sums of squares.

    Args:
        smooth: pixels added above and below the quotient.
    """

    def __init__(self, smooth: Annotated[float, Interval(gt=0)] = 1.0) -> None:
        super().__init__()
        self.smooth = smooth

    def forward(self, logits: Tensor, batch: Batch) -> Tensor:
        """Scalar, from (B, 1, H, W) or (B, M, H, W) logits."""
        return mean_over_labelled(dice_per_image(logits, batch["mask"], self.smooth), batch["has_mask"])


class DiceBCE(nn.Module):
    """`dice` times the Dice loss plus `bce` times cross-entropy: the contour and every pixel.

    Args:
        dice: weight of the Dice loss.
        bce: weight of the cross-entropy.
        smooth: of the Dice loss, in pixels.
    """

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
        """Scalar, from (B, 1, H, W) or (B, M, H, W) logits."""
        dice = dice_per_image(logits, batch["mask"], self.smooth)
        bce = bce_per_image(logits, batch["mask"])
        return mean_over_labelled(self.dice * dice + self.bce * bce, batch["has_mask"])


class Tversky(nn.Module):
    """Dice with a price of its own for each kind of error, mean over foreground classes, then over images.

    1 - (h + s) / (h + alpha f + beta m + s), with h = sum(p t) found, f = sum(p (1 - t)) false, m = sum((1 - p) t)
    missed, and s the `smooth` in pixels. So alpha is the price of false positives and beta that of false negatives, as
    in Salehi et al. 2017, arXiv:1706.05721; Abraham and Khan (`FocalTversky`) name them the other way round. With beta
    above alpha masks grow rather than miss. alpha = beta = 1/2 is Dice of twice the `smooth`.

    Args:
        alpha: price of false positives.
        beta: price of false negatives.
        smooth: pixels added above and below the quotient.
    """

    def __init__(
        self,
        alpha: Annotated[float, Interval(gt=0)] = 0.3,
        beta: Annotated[float, Interval(gt=0)] = 0.7,
        smooth: Annotated[float, Interval(gt=0)] = 1.0,
    ) -> None:
        super().__init__()
        self.alpha, self.beta, self.smooth = alpha, beta, smooth

    def forward(self, logits: Tensor, batch: Batch) -> Tensor:
        """Scalar, from (B, 1, H, W) or (B, M, H, W) logits."""
        losses = tversky(*foreground(logits, batch["mask"]), self.alpha, self.beta, self.smooth)
        return mean_over_labelled(losses.mean(1), batch["has_mask"])


class FocalTversky(Tversky):
    """The Tversky loss of each foreground class to the power of 1 / gamma: gamma above one dwells on small errors.

    Mean over foreground classes, then over images. Abraham and Khan 2018, arXiv:1810.07842, who take gamma = 4/3 and
    the sum over classes, and whose alpha is the price of false negatives, beta here: their 0.7 and 0.3 are beta = 0.7
    and alpha = 0.3. A constant of 1e-6 within the power, and its own power taken off again, keep the gradient
    finite at a perfect prediction, which stays at zero.
    """

    def __init__(
        self,
        alpha: Annotated[float, Interval(gt=0)] = 0.3,
        beta: Annotated[float, Interval(gt=0)] = 0.7,
        gamma: Annotated[float, Interval(gt=0)] = 4 / 3,
        smooth: Annotated[float, Interval(gt=0)] = 1.0,
    ) -> None:
        super().__init__(alpha, beta, smooth)
        self.gamma = gamma

    def forward(self, logits: Tensor, batch: Batch) -> Tensor:
        """Scalar, from (B, 1, H, W) or (B, M, H, W) logits."""
        losses = tversky(*foreground(logits, batch["mask"]), self.alpha, self.beta, self.smooth)
        powers = (losses + AWAY_FROM_ZERO) ** (1 / self.gamma) - AWAY_FROM_ZERO ** (1 / self.gamma)
        return mean_over_labelled(powers.mean(1), batch["has_mask"])


class Focal(nn.Module):
    """Focal cross-entropy of each pixel, mean over the pixels of an image, then over images.

    -(1 - p)^gamma log p, p the probability of a pixel's own class: sigmoid for one foreground class, softmax over all
    classes for more. gamma = 0 is cross-entropy. Lin et al. 2017, arXiv:1708.02002, without their weight alpha.
    """

    def __init__(self, gamma: Annotated[float, Interval(ge=0)] = 2.0) -> None:
        super().__init__()
        self.gamma = gamma

    def forward(self, logits: Tensor, batch: Batch) -> Tensor:
        """Scalar, from (B, 1, H, W) or (B, M, H, W) logits."""
        pixels = focal(cross_entropy(logits, batch["mask"]), self.gamma)
        return mean_over_labelled(pixels.mean((1, 2)), batch["has_mask"])


class Lovasz(nn.Module):
    """The Lovász extension of one minus IoU of each image, mean over images; Berman et al. 2018, arXiv:1705.08790.

    For one foreground class the hinge on logits, zero once every pixel is right by a margin of one; for more, on the
    softmax, the mean over those classes that the image shows, background too: the paper's two forms, as smp has them.
    Always in float32, in which smp counts pixels.
    """

    def forward(self, logits: Tensor, batch: Batch) -> Tensor:
        """Scalar, from (B, 1, H, W) or (B, M, H, W) logits."""
        lovasz = LovaszLoss(BINARY_MODE if logits.shape[1] == 1 else MULTICLASS_MODE)
        images = zip(logits.float().unbind(), batch["mask"].unbind(), strict=True)
        losses = torch.stack([lovasz(one[None], mask[None]) for one, mask in images])
        return mean_over_labelled(losses, batch["has_mask"])


class Boundary(nn.Module):
    """`boundary` times the mean of d |p - t| over an image's pixels, plus `dice` times the Dice loss.

    d is how far a pixel is from the contour of its class in the mask, in diagonals of the image, so that neither part
    depends on the number of pixels; in a mask without a contour, empty or full, d is one. Mean over foreground
    classes, then over images. Kervadec et al. 2019, arXiv:1812.07032, average the signed distance times p, which
    differs from this by a constant of the mask alone, beside a region loss.

    Args:
        boundary: weight of the distances.
        dice: weight of the Dice loss.
        smooth: of the Dice loss, in pixels.
    """

    def __init__(
        self,
        boundary: Annotated[float, Interval(gt=0)] = 1.0,
        dice: Annotated[float, Interval(ge=0)] = 1.0,
        smooth: Annotated[float, Interval(gt=0)] = 1.0,
    ) -> None:
        super().__init__()
        self.boundary, self.dice, self.smooth = boundary, dice, smooth

    def forward(self, logits: Tensor, batch: Batch) -> Tensor:
        """Scalar, from (B, 1, H, W) or (B, M, H, W) logits."""
        p, target = foreground(logits, batch["mask"])
        boundary = (distance_to_outline(target) * (p - target).abs()).mean((1, 2, 3))
        dice = dice_per_image(logits, batch["mask"], self.smooth)
        return mean_over_labelled(self.boundary * boundary + self.dice * dice, batch["has_mask"])


def bce_per_image(logits: Tensor, mask: Tensor) -> Tensor:
    """(B,) cross-entropies, mean over pixels."""
    return cross_entropy(logits, mask).mean((1, 2))


def dice_per_image(logits: Tensor, mask: Tensor, smooth: float) -> Tensor:
    """(B,) soft Dice losses in [0, 1], mean over foreground classes."""
    return tversky(*foreground(logits, mask), 0.5, 0.5, smooth / 2).mean(1)


def cross_entropy(logits: Tensor, mask: Tensor) -> Tensor:
    """(B, H, W) cross-entropies of pixels."""
    logits = at_least_float32(logits)
    if logits.shape[1] == 1:
        return F.binary_cross_entropy_with_logits(logits[:, 0], mask.to(logits.dtype), reduction="none")
    return F.cross_entropy(logits, mask.long(), reduction="none")


def foreground(logits: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities and targets of C foreground classes, both (B, C, H, W), from (B, C or C + 1, H, W) logits."""
    logits = at_least_float32(logits)
    p = logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(1)[:, 1:]
    classes = torch.arange(1, p.shape[1] + 1, device=mask.device)
    return p, (mask[:, None] == classes[:, None, None]).to(p.dtype)


def tversky(p: Tensor, target: Tensor, alpha: float, beta: float, smooth: float) -> Tensor:
    """(B, C) Tversky losses in [0, 1], from (B, C, H, W) probabilities and targets."""
    found = (p * target).sum((2, 3))
    # Sums of what is never negative: as differences of larger sums they would be, by rounding, near a perfect mask.
    wrong = alpha * (p * (1 - target)).sum((2, 3)) + beta * ((1 - p) * target).sum((2, 3))
    return wrong / (found + wrong + smooth)


def distance_to_outline(target: Tensor) -> Tensor:
    """Distance of each pixel to the contour of its mask in diagonals of the image, in (0, 1], from (B, C, H, W) masks.

    Half a pixel less than to the nearest pixel of the other side, Euclidean: outlines run between pixels. One
    everywhere in a mask without a contour, as if that were as far away as can be.
    """
    planes = target.flatten(0, 1).to("cpu", torch.uint8).numpy()
    distances = np.stack([_distance_to_outline(plane) for plane in planes])
    return torch.from_numpy(distances).to(target).view_as(target)


def _distance_to_outline(plane: NDArray[np.uint8]) -> NDArray[np.float32]:
    if plane.min() == plane.max():
        return np.ones(plane.shape, np.float32)
    inside, outside = (cv2.distanceTransform(side, cv2.DIST_L2, cv2.DIST_MASK_PRECISE) for side in (plane, 1 - plane))
    distance: NDArray[np.float32] = (inside + outside - 0.5) / np.float32(math.hypot(*plane.shape))
    return distance
