"""Figures of a classification: the confusion matrix, a ROC curve of each class, reliability."""

from __future__ import annotations

import math
from collections.abc import Sequence
from textwrap import fill

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score, roc_curve

from skinmtl.figures.fonts import labels, unstyled
from skinmtl.figures.palette import BLUE, GREY, SKY
from skinmtl.figures.style import WIDTH, colours, dashes, legend_above, panels_above


@unstyled
def confusion(counts: NDArray[np.int64], classes: Sequence[str]) -> Figure:
    """Counts by true (rows) and predicted class (columns), coloured by the share of the true class.

    Args:
        counts: (K, K). A row without images stays white.
        classes: K names.
    """
    counts = np.asarray(counts)
    n = counts.sum(axis=1)
    share = counts / np.maximum(n, 1)[:, None]
    names = labels(classes)
    longest = max((len(name) for name in names), default=0)
    figure, (axes,) = panels_above(1, WIDTH * (0.92 if longest <= 8 else 1.1))
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    points = min(10.0, 90 / len(classes)) if classes else 10.0  # more classes than nine have smaller squares
    for (row, column), count in np.ndenumerate(counts):
        ink = "white" if share[row, column] > 0.55 else "black"
        axes.text(column, row, str(count), ha="center", va="center", color=ink, fontsize=points)
    turned = 90 if len(classes) > 4 or longest > 8 else 0
    axes.set_xticks(range(len(classes)), [fill(name, 22) for name in names], rotation=turned, fontsize=points)
    rows = [f"{fill(name, 22)} ({k})" for name, k in zip(names, n, strict=True)]
    axes.set_yticks(range(len(classes)), rows, fontsize=points)
    axes.set(xlabel="predicted", ylabel="true (images)")
    axes.spines[:].set_visible(False)
    return figure


@unstyled
def roc(target: NDArray[np.int64], probabilities: NDArray[np.float64], classes: Sequence[str]) -> Figure:
    """One curve per class against all others, with its area and its number of images.

    Args:
        target: (N,) index into the classes; -1 where missing, which is left out.
        probabilities: (N, K).
        classes: K names. A class without images, or without others, has no curve and says so.
    """
    known = target >= 0
    target, probabilities = target[known], probabilities[known]
    names = labels(classes)
    columns = 2 if max((len(name) for name in names), default=0) <= 12 else 1
    figure, (axes,) = panels_above(1, WIDTH + 0.2 * (3 + math.ceil(len(classes) / columns)))
    axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1)
    dash = dashes(names)
    for i, (name, colour) in enumerate(colours(names).items()):
        positive = target == i
        shown = f" {name}" if name.startswith("_") else name  # matplotlib leaves such a label out of legends
        n = int(positive.sum())
        if n in (0, len(target)):
            axes.plot([], [], color=colour, linestyle=dash[name], label=f"{shown}: undefined (n = {n})")
            continue
        false, true, _ = roc_curve(positive, probabilities[:, i])
        area = roc_auc_score(positive, probabilities[:, i])
        label = f"{shown}: {area:.3f} (n = {n})"
        axes.plot(false, true, color=colour, linestyle=dash[name], linewidth=1.6, label=label)
    axes.set(xlabel="1 − specificity", ylabel="sensitivity", xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
    figure.legend(loc="outside lower center", ncols=columns, frameon=False, title="area under the curve")
    return figure


@unstyled
def reliability(target: NDArray[np.int64], probabilities: NDArray[np.float64], bins: int = 10) -> Figure:
    """How often the predicted class is right, against the probability it was given; below, how many images.

    No calibration error is written here: scores have one, over 15 bins of equal width.

    Args:
        target: (N,) class index; -1 where missing, which is left out.
        probabilities: (N, K).
        bins: number of equal steps of probability.
    """
    known = target >= 0
    confidence, right = probabilities[known].max(axis=1), probabilities[known].argmax(axis=1) == target[known]
    which = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    n = np.bincount(which, minlength=bins)
    with np.errstate(invalid="ignore"):
        accuracy = np.bincount(which, weights=right, minlength=bins) / n
        mean = np.bincount(which, weights=confidence, minlength=bins) / n
    used = n > 0
    figure, (axes, below) = panels_above(2, WIDTH * 1.15, sharex=True, height_ratios=[3, 1])
    axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", label="perfect")
    axes.plot(mean[used], accuracy[used], color=BLUE, marker="o", label="network")
    axes.set(ylabel="accuracy", ylim=(-0.02, 1.02))
    legend_above(axes)
    below.bar((np.arange(bins) + 0.5) / bins, n, width=0.9 / bins, color=SKY)
    below.set(xlabel=f"probability of the predicted class (n = {n.sum()})", ylabel="images", xlim=(-0.02, 1.02))
    return figure
