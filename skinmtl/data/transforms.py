"""Augmentation of an image and its mask together, as a function of a key.

The only module that knows albumentations: its version 2 ignores the seeds of torch and NumPy and repeats its random
numbers in every worker, so each sample seeds it anew.
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

from skinmtl.types import Fraction

cv2.setNumThreads(0)

Degrees = Annotated[float, Interval(ge=0, le=180)]


def derive_seed(*key: int) -> int:
    """Derive a seed from a key, the same on every machine and in every process.

    Args:
        key: integers of which each counts, and their order, such as seed, epoch and position.

    Returns:
        A hash in [0, 2^63): keys that are nearly alike give seeds that have nothing in common.
    """
    digest = hashlib.blake2b(",".join(map(str, key)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def reseed(compose: A.Compose, *key: int) -> None:
    """Make the next call of a pipeline a function of a key.

    `compose.set_random_seed` would give every transform the same seed: both flips would be one coin.

    Args:
        compose: the albumentations pipeline.
        key: as `derive_seed` takes it.
    """
    seed = derive_seed(*key)
    compose.set_random_state(np.random.default_rng(seed), random.Random(seed))


class Transform:
    """An augmentation: image and mask in, image and mask out, of the same shapes, by a key alone.

    Args:
        steps: albumentations transforms, applied in order; none leaves everything as it is.
    """

    def __init__(self, steps: list[Any]) -> None:
        self._compose = A.Compose(steps) if steps else None

    def __call__(
        self, image: NDArray[np.uint8], mask: NDArray[np.uint8], key: tuple[int, ...]
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Transform an image and its mask alike.

        Args:
            image: (H, W, 3) uint8, RGB.
            mask: (H, W) uint8; it keeps its values, for it is never interpolated.
            key: what chance depends on, such as seed, epoch and position.

        Returns:
            Image and mask, of the same shapes and dtypes.
        """
        if self._compose is None:
            return image, mask
        reseed(self._compose, *key)
        out = self._compose(image=image, mask=mask)
        return out["image"], out["mask"]


def none() -> Transform:
    """Leave images as they are."""
    return Transform([])


def light(
    rotate: Degrees = 180.0, zoom: Fraction = 0.1, brightness: Fraction = 0.1, contrast: Fraction = 0.1
) -> Transform:
    """Flip, turn, zoom and light mildly: what a hand and a lamp vary.

    What a turn leaves empty is mirrored from the image, mask and all.

    Args:
        rotate: the largest turn either way, in degrees; all of 180, for a dermatoscopic image has no up.
        zoom: the largest change of scale, as a fraction: 0.1 is 0.9 to 1.1 times.
        brightness: the largest change, as a fraction.
        contrast: the largest change, as a fraction.
    """
    return Transform([*_moves(rotate, zoom, 0.0), A.RandomBrightnessContrast(brightness, contrast, p=1.0)])


def strong(
    rotate: Degrees = 180.0,
    zoom: Fraction = 0.25,
    shift: Fraction = 0.1,
    colour: Fraction = 0.2,
    hue: Fraction = 0.03,
) -> Transform:
    """Vary more than `light`, with shifts, colour, blur and small gaps: for long trainings.

    Args:
        rotate: the largest turn either way, in degrees.
        zoom: the largest change of scale, as a fraction.
        shift: the largest shift, as a fraction of the side.
        colour: the largest change of brightness, contrast and saturation, as a fraction.
        hue: the largest change of hue, as a fraction of the colour circle; colour is a diagnostic sign.
    """
    vary = (1 - colour, 1 + colour)
    return Transform(
        [
            *_moves(rotate, zoom, shift),
            A.ColorJitter(brightness=vary, contrast=vary, saturation=vary, hue=(-hue, hue), p=0.8),
            A.GaussianBlur(sigma_limit=(0.3, 1.2), p=0.1),
            # The mask is kept under a gap: the network may infer the contour from what is around it.
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
