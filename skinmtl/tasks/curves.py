"""The training curves of a run, with lines for what each of its tasks logs."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure

from skinmtl.figures.palette import BLACK, GREEN, ORANGE, PURPLE, SKY
from skinmtl.figures.training import Line, curves
from skinmtl.tasks.scoring import Scoring

DASHES = ("-", ":", "--", "-.")
FURTHER = (GREEN, PURPLE, ORANGE, SKY, BLACK)  # colours of tasks that have none of their own


def training_curves(metrics: pd.DataFrame, scorings: Sequence[Scoring], keep: str = "best") -> Figure:
    """Loss, validation scores and weights of losses over epochs; see `figures.training.curves`.

    Args:
        metrics: what the run logged.
        scorings: its tasks.
        keep: which epoch's weights it kept, `best` or `last`.
    """
    scores: dict[str, Line] = {}
    weights: dict[str, Line] = {}
    for scoring, colour in colours_of(scorings):
        before = f"{scoring.name}: " if scoring.prefix else ""
        for (score, label), dash in zip(scoring.curves.items(), DASHES, strict=False):
            scores[f"{before}{label}"] = Line(f"val/{scoring.name}/{score}", colour, dash)
        weights[scoring.noun[0]] = Line(f"weight/{scoring.name}", colour, "-")
    return curves(metrics, scores, weights, keep)


def colours_of(scorings: Sequence[Scoring]) -> list[tuple[Scoring, str]]:
    """Each task with the colour of its lines: its own, unless a task before has it."""
    taken: set[str] = set()
    found = []
    for scoring in scorings:
        own = None if scoring.prefix else scoring.colour
        colour = own or next((colour for colour in FURTHER if colour not in taken), FURTHER[-1])
        taken.add(colour)
        found.append((scoring, colour))
    return found
