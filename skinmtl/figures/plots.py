"""Figures of runs and studies, from arrays and tables alone; class names come in as arguments.

Every function gives a `Figure` five inches wide, whose ten-point text stays readable on a phone. `save` writes it.
"""

from __future__ import annotations

import colorsys
import io
import math
from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import Any, NamedTuple

import cv2
import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score, roc_curve

from skinmtl.figures.fonts import labels, letter, unstyled
from skinmtl.files import write_bytes

# Okabe and Ito's palette without its yellow, which vanishes on white. Told apart with any kind of colour vision.
BLACK, ORANGE, SKY, GREEN, BLUE, RED, PURPLE = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7"
)  # fmt: skip
CLASS_COLOURS = (BLUE, ORANGE, GREEN, PURPLE, RED, BLACK, SKY)  # by a class's place in the list
TRUE_CONTOUR, PREDICTED_CONTOUR = SKY, "#F0E442"
GREY = "#767676"
MARKERS = "osD^vPX"
Dash = str | tuple[float, tuple[float, ...]]
WIDTH = 5.0  # inches


class Example(NamedTuple):
    """One row of a gallery: photograph (H, W, 3) uint8 RGB, masks (H, W) of class indices or None, a line of text."""

    image: NDArray[np.uint8]
    target: NDArray[np.uint8] | None
    prediction: NDArray[np.uint8] | None
    title: str


@unstyled
def save(figure: Figure, path: Path, stamp: str = "") -> Path:
    """Write a figure as .svg, .png or .jpg (photographs: a tenth of the bytes); same figure, same bytes.

    Its words are drawn as they are written, in whatever fonts have their letters. `stamp` is a word such as LEAKY that
    nobody may overlook: it goes where the picture goes.
    """
    if stamp:
        figure.suptitle(stamp, x=0.99, ha="right", fontsize=10, color="#b00020", weight="bold")
    letter(figure)
    content = io.BytesIO()
    kind = path.suffix.removeprefix(".")
    if kind == "svg":
        with matplotlib.rc_context({"svg.hashsalt": "skinmtl"}):
            figure.savefig(content, format="svg", metadata={"Date": None})
    else:
        options: dict[str, Any] = (
            {"pil_kwargs": {"quality": 75}, "bbox_inches": "tight", "pad_inches": 0.05} if kind == "jpg" else {}
        )
        figure.savefig(content, format=kind, dpi=150 if kind == "jpg" else 180, **options)
    write_bytes(path, content.getvalue(), durable=False)
    return path


def colours(classes: Sequence[str]) -> dict[str, str]:
    """A colour for each class, by its place in the list: the same list gives the same colours in every figure.

    Seven can be told apart; beyond, a class is told by its colour and its line, as `dashes` gives it.
    """
    return {name: CLASS_COLOURS[i % len(CLASS_COLOURS)] for i, name in enumerate(classes)}


