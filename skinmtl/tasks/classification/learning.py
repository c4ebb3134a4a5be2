"""Classification as it is learned: one of several classes for an image, from a column of the case table."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from skinmtl.config import schema
from skinmtl.errors import ConfigError
from skinmtl.tasks.base import Better, Task
from skinmtl.tasks.classification.prediction import ClassPrediction
from skinmtl.tasks.classification.scoring import ClassificationScoring
from skinmtl.tasks.metrics import Confusion
from skinmtl.types import Batch

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    from skinmtl.data.datamodule import DataModule

log = logging.getLogger(__name__)

DIAGNOSIS = "dx"  # the column that samplers draw by, and that every batch has


class Classification(Task):
    """The class of the largest probability, of those that a column of the case table names.

    `column` is `dx`, whose classes `diagnoses` may group, or any other column of text: its classes are the words in it,
    in the order of the alphabet. An image whose cell is blank trains the other tasks alone, and is not scored here.

    Args:
        column: of the case table, whose words are the classes.
    """

    score = "balanced_accuracy"
    logged: ClassVar[Mapping[str, Better]] = {"balanced_accuracy": "max", "accuracy": "max"}
    weighs_classes = True

    def __init__(self, column: str = DIAGNOSIS, *, name: str) -> None:
        super().__init__(name=name)
        if name == ClassificationScoring.plain and column != DIAGNOSIS:
            what = f"{name} is the diagnosis, whose columns in every table are called so, and {column} is another thing"
            raise ConfigError(
                f"task.{name}.column", what, f"add a task of another name, as conf/tasks does for {column}"
            )
        self.column = column

    @property
    def keys(self) -> tuple[str, ...]:
        """`dx`, which every batch has, or the task's own name."""
        return (DIAGNOSIS if self.column == DIAGNOSIS else self.name,)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, (K,)."""
        return tuple(self.facts["classes"])

    def learn(self, data: DataModule) -> None:
        """Take the names of the classes: every word that the column has, in whichever split."""
        if self.column == DIAGNOSIS:
            self.facts = {"classes": list(data.dx_classes)}
        else:
            self.facts = {"classes": sorted(set(self.cells(data.table).dropna().astype(str)))}

    def _of_before(self, kept: Mapping[str, Any]) -> dict[str, Any]:
        return {"classes": list(kept["dx_classes"])} if self.column == DIAGNOSIS else super()._of_before(kept)

    def target(self, table: pd.DataFrame) -> dict[str, NDArray[Any]]:
        """The index of each image's class, (N,) int64, -1 where missing; nothing for the diagnosis."""
        if self.column == DIAGNOSIS:
            return {}
        place = {name: index for index, name in enumerate(self.classes)}
        codes = [place.get(str(cell), -1) if known else -1 for cell, known in self._known(table)]
        return {self.name: np.array(codes, dtype=np.int64)}

    def _known(self, table: pd.DataFrame) -> Iterator[tuple[object, bool]]:
        cells = self.cells(table)
        return zip(cells, cells.notna(), strict=True)

    def faults(self, data: DataModule) -> Iterator[tuple[str, str]]:
        """As of any task; and images of one class, of which none can be told from another."""
        yield from super().faults(data)
        trained = self.cells(data.table).iloc[data.rows("train")].dropna().unique()
        if len(trained) == 1:
            what = f"every training image is {trained[0]}: with one {self._noun} there is nothing to tell apart"
            yield what, f"give images of others, or leave {self.name} out of tasks"

    def say(self, data: DataModule, class_weights: str) -> None:
        """Log the share of each class in an epoch, and what sampler and loss make of it."""
        judged = self.cells(data.table).iloc[data.rows("val")].dropna().unique()
        if len(judged) == 1:
            what = f"every validation image with a {self._noun} is %s: none can be told from another, and val balanced "
            what += "accuracy and val score do not measure that; more lesions or fewer folds give it others"
            log.warning(what, judged[0])
        shares = torch.tensor(data.class_shares(self.keys[0], len(self.classes)))
        log.info("%san epoch shows %s", self._of, _shares(self.classes, shares))
        log.info(
            "%sclass weights: %s%s",
            self._of,
            self.class_weights,
            " (class_weights=auto)" if class_weights == "auto" else "",
        )
        weight = getattr(self.loss, "weight", None)
        weighs = False if weight is None else bool((weight[shares > 0] != weight[shares > 0][0]).any())
        if weight is not None and weighs:
            log.info(
                "%sthe loss counts them as %s",
                self._of,
                _shares(self.classes, shares * weight / (shares * weight).sum()),
            )
        if self._is_rebalanced(data) and (weighs or getattr(self.loss, "rebalances", False)):
            fix = f"loss/{self.name}=cross_entropy" if self.class_weights == "none" else "class_weights=none"
            which = "loss" if self.class_weights == "none" else "class weights"
            what = "sampler and %s both bring up rare diagnoses; fix: sampler=shuffle, or %s"
            log.warning(what, which, fix)

    def class_counts(self, table: pd.DataFrame) -> dict[str, int]:
        """As of any task."""
        found = self.cells(table).dropna().astype(str).value_counts()
        return {name: int(found.get(name, 0)) for name in self.classes}

    def truth(self, case: Mapping[str, Any], shape: tuple[int, int], data: DataModule) -> str | None:
        """The name of the class."""
        cell = super().truth(case, shape, data)
        return None if cell is None else str(cell)

    @property
    def outputs(self) -> int:
        """One for each class."""
        return len(self.classes)

    def parts(self, head: nn.Module) -> Mapping[str, nn.Module]:
        """The head of the diagnosis by the name under which checkpoints know it."""
        return {"class_head": head} if self.column == DIAGNOSIS else super().parts(head)

    def loss_parts(self, data: DataModule, class_weights: str | None) -> dict[str, Any]:
        """How many training images each class has, and how far the loss brings up rare ones."""
        counts = data.class_counts(self.keys[0], len(self.classes))
        return {"class_counts": counts, "class_weights": class_weights}

    def class_weights_of(self, data: DataModule, loss: Callable[..., Any], asked: str) -> str:
        """As given; `auto` is sqrt for a loss that takes them, where neither it nor the sampler brings up rare ones."""
        takes = schema.is_given(loss, "class_weights")
        if asked != "auto":
            return asked if takes else "none"
        return "sqrt" if takes and not self._is_rebalanced(data) and not getattr(loss, "rebalances", False) else "none"

    def _is_rebalanced(self, data: DataModule) -> bool:
        return data.sampler.rebalances and self.column == DIAGNOSIS

    def labelled(self, batch: Batch) -> Tensor:
        """As of any task."""
        return batch[self.keys[0]] >= 0

    def seen(self, batch: Batch) -> Batch:
        """With the class under `dx`, where every loss of classes reads it."""
        return batch if self.column == DIAGNOSIS else {**batch, DIAGNOSIS: batch[self.name]}

    def metric(self) -> Confusion:
        """Counts of true and predicted classes."""
        return Confusion(len(self.classes))

    def count(self, metric: Confusion, logits: Tensor, batch: Batch) -> None:
        """As of any task."""
        has = self.labelled(batch)
        metric.update(logits[has].argmax(1), batch[self.keys[0]][has])

    def probabilities(self, logits: Tensor) -> Tensor:
        """(B, K), summing to one."""
        # In float64: rounding would make ties, and the official scorer counts a tie as wrong.
        return logits.double().softmax(1)

    def read(self, values: Tensor, shape: tuple[int, int]) -> ClassPrediction:
        """The probability of each class."""
        return ClassPrediction(dict(zip(self.classes, values.tolist(), strict=True)))

    def scoring(self) -> ClassificationScoring:
        """As of any task."""
        return ClassificationScoring(self.name, self.classes)

    @property
    def _noun(self) -> str:
        return "diagnosis" if self.column == DIAGNOSIS else self.column

    @property
    def _of(self) -> str:
        """What a line of the log begins with."""
        return "" if self.column == DIAGNOSIS else f"{self.name}: "

    def _where_to_get(self) -> str:
        return "give diagnoses" if self.column == DIAGNOSIS else super()._where_to_get()


def _shares(names: Sequence[str], shares: Tensor) -> str:
    return ", ".join(f"{name} {share:.1%}" for name, share in zip(names, shares.tolist(), strict=True))
