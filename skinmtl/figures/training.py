"""Loss, scores and weights of losses over the epochs of a training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from skinmtl.figures.fonts import unstyled
from skinmtl.figures.palette import BLACK, GREY
from skinmtl.figures.style import WIDTH, legend_above, panels_above


class Line(NamedTuple):
    """A column of what a run logged, and how its line looks."""

    column: str
    colour: str
    dash: str


@unstyled
def curves(
    metrics: pd.DataFrame, scores: Mapping[str, Line], weights: Mapping[str, Line], keep: str = "best"
) -> Figure:
    """Loss and validation scores over epochs, counted from 1; a dotted line marks the epoch whose weights were kept.

    That is the best by `val/score`, or with `keep` last the last one. The weights of the tasks' losses stand below them
    where they vary.

    Args:
        metrics: what a run logged, one row per call: `epoch` (from 0) and a column per name, empty where not logged.
        scores: lines of validation scores by their labels.
        weights: lines of the weights of losses by their labels.
        keep: `best` or `last`.
    """
    losses = {"training loss": Line("train/loss", GREY, "--"), "validation loss": Line("val/loss", BLACK, "-")}
    drawn: dict[str, Mapping[str, Line]] = {"loss": losses, "validation score": scores}
    if any(_by_epoch(metrics, line.column).round(4).nunique() > 1 for line in weights.values()):
        drawn["weight of the loss"] = weights
    figure, panels = panels_above(len(drawn), WIDTH * 0.6 * len(drawn), sharex=True)
    for axes, (label, lines) in zip(panels, drawn.items(), strict=True):
        for name, (column, colour, dash) in lines.items():
            by_epoch = _by_epoch(metrics, column)
            if len(by_epoch):
                marker = "o" if len(by_epoch) < 3 else None
                axes.plot(by_epoch.index + 1, by_epoch, color=colour, linestyle=dash, marker=marker, label=name)
        axes.set_ylabel(label)
        legend_above(axes)
    score = _by_epoch(metrics, "val/score")
    if len(score):
        kept = score.index[-1] if keep == "last" else score.index[int(score.to_numpy().argmax())]
        for axes in panels:
            axes.axvline(float(kept) + 1, color=GREY, linestyle=":", linewidth=1)
    panels[-1].set_xlabel("epoch")
    panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    return figure


def _by_epoch(metrics: pd.DataFrame, column: str) -> pd.Series:
    """Mean of a column by epoch, without the rows where it was not logged; empty when it never was."""
    if not {"epoch", column} <= set(metrics.columns):
        return pd.Series(dtype=float)
    return metrics.dropna(subset=["epoch", column]).groupby("epoch")[column].mean()
