"""An encoder."""

from torch import Tensor, nn
from torch.nn import functional as F

from skinmtl.models.encoders import Encoder


class Thumbnail(Encoder):
    """Means over 2 x 2 pixels, and a convolution.

    Args:
        filters: channels of its feature map.
    """

    def __init__(self, filters: int = 8) -> None:
        super().__init__()
        self.out_channels = [3, filters]
        self.convolution = nn.Conv2d(3, filters, 3, padding=1)

    def forward(self, image: Tensor) -> list[Tensor]:
        """The image and one feature map of half its size."""
        return [image, self.convolution(F.avg_pool2d(image, 2))]
