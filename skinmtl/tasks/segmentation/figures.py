"""Figures of a segmentation: how Dice is spread, contours on images, galleries of examples."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from skinmtl.figures.fonts import unstyled
from skinmtl.figures.palette import BLACK, BLUE, GREEN, ORANGE, PURPLE, RED, SKY
from skinmtl.figures.style import WIDTH, legend_above, panels_above, rgb

TRUE_CONTOUR, PREDICTED_CONTOUR = SKY, "#F0E442"


class Example(NamedTuple):
    """One row of a gallery: image (H, W, 3) uint8 RGB, masks (H, W) of class indices or None, a line of text."""

    image: NDArray[np.uint8]
    target: NDArray[np.uint8] | None
    prediction: NDArray[np.uint8] | None
    title: str


@unstyled
def dice_histogram(dice: NDArray[np.float64]) -> Figure:
    """How many images reach which Dice, with the median and the mean.

    Args:
        dice: (N,) in [0, 1]; NaN where an image has no mask, which is left out.
    """
    dice = np.asarray(dice, dtype=float)
    dice = dice[~np.isnan(dice)]
    figure, (axes,) = panels_above(1, WIDTH * 0.7)
    axes.hist(dice, bins=[i / 40 for i in range(41)], color=SKY, edgecolor="white", linewidth=0.5)
    if len(dice):
        median = float(np.quantile(dice, 0.5, method="inverted_cdf"))  # as among the scores
        axes.axvline(median, color=BLACK, label=f"median {median:.3f}")
        axes.axvline(float(dice.mean()), color=RED, linestyle="--", label=f"mean {dice.mean():.3f}")
    axes.set(xlabel=f"Dice of one image (n = {len(dice)})", ylabel="images", xlim=(0, 1))
    legend_above(axes)
    return figure


def overlay(
    image: NDArray[np.uint8], prediction: NDArray[Any] | None, target: NDArray[Any] | None = None
) -> NDArray[np.uint8]:
    """A copy of an image with the predicted contour in yellow and, where given, the true one in blue.

    Of several classes beside the background every edge between two is drawn: a border has an outer and an inner one.

    Args:
        image: (H, W, 3) uint8 RGB.
        prediction: (H, W) indices of classes, background 0; None draws nothing.
        target: as the prediction.
    """
    drawn = np.ascontiguousarray(image).copy()
    width = max(1, round(min(image.shape[:2]) / 150))
    lines = [
        (cv2.findContours((mask >= level).astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)[0], rgb(colour))
        for mask, colour in ((target, TRUE_CONTOUR), (prediction, PREDICTED_CONTOUR))
        if mask is not None
        for level in np.unique(mask[mask > 0])
    ]
    # Dark lines under all bright ones keep these visible on pale skin and on dark lesions alike.
    for line, _ in lines:
        cv2.drawContours(drawn, line, -1, (0, 0, 0), width + 2)
    for line, colour in lines:
        cv2.drawContours(drawn, line, -1, colour, width)
    return drawn


def mask_palette(classes: int) -> list[int]:
    """Red, green and blue of each mask class in one list, 0 to 255: black for the background, then bright colours.

    Beyond seven they are hues a golden angle apart, no two the same.
    """
    shown = [rgb(colour) for colour in (BLACK, SKY, ORANGE, GREEN, PURPLE, BLUE, RED)]
    for place in range(classes - len(shown)):
        hue, bright = (place * 0.618034) % 1, (1.0, 0.75, 0.5)[place % 3]
        red, green, blue = colorsys.hsv_to_rgb(hue, 0.6, bright)
        shown.append((round(255 * red), round(255 * green), round(255 * blue)))
    return [value for colour in shown[:classes] for value in colour]


@unstyled
def gallery(rows: Sequence[Example | tuple[Any, Any, Any, str]]) -> Figure:
    """Images beside the same with true and predicted contours, a row each, under one legend. Save as .jpg."""
    examples = [Example(*row) for row in rows]
    height = 0.4 + sum(0.25 + WIDTH / 2 * e.image.shape[0] / e.image.shape[1] for e in examples)
    figure = Figure(figsize=(WIDTH, height), layout="compressed")
    FigureCanvasAgg(figure)
    grid = figure.subplots(max(1, len(examples)), 2, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for (left, right), example in zip(grid, examples, strict=False):
        left.imshow(_fitted(example.image))
        left.set_title(example.title, fontsize=10, loc="left")
        masks = [None if mask is None else _fitted(mask) for mask in (example.prediction, example.target)]
        right.imshow(overlay(_fitted(example.image), *masks))
    given = {"true contour": TRUE_CONTOUR} if any(e.target is not None for e in examples) else {}
    given |= {"predicted contour": PREDICTED_CONTOUR} if any(e.prediction is not None for e in examples) else {}
    if given:
        handles = [Line2D([], [], color=colour, linewidth=4, label=name) for name, colour in given.items()]
        figure.legend(handles=handles, loc="outside upper center", ncols=2, frameon=False)
    return figure


def _fitted(image: NDArray[np.uint8], width: int = 400) -> NDArray[np.uint8]:
    """An image or a mask at one width, so that contours are equally thick and a gallery stays small."""
    size = (width, round(image.shape[0] * width / image.shape[1]))
    smooth = cv2.INTER_AREA if image.shape[1] > width else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image, size, interpolation=smooth if image.ndim == 3 else cv2.INTER_NEAREST))
