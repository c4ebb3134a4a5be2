"""The checkpoint from which a stopped run is resumed as if it had never been stopped."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from skinmtl.distributed import collectives
from skinmtl.distributed.signals import Stop
from skinmtl.training.callbacks.metrics_csv import MetricsFile

log = logging.getLogger(__name__)


class Resumable(Callback):
    """Save `last.ckpt`: where an epoch but the first begins, every `minutes`, when asked to stop, and at the end.

    It is saved between two optimiser steps, as the next one begins: within a group of batches whose gradients are added
    up these would be lost, and where a validation is due Lightning would leave it out. A validation that is asked to
    stop ends at once; the run is then resumed from the last save.

    Args:
        path: of `last.ckpt`.
        minutes: between two saves within an epoch.
        stop: hears what asks the run to stop.
        metrics: metrics.csv, which is cut back to where the checkpoint stands.

    Raises:
        KeyboardInterrupt: after the save that was asked for.
    """

    def __init__(self, path: Path, minutes: float, stop: Stop, metrics: MetricsFile) -> None:
        self._path, self._seconds, self._stop, self._metrics = path, minutes * 60, stop, metrics
        self._saved, self._saving = time.monotonic(), False
        self._rows: int | None = None
        self._early = False  # whether the last epoch was the last by early stopping

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Hear stops, cut metrics.csv back to the checkpoint, and say where a run is resumed."""
        self._stop.hear()  # Lightning has taken SIGTERM
        self._stop.looked_for, self._saved = True, time.monotonic()
        self._metrics.cut(self._rows or 0)  # a run that was never saved begins again
        if self._rows is not None:
            # Lightning counts the batch that was about to begin twice.
            total = trainer.fit_loop.epoch_loop.batch_progress.total
            total.ready = total.started = total.completed  # type: ignore[attr-defined]
            if trainer.is_global_zero:
                place = trainer.current_epoch + 1, trainer.max_epochs, trainer.global_step
                log.info("resuming in epoch %d of %d, after step %d of the run", *place)
        trainer.should_stop = self._early

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Save where it is time, or asked for, between two optimiser steps.

        Raises:
            KeyboardInterrupt: after the save that was asked for.
        """
        if batch_idx % trainer.accumulate_grad_batches:
            return
        begins = batch_idx == 0 and trainer.current_epoch > 0
        late = time.monotonic() - self._saved >= self._seconds
        asked, due = collectives.any_of([self._stop.asked, begins or late])
        if asked or due:
            self._save(trainer)
        if asked:
            raise KeyboardInterrupt

    def on_validation_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        """End a validation that is asked to stop, by KeyboardInterrupt."""
        # Processes may have unlike numbers of batches here, so nobody waits for the others' word.
        if self._stop.asked:
            raise KeyboardInterrupt

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the end, and honour a stop since the last batch, by KeyboardInterrupt."""
        self._save(trainer)
        self._stop.looked_for = False
        if self._stop.asked:  # since the last batch
            raise KeyboardInterrupt

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Look for stops no more."""
        self._stop.looked_for = False

    def _save(self, trainer: pl.Trainer) -> None:
        self._saving, self._early = True, trainer.should_stop
        try:
            trainer.save_checkpoint(self._path)
        finally:
            self._saving, self._saved = False, time.monotonic()

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Correct the count of steps that a restart within an epoch would have one too many of."""
        loop = trainer.fit_loop.epoch_loop
        # A restart within an epoch counts one more step for the loggers than there was, unless gradients are added up.
        if self._saving and trainer.training and not loop._should_accumulate():
            checkpoint["loops"]["fit_loop"]["epoch_loop.state_dict"]["_batches_that_stepped"] -= 1

    def state_dict(self) -> dict[str, Any]:
        """Give where metrics.csv stands, and whether the run was stopped early."""
        return {"rows": self._metrics.rows, "early": self._early}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take what `state_dict` gave."""
        self._rows, self._early = state_dict["rows"], state_dict["early"]
