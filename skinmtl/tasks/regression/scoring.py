"""How a regression is scored: errors of its numbers, in the unit of the column."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from skinmtl.runs.predictions import VALUE, Fault, measure
from skinmtl.tasks.resampling import Floats, Score, mean, quantiles, ratio
from skinmtl.tasks.scoring import Chart, Description, Metric, Scoring, Shown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from skinmtl.tasks.regression.prediction import ValuePrediction

OF_UNIT = ("mean_absolute_error", "median_absolute_error", "root_mean_squared_error", "bias")


class Numbers(NamedTuple):
    """True and predicted numbers of N images; the true one is not a number where it is missing."""

    true: Floats
    predicted: Floats

    @property
    def error(self) -> Floats:
        """Predicted minus true, (N,)."""
        return self.predicted - self.true


def _root_mean_squared(n: Numbers) -> Score:
    squares = mean(n.error**2)
    of = squares.of
    return squares if of is None else replace(squares, of=lambda s: np.sqrt(of(s)))


def _explained(n: Numbers) -> Score:
    """R2: the share of the true numbers' variance that is explained, one minus squared errors over squared spread."""
    known = np.isfinite(n.true)
    if not known.any():
        return Score((), None, "undefined: no image has a true number")
    true = np.where(known, n.true - n.true[known].mean(), 0)  # of any origin; from this one little is lost by rounding
    columns = np.stack([known.astype(float), true, true**2, np.where(known, n.error, 0) ** 2])

    def of(s: Floats) -> Floats:
        count, total, squares, errors = s
        spread = squares - ratio(total**2, count)
        return 1 - ratio(errors, np.where(spread > 1e-9 * squares, spread, 0))

    return Score((columns,), of, "undefined: all true numbers are the same")


class RegressionScoring(Scoring):
    """Numbers: how far they are from the true ones.

    Args:
        name: the task's.
        unit: of its numbers, for people; nothing where they have none.
    """

    nouns = ("number", "numbers")
    short = "closeness"
    curves = {"closeness": "closeness"}
    subgroups = {"mean_absolute_error": "mean absolute error"}
    metrics: dict[str, Metric] = {
        "mean_absolute_error": Metric(
            "Mean absolute error", lambda n: mean(np.abs(n.error)), headline=0, lower_is_better=True
        ),
        "median_absolute_error": Metric(
            "Median absolute error",
            lambda n: quantiles(np.abs(n.error), (0.5,))[0],
            compared=False,
            lower_is_better=True,
        ),
        "root_mean_squared_error": Metric(
            "Root mean squared error", _root_mean_squared, compared=False, lower_is_better=True
        ),
        "r2": Metric("R², share of the variance explained", _explained),
        "bias": Metric("Bias, mean of predicted minus true", lambda n: mean(n.error), compared=False),
    }
    charts = {
        "scatter": Chart(
            "Predicted against true numbers. {n} On the dotted line they agree; the solid line is the mean of the "
            "predicted numbers of images with like true ones.",
            2,
        )
    }
    how_to_read = (
        "Mean absolute error: how far a predicted number is from the true one, on average. Bias: above 0 where numbers "
        "are predicted too high. R² is 1 without errors, 0 for always saying the mean, and below 0 for worse.",
    )

    def __init__(self, name: str, unit: str = "", title: str | None = None) -> None:
        super().__init__(name, title)
        self.unit = unit

    def arguments(self) -> dict[str, Any]:
        """Give what the constructor was given, as plain values."""
        return {"name": self.name, "unit": self.unit, "title": self.title}

    @classmethod
    def found_in(cls, columns: Sequence[str]) -> list[Scoring]:
        """Find the regressions that columns of a table are of."""
        ends = f"_true{VALUE}", f"_predicted{VALUE}"
        names = [name.removesuffix(ends[0]) for name in columns if name.endswith(ends[0])]
        return [cls(name) for name in names if f"{name}{ends[1]}" in columns]

    def describe(self) -> Description:
        """What scores.json says of the task, the unit in the labels."""
        said = super().describe()
        unit = f", {self.unit}" if self.unit else ""
        return replace(said, labels={n: f"{label}{unit if n in OF_UNIT else ''}" for n, label in said.labels.items()})

    # --- its rows

    @property
    def truth(self) -> str:
        """The column of the true number."""
        return self.column(f"true{VALUE}")

    @property
    def answer(self) -> str:
        """The column of the predicted number."""
        return self.column(f"predicted{VALUE}")

    def row(self, prediction: ValuePrediction, truth: float | None) -> dict[str, Any]:
        """Give the true and the predicted number."""
        return {self.truth: np.nan if truth is None else truth, self.answer: prediction.value}

    def is_in(self, table: pd.DataFrame) -> bool:
        """Whether the table has predicted numbers."""
        return self.answer in table

    def needed(self, table: pd.DataFrame) -> list[str]:
        """The true number beside the predicted one."""
        return [self.truth] if self.is_in(table) else []

    def numbers(self, table: pd.DataFrame) -> list[str]:
        """Both columns."""
        return [name for name in (self.truth, self.answer) if name in table]

    def faults(self, table: pd.DataFrame) -> Iterator[Fault]:
        """Numbers that are none."""
        if not self.is_in(table):
            return
        true, predicted = measure(table, self.truth), measure(table, self.answer)
        yield f"{self.truth} is infinite", np.isinf(true), "write a number, or leave the cell blank"
        yield f"{self.answer} is not a number", ~np.isfinite(predicted), "look at the model that made it"

    def left_out(self, table: pd.DataFrame) -> Iterator[str]:
        """Images whose true number is missing."""
        if self.is_in(table) and (blank := int(table[self.truth].isna().sum())):
            yield f"{blank} of {len(table)} images have no {self.name}, and count in no score of it"

    # --- its scores

    def read(self, table: pd.DataFrame) -> Numbers:
        """True and predicted numbers."""
        return Numbers(measure(table, self.truth), measure(table, self.answer))

    # --- figures

    def figures(self, test: pd.DataFrame, shown: Callable[[pd.DataFrame], Iterable[Shown]]) -> dict[str, Figure]:
        """Predicted numbers against true ones."""
        from skinmtl.tasks.regression.figures import scatter

        if not self.is_in(test):
            return {}
        known = test[self.known(test)]
        name = f"{self.title}, {self.unit}" if self.unit else self.title
        return {self.column("scatter"): scatter(*self.read(known), name)}

    def words(self, row: Mapping[str, Any]) -> list[str]:
        """The true number, and the predicted one."""
        if self.answer not in row:
            return []
        true, predicted = row[self.truth], row[self.answer]
        return [*([f"{self.name} {true:.4g}"] if np.isfinite(true) else []), f"as {predicted:.4g}"]

    # --- what `skinmtl predict` writes

    def predicted(self) -> list[str]:
        """The number."""
        return [self.answer]

    def write(self, prediction: ValuePrediction, image: NDArray[np.uint8], stem: str, out: Path) -> dict[str, object]:
        """Give the number; nothing is written."""
        return {self.answer: prediction.value}
