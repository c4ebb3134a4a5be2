"""Augmentation of a photograph and its mask together, drawn as a function of a key.

The only file that knows albumentations: its version 2 ignores the seeds of torch and NumPy and repeats its draws in
every worker, so each sample seeds it anew.
"""

from __future__ import annotations

import hashlib
import random
from typing import Annotated, Any

import albumentations as A
import cv2
import numpy as np
from annotated_types import Interval
from numpy.typing import NDArray

cv2.setNumThreads(0)

Share = Annotated[float, Interval(ge=0, le=1)]
Degrees = Annotated[float, Interval(ge=0, le=180)]


def mix(*key: int) -> int:
    """A hash of the integers in [0, 2^63), the same on every machine and in every process."""
    digest = hashlib.blake2b(",".join(map(str, key)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def reseed(compose: A.Compose, *key: int) -> None:
    """Make the next call of `compose` a function of the key.

    `compose.set_random_seed` would give every transform the same seed: both flips would be one coin.
    """
    seed = mix(*key)
    compose.set_random_state(np.random.default_rng(seed), random.Random(seed))


class Transform:
    """Image and mask in, image and mask out, of the same shapes; the draw depends on the key alone."""

    def __init__(self, steps: list[Any]) -> None:
        self._compose = A.Compose(steps) if steps else None

    def __call__(
        self, image: NDArray[np.uint8], mask: NDArray[np.uint8], key: tuple[int, ...]
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Transform (H, W, 3) and (H, W); the mask keeps its values, for it is never interpolated."""
        if self._compose is None:
            return image, mask
        reseed(self._compose, *key)
        out = self._compose(image=image, mask=mask)
        return out["image"], out["mask"]


def none() -> Transform:
    """Photographs as they are."""
    return Transform([])


def light(rotate: Degrees = 180.0, zoom: Share = 0.1, brightness: Share = 0.1, contrast: Share = 0.1) -> Transform:
    """Flips, a turn by up to `rotate` degrees, a zoom by up to 1 -+ `zoom`, mild light: what a hand and a lamp vary.

    A dermatoscopic photograph has no up. What a turn leaves empty is mirrored from the picture, mask and all.
    """
    return Transform([*_moves(rotate, zoom, 0.0), A.RandomBrightnessContrast(brightness, contrast, p=1.0)])


def strong(
    rotate: Degrees = 180.0, zoom: Share = 0.25, shift: Share = 0.1, colour: Share = 0.2, hue: Share = 0.03
) -> Transform:
    """More of the same, and shifts, colour, blur and small gaps: for long trainings."""
    vary = (1 - colour, 1 + colour)
    return Transform(
        [
            *_moves(rotate, zoom, shift),
            A.ColorJitter(brightness=vary, contrast=vary, saturation=vary, hue=(-hue, hue), p=0.8),
            A.GaussianBlur(sigma_limit=(0.3, 1.2), p=0.1),
            # The mask is kept under a gap: the network may guess the outline from what is around it.
            A.CoarseDropout(
                num_holes_range=(1, 3), hole_height_range=(0.05, 0.15), hole_width_range=(0.05, 0.15), p=0.2
            ),
        ]
    )


def _moves(rotate: float, zoom: float, shift: float) -> list[Any]:
    flips = [A.HorizontalFlip(p=0.5), A.VerticalFlip(p=0.5)]
    if rotate == zoom == shift == 0:
        return flips
    return [
        *flips,
        A.Affine(
            scale=(1 - zoom, 1 + zoom),
            keep_ratio=True,
            rotate=(-rotate, rotate),
            translate_percent=(-shift, shift),
            interpolation=cv2.INTER_LINEAR,
            mask_interpolation=cv2.INTER_NEAREST,
            border_mode=cv2.BORDER_REFLECT_101,
            p=0.75,
        ),
    ]
