"""A task of a kind of its own: several yes/no attributes of an image, from a column that lists those that it has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import Metric as Counter

from skinmtl.losses import mean_over_labelled
from skinmtl.tasks.base import Better, Task
from skinmtl.tasks.resampling import mean
from skinmtl.tasks.scoring import Metric, Scoring
from skinmtl.types import Batch

if TYPE_CHECKING:
    from skinmtl.data.datamodule import DataModule

SEPARATOR = ";"  # between the attributes in a cell


def words(cell: object) -> list[str]:
    """The attributes that a cell lists."""
    return [word.strip() for word in str(cell).split(SEPARATOR) if word.strip()]


# --- what is learned --------------------------------------------------------------------------------------------------


class Attributes(Task):
    """Which attributes an image has, each yes or no.

    Args:
        column: of the table; a cell lists the attributes, separated by semicolons; a blank cell is missing.
        name: the task's.
    """

    score = "mean_accuracy"  # chooses the checkpoint: in [0, 1], larger is better
    logged: ClassVar[Mapping[str, Better]] = {"mean_accuracy": "max"}

    def __init__(self, column: str, *, name: str) -> None:
        super().__init__(name=name)
        self.column = column

    def learn(self, data: DataModule) -> None:
        """Take the attributes that occur: plain values, which a checkpoint keeps."""
        cells = self.cells(data.table).dropna()
        self.facts = {"names": sorted({word for cell in cells for word in words(cell)})}

    def assume(self) -> None:
        """Give facts for a dry run before there are data."""
        self.facts = {"names": ["a", "b"]}

    def target(self, table: pd.DataFrame) -> dict[str, NDArray[Any]]:
        """(N, A) float32: 1 where an image has an attribute, 0 where not, NaN where nobody knows."""
        cells = self.cells(table)
        rows = [[float(name in words(cell)) for name in self.facts["names"]] for cell in cells]
        target = np.array(rows, dtype=np.float32).reshape(len(cells), self.outputs)
        target[cells.isna()] = np.nan
        return {self.name: target}

    @property
    def outputs(self) -> int:
        """Logits of an image: one for each attribute."""
        return len(self.facts["names"])

    def labelled(self, batch: Batch) -> Tensor:
        """Which samples have the target, (B,) bool."""
        return torch.isfinite(batch[self.name]).all(1)

    def seen(self, batch: Batch) -> Batch:
        """The batch with the target under the key that the loss reads."""
        return {**batch, "attributes": batch[self.name]}

    def metric(self) -> Counter:
        """A fresh counter of right answers."""
        return RightAnswers()

    def count(self, metric: RightAnswers, logits: Tensor, batch: Batch) -> None:
        """Add the samples of a batch that have the target."""
        has = self.labelled(batch)
        metric.update((logits[has] > 0) == (batch[self.name][has] > 0.5))

    def probabilities(self, logits: Tensor) -> Tensor:
        """(B, A), each in [0, 1]."""
        return logits.double().sigmoid()

    def read(self, values: Tensor, shape: tuple[int, int]) -> AttributePrediction:
        """The answer for one image."""
        return AttributePrediction(dict(zip(self.facts["names"], values.tolist(), strict=True)))

    def scoring(self) -> AttributeScoring:
        """How rows are written and scored."""
        return AttributeScoring(self.name, self.facts["names"])


@dataclass(frozen=True)
class AttributePrediction:
    """The probability of each attribute, by name."""

    attributes: dict[str, float]


class YesNo(nn.Module):
    """Binary cross-entropy of each attribute, mean over them, then over the images that have the target."""

    def forward(self, logits: Tensor, batch: Batch) -> Tensor:
        """Scalar, from (B, A) logits."""
        target = batch["attributes"]
        has = torch.isfinite(target).all(1)
        losses = F.binary_cross_entropy_with_logits(logits, target.nan_to_num().to(logits.dtype), reduction="none")
        return mean_over_labelled(losses.mean(1), has)


class RightAnswers(Counter):
    """The share of right answers, added up over batches and processes."""

    right: Tensor
    answers: Tensor
    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        for name in ("right", "answers"):
            self.add_state(name, torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, is_right: Tensor) -> None:
        """Count (B, A) answers."""
        self.right += is_right.sum()
        self.answers += is_right.numel()

    def compute(self) -> dict[str, Tensor]:
        """Give the scores of `Attributes.logged`."""
        return {"mean_accuracy": self.right / self.answers.clamp(min=1)}


# --- how it is scored: NumPy and pandas alone -------------------------------------------------------------------------


class AttributeScoring(Scoring):
    """Attributes: the mean over images of the share of right answers.

    Args:
        name: the task's.
        names: the attributes.
    """

    metrics: Mapping[str, Metric] = {
        "mean_accuracy": Metric("Accuracy, mean over attributes", lambda one: mean(one.right.mean(1)), headline=0),
        "mean_brier": Metric(
            "Brier score, mean over attributes", lambda one: mean(one.squares.mean(1)), lower_is_better=True
        ),
    }

    def __init__(self, name: str, names: Sequence[str]) -> None:
        super().__init__(name)
        self.names = tuple(names)

    def arguments(self) -> dict[str, Any]:
        """What it was made of, as plain values, for scores.json."""
        return {"name": self.name, "names": list(self.names)}

    @property
    def truth(self) -> str:
        """The column that is blank where the target is missing."""
        return self.column("true")

    def predicted(self) -> list[str]:
        """The columns of the answers, in predictions of new images, too."""
        return [self.column(f"{name}_value") for name in self.names]  # by their ending they are read as numbers

    def row(self, prediction: AttributePrediction, truth: str | None) -> dict[str, Any]:
        """Columns of one image in predictions.csv."""
        return {self.truth: truth} | self._answers(prediction)

    def write(self, prediction: AttributePrediction, image: NDArray[np.uint8], stem: str, out: Path) -> dict[str, Any]:
        """Columns of one new image in what `skinmtl predict` writes."""
        return self._answers(prediction)

    def _answers(self, prediction: AttributePrediction) -> dict[str, Any]:
        return dict(zip(self.predicted(), prediction.attributes.values(), strict=True))

    def is_in(self, table: pd.DataFrame) -> bool:
        """Whether a table has the task's columns."""
        return set(self.predicted()) <= set(table)

    def needed(self, table: pd.DataFrame) -> list[str]:
        """The columns without which nothing can be scored."""
        return [self.truth, *self.predicted()]

    def numbers(self, table: pd.DataFrame) -> list[str]:
        """The columns that are numbers."""
        return self.predicted()

    def read(self, table: pd.DataFrame) -> Answers:
        """What the metrics are functions of."""
        cells = table[self.truth]
        true = np.array([[float(name in words(cell)) for name in self.names] for cell in cells], dtype=np.float64)
        true[cells.isna().to_numpy()] = np.nan
        return Answers(true, table[self.predicted()].to_numpy(dtype=np.float64))


@dataclass(frozen=True)
class Answers:
    """True attributes, NaN where missing, and their probabilities, both (N, A)."""

    true: NDArray[np.float64]
    p: NDArray[np.float64]

    @property
    def right(self) -> NDArray[np.float64]:
        """(N, A), 1 where an answer is right, NaN where the target is missing."""
        return np.where(np.isnan(self.true), np.nan, (self.p > 0.5) == (self.true > 0.5))

    @property
    def squares(self) -> NDArray[np.float64]:
        """(N, A) squared errors."""
        return (self.p - self.true) ** 2
