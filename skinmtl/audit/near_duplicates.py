"""Photographs that show one lesion: the same bytes, the same picture changed, or the same skin photographed again.

Thumbnails say who is worth comparing. A copy then has to agree pixel by pixel in one of eight orientations, a retake in
where its local features lie.
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

MOST_FAULTS = 20  # unreadable photographs to list before giving up
SIDE = 256  # px, the longer side at which local features are looked for
FEATURES = 150  # of a photograph, the strongest
NEIGHBOURS = 12  # to compare closely, by colour and by pattern each
LIKE_COPY = 0.85  # correlation of thumbnails from which pixels are compared
COPY = 0.95  # correlation of fine detail, 64 x 64, from which a picture is a copy; two round frames alone reach 0.93
RETAKE = 8  # features in one place on both, from which the skin is the same: see experiments/leak_audit
BLOCK = 1000  # rows of a matrix of pairs at a time
COLUMNS = ["first", "second", "kind", "correlation", "features"]

Floats = NDArray[np.float32]


class Look(NamedTuple):
    """What is kept of one photograph."""

    sha256: str  # of the file
    pattern: Floats  # (16, 16), grey without slow shading
    detail: Floats  # (64, 64), grey without all but fine structure
    colour: Floats  # (8, 8, 3), Lab
    places: Floats  # (n, 2), x and y of local features
    features: NDArray[np.uint8]  # (n, 128), SIFT


def look(path: Path, has_mask: bool = False) -> Look:
    """Read one photograph; InputError where it cannot be read, as training could not."""
    image = read_image(path, has_mask)
    square = fit_image(image, (64, 64))
    grey = cv2.cvtColor(square, cv2.COLOR_RGB2GRAY).astype(np.float32)
    pattern = cv2.resize(grey - cv2.GaussianBlur(grey, (0, 0), 6), (16, 16), interpolation=cv2.INTER_AREA)
    colour = cv2.resize(cv2.cvtColor(square, cv2.COLOR_RGB2LAB), (8, 8), interpolation=cv2.INTER_AREA)
    places, features = _features(image)
    return Look(
        digest(path),
        pattern.astype(np.float32),
        (grey - cv2.GaussianBlur(grey, (0, 0), 3)).astype(np.float32),
        colour.astype(np.float32),
        places,
        features,
    )


def _features(image: NDArray[np.uint8]) -> tuple[Floats, NDArray[np.uint8]]:
    """The strongest local features of an image: places (n, 2) in pixels, and what is there (n, 128)."""
    scale = SIDE / max(image.shape[:2])
    size = (max(1, round(image.shape[0] * scale)), max(1, round(image.shape[1] * scale)))
    grey = cv2.cvtColor(fit_image(image, size), cv2.COLOR_RGB2GRAY)
    even = cv2.createCLAHE(2.0, (4, 4)).apply(grey)  # skin has little contrast
    sift = cv2.SIFT_create(nfeatures=FEATURES, contrastThreshold=0.005)  # type: ignore[attr-defined]  # stubs lack it
    found, features = sift.detectAndCompute(even, None)
    places = np.array([point.pt for point in found[:FEATURES]], dtype=np.float32).reshape(-1, 2)
    described = np.zeros((0, 128)) if features is None else features[:FEATURES]
    return places, described.astype(np.uint8)


def looks(paths: Iterable[Path], have_masks: Iterable[bool] = repeat(False)) -> list[Look]:
    """Every photograph's look; those that cannot be read are listed, up to `MOST_FAULTS` of them."""
    found: list[Look] = []
    faults: list[SkinmtlError] = []
    for path, has_mask in zip(paths, have_masks, strict=False):
        try:
            found.append(look(path, has_mask))
        except InputError as fault:
            faults.append(fault)
        if len(faults) == MOST_FAULTS:
            break
    if faults:
        raise Faults(faults)
    return found


Pair = tuple[int, int]  # positions, the smaller first
Track = Callable[[Sequence[Pair], str], Iterable[Pair]]


