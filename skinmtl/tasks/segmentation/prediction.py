"""What a segmentation says of one image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class MaskPrediction:
    """A mask, at the image's own height H and width W.

    Attributes:
        mask: (H, W) uint8 index into the mask classes.
        probability: (H, W) float32, of not being background, resized from the network's size.
        input_mask: the mask at network size, before any resizing, uint8.
    """

    mask: NDArray[np.uint8]
    probability: NDArray[np.float32]
    input_mask: NDArray[np.uint8]
