"""Mask classes: what a pixel can be, derived from the lesion mask at the photograph's own size, background first."""

from __future__ import annotations

from typing import Annotated, ClassVar, Protocol

import cv2
import numpy as np
from annotated_types import Interval
from numpy.typing import NDArray

Mask = NDArray[np.uint8]


class MaskClasses(Protocol):
    """The names of the mask classes, background first, and the class of every pixel of a lesion mask."""

    @property
    def names(self) -> tuple[str, ...]:
        """At least two names, of which a class's index counts."""

    def of(self, lesion: Mask) -> Mask:
        """(H, W) uint8 index into the names, from (H, W) uint8 in {0, 1} at the photograph's own size.

        A function of its argument and of what the constructor was given: a cache keeps what it gives.
        """


class Binary:
    """Skin and lesion: the mask as it was drawn."""

    names: ClassVar[tuple[str, ...]] = ("skin", "lesion")

    def of(self, lesion: Mask) -> Mask:
        """As `MaskClasses.of`; the very array."""
        return lesion


class Trimap:
    """Skin, the lesion's border, and the lesion within it.

    `band` is the border's width as a share of the photograph's shorter side, half of it inside the outline and half
    outside, each half rounded to whole pixels of the photograph and at least one: 0.04 of 600 x 450 pixels are 9 inside
    and 9 outside. A pixel is border when a pixel of the other side lies within that distance, from centre to centre.
    The photograph's edge is no outline: a lesion that runs out of the picture has no border there. A lesion, or a gap
    in one, that is no wider than the band is border throughout; an empty mask is skin, a full one lesion.

    The classes are derived before the mask is resized, so that a network of any input size learns the same band, and
    is scored at the photograph's own size on the very band.
    """

    names: ClassVar[tuple[str, ...]] = ("skin", "border", "lesion")

    def __init__(self, band: Annotated[float, Interval(gt=0, lt=1)] = 0.04) -> None:
        self.band = band

    def of(self, lesion: Mask) -> Mask:
        """As `MaskClasses.of`: 0 on skin, 1 on the border, 2 on the lesion within."""
        classes = (lesion * 2).astype(np.uint8)
        if lesion.all() or not lesion.any():  # no outline; a distance to nothing is no number
            return classes
        half = self.half(lesion.shape[0], lesion.shape[1])
        for side in (lesion, 1 - lesion):  # the distance of this side's pixels to the other side
            apart = cv2.distanceTransform(side, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
            # Squared distances of pixels are whole numbers, so rounding them takes away what float32 adds.
            classes[(side > 0) & (apart**2 < half**2 + 0.5)] = 1
        return classes

    def half(self, height: int, width: int) -> int:
        """Pixels of the border on either side of the outline, in a photograph of this size."""
        return max(1, round(self.band * min(height, width) / 2))


BINARY = Binary()
