"""The abstract task: what is learned from an image, from the column of a table to the answer for one image.

A task is one class, named by `_target_` in `conf/tasks/`, and its name there is the key of its loss, logits, weight and
scores everywhere. Nothing outside `skinmtl.tasks` and `conf/` knows any task's name or kind. Its other half, how rows
are written and scored, is the `skinmtl.tasks.scoring.Scoring` that it hands out, which knows no torch.

What becomes of a task, in this order:

1. `Task(<keys of its node>, name=...)` before any data are read;
2. `learn(data)` takes from the training images what it has to know (class names, say) into `facts`, plain values that a
   checkpoint keeps; whoever loads one sets `facts` instead;
3. `target(table)` gives the data module what its batches carry beside image, mask and diagnosis;
4. `head(body)` makes the last layers of the network, and `loss` is set to what `loss.<name>` of the config builds;
5. training calls it for its loss, and `count` for its scores;
6. `probabilities` and `read` turn logits into the answer for one image, `truth` finds what it should be; `scoring()`
   writes and judges them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import pandas as pd
import torch
from torch import Tensor, nn
from torchmetrics import Metric

from skinmtl.errors import InputError
from skinmtl.models.body import Body
from skinmtl.types import Batch

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from skinmtl.data.datamodule import DataModule
    from skinmtl.data.splits import Split
    from skinmtl.tasks.scoring import Scoring


Better = Literal["max", "min"]  # which end of a score is the better one


class Task(nn.Module, ABC):
    """One thing learned.

    Attributes:
        name: its key in `tasks`.
        column: of the case table, which says which images have the target; elsewhere its cell is missing. It is also
            what `data.shuffled` shuffles among the training images.
        facts: plain values taken from the training images, empty before `learn`.
        loss: `(logits, batch)` to a scalar, a mean over the samples that have the target.
        class_weights: what the config's key came to for this task; None where it has no classes.
        score: which of `logged` selects a checkpoint: in [0, 1], larger is better.
        logged: the scores that `metric()` computes, and which end of each is the better one.
        dense: whether its logits are a map of the image, (B, C, H, W), rather than a row of numbers, (B, C).
        mixes: whether its target can be that of two images by their shares, as `data.mixing` makes them.
        weighs_classes: whether the key class_weights is for it, too.
    """

    column: str
    score: ClassVar[str]
    logged: ClassVar[Mapping[str, Better]]
    dense: ClassVar[bool] = False
    mixes: ClassVar[bool] = True
    weighs_classes: ClassVar[bool] = False
    loss: nn.Module

    def __init__(self, *, name: str) -> None:
        super().__init__()
        self.name = name
        self.facts: dict[str, Any] = {}
        self.class_weights: str | None = None

    # ---- the data

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of a batch that hold the target. A key `<key>_other` is that of an image mixed in."""
        return (self.name,)

    @abstractmethod
    def learn(self, data: DataModule) -> None:
        """Set `facts` from the training images; the data module has read its table and its split."""

    def assume(self) -> None:
        """Set `facts` as any data may give them, for a dry run before there are data."""
        self.facts = {"classes": ["0", "1"]}

    def restore(self, kept: Mapping[str, Any]) -> None:
        """Set `facts` as a checkpoint keeps them.

        Args:
            kept: what the checkpoint has under `skinmtl`; of runs of before, without `targets`.
        """
        self.facts = dict(kept["targets"][self.name]) if "targets" in kept else self._of_before(kept)

    def _of_before(self, kept: Mapping[str, Any]) -> dict[str, Any]:
        """The facts that a checkpoint has which is older than this class of tasks."""
        raise InputError("checkpoint", f"it says nothing of task {self.name}", "restore the checkpoint and its config")

    def target(self, table: pd.DataFrame) -> dict[str, NDArray[Any]]:
        """The targets of a case table by batch key, each (N, ...) for N rows, with a value for what is missing.

        Empty for what every batch has: `mask` and `has_mask`, `dx`.
        """
        return {}

    def faults(self, data: DataModule) -> Iterator[tuple[str, str]]:
        """What keeps these data from training the task, and what to do: a pair of sentences each."""
        for split in self._splits():
            if self.cells(data.table).iloc[data.rows(split)].isna().all():
                what = f"no {split} image has a {self.column}, which task {self.name} needs"
                yield what, f"{self._where_to_get()}, or leave {self.name} out of tasks"

    def say(self, data: DataModule, class_weights: str) -> None:
        """Log what an epoch shows of the target, where there is anything to say.

        Args:
            data: the data module, ready to train on.
            class_weights: the config's key.
        """

    def cells(self, table: pd.DataFrame) -> pd.Series:
        """Its column of a case table, (N,).

        Raises:
            InputError: the table has no such column.
        """
        if self.column not in table:
            what = f"the table has no column {self.column}"
            raise InputError(f"tasks.{self.name}", what, f"it has {', '.join(map(str, table.columns))}")
        return table[self.column]

    def class_counts(self, table: pd.DataFrame) -> dict[str, int]:
        """Count the rows of a case table that each of its classes has, by name; empty without classes."""
        return {}

    def truth(self, case: Mapping[str, Any], shape: tuple[int, int], data: DataModule) -> Any:  # noqa: ANN401 -- each kind has its own
        """The target of one image as its scoring compares it with what `read` gives; None where it is missing.

        Args:
            case: a row of the case table.
            shape: height and width of the image as it is, in pixels.
            data: the data module whose row it is.
        """
        value = case.get(self.column)
        return None if pd.isna(value) else value

    # ---- the network

    @property
    @abstractmethod
    def outputs(self) -> int:
        """How many logits it needs of an image, or of each pixel where it is dense."""

    def head(self, body: Body) -> nn.Module:
        """The layers between the encoder's features and its logits, called with (features, mask).

        A dense task's is called with all feature maps, the coarsest last, another's with the coarsest alone. Heads of
        dense tasks come first; `mask` is the float32 logits of the first of them, None where there is none.
        """
        return body.decoder(self.outputs) if self.dense else body.pooled(self.outputs)

    def parts(self, head: nn.Module) -> Mapping[str, nn.Module]:
        """The head's modules by the names under which the network keeps them, and a checkpoint their weights."""
        return {f"{self.name}_head": head}

    # ---- the loss

    def loss_parts(self, data: DataModule, class_weights: str | None) -> dict[str, Any]:
        """What its loss is built with, by the names of constructor arguments."""
        return {}

    def class_weights_of(self, data: DataModule, loss: Callable[..., Any], asked: str) -> str | None:
        """What the config's `class_weights` comes to for the constructor of its loss; None where there are no classes.

        Raises:
            ConfigError: they are asked for and the loss takes none.
        """
        return None

    @abstractmethod
    def labelled(self, batch: Batch) -> Tensor:
        """Which samples have the target, (B,) bool."""

    def seen(self, batch: Batch) -> Batch:
        """The batch as the loss sees it, with the target under the key that losses of this kind read."""
        return batch

    def forward(self, logits: Tensor, batch: Batch) -> Tensor:
        """The task's loss, a scalar; where images were mixed, that of both targets by their shares."""
        return self._of_both(batch, lambda one: self.loss(logits, self.seen(one)))

    def mass(self, batch: Batch) -> Tensor:
        """What the task's loss of a batch is divided by, a scalar: how many samples have the target, or their weights.

        Means of batches, each times its mass, add up to that of an epoch. Weights are those that the loss gives by a
        method `sample_weights`, (B,) for a batch; a loss without one counts each sample once.
        """
        return self._of_both(batch, self._mass)

    def _mass(self, batch: Batch) -> Tensor:
        has = self.labelled(batch)
        weigh = getattr(self.loss, "sample_weights", None)
        return has.float().sum() if weigh is None else torch.where(has, weigh(self.seen(batch)), 0.0).sum()

    def _of_both(self, batch: Batch, take: Callable[[Batch], Tensor]) -> Tensor:
        """What `take` gives of a batch; where images were mixed, that of both targets by their shares."""
        own: Tensor = take(batch)
        others = {key: batch[f"{key}_other"] for key in self.keys if f"{key}_other" in batch}
        if not others:
            return own
        other: Tensor = take({**batch, **others})
        return batch["share"] * own + (1 - batch["share"]) * other

    # ---- scores while training

    @abstractmethod
    def metric(self) -> Metric:
        """A fresh counter; its `compute()` gives `logged` by name."""

    @abstractmethod
    def count(self, metric: Any, logits: Tensor, batch: Batch) -> None:  # noqa: ANN401
        """Add one batch to a counter; samples without the target are left out."""

    # ---- the answer

    @abstractmethod
    def probabilities(self, logits: Tensor) -> Tensor:
        """What is averaged over an image's mirrored views, at least float32, of the same shape as the logits."""

    @abstractmethod
    def read(self, values: Tensor, shape: tuple[int, int]) -> Any:  # noqa: ANN401
        """The answer for one image: an object with attributes, of plain values and arrays.

        Args:
            values: the mean of `probabilities` over the views, (C,), or (C, H, W) at the network's size.
            shape: height and width of the image as it is, in pixels.
        """

    @abstractmethod
    def scoring(self) -> Scoring:
        """How its rows are written and scored; needs `facts`."""

    # ----

    def _splits(self) -> tuple[Split, ...]:
        return ("train", "val", "test")

    def _where_to_get(self) -> str:
        """What to do for targets, as the beginning of a sentence."""
        return f"give the table a column {self.column}"
