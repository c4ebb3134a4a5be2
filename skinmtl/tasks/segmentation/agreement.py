"""How the predicted and the true mask of one image agree: pixels, Dice, IoU, distances between their edges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray


def mask_counts(predicted: NDArray[np.uint8], target: NDArray[np.uint8]) -> dict[str, int]:
    """Pixels by agreement, tp, fp, fn and tn, of two (H, W) masks that are lesion where not zero."""
    a, b = predicted > 0, target > 0
    both, only_a, only_b = int((a & b).sum()), int((a & ~b).sum()), int((~a & b).sum())
    return {"tp": both, "fp": only_a, "fn": only_b, "tn": a.size - both - only_a - only_b}


def dice(counts: Mapping[str, int]) -> float:
    """2 tp / (2 tp + fp + fn); one when both masks are empty."""
    total = 2 * counts["tp"] + counts["fp"] + counts["fn"]
    return 2 * counts["tp"] / total if total else 1.0


def iou(counts: Mapping[str, int]) -> float:
    """tp / (tp + fp + fn); one when both masks are empty."""
    union = counts["tp"] + counts["fp"] + counts["fn"]
    return counts["tp"] / union if union else 1.0


def pixel_confusion(predicted: NDArray[np.uint8], target: NDArray[np.uint8], classes: int) -> NDArray[np.int64]:
    """Pixels by true (rows) and predicted class, (M, M), of two (H, W) masks of indices into M classes."""
    places = target.astype(np.int64) * classes + predicted
    return np.bincount(places.reshape(-1), minlength=classes**2).reshape(classes, classes)


def overlap(predicted: NDArray[np.uint8], target: NDArray[np.uint8], classes: Sequence[str]) -> dict[str, float]:
    """The columns of a predictions table that say how two (H, W) masks of class indices agree.

    `tp_<class>`, `fp_`, `fn_` and `tn_` are pixels of each class but the background, which comes first in `classes`;
    `dice` and `iou` are means over these classes. Where there are several, `dice_<class>` and `iou_<class>` are those
    of each, and `pixels_<true>_as_<predicted>` the pixels of every pair of classes.
    """
    columns: dict[str, float] = {}
    each: dict[str, dict[str, float]] = {"dice": {}, "iou": {}}
    for index, name in enumerate(classes[1:], start=1):
        counts = mask_counts((predicted == index).astype(np.uint8), (target == index).astype(np.uint8))
        columns |= {f"{count}_{name}": pixels for count, pixels in counts.items()}
        each["dice"][name], each["iou"][name] = dice(counts), iou(counts)
    if len(classes) > 2:
        confusion = pixel_confusion(predicted, target, len(classes))
        columns |= {f"{score}_{name}": value for score, values in each.items() for name, value in values.items()}
        columns |= {
            name: int(pixels) for name, pixels in zip(pixel_columns(classes), confusion.reshape(-1), strict=True)
        }
    return columns | {score: float(np.mean(list(values.values()))) for score, values in each.items()}


def pixel_columns(classes: Sequence[str]) -> list[str]:
    """Columns of a pixel confusion matrix, row by row."""
    return [f"pixels_{true}_as_{predicted}" for true in classes for predicted in classes]


class Boundary(NamedTuple):
    """Distances in pixels between the edges of two masks: columns of a predictions table."""

    hd95: float
    hd95_pooled: float
    assd: float


def boundary(predicted: NDArray[np.uint8], target: NDArray[np.uint8]) -> Boundary:
    """How far the edges of two (H, W) masks are apart; all classes but the background count as lesion.

    (The edges of a band along a contour are that contour, moved: they would be told the same thing twice.)
    An edge is the lesion's pixels that touch its outside (4-neighbours; beyond the picture is outside). Of the
    distances of each edge's pixels to the other edge, `hd95` is the larger of the two directions' 95th percentiles, as
    MONAI has it; `assd` is the mean of both directions taken together, and `hd95_pooled` their 95th percentile, which
    was called HD95 here before and is lower: it goes with the next version. Two empty masks: 0. One empty mask: the
    picture's diagonal.
    """
    a, b = (np.asarray(mask > 0, dtype=np.uint8) for mask in (predicted, target))
    if not a.any() or not b.any():
        far = 0.0 if a.any() == b.any() else float(np.hypot(*a.shape))
        return Boundary(far, far, far)
    rows, columns = np.nonzero(a | b)
    box = np.s_[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    edges = [_edge(mask[box]) for mask in (a, b)]
    apart = [cv2.distanceTransform(1 - edge, cv2.DIST_L2, cv2.DIST_MASK_PRECISE) for edge in edges]
    # OpenCV's last bits follow where the picture lies in memory; squares of distances between pixels are whole numbers.
    there, back = (
        np.sqrt(np.rint(np.square(distances.astype(np.float64))))
        for distances in (apart[1][edges[0] > 0], apart[0][edges[1] > 0])
    )
    both = np.concatenate([there, back])
    directed = max(float(np.percentile(distances, 95)) for distances in (there, back))
    return Boundary(directed, float(np.percentile(both, 95)), float(both.mean()))


def _edge(mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    inner = cv2.erode(mask, cross, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    return mask - np.asarray(inner, dtype=np.uint8)
