"""Mask classes against SciPy's exact distances and against morphology, at odd sizes and at the edges of the picture."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from layouts import make_image
from numpy.typing import NDArray
from scipy import ndimage

from skinmtl.config.schema import arguments
from skinmtl.data.images.reading import fit_mask
from skinmtl.data.mask_classes import BINARY, Trimap


def ragged(seed: int, size: tuple[int, int]) -> NDArray[np.uint8]:
    """A lesion with islands, holes and a side that runs out of the picture."""
    noise = np.random.default_rng(seed).normal(size=size)
    return (ndimage.gaussian_filter(noise, 3) > 0.02).astype(np.uint8)


def from_distances(lesion: NDArray[np.uint8], half: int) -> NDArray[np.uint8]:
    """The trimap by SciPy: where the nearest pixel of the other side is at most `half` away."""
    squared = []
    for side in (lesion, 1 - lesion):
        where = ndimage.distance_transform_edt(side, return_distances=False, return_indices=True)
        squared.append(((where - np.indices(lesion.shape)) ** 2).sum(0) * side)  # whole numbers
    near = sum(squared) <= half**2
    return np.where(near, 1, lesion * 2).astype(np.uint8)


@pytest.mark.parametrize("band", [0.01, 0.04, 0.1, 0.15])
@pytest.mark.parametrize("size", [(31, 64), (64, 31), (97, 130)])
def test_the_border_is_what_exact_distances_say(size: tuple[int, int], band: float) -> None:
    trimap = Trimap(band)
    half = trimap.half(*size)
    for seed in range(5):
        lesion = ragged(seed, size)
        found = trimap.of(lesion)
        assert found.dtype == np.uint8 and set(np.unique(found)) <= {0, 1, 2}
        assert np.array_equal(found, from_distances(lesion, half))
        assert not np.array_equal(found, from_distances(lesion, half + 1)), "one pixel more is seen"


def test_the_border_is_a_disc_rolled_along_the_outline_as_morphology_has_it() -> None:
    lesion = ragged(7, (80, 120))
    y, x = np.mgrid[-4:5, -4:5]
    disc = (x**2 + y**2 <= 16).astype(np.uint8)
    grown = cv2.dilate(lesion, disc, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    shrunk = cv2.erode(lesion, disc, borderType=cv2.BORDER_CONSTANT, borderValue=1)
    assert Trimap(0.1).half(80, 120) == 4
    assert np.array_equal(Trimap(0.1).of(lesion), grown + shrunk)


def test_half_of_the_band_is_inside_and_half_outside() -> None:
    lesion = np.zeros((450, 600), np.uint8)
    lesion[100:300, 200:400] = 1
    row = Trimap(0.04).of(lesion)[200]
    assert Trimap(0.04).half(450, 600) == 9, "0.04 of 450 pixels are 18"
    assert np.flatnonzero(row == 1).tolist() == [*range(191, 209), *range(391, 409)]
    assert np.flatnonzero(row == 2).tolist() == list(range(209, 391))
    assert Trimap(0.001).half(40, 40) == 1, "never no border at all"


def test_the_edge_of_the_picture_is_no_outline() -> None:
    lesion = np.zeros((40, 40), np.uint8)
    lesion[:, 20:] = 1
    found = Trimap(0.1).of(lesion)
    assert (found == [[*[0] * 18, 1, 1, 1, 1, *[2] * 18]]).all()


def test_masks_without_an_outline_have_no_border() -> None:
    for value in (0, 1):
        lesion = np.full((9, 7), value, np.uint8)
        assert (Trimap(0.5).of(lesion) == 2 * value).all()


def test_a_lesion_no_wider_than_the_band_is_border_throughout() -> None:
    lesion = np.zeros((50, 50), np.uint8)
    lesion[20:26, 10:40] = 1
    assert set(np.unique(Trimap(0.12).of(lesion))) == {0, 1}
    assert set(np.unique(Trimap(0.08).of(lesion))) == {0, 1, 2}


def test_a_resized_trimap_is_a_picture_of_the_same_band() -> None:
    _, mask = make_image(3, (450, 600))
    lesion = mask // 255
    derived_first = fit_mask(Trimap().of(lesion), (256, 256))
    share = (derived_first == 1).mean() / (Trimap().of(lesion) == 1).mean()
    assert share == pytest.approx(1, abs=0.02)
    # Derived from the resized mask, whose shorter side is another share of the lesion, it would be another band.
    derived_last = Trimap().of(fit_mask(lesion, (256, 256)))
    assert abs((derived_last == 1).mean() / (Trimap().of(lesion) == 1).mean() - 1) > 0.1


def test_inputs_are_left_alone_and_binary_is_the_mask_itself() -> None:
    lesion = ragged(0, (30, 40))
    before = lesion.copy()
    Trimap(0.2).of(lesion)
    assert np.array_equal(lesion, before)
    assert BINARY.of(lesion) is lesion
    assert BINARY.names == ("skin", "lesion") and Trimap().names == ("skin", "border", "lesion")


@pytest.mark.parametrize("band", [0, 1, -0.1, "wide", None])
def test_a_band_that_is_no_share_is_refused_by_the_signature(band: object) -> None:
    argument = arguments(Trimap)["band"]
    assert argument.misfit(band) is not None
    assert argument.misfit(0.04) is None
