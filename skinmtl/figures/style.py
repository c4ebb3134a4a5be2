"""The look of every figure: colours told apart with any kind of colour vision, panels, how files are written.

Figures are five inches wide, so that their ten-point text stays readable on a phone.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from skinmtl.figures.fonts import letter, unstyled
from skinmtl.figures.palette import CLASS_COLOURS
from skinmtl.files import write_bytes

MARKERS = "osD^vPX"
Dash = str | tuple[float, tuple[float, ...]]
WIDTH = 5.0  # inches


@unstyled
def save(figure: Figure, path: Path, stamp: str = "") -> Path:
    """Write a figure as .svg, .png or .jpg (images: a tenth of the bytes); same figure, same bytes.

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


def panels_above(
    n: int, height: float, sharex: bool = False, height_ratios: Sequence[float] | None = None
) -> tuple[Figure, list[Axes]]:
    """A figure with n axes above one another. Not through pyplot, which keeps every figure in a global list."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    FigureCanvasAgg(figure)
    panels = list(figure.subplots(n, 1, sharex=sharex, squeeze=False, height_ratios=height_ratios)[:, 0])
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
    return figure, panels


def legend_above(axes: Axes) -> None:
    """Put the legend above the axes, where there is anything in it."""
    if axes.get_legend_handles_labels()[1]:
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False, borderpad=0, handlelength=1.6)


def rgb(colour: str) -> tuple[int, int, int]:
    """Red, green and blue, 0 to 255, of a colour such as "#E69F00"."""
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def cycle(values: Sequence[str], times: int = 100) -> list[str]:
    """The values again and again."""
    return list(values) * times


def markers() -> list[str]:
    """A marker for each point, another one each time that the colours begin again: 49 pairs of the two."""
    n = len(MARKERS)
    return [MARKERS[(place + place // n) % n] for place in range(n * n)] * 3


def wrapped(text: str, width: int = 24) -> str:
    """The text broken at commas and spaces so that no line is much longer than `width`."""
    lines = [""]
    for word in text.replace(",", ", ").split():
        if lines[-1] and len(lines[-1]) + len(word) >= width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)
