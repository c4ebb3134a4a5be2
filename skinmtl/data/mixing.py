"""Two photographs and their diagnoses in one, drawn as a function of a key; masks stay right or are left out."""

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
Chance = Annotated[float, Interval(gt=0, le=1)]
PAIR, SHARE = 1, 2  # streams of their own beside the augmentation's, whose key is seed, epoch and position alone


@dataclass(frozen=True)
class Partners:
    """The photographs that may be mixed in: rows of the case table (n,), and their summed-up weights (n,)."""

    rows: NDArray[np.int64]
    edges: NDArray[np.float64]

    def draw(self, rng: Generator) -> int:
        """A row, with the chance of its weight."""
        place = np.searchsorted(self.edges, rng.random() * self.edges[-1], side="right")
        return int(self.rows[min(int(place), len(self.rows) - 1)])


class Mixing(ABC):
    """Mixes a share of `p` of the photographs with another; the target is share x own + (1 - share) x the other's.

    The share is max(l, 1 - l) with l from Beta(`alpha`, `alpha`): which of two comes first is chance already, and so
    the own photograph is never the smaller part. It is drawn once a step, as in the papers' own programs: the loss of
    a step is then share x loss(own) + (1 - share) x loss(other), whichever loss that is. What has no diagnosis is not
    mixed.
    """

    def __init__(self, alpha: Alpha, p: Chance) -> None:
        self.alpha, self.p = alpha, p

    def share(self, size: tuple[int, int], seed: int, epoch: int, step: int) -> float:
        """The own share in all mixed photographs of a step, at `size` (height, width), in [0.5, 1]."""
        drawn = float(np.random.default_rng(derive_seed(seed, epoch, step, SHARE)).beta(self.alpha, self.alpha))
        return self._feasible(max(drawn, 1 - drawn), size)

    def _feasible(self, share: float, size: tuple[int, int]) -> float:
        """The nearest share that can be had."""
        return share

    def rng(self, seed: int, epoch: int, position: int) -> Generator:
        """All chance of one photograph: whether it is mixed, with which, and how."""
        return np.random.default_rng(derive_seed(seed, epoch, position, PAIR))

    @abstractmethod
    def pair(self, own: Sample, other: Sample, share: float, rng: Generator) -> Sample:
        """`own` with `other` mixed in; both have a diagnosis and stay as they are."""


class Mixup(Mixing):
    """Pixel by pixel, share x own + (1 - share) x other. Zhang et al. 2018, arXiv:1710.09412.

    Two lesions shine through each other, and neither outline is that of the picture: a mixed photograph trains the
    diagnosis alone, as one without a mask. The photographs left unmixed train the mask.
    """

    def __init__(self, alpha: Alpha = 0.4, p: Chance = 0.5) -> None:
        super().__init__(alpha, p)

    def pair(self, own: Sample, other: Sample, share: float, rng: Generator) -> Sample:
        """As `Mixing.pair`; without a mask, but for a share of the other that is less than half a step of a pixel."""
        if 1 - share < 0.5 / 255:
            return own
        image = np.asarray(cv2.addWeighted(own["image"], share, other["image"], 1 - share, 0), dtype=np.uint8)
        mixed: Sample = {**own, "image": image, "mask": np.zeros_like(own["mask"]), "has_mask": False}
        mixed["dx_other"] = other["dx"]
        return mixed


class CutMix(Mixing):
    """A rectangle of the other photograph and of its mask, pasted where it lay. Yun et al. 2019, arXiv:1905.04899.

    Its sides are sqrt(1 - share) of the picture's. It lies within the picture, so that the share of pixels is the same
    for all of a step; in the paper it may be cut off. A photograph with a mask and one without are not mixed: half a
    mask is none.
    """

    def __init__(self, alpha: Alpha = 1.0, p: Chance = 0.5) -> None:
        super().__init__(alpha, p)

    def _feasible(self, share: float, size: tuple[int, int]) -> float:
        height, width = _sides(share, size)
        return 1 - height * width / (size[0] * size[1])

    def pair(self, own: Sample, other: Sample, share: float, rng: Generator) -> Sample:
        """As `Mixing.pair`; the mask is pasted as the photograph is."""
        if own["has_mask"] != other["has_mask"]:
            return own
        size = (own["mask"].shape[0], own["mask"].shape[1])
        height, width = _sides(share, size)
        top, left = (int(rng.integers(0, room + 1)) for room in (size[0] - height, size[1] - width))
        box = np.s_[top : top + height, left : left + width]
        image, mask = own["image"].copy(), own["mask"].copy()
        image[box], mask[box] = other["image"][box], other["mask"][box]
        return {**own, "image": image, "mask": mask, "dx_other": other["dx"]}


def _sides(share: float, size: tuple[int, int]) -> tuple[int, int]:
    """Height and width in pixels of the rectangle that leaves `share` of the picture."""
    side = float(np.sqrt(1 - share))
    return round(side * size[0]), round(side * size[1])
