"""Progress of a training on the terminal: a bar, and a line per epoch."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ProgressBar
from rich.console import Console

from skinmtl.tasks.base import Task
from skinmtl.terminal import bar


class EpochLines(ProgressBar):
    """Print one line per epoch with every task's validation score, and a moving bar within the epoch on a terminal."""

    def __init__(self) -> None:
        super().__init__()
        self._console = Console(stderr=True, highlight=False)
        self._bar = ExitStack()  # holds what is open of it
        self._step: Callable[[int], None] | None = None
        self._enabled = True
        self._start = 0.0
        self._validated = False

    def disable(self) -> None:
        """Print nothing from now on."""
        self._enabled = False

    def enable(self) -> None:
        """Print again."""
        self._enabled = True

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin to measure the epoch's time."""
        self._start = time.perf_counter()  # of a run that is resumed within an epoch

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Open the bar of an epoch."""
        self._start = time.perf_counter()
        self._open(trainer, f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}", self.total_train_batches)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the bar."""
        if self._step is not None:
            self._step(batch_idx + 1)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Close the bar, and remember that this epoch has scores of its own."""
        self._close()
        self._validated = True

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print the epoch's line, in the first process alone."""
        self._close()
        if not self._enabled or not trainer.is_global_zero:
            return
        seen = {key: float(value) for key, value in trainer.callback_metrics.items()}
        words = [f"epoch {trainer.current_epoch + 1:>3}/{trainer.max_epochs}"]
        # Of an epoch without a validation Lightning still has the scores of the one before.
        tasks = getattr(pl_module, "tasks", {}).values()
        labels = _labels(seen, [task for task in tasks if isinstance(task, Task)])
        shown = {key: label for key, label in labels.items() if self._validated or key.startswith("train/")}
        words += [f"{label} {seen[key]:.3f}" for key, label in shown.items()]
        self._validated = False
        words.append(f"{time.perf_counter() - self._start:.0f} s")
        words += ["LEAKY"] if getattr(trainer.datamodule, "leaky", False) else []  # type: ignore[attr-defined]
        self._console.print("  ".join(words), soft_wrap=True)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Close the bar."""
        self._close()

    def _open(self, trainer: pl.Trainer, words: str, total: float) -> None:
        if self._enabled and trainer.is_global_zero and sys.stderr.isatty():
            self._step = self._bar.enter_context(bar(words, None if total == float("inf") else int(total)))

    def _close(self) -> None:
        self._bar.close()
        self._step = None


def _labels(metrics: Mapping[str, float], tasks: Iterable[Task]) -> dict[str, str]:
    """Give the logged scores that the line shows, in order, with their words."""
    words = {"train/loss": "loss", "val/loss": "val loss"}
    for task in tasks:
        scoring = task.scoring()
        before = f"{task.name} " if scoring.prefix else ""
        words[f"val/{task.name}/{task.score}"] = f"val {before}{scoring.short or task.score.replace('_', ' ')}"
    words["val/score"] = "val score"
    return {key: label for key, label in words.items() if key in metrics}
