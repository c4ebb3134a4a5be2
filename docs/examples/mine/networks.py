"""A network."""

from torch import Tensor, nn


class Pixels(nn.Module):
    """A few convolutions; the mask from each pixel, the diagnosis from their mean.

    Args:
        width: channels of the layer that both share.
        dx_classes: number of diagnoses, handed in by the run.
    """

    def __init__(self, width: int = 8, *, dx_classes: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.ReLU())
        self.mask, self.diagnosis = nn.Conv2d(width, 1, 1), nn.Linear(width, dx_classes)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Logits by task name, for (B, 3, H, W) uint8 images."""
        x = self.encoder(image / 255)
        return {"seg": self.mask(x), "cls": self.diagnosis(x.mean((2, 3)))}
