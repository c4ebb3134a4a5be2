"""How near pairs of images are to each other, as an audit of a data set finds it."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from skinmtl.figures.fonts import unstyled
from skinmtl.figures.palette import BLUE, GREY, ORANGE
from skinmtl.figures.style import legend_above, panels_above


@unstyled
def features_in_place(within: NDArray[np.int64], across: NDArray[np.int64], least: int) -> Figure:
    """Pairs of images by how many local features lie in one place on both, on a logarithmic axis.

    Args:
        within: counts of pairs of one lesion, (N,).
        across: counts of pairs under two lesion ids, (M,).
        least: from how many on a pair passes for one lesion.
    """
    figure, axes = panels_above(1, 3.2)
    edges = list(range(0, int(max([least, *within, *across])) + 3, 2))
    for counts, name, colour in ((across, "two lesion ids", ORANGE), (within, "one lesion id", BLUE)):
        axes[0].hist(counts, bins=edges, histtype="step", color=colour, linewidth=1.5, label=name)
    axes[0].axvline(least, color=GREY, linestyle="--", linewidth=1)
    axes[0].set_yscale("symlog", linthresh=1)
    axes[0].set(xlabel="local features in one place on both", ylabel="pairs")
    legend_above(axes[0])
    return figure
