"""Mask classes: what a pixel can be, derived from the lesion mask at the image's own size, background first."""

from __future__ import annotations

from typing import Annotated, ClassVar, Protocol

import cv2
import numpy as np
from annotated_types import Interval
from numpy.typing import NDArray

Mask = NDArray[np.uint8]


class MaskClasses(Protocol):
    """What a pixel can be: the names of the mask classes, and the class of every pixel of a lesion mask."""

    @property
    def names(self) -> tuple[str, ...]:
        """Name the classes by their index, at least two, background first."""

    def of(self, lesion: Mask) -> Mask:
        """Return the class of every pixel: a function of the mask and of what the constructor was given alone.

        Args:
            lesion: (H, W) uint8 in {0, 1}, at the image's own size.

        Returns:
            (H, W) uint8, index into `names`. The cache keeps it.
        """


class Binary:
    """Skin and lesion: the mask as it is."""

    names: ClassVar[tuple[str, ...]] = ("skin", "lesion")

    def of(self, lesion: Mask) -> Mask:
        """Return the mask itself, as `MaskClasses.of` has it."""
        return lesion


class Trimap:
    """Skin, the lesion's border, and the lesion within it.

    A pixel is border when a pixel of the other side lies within half the band, from centre to centre. The image's edge
    is no contour: a lesion that runs out of the image has no border there. A lesion, or a gap in one, that is no wider
    than the band is border throughout; an empty mask is skin, a full one lesion.

    The classes are derived before the mask is resized, so that a network of any input size learns the same band, and
    is scored at the image's own size on the very band.

    Args:
        band: the border's width as a fraction of the image's shorter side, half of it inside the contour and half
            outside, each half rounded to whole pixels and at least one: 0.04 of 600 x 450 pixels are 9 and 9.
    """

    names: ClassVar[tuple[str, ...]] = ("skin", "border", "lesion")

    def __init__(self, band: Annotated[float, Interval(gt=0, lt=1)] = 0.04) -> None:
        self.band = band

    def of(self, lesion: Mask) -> Mask:
        """Return 0 on skin, 1 on the border, 2 on the lesion within, as `MaskClasses.of` has it."""
        classes = (lesion * 2).astype(np.uint8)
        if lesion.all() or not lesion.any():  # no contour; a distance to nothing is no number
            return classes
        half = self.half(lesion.shape[0], lesion.shape[1])
        for side in (lesion, 1 - lesion):  # the distance of this side's pixels to the other side
            apart = cv2.distanceTransform(side, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
            # Squared distances of pixels are whole numbers, so rounding them takes away what float32 adds.
            classes[(side > 0) & (apart**2 < half**2 + 0.5)] = 1
        return classes

    def half(self, height: int, width: int) -> int:
        """Return the width of the border on either side of the contour, in pixels.

        Args:
            height: of the image, in pixels.
            width: of the image, in pixels.
        """
        return max(1, round(self.band * min(height, width) / 2))


BINARY = Binary()
