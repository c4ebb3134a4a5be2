"""Mixup and CutMix: two images and their diagnoses in one, as a function of a key; masks stay right or are left out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated

import cv2
import numpy as np
from annotated_types import Interval
from numpy.random import Generator
from numpy.typing import NDArray

from skinmtl.data.transforms import derive_seed
from skinmtl.types import Sample

Alpha = Annotated[float, Interval(gt=0)]
Probability = Annotated[float, Interval(gt=0, le=1)]
PAIR, SHARE = 1, 2  # random streams of their own beside the augmentation's, whose key is seed, epoch and position alone


@dataclass(frozen=True)
class Partners:
    """The images that may be mixed in.

    Attributes:
        rows: (n,) rows of the case table.
        edges: (n,) cumulative sums of their weights.
    """

    rows: NDArray[np.int64]
    edges: NDArray[np.float64]

    def sample(self, rng: Generator) -> int:
        """Sample a row by the weights."""
        place = np.searchsorted(self.edges, rng.random() * self.edges[-1], side="right")
        return int(self.rows[min(int(place), len(self.rows) - 1)])


class Mixing(ABC):
    """Mixes some images with another; the target is share x own + (1 - share) x the other's.

    The share is max(l, 1 - l) with l from Beta(`alpha`, `alpha`): which of two comes first is chance already, and so
    the own image is never the smaller part. It is sampled once a step, as in the papers' own programs: the loss of
    a step is then share x loss(own) + (1 - share) x loss(other), whichever loss that is. What has no diagnosis is not
    mixed.

    Args:
        alpha: above 0; small values mix little, 1 evenly.
        p: the probability that an image is mixed.
    """

    def __init__(self, alpha: Alpha, p: Probability) -> None:
        self.alpha, self.p = alpha, p

    def share(self, size: tuple[int, int], seed: int, epoch: int, step: int) -> float:
        """Sample the share of the own image, the same for all images of a step.

        Args:
            size: (height, width) of the images in pixels.
            seed: the run's.
            epoch: counted from 0.
            step: of the epoch, counted from 0.

        Returns:
            A share in [0.5, 1].
        """
        sampled = float(np.random.default_rng(derive_seed(seed, epoch, step, SHARE)).beta(self.alpha, self.alpha))
        return self._feasible(max(sampled, 1 - sampled), size)

    def _feasible(self, share: float, size: tuple[int, int]) -> float:
        """Return the nearest share that is possible."""
        return share

    def rng(self, seed: int, epoch: int, position: int) -> Generator:
        """Return the random numbers of one image: whether it is mixed, with which, and how.

        Args:
            seed: the run's.
            epoch: counted from 0.
            position: in the epoch's order over all ranks.
        """
        return np.random.default_rng(derive_seed(seed, epoch, position, PAIR))

    @abstractmethod
    def pair(self, own: Sample, other: Sample, share: float, rng: Generator) -> Sample:
        """Mix one sample into another; both have a diagnosis and stay as they are.

        Args:
            own: the sample that is kept in the larger part.
            other: the one that is mixed in.
            share: of `own`, in [0.5, 1].
            rng: random numbers of this image.

        Returns:
            A new sample, with the other's diagnosis as `dx_other`; `own` itself where the two cannot be mixed.
        """


class Mixup(Mixing):
    """Mixes pixel by pixel, share x own + (1 - share) x other. Zhang et al. 2018, arXiv:1710.09412.

    Two lesions shine through each other, and neither mask is that of the mixed image: it trains the diagnosis alone, as
    an image without a mask. The images left unmixed train the segmentation.

    Args:
        alpha: above 0; small values mix little, 1 evenly.
        p: the probability that an image is mixed.
    """

    def __init__(self, alpha: Alpha = 0.4, p: Probability = 0.5) -> None:
        super().__init__(alpha, p)

    def pair(self, own: Sample, other: Sample, share: float, rng: Generator) -> Sample:
        """Mix as `Mixing.pair` says, without a mask, unless that changes no pixel."""
        if 1 - share < 0.5 / 255:
            return own
        image = np.asarray(cv2.addWeighted(own["image"], share, other["image"], 1 - share, 0), dtype=np.uint8)
        mixed: Sample = {**own, "image": image, "mask": np.zeros_like(own["mask"]), "has_mask": False}
        mixed["dx_other"] = other["dx"]
        return mixed


class CutMix(Mixing):
    """Pastes a rectangle of another image and of its mask in the same place. Yun et al. 2019, arXiv:1905.04899.

    Its sides are sqrt(1 - share) of the image's. It is within the image, so that the share of pixels is the same for
    all of a step; in the paper it may be cut off. An image with a mask and one without are not mixed: half a mask is
    none.

    Args:
        alpha: above 0; small values cut little, 1 evenly up to half of the image.
        p: the probability that an image is mixed.
    """

    def __init__(self, alpha: Alpha = 1.0, p: Probability = 0.5) -> None:
        super().__init__(alpha, p)

    def _feasible(self, share: float, size: tuple[int, int]) -> float:
        height, width = _sides(share, size)
        return 1 - height * width / (size[0] * size[1])

    def pair(self, own: Sample, other: Sample, share: float, rng: Generator) -> Sample:
        """Mix as `Mixing.pair` says; the mask is pasted as the image is."""
        if own["has_mask"] != other["has_mask"]:
            return own
        size = (own["mask"].shape[0], own["mask"].shape[1])
        height, width = _sides(share, size)
        top, left = (int(rng.integers(0, free + 1)) for free in (size[0] - height, size[1] - width))
        box = np.s_[top : top + height, left : left + width]
        image, mask = own["image"].copy(), own["mask"].copy()
        image[box], mask[box] = other["image"][box], other["mask"][box]
        return {**own, "image": image, "mask": mask, "dx_other": other["dx"]}


def _sides(share: float, size: tuple[int, int]) -> tuple[int, int]:
    """Return height and width in pixels of the rectangle that leaves `share` of the image."""
    side = float(np.sqrt(1 - share))
    return round(side * size[0]), round(side * size[1])
