"""A loss of the segmentation."""

from torch import Tensor, nn

from skinmtl.losses.segmentation import foreground, mean_over_labelled
from skinmtl.types import Batch


class Brier(nn.Module):
    """Squared distance of a pixel's probability from its target, mean over an image's pixels and foreground classes.

    Args:
        power: what the distance is raised to, 2 unless given.
    """

    def __init__(self, power: float = 2.0) -> None:
        super().__init__()
        self.power = power

    def forward(self, logits: Tensor, batch: Batch) -> Tensor:
        """Scalar, from (B, 1, H, W) or (B, M, H, W) logits."""
        p, target = foreground(logits, batch["mask"])
        losses = (p - target).abs().pow(self.power).mean((1, 2, 3))
        return mean_over_labelled(losses, batch["has_mask"])
