"""Figures of several runs: scores by setting, one score against another, cosines between gradients."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from skinmtl.figures.fonts import unstyled
from skinmtl.figures.palette import BLUE, CLASS_COLOURS, GREY, SKY
from skinmtl.figures.style import WIDTH, cycle, markers, panels_above, wrapped


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
    figure, panels = panels_above(max(1, len(names)), 0.6 + len(names) * (0.75 + 0.34 * len(settings)))
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
        axes.set_yticks(range(len(settings)), [wrapped(str(setting)) for setting in settings])
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
    figure, (axes,) = panels_above(1, WIDTH * 0.95 + 0.2 * len(table))
    if joined:
        axes.plot(table[x], table[y], color=GREY, linewidth=0.8, linestyle=":", zorder=0)
    for (_, row), colour, marker in zip(table.iterrows(), cycle(CLASS_COLOURS), markers(), strict=False):
        for name, line in ((x, axes.hlines), (y, axes.vlines)):
            if pd.notna(row.get(f"{name}_low")):
                line(row[y if name == x else x], row[f"{name}_low"], row[f"{name}_high"], color=colour, linewidth=1)
        axes.plot([row[x]], [row[y]], color=colour, marker=marker, linestyle="", label=wrapped(str(row["setting"]), 46))
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
    figure, (axes,) = panels_above(1, WIDTH * 0.7 + 0.2 * len(settings))
    axes.axhline(0, color=GREY, linewidth=1, linestyle=":")
    for name, colour, marker in zip(settings, cycle(CLASS_COLOURS), markers(), strict=False):
        mean = table[table["setting"] == name].groupby("step")["cosine"].mean()
        label = wrapped(name, 46)
        axes.plot(mean.index, mean, color=colour, marker=marker, markersize=4, linewidth=1.2, label=label)
    axes.set(xlabel="optimiser step", ylabel="cosine between gradients")
    figure.legend(loc="outside lower center", ncols=1, frameon=False)
    return figure