def dashes(classes: Sequence[str]) -> dict[str, Dash]:
    """A line for each class: solid for the first seven, then another one for each time the colours begin again."""
    return {name: _dash(i // len(CLASS_COLOURS)) for i, name in enumerate(classes)}


def _dash(turn: int) -> Dash:
    """Lines that differ in what is on and off; the first four by the names that matplotlib has for them."""
    return ("-", "--", ":", "-.")[turn] if turn < 4 else (0.0, (2.0 * turn, 2.0, 1.0, 2.0, 1.0, 2.0))


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
    figure, (axes,) = _panels(1, WIDTH * (0.92 if longest <= 8 else 1.1))
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
    figure, (axes,) = _panels(1, WIDTH + 0.2 * (3 + math.ceil(len(classes) / columns)))
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
def curves(metrics: pd.DataFrame, keep: str = "best") -> Figure:
    """Loss and validation scores over epochs, counted from 1; a dotted line marks the epoch whose weights were kept.

    That is the best by `val/score`, or with `keep` last the last one. The weights of the tasks' losses stand below them
    where they vary.

    Args:
        metrics: what a run logged, one row per call: `epoch` (from 0) and a column per name, empty where not logged.
    """
    losses = {"training loss": ("train/loss", GREY, "--"), "validation loss": ("val/loss", BLACK, "-")}
    scores = {
        "Dice per image": ("val/seg/mean_image_dice", BLUE, "-"),
        "balanced accuracy": ("val/cls/balanced_accuracy", RED, "-"),
        "accuracy": ("val/cls/accuracy", RED, ":"),
    }
    weights = {"mask": ("weight/seg", BLUE, "-"), "diagnosis": ("weight/cls", RED, "-")}
    drawn = {"loss": losses, "validation score": scores}
    if any(_by_epoch(metrics, column).round(4).nunique() > 1 for column, _, _ in weights.values()):
        drawn["weight of the loss"] = weights
    figure, panels = _panels(len(drawn), WIDTH * 0.6 * len(drawn), sharex=True)
    for axes, (label, lines) in zip(panels, drawn.items(), strict=True):
        for name, (column, colour, dash) in lines.items():
            by_epoch = _by_epoch(metrics, column)
            if len(by_epoch):
                marker = "o" if len(by_epoch) < 3 else None
                axes.plot(by_epoch.index + 1, by_epoch, color=colour, linestyle=dash, marker=marker, label=name)
        axes.set_ylabel(label)
        _legend_above(axes)
    score = _by_epoch(metrics, "val/score")
    if len(score):
        kept = score.index[-1] if keep == "last" else score.index[int(score.to_numpy().argmax())]
        for axes in panels:
            axes.axvline(float(kept) + 1, color=GREY, linestyle=":", linewidth=1)
    panels[-1].set_xlabel("epoch")
    panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    return figure


@unstyled
def dice_histogram(dice: NDArray[np.float64]) -> Figure:
    """How many images reach which Dice, with the median and the mean.

    Args:
        dice: (N,) in [0, 1]; NaN where an image has no mask, which is left out.
    """
    dice = np.asarray(dice, dtype=float)
    dice = dice[~np.isnan(dice)]
    figure, (axes,) = _panels(1, WIDTH * 0.7)
    axes.hist(dice, bins=[i / 40 for i in range(41)], color=SKY, edgecolor="white", linewidth=0.5)
    if len(dice):
        median = float(np.quantile(dice, 0.5, method="inverted_cdf"))  # as among the scores
        axes.axvline(median, color=BLACK, label=f"median {median:.3f}")
        axes.axvline(float(dice.mean()), color=RED, linestyle="--", label=f"mean {dice.mean():.3f}")
    axes.set(xlabel=f"Dice of one image (n = {len(dice)})", ylabel="images", xlim=(0, 1))
    _legend_above(axes)
    return figure


@unstyled
def features_in_place(within: NDArray[np.int64], across: NDArray[np.int64], least: int) -> Figure:
    """Pairs of photographs by how many local features lie in one place on both, on a logarithmic axis.

    Args:
        within: counts of pairs of one lesion, (N,).
        across: counts of pairs under two lesion ids, (M,).
        least: from how many on a pair passes for one lesion.
    """
    figure, axes = _panels(1, 3.2)
    edges = list(range(0, int(max([least, *within, *across])) + 3, 2))
    for counts, name, colour in ((across, "two lesion ids", ORANGE), (within, "one lesion id", BLUE)):
        axes[0].hist(counts, bins=edges, histtype="step", color=colour, linewidth=1.5, label=name)
    axes[0].axvline(least, color=GREY, linestyle="--", linewidth=1)
    axes[0].set_yscale("symlog", linthresh=1)
    axes[0].set(xlabel="local features in one place on both", ylabel="pairs")
    _legend_above(axes[0])
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
    figure, (axes, below) = _panels(2, WIDTH * 1.15, sharex=True, height_ratios=[3, 1])
    axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", label="perfect")
    axes.plot(mean[used], accuracy[used], color=BLUE, marker="o", label="network")
    axes.set(ylabel="share right", ylim=(-0.02, 1.02))
    _legend_above(axes)
    below.bar((np.arange(bins) + 0.5) / bins, n, width=0.9 / bins, color=SKY)
    below.set(xlabel=f"probability of the predicted class (n = {n.sum()})", ylabel="images", xlim=(-0.02, 1.02))
    return figure


def overlay(
    image: NDArray[np.uint8], prediction: NDArray[Any] | None, target: NDArray[Any] | None = None
) -> NDArray[np.uint8]:
    """A copy of a photograph with the predicted contour in yellow and, where given, the true one in blue.

    Of several classes beside the background every edge between two is drawn: a border has an outer and an inner one.

    Args:
        image: (H, W, 3) uint8 RGB.
        prediction: (H, W) indices of classes, background 0; None draws nothing.
        target: as the prediction.
    """
    drawn = np.ascontiguousarray(image).copy()
    width = max(1, round(min(image.shape[:2]) / 150))
    lines = [
        (cv2.findContours((mask >= level).astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)[0], _rgb(colour))
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
    shown = [_rgb(colour) for colour in (BLACK, SKY, ORANGE, GREEN, PURPLE, BLUE, RED)]
    for place in range(classes - len(shown)):
        hue, bright = (place * 0.618034) % 1, (1.0, 0.75, 0.5)[place % 3]
        red, green, blue = colorsys.hsv_to_rgb(hue, 0.6, bright)
        shown.append((round(255 * red), round(255 * green), round(255 * blue)))
    return [value for colour in shown[:classes] for value in colour]


@unstyled
def gallery(rows: Sequence[Example | tuple[Any, Any, Any, str]]) -> Figure:
    """Photographs beside the same with true and predicted contours, a row each, under one legend. Save as .jpg."""
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


@unstyled
def scores_by_setting(table: pd.DataFrame, runs: pd.DataFrame | None = None) -> Figure:
    """Each score of each setting as a dot with its interval, a panel per score.

    Args:
        table: columns setting, score (a name), value, low, high (NaN without interval). Several rows of one setting and
            score, such as seeds, stand side by side on one line.
        runs: columns setting, score, value: what lies behind the dots, a ring for each, a little above its setting.
    """
    names = list(dict.fromkeys(table["score"]))
    settings = list(dict.fromkeys(table["setting"]))
    figure, panels = _panels(max(1, len(names)), 0.6 + len(names) * (0.75 + 0.34 * len(settings)))
    for axes, name in zip(panels, names, strict=False):
        for place, setting in enumerate(settings):
            rows = table[(table["score"] == name) & (table["setting"] == setting)]
            offsets = (np.arange(len(rows)) - (len(rows) - 1) / 2) * min(0.2, 0.6 / max(1, len(rows)))
            for offset, row in zip(offsets, rows.itertuples(), strict=True):
                axes.plot([row.low, row.high], [place + offset] * 2, color=SKY, linewidth=3, solid_capstyle="butt")
                axes.plot([row.value], [place + offset], color=BLUE, marker="o", markersize=4)
            if runs is not None:
                each = runs.loc[(runs["score"] == name) & (runs["setting"] == setting), "value"]
                axes.plot(each, [place - 0.25] * len(each), "o", color=GREY, markerfacecolor="none", markersize=4)
        axes.set_yticks(range(len(settings)), [_wrapped(str(setting)) for setting in settings])
        axes.set_ylim(len(settings) - 0.5, -0.5)
        axes.xaxis.set_major_locator(MaxNLocator(5, prune="both"))  # labels at the ends would be cut
        axes.set_title(name, fontsize=10, loc="left", fontweight="bold")
        axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    return figure


@unstyled
def tradeoff(
    table: pd.DataFrame, x: str = "mean_image_dice", y: str = "balanced_accuracy", joined: bool = True
) -> Figure:
    """One task's score against the other's, a point per setting, `joined` in the table's order.

    Args:
        table: columns setting, `x`, `y` and, where known, `x`_low, `x`_high, `y`_low, `y`_high.
        x: a column in [0, 1].
        y: a column in [0, 1].
    """
    figure, (axes,) = _panels(1, WIDTH * 0.95 + 0.2 * len(table))
    if joined:
        axes.plot(table[x], table[y], color=GREY, linewidth=0.8, linestyle=":", zorder=0)
    for (_, row), colour, marker in zip(table.iterrows(), _cycle(CLASS_COLOURS), _markers(), strict=False):
        for name, line in ((x, axes.hlines), (y, axes.vlines)):
            if pd.notna(row.get(f"{name}_low")):
                line(row[y if name == x else x], row[f"{name}_low"], row[f"{name}_high"], color=colour, linewidth=1)
        axes.plot(
            [row[x]], [row[y]], color=colour, marker=marker, linestyle="", label=_wrapped(str(row["setting"]), 46)
        )
    axes.set(xlabel=x.replace("_", " ").replace("dice", "Dice"), ylabel=y.replace("_", " "))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.grid(color="#dddddd", linewidth=0.6)
    figure.legend(loc="outside lower center", ncols=1, frameon=False)
    return figure


@unstyled
def cosines(table: pd.DataFrame) -> Figure:
    """The cosine between the tasks' gradients over optimiser steps, a line per setting: the mean over its runs.

    Args:
        table: columns setting, step and cosine in [-1, 1]; several rows of a setting and step are several runs.
    """
    settings = list(dict.fromkeys(table["setting"]))
    figure, (axes,) = _panels(1, WIDTH * 0.7 + 0.2 * len(settings))
    axes.axhline(0, color=GREY, linewidth=1, linestyle=":")
    for name, colour, marker in zip(settings, _cycle(CLASS_COLOURS), _markers(), strict=False):
        mean = table[table["setting"] == name].groupby("step")["cosine"].mean()
        label = _wrapped(name, 46)
        axes.plot(mean.index, mean, color=colour, marker=marker, markersize=4, linewidth=1.2, label=label)
    axes.set(xlabel="optimiser step", ylabel="cosine between gradients")
    figure.legend(loc="outside lower center", ncols=1, frameon=False)
    return figure


def _panels(
    n: int, height: float, sharex: bool = False, height_ratios: Sequence[float] | None = None
) -> tuple[Figure, list[Axes]]:
    """A figure with n axes above one another. Not through pyplot, which keeps every figure in a global list."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    FigureCanvasAgg(figure)
    panels = list(figure.subplots(n, 1, sharex=sharex, squeeze=False, height_ratios=height_ratios)[:, 0])
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
    return figure, panels


def _legend_above(axes: Axes) -> None:
    if axes.get_legend_handles_labels()[1]:
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False, borderpad=0, handlelength=1.6)


def _by_epoch(metrics: pd.DataFrame, column: str) -> pd.Series:
    """Mean of a column by epoch, without the rows where it was not logged; empty when it never was."""
    if not {"epoch", column} <= set(metrics.columns):
        return pd.Series(dtype=float)
    return metrics.dropna(subset=["epoch", column]).groupby("epoch")[column].mean()


def _fitted(image: NDArray[np.uint8], width: int = 400) -> NDArray[np.uint8]:
    """A photograph or a mask at one width, so that contours are equally thick and a gallery stays small."""
    size = (width, round(image.shape[0] * width / image.shape[1]))
    smooth = cv2.INTER_AREA if image.shape[1] > width else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image, size, interpolation=smooth if image.ndim == 3 else cv2.INTER_NEAREST))


def _rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def _cycle(values: Sequence[str], times: int = 100) -> list[str]:
    return list(values) * times


def _markers() -> list[str]:
    """A marker for each point, another one each time that the colours begin again: 49 pairs of the two."""
    n = len(MARKERS)
    return [MARKERS[(place + place // n) % n] for place in range(n * n)] * 3


def _wrapped(text: str, width: int = 24) -> str:
    """The text broken at commas and spaces so that no line is much longer than `width`."""
    lines = [""]
    for word in text.replace(",", ", ").split():
        if lines[-1] and len(lines[-1]) + len(word) >= width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)