def compare(
    ids: Sequence[str], seen: Sequence[Look], between: int | None = None, track: Track = lambda items, _: items
) -> pd.DataFrame:
    """Pairs worth a close look, each once, with the columns of `COLUMNS`, in order of place.

    `kind` is bytes, copy or retake where they show one lesion, else empty; `correlation` is that of fine detail in the
    best of eight orientations, missing where thumbnails differ too much for a copy; `features` is how many local ones
    lie in one place on both after a shift, turn and zoom, 0 where the pair is a copy.

    Args:
        ids: of the photographs.
        seen: their looks.
        between: compare only the first so many with the rest, as for two data sets one after the other.
        track: shows progress over some items, with a word for what is done.
    """
    patterns, colours = (np.stack([getattr(one, which) for one in seen]) for which in ("pattern", "colour"))
    alike = set(_bytes(seen)) | set(_above(patterns))
    near = {*_nearest(_unit(patterns)), *_nearest(_unit(colours - colours.mean(0)))}
    chosen = sorted(pair for pair in alike | near if between is None or pair[0] < between <= pair[1])
    rows = [(ids[i], ids[j], *_compared(seen[i], seen[j], (i, j) in alike)) for i, j in track(chosen, "comparing")]
    return pd.DataFrame(rows, columns=COLUMNS)


def _compared(one: Look, other: Look, may_be_copy: bool) -> tuple[str, float, int]:
    """Kind of the pair, empty where it is none, and what it was found by."""
    if one.sha256 == other.sha256:
        return "bytes", 1.0, 0
    correlation = same_detail(one, other) if may_be_copy else float("nan")
    if correlation >= COPY:
        return "copy", correlation, 0
    features = in_place(one, other)
    return ("retake" if features >= RETAKE else ""), correlation, features


def same_detail(one: Look, other: Look) -> float:
    """Correlation of the fine detail of two photographs, in the best of eight orientations."""
    turned = _unit(np.stack(list(turns(other.detail))))  # (8, 64 * 64)
    return round(float((turned @ _unit(one.detail[None])[0]).max()), 4)


def turns(square: NDArray[np.float32]) -> Iterator[Floats]:
    """The eight orientations of (..., S, S): four quarter turns, of it and of its mirror image; the first is itself."""
    for side in (square, square[..., ::-1]):
        for quarter in range(4):
            yield np.rot90(side, quarter, axes=(-2, -1))


def in_place(one: Look, other: Look) -> int:
    """How many local features of two photographs are alike and lie in one place after a shift, turn and zoom."""
    if min(len(one.places), len(other.places)) < RETAKE:
        return 0
    cosine = _root(one.features) @ _root(other.features).T  # (n, m)
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
        one.places[chosen], other.places[best[chosen]], ransacReprojThreshold=4, maxIters=300
    )
    if moved is None or not 0.4 < np.hypot(moved[0, 0], moved[0, 1]) < 2.5:
        return 0
    return int(inside.sum())


def _root(features: NDArray[np.uint8]) -> Floats:
    """Unit vectors whose scalar product is Hellinger's similarity: Arandjelovic and Zisserman, CVPR 2012."""
    shares: Floats = (features / np.maximum(features.sum(1, keepdims=True), 1)).astype(np.float32)
    return np.sqrt(shares)


def _unit(squares: NDArray[np.float32]) -> Floats:
    """Each of (N, ...) as a vector around 0 of length 1, (N, D); one without structure becomes 0."""
    flat = squares.reshape(len(squares), -1).astype(np.float32)
    flat = flat - flat.mean(1, keepdims=True)
    length = np.linalg.norm(flat, axis=1, keepdims=True)
    return np.where(length > 1e-3, flat / np.maximum(length, 1e-3), 0).astype(np.float32)


def _bytes(seen: Sequence[Look]) -> Iterator[Pair]:
    """Positions of files with the same bytes as an earlier one."""
    first: dict[str, int] = {}
    for place, one in enumerate(seen):
        if (earlier := first.setdefault(one.sha256, place)) != place:
            yield earlier, place


def _above(patterns: Floats) -> Iterator[Pair]:
    """Positions of pairs whose patterns (N, 16, 16) agree in one of eight orientations."""
    upright, *turned = (_unit(squares) for squares in turns(patterns))
    for start in range(0, len(upright), BLOCK):
        block = upright[start : start + BLOCK]
        best = block @ upright.T
        for squares in turned:
            np.maximum(best, block @ squares.T, out=best)
        for i, j in np.argwhere(best >= LIKE_COPY):
            if start + i < j:
                yield int(start + i), int(j)


def _nearest(upright: Floats) -> Iterator[Pair]:
    """Positions of each photograph and of those most like it."""
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
