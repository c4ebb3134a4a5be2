"""Time and steps: what training took, and the number of its steps."""

from __future__ import annotations

import time
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from skinmtl.errors import ConfigError


class Clock(Callback):
    """Time training steps with their loading, validation left out: seconds, images, images per second.

    Args:
        skip: how many batches at first are not timed: kernels are chosen and workers start there.
    """

    def __init__(self, skip: int = 5) -> None:
        self._skip = skip
        self.seconds, self.images = 0.0, 0
        self._last: float | None = None

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add the time since the last batch ended, and the images of all processes."""
        if self._skip:
            self._skip -= 1
        elif self._last is not None:
            self.seconds += time.perf_counter() - self._last
            self.images += len(batch["index"]) * trainer.world_size
        self._last = None if self._skip else time.perf_counter()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave the time of a validation out."""
        self._last = None

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin to measure where an epoch begins."""
        # Between epochs lies the validation; within, loading and stepping are one time.
        self._last = None if self._skip else time.perf_counter()

    @property
    def images_per_second(self) -> float | None:
        """Give the rate so far, of all processes together; None before anything was timed."""
        return self.images / self.seconds if self.seconds else None


class Steps(Callback):
    """Hold an epoch to as many steps as the learning rate's schedule counts on, which another callback may change.

    Args:
        per_epoch: how many optimiser steps that is.

    Raises:
        ConfigError: after the first epoch that took another number.
    """

    def __init__(self, per_epoch: int) -> None:
        self.per_epoch = per_epoch
        self._before: int | None = None  # unknown of an epoch that is resumed within

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remember how many optimiser steps were taken before the epoch."""
        self._before = trainer.global_step

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Refuse an epoch that took another number of steps; one that was resumed within is not judged."""
        if self._before is None or trainer.global_step - self._before == self.per_epoch:
            return
        took = trainer.global_step - self._before
        what = f"epoch {trainer.current_epoch + 1} took {took} steps, but the schedule counts on {self.per_epoch}"
        fix = (
            "let no callback stop a run within an epoch or change what a step is; +trainer.accumulate_grad_batches may"
        )
        raise ConfigError("callbacks", what, fix)
