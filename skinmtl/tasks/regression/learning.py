"""Regression as it is learned: a number for an image, from a column of the case table."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from skinmtl.errors import InputError
from skinmtl.tasks.base import Better, Task
from skinmtl.tasks.metrics import AbsoluteError
from skinmtl.tasks.regression.prediction import ValuePrediction
from skinmtl.tasks.regression.scoring import RegressionScoring
from skinmtl.types import Batch

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from skinmtl.data.datamodule import DataModule

log = logging.getLogger(__name__)


class Regression(Task):
    """A number, in the `unit` of its column.

    The network learns it less its mean and over its standard deviation among the training images, so that its loss is
    of the size of the others'. An image whose cell is blank trains the other tasks alone, and is not scored here.

    The score that selects a checkpoint is `closeness`, 1 / (1 + e / s) with e the mean absolute error and s that of
    always saying the training images' median: 1/2 for that, 1 for no error, and always above 0.

    Args:
        column: of the case table, which holds the numbers.
        unit: of the numbers, for reports.
    """

    score = "closeness"
    logged: ClassVar[Mapping[str, Better]] = {"closeness": "max", "mean_absolute_error": "min"}

    def __init__(self, column: str, unit: str = "", *, name: str) -> None:
        super().__init__(name=name)
        self.column, self.unit = column, unit

    def learn(self, data: DataModule) -> None:
        """Take mean, standard deviation and mean absolute deviation of the training images."""
        values = self._numbers(data.table)[data.rows("train")]
        values = values[np.isfinite(values)]
        spread = float(np.abs(values - np.median(values)).mean()) if len(values) else 0.0
        self.facts = {
            "mean": float(values.mean()) if len(values) else 0.0,
            "deviation": float(values.std()) if spread else 1.0,
            "spread": spread or 1.0,
            "labelled": len(values),
        }

    def assume(self) -> None:
        """As of any task."""
        self.facts = {"mean": 0.0, "deviation": 1.0, "spread": 1.0, "labelled": 0}

    def target(self, table: pd.DataFrame) -> dict[str, NDArray[Any]]:
        """The numbers, (N,) float32, NaN where missing."""
        return {self.name: self._numbers(table).astype(np.float32)}

    def _numbers(self, table: pd.DataFrame) -> NDArray[np.float64]:
        cells = self.cells(table)
        numbers = pd.to_numeric(cells, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
        odd = cells.notna().to_numpy() & ~np.isfinite(numbers)
        if odd.any():
            what = f"{int(odd.sum())} cells of the column {self.column} are no number, such as {cells[odd].iloc[0]!r}"
            raise InputError(f"tasks.{self.name}", what, "mend them, leave them blank, or name another column")
        return numbers

    def faults(self, data: DataModule) -> Iterator[tuple[str, str]]:
        """As of any task; and images of one value, from which nothing can be learned."""
        yield from super().faults(data)
        trained = np.unique(self._numbers(data.table)[data.rows("train")])
        if len(trained[np.isfinite(trained)]) == 1:
            what = f"every training image with a {self.column} has {trained[0]:g}: there is nothing to learn"
            yield what, f"give images of others, or leave {self.name} out of tasks"

    def say(self, data: DataModule, class_weights: str) -> None:
        """Log what the numbers are like."""
        facts, count = self.facts, len(data.rows("train"))
        of = f"{facts['mean']:.4g}, standard deviation {facts['deviation']:.3g} {self.unit}".rstrip()
        log.info("%s: mean %s, of %s of %s training images", self.name, of, f"{facts['labelled']:,}", f"{count:,}")

    def truth(self, case: Mapping[str, Any], shape: tuple[int, int], data: DataModule) -> float | None:
        """The number."""
        cell = super().truth(case, shape, data)
        return None if cell is None else float(cell)

    @property
    def outputs(self) -> int:
        """One."""
        return 1

    def labelled(self, batch: Batch) -> Tensor:
        """As of any task."""
        return torch.isfinite(batch[self.name])

    def seen(self, batch: Batch) -> Batch:
        """With the number under `value`, as the network learns it."""
        return {**batch, "value": (batch[self.name] - self.facts["mean"]) / self.facts["deviation"]}

    def metric(self) -> AbsoluteError:
        """Sums of absolute errors."""
        return AbsoluteError(self.facts["spread"])

    def count(self, metric: AbsoluteError, logits: Tensor, batch: Batch) -> None:
        """As of any task."""
        has = self.labelled(batch)
        metric.update(self.probabilities(logits)[has, 0], batch[self.name][has])

    def probabilities(self, logits: Tensor) -> Tensor:
        """(B, 1) float64 numbers, in the column's unit."""
        return logits.double() * float(self.facts["deviation"]) + float(self.facts["mean"])

    def read(self, values: Tensor, shape: tuple[int, int]) -> ValuePrediction:
        """The number."""
        return ValuePrediction(float(values[0]))

    def scoring(self) -> RegressionScoring:
        """As of any task."""
        return RegressionScoring(self.name, self.unit)
