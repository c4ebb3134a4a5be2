"""Near-duplicates: the same file, a changed copy of an image, or the same skin photographed again (a retake).

Thumbnails choose the pairs worth comparing. A copy then has to agree pixel by pixel in one of eight orientations, a
retake in where its local features lie.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import repeat
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from skinmtl.data.images.reading import fit_image, read_image
from skinmtl.errors import Faults, InputError, SkinmtlError
from skinmtl.files import digest

MOST_FAULTS = 20  # unreadable images to list before giving up
SIDE = 256  # px, the longer side at which local features are looked for
FEATURES = 150  # of an image, the strongest
NEIGHBOURS = 12  # to compare closely, by colour and by pattern each
LIKE_COPY = 0.85  # correlation of thumbnails from which pixels are compared
COPY = 0.95  # correlation of fine detail, 64 x 64, from which an image is a copy; two round frames alone reach 0.93
RETAKE = 8  # matching features from which on the skin is the same: see experiments/leak_audit
BLOCK = 1000  # rows of a matrix of pairs at a time
COLUMNS = ["first", "second", "kind", "correlation", "features"]

Floats = NDArray[np.float32]


class Fingerprint(NamedTuple):
    """What is kept of one image to compare it with others."""

    sha256: str  # of the file
    pattern: Floats  # (16, 16), grey without slow shading
    detail: Floats  # (64, 64), grey without all but fine structure
    colour: Floats  # (8, 8, 3), Lab
    keypoints: Floats  # (n, 2), x and y of local features
    descriptors: NDArray[np.uint8]  # (n, 128), SIFT


def fingerprint_image(path: Path, has_mask: bool = False) -> Fingerprint:
    """Compute the fingerprint of an image.

    Args:
        path: its file.
        has_mask: as `read_image` takes it.

    Raises:
        InputError: it cannot be read, as training could not.
    """
    image = read_image(path, has_mask)
    square = fit_image(image, (64, 64))
    grey = cv2.cvtColor(square, cv2.COLOR_RGB2GRAY).astype(np.float32)
    pattern = cv2.resize(grey - cv2.GaussianBlur(grey, (0, 0), 6), (16, 16), interpolation=cv2.INTER_AREA)
    colour = cv2.resize(cv2.cvtColor(square, cv2.COLOR_RGB2LAB), (8, 8), interpolation=cv2.INTER_AREA)
    keypoints, descriptors = _local_features(image)
    return Fingerprint(
        digest(path),
        pattern.astype(np.float32),
        (grey - cv2.GaussianBlur(grey, (0, 0), 3)).astype(np.float32),
        colour.astype(np.float32),
        keypoints,
        descriptors,
    )


def _local_features(image: NDArray[np.uint8]) -> tuple[Floats, NDArray[np.uint8]]:
    """Find the strongest local features of an image.

    Args:
        image: (H, W, 3) uint8, RGB.

    Returns:
        Keypoints (n, 2) in pixels of the resized image, and their SIFT descriptors (n, 128) uint8.
    """
    scale = SIDE / max(image.shape[:2])
    size = (max(1, round(image.shape[0] * scale)), max(1, round(image.shape[1] * scale)))
    grey = cv2.cvtColor(fit_image(image, size), cv2.COLOR_RGB2GRAY)
    even = cv2.createCLAHE(2.0, (4, 4)).apply(grey)  # skin has little contrast
    sift = cv2.SIFT_create(nfeatures=FEATURES, contrastThreshold=0.005)  # type: ignore[attr-defined]  # stubs lack it
    found, features = sift.detectAndCompute(even, None)
    keypoints = np.array([point.pt for point in found[:FEATURES]], dtype=np.float32).reshape(-1, 2)
    described = np.zeros((0, 128)) if features is None else features[:FEATURES]
    return keypoints, described.astype(np.uint8)


def fingerprint_images(paths: Iterable[Path], have_masks: Iterable[bool] = repeat(False)) -> list[Fingerprint]:
    """Compute the fingerprint of every image.

    Args:
        paths: the images' files.
        have_masks: whether each has a mask.

    Raises:
        Faults: images that cannot be read, up to `MOST_FAULTS` of them.
    """
    found: list[Fingerprint] = []
    faults: list[SkinmtlError] = []
    for path, has_mask in zip(paths, have_masks, strict=False):
        try:
            found.append(fingerprint_image(path, has_mask))
        except InputError as fault:
            faults.append(fault)
        if len(faults) == MOST_FAULTS:
            break
    if faults:
        raise Faults(faults)
    return found


IndexPair = tuple[int, int]  # positions, the smaller first
Track = Callable[[Sequence[IndexPair], str], Iterable[IndexPair]]


def compare(
    ids: Sequence[str], seen: Sequence[Fingerprint], between: int | None = None, track: Track = lambda items, _: items
) -> pd.DataFrame:
    """Compare the pairs of images that are worth it.

    Args:
        ids: of the images.
        seen: their fingerprints.
        between: compare only the first so many with the rest, as for two data sets one after the other.
        track: shows progress over some items, with a word for what is done.

    Returns:
        One row per pair, in order of position, with the columns of `COLUMNS`. `kind` is bytes, copy or retake where
        both show one lesion, else empty; `correlation` is that of fine detail in the best orientation, missing
        where thumbnails differ too much for a copy; `features` counts local features that match after a shift, turn
        and zoom, 0 where the pair is a copy.
    """
    patterns, colours = (np.stack([getattr(one, which) for one in seen]) for which in ("pattern", "colour"))
    alike = set(_identical_files(seen)) | set(_similar_patterns(patterns))
    near = {*_nearest(_unit_vectors(patterns)), *_nearest(_unit_vectors(colours - colours.mean(0)))}
    chosen = sorted(pair for pair in alike | near if between is None or pair[0] < between <= pair[1])
    rows = [(ids[i], ids[j], *_compare_pair(seen[i], seen[j], (i, j) in alike)) for i, j in track(chosen, "comparing")]
    return pd.DataFrame(rows, columns=COLUMNS)


def _compare_pair(one: Fingerprint, other: Fingerprint, may_be_copy: bool) -> tuple[str, float, int]:
    """Return the kind of a pair, empty where it is none, its correlation, and how many features match."""
    if one.sha256 == other.sha256:
        return "bytes", 1.0, 0
    correlation = detail_correlation(one, other) if may_be_copy else float("nan")
    if correlation >= COPY:
        return "copy", correlation, 0
    features = count_matches(one, other)
    return ("retake" if features >= RETAKE else ""), correlation, features


def detail_correlation(one: Fingerprint, other: Fingerprint) -> float:
    """Correlate the fine detail of two images, in the best of eight orientations.

    Args:
        one: the fingerprint of an image.
        other: that of another one, which is turned.

    Returns:
        The correlation, in [-1, 1].
    """
    turned = _unit_vectors(np.stack(list(orientations(other.detail))))  # (8, 64 * 64)
    return round(float((turned @ _unit_vectors(one.detail[None])[0]).max()), 4)


def orientations(square: NDArray[np.float32]) -> Iterator[Floats]:
    """Yield the eight orientations of squares: four quarter turns, of them and of their mirror images.

    Args:
        square: (..., S, S); the first orientation is itself.
    """
    for side in (square, square[..., ::-1]):
        for quarter in range(4):
            yield np.rot90(side, quarter, axes=(-2, -1))


def count_matches(one: Fingerprint, other: Fingerprint) -> int:
    """Count the local features of two images that match.

    Args:
        one: the fingerprint of an image.
        other: that of another one.

    Returns:
        How many are alike and in one place after a shift, a turn and a zoom; 0 where no such move is plausible.
    """
    if min(len(one.keypoints), len(other.keypoints)) < RETAKE:
        return 0
    cosine = _root_sift(one.descriptors) @ _root_sift(other.descriptors).T  # (n, m)
    rows, best = np.arange(len(cosine)), cosine.argmax(1)
    most = cosine[rows, best]
    mutual = cosine.argmax(0)[best] == rows
    cosine[rows, best] = -1
    clear = (1 - most) < 0.85**2 * (1 - cosine.max(1))  # nearer by far than the second: Lowe, IJCV 2004
    chosen = mutual & clear
    if chosen.sum() < RETAKE:
        return 0
    cv2.setRNGSeed(0)
    moved, inside = cv2.estimateAffinePartial2D(
        one.keypoints[chosen], other.keypoints[best[chosen]], ransacReprojThreshold=4, maxIters=300
    )
    if moved is None or not 0.4 < np.hypot(moved[0, 0], moved[0, 1]) < 2.5:
        return 0
    return int(inside.sum())


def _root_sift(features: NDArray[np.uint8]) -> Floats:
    """Return unit vectors whose scalar product is Hellinger's similarity: Arandjelovic and Zisserman, CVPR 2012."""
    shares: Floats = (features / np.maximum(features.sum(1, keepdims=True), 1)).astype(np.float32)
    return np.sqrt(shares)


