"""An augmentation: steps of albumentations on (H, W, 3) uint8 images and their masks."""

from typing import Annotated

import albumentations as A
from annotated_types import Interval

from skinmtl.data.transforms import Transform

Share = Annotated[float, Interval(ge=0, le=1)]


def dermatoscope(blur: Share = 0.2, colour: Share = 0.1) -> Transform:
    """Flips, and what one dermatoscope does otherwise than another: focus and colour.

    Args:
        blur: share of the images that are blurred.
        colour: by how much brightness, contrast and saturation vary, up or down.
    """
    vary = (1 - colour, 1 + colour)
    return Transform(
        [
            A.HorizontalFlip(p=0.5),
            A.VerticalFlip(p=0.5),
            A.GaussianBlur(sigma_limit=(0.3, 1.5), p=blur),
            A.ColorJitter(brightness=vary, contrast=vary, saturation=vary, hue=(0.0, 0.0), p=1.0),
        ]
    )
