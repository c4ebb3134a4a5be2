"""Figures of a regression: predicted numbers against true ones."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from skinmtl.figures.fonts import unstyled
from skinmtl.figures.palette import BLUE, GREY, SKY
from skinmtl.figures.style import WIDTH, legend_above, panels_above

GROUPS = 10  # of images with like true numbers, whose predicted ones have a mean


@unstyled
def scatter(true: NDArray[np.float64], predicted: NDArray[np.float64], name: str) -> Figure:
    """Predicted numbers over true ones, a dot for each image, and the mean of the predicted ones along the axis.

    Args:
        true: (N,) finite.
        predicted: (N,) finite.
        name: of the numbers, with their unit.
    """
    figure, (axes,) = panels_above(1, WIDTH)
    axes.plot(true, predicted, "o", color=SKY, markersize=3, alpha=0.6, markeredgewidth=0, label="image")
    if len(true):
        ends = [float(min(true.min(), predicted.min())), float(max(true.max(), predicted.max()))]
        axes.plot(ends, ends, color=GREY, linestyle=":", linewidth=1, label="agreement")
        edges = np.unique(np.quantile(true, np.linspace(0, 1, GROUPS + 1)))
        which = np.clip(np.searchsorted(edges, true, side="right") - 1, 0, max(0, len(edges) - 2))
        groups = np.unique(which)
        means = [[values[which == group].mean() for group in groups] for values in (true, predicted)]
        axes.plot(*means, color=BLUE, marker="o", markersize=4, linewidth=1.4, label="mean of images with like numbers")
    axes.set(xlabel=f"true: {name} (n = {len(true)})", ylabel="predicted")
    legend_above(axes)
    return figure