def _unit_vectors(squares: NDArray[np.float32]) -> Floats:
    """Turn each of (N, ...) into a vector around 0 of length 1, (N, D); one without structure becomes 0."""
    flat = squares.reshape(len(squares), -1).astype(np.float32)
    flat = flat - flat.mean(1, keepdims=True)
    length = np.linalg.norm(flat, axis=1, keepdims=True)
    return np.where(length > 1e-3, flat / np.maximum(length, 1e-3), 0).astype(np.float32)


def _identical_files(seen: Sequence[Fingerprint]) -> Iterator[IndexPair]:
    """Yield positions of files with the same bytes as an earlier one."""
    first: dict[str, int] = {}
    for place, one in enumerate(seen):
        if (earlier := first.setdefault(one.sha256, place)) != place:
            yield earlier, place


def _similar_patterns(patterns: Floats) -> Iterator[IndexPair]:
    """Yield positions of pairs whose patterns (N, 16, 16) agree in one of eight orientations."""
    upright, *turned = (_unit_vectors(squares) for squares in orientations(patterns))
    for start in range(0, len(upright), BLOCK):
        block = upright[start : start + BLOCK]
        best = block @ upright.T
        for squares in turned:
            np.maximum(best, block @ squares.T, out=best)
        for i, j in np.argwhere(best >= LIKE_COPY):
            if start + i < j:
                yield int(start + i), int(j)


def _nearest(upright: Floats) -> Iterator[IndexPair]:
    """Yield positions of each image and of those most like it, by unit vectors (N, D)."""
    count = min(NEIGHBOURS, len(upright) - 1)
    if count < 1:
        return
    for start in range(0, len(upright), BLOCK):
        alike = upright[start : start + BLOCK] @ upright.T
        rows = np.arange(len(alike))
        alike[rows, start + rows] = -np.inf
        for i, others in zip(rows + start, np.argpartition(-alike, count - 1, axis=1)[:, :count], strict=True):
            for j in others:
                yield min(int(i), int(j)), max(int(i), int(j))
