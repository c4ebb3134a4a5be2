"""Around the steps: metrics file, lines on the terminal, clock, what is skipped or held still, best checkpoint."""

from __future__ import annotations

import csv
import logging
import secrets
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import pytorch_lightning as pl
import torch
from annotated_types import Ge
from pytorch_lightning.callbacks import Callback, ModelCheckpoint, ProgressBar
from pytorch_lightning.loggers.logger import Logger
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.optim import Optimizer

from skinmtl import ranks
from skinmtl.errors import ConfigError, Diverged, InputError

log = logging.getLogger(__name__)


class MetricsFile(Logger):
    """metrics.csv: one row per call of the trainer's log, a column per name, whatever other loggers run.

    A new name adds a column: the file is then written again, whole. Cells that were not logged are empty. Of several
    processes all but the first give no path, and nothing is written. A file that is there is gone on with.
    """

    def __init__(self, path: Path | None) -> None:
        super().__init__()
        self.path = path
        self.rows = 0
        self._columns: list[str] = []
        if path is not None and path.exists():
            try:
                with path.open(newline="", encoding="utf-8") as file:
                    lines = csv.reader(file)
                    self._columns = next(lines, [])
                    self.rows = sum(1 for _ in lines)
            except (ValueError, csv.Error):
                self._columns = ["?"]
            if self._columns[:2] not in ([], ["step", "time"]):
                raise InputError(str(path), "not the metrics of a run", "restore it, or delete it: no score needs it")

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> int:
        return 0

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """The config stands in .hydra/config.yaml; nothing to do."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append one row; `epoch` is counted from 0, `step` in optimiser steps."""
        if self.path is None:
            return
        row = {"step": step, "time": round(time.time(), 3)} | dict(metrics)
        new = [name for name in row if name not in self._columns]
        if new:
            self._columns += new
            self._widen(self.path)
        with self.path.open("a", encoding="utf-8", newline="") as file:
            csv.DictWriter(file, self._columns).writerow(row)
        self.rows += 1

    def cut(self, rows: int) -> None:
        """Keep so many rows: what came after them is trained again."""
        if self.path is not None and self.rows > rows:
            self._write(self.path, self._read(self.path)[:rows])
            self.rows = rows

    def _widen(self, path: Path) -> None:
        self._write(path, self._read(path) if path.exists() else [])

    def _read(self, path: Path) -> list[dict[str, str]]:
        with path.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))

    def _write(self, path: Path, rows: list[dict[str, str]]) -> None:
        temp = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        with temp.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, self._columns)
            writer.writeheader()
            writer.writerows(rows)
        temp.replace(path)


class EpochLines(ProgressBar):
    """One line per epoch with every task's validation score, and a moving bar within the epoch on a terminal."""

    def __init__(self) -> None:
        super().__init__()
        self._console = Console(stderr=True, highlight=False)
        self._bar: Progress | None = None
        self._enabled = True
        self._start = 0.0
        self._validated = False

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._start = time.perf_counter()  # of a run that goes on within an epoch

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._start = time.perf_counter()
        self._open(trainer, f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}", self.total_train_batches)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        if self._bar is not None:
            self._bar.advance(self._bar.task_ids[0])

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._close()
        self._validated = True

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._close()
        if not self._enabled or not trainer.is_global_zero:
            return
        seen = {key: float(value) for key, value in trainer.callback_metrics.items()}
        words = [f"epoch {trainer.current_epoch + 1:>3}/{trainer.max_epochs}"]
        # Of an epoch without a validation Lightning still has the scores of the one before.
        shown = {key: label for key, label in _labels(seen).items() if self._validated or key.startswith("train/")}
        words += [f"{label} {seen[key]:.3f}" for key, label in shown.items()]
        self._validated = False
        words.append(f"{time.perf_counter() - self._start:.0f} s")
        words += ["LEAKY"] if getattr(trainer.datamodule, "leaky", False) else []  # type: ignore[attr-defined]
        self._console.print("  ".join(words), soft_wrap=True)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._close()

    def _open(self, trainer: pl.Trainer, words: str, total: float) -> None:
        if self._enabled and trainer.is_global_zero and sys.stderr.isatty():
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, console=self._console, transient=True)
            self._bar.add_task(words, total=None if total == float("inf") else int(total))
            self._bar.start()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _labels(metrics: Mapping[str, float]) -> dict[str, str]:
    """The logged scores that the line shows, in order, with their words."""
    words = {
        "train/loss": "loss",
        "val/loss": "val loss",
        "val/seg/mean_image_dice": "val Dice",
        "val/cls/balanced_accuracy": "val balanced accuracy",
        "val/score": "val score",
    }
    return {key: label for key, label in words.items() if key in metrics}


class Clock(Callback):
    """Seconds in training steps with their loading, validation left out; images per second.

    The first `skip` batches of a fit are not timed: kernels are chosen and workers start there.
    """

    def __init__(self, skip: int = 5) -> None:
        self._skip = skip
        self.seconds, self.images = 0.0, 0
        self._last: float | None = None

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._skip:
            self._skip -= 1
        elif self._last is not None:
            self.seconds += time.perf_counter() - self._last
            self.images += len(batch["index"]) * trainer.world_size
        self._last = None if self._skip else time.perf_counter()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._last = None

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Between epochs lies the validation; within, loading and stepping are one time.
        self._last = None if self._skip else time.perf_counter()

    @property
    def images_per_second(self) -> float | None:
        return self.images / self.seconds if self.seconds else None


class Steps(Callback):
    """Hold an epoch to as many steps as the learning rate's schedule counts on, which another callback may change.

    Raises:
        ConfigError: after the first epoch that took another number.
    """

    def __init__(self, per_epoch: int) -> None:
        self.per_epoch = per_epoch
        self._before: int | None = None  # unknown of an epoch that is gone on with

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._before = trainer.global_step

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._before is None or trainer.global_step - self._before == self.per_epoch:
            return
        took = trainer.global_step - self._before
        what = f"epoch {trainer.current_epoch + 1} took {took} steps, but the schedule counts on {self.per_epoch}"
        fix = (
            "let no callback stop a run within an epoch or change what a step is; +trainer.accumulate_grad_batches may"
        )
        raise ConfigError("callbacks", what, fix)


class Finite(Callback):
    """Skip a step whose loss or gradient is not finite, as if it had not been; stop after more than `most` in a row.

    All processes skip together, for they share their gradients. A step skipped leaves weights, optimiser and running
    statistics as they were; what float16's scaler skips while it looks for its scale is its own affair.

    Raises:
        Diverged: with the image ids of the batches.
    """

    def __init__(self, most: int = 3) -> None:
        self.most, self.skipped = most, 0
        self._finite = torch.tensor(True)  # the losses of the batches whose gradients are added up
        self._rows: list[Tensor] = []  # of the table, of each batch whose gradients are added up
        self._sound: list[Tensor] = []  # whether its loss is finite in this process
        self._before: list[Tensor] = []

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self._finite, self._rows, self._sound = torch.tensor(True), [], []
            self._keep(pl_module)
        self._rows.append(batch["index"])

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._finite = self._finite.to(pl_module.device) & pl_module.step_is_finite  # type: ignore[operator]
        self._sound.append(pl_module.own_loss_is_finite)  # type: ignore[arg-type]

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients) if gradients else torch.zeros(())
        pl_module.gradient_norm = norm
        finite, scaled = self._finite, trainer.scaler is not None
        (lost,) = ranks.any_of([not (finite if scaled else finite & torch.isfinite(norm))])
        if not lost:
            self.skipped = 0
            return
        self.skipped += 1
        self._put_back(pl_module)
        for parameter in () if scaled else pl_module.parameters():
            parameter.grad = None  # an optimiser passes over what has none
        self._say(trainer, norm)

    def _keep(self, module: pl.LightningModule) -> None:
        """Remember running statistics and kept weights of losses, which a forward pass changes."""
        now = [buffer for buffer in module.buffers() if buffer.is_floating_point()]
        if len(now) != len(self._before):
            self._before = [buffer.clone() for buffer in now]
        elif now:
            torch._foreach_copy_(self._before, now)

    def _put_back(self, module: pl.LightningModule) -> None:
        now = [buffer for buffer in module.buffers() if buffer.is_floating_point()]
        for buffer, before in zip(now, self._before, strict=True):
            buffer.copy_(before)

    def _say(self, trainer: pl.Trainer, norm: Tensor) -> None:
        table = trainer.datamodule.table  # type: ignore[attr-defined]
        names = table["image_id"].iloc[self._blamed()].tolist()
        shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
        where = f"epoch {trainer.current_epoch + 1}, step {trainer.global_step + 1}"
        what = f"the training loss or its gradient (norm {float(norm):.3g}) is not finite, of the photographs {shown}"
        if self.skipped > self.most:
            fix = "lower optim.lr, or look at these photographs and their masks"
            raise Diverged(where, f"{what}; {self.most} steps in a row were skipped before", fix)
        log.warning("%s: %s: the step is skipped", where, what)

    def _blamed(self) -> list[int]:
        """Rows of the batches, of all processes, whose loss is not finite; of all batches where each is."""
        lost = [rows for rows, sound in zip(self._rows, self._sound, strict=True) if not sound]
        each = ranks.of_each([[row for rows in some for row in rows.tolist()] for some in (lost, self._rows)])
        return [row for some, _ in each for row in some] or [row for _, every in each for row in every]

    def state_dict(self) -> dict[str, Any]:
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.skipped = state_dict["skipped"]


class Freeze(Callback):
    """Hold the encoder still: all of it for the first `encoder_epochs` epochs, its batch normalisation throughout.

    A frozen encoder takes no step, not even of weight decay, and works as in evaluation: batch normalisation by the
    running statistics, which do not move, no dropout. With `batch_norm` its batch normalisation stays so, scales and
    shifts included, after the rest has been let go.

    What is held follows from the epoch alone, so a resumed run goes on as an unbroken one.
    """

    def __init__(self, encoder_epochs: Annotated[int, Ge(0)] = 0, batch_norm: bool = False) -> None:
        self.encoder_epochs, self.batch_norm = encoder_epochs, batch_norm
        self._learning: list[nn.Parameter] = []
        self._held: list[nn.Parameter] = []

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # The optimiser has its parameters by now, those that are let go later among them.
        if self.encoder_epochs or self.batch_norm:
            self._learning = [p for p in _encoder(pl_module).parameters() if p.requires_grad]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # A run that goes on within an epoch is not told that one starts.
        self.on_train_epoch_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not (self.encoder_epochs or self.batch_norm):
            return
        encoder = _encoder(pl_module)
        still: list[nn.Module] = [encoder]
        if trainer.current_epoch >= self.encoder_epochs:
            norms = (layer for layer in encoder.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm))
            still = list(norms) if self.batch_norm else []
        encoder.train()
        for part in still:
            part.eval()
        held = {parameter for part in still for parameter in part.parameters()}
        self._held = [parameter for parameter in self._learning if parameter in held]
        pl_module.hold(held)  # type: ignore[operator]
        for parameter in self._learning:
            # Alone, a held parameter costs no backward pass. Several processes wait for the gradient of each.
            parameter.requires_grad_(parameter not in held or trainer.world_size > 1)

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        for parameter in self._held:
            parameter.grad = None


def _encoder(module: pl.LightningModule) -> nn.Module:
    encoder = getattr(module.network, "encoder", None)
    if not isinstance(encoder, nn.Module):
        what = f"{type(module.network).__name__} has no `encoder` to hold still"
        raise ConfigError("callbacks.freeze", what, "name it so, or set encoder_epochs to 0 and batch_norm to false")
    return encoder


class Best(ModelCheckpoint):
    """`best.ckpt` in `folder`, which is evaluated and used: that of the best validation.

    With `keep` last it is that of the latest epoch: several runs are then compared at one number of steps, and
    validation chooses nothing. It holds weights and facts alone: a run goes on from `last.ckpt`.
    """

    SCORE = "val/score"
    TRAINING = (
        *("optimizer_states", "lr_schedulers", "callbacks", "loops", "counts"),
        *("current_model_state", "averaging_state"),
    )

    def __init__(self, folder: Path, keep: Literal["best", "last"] = "best") -> None:
        self._latest: float | None = None
        self._saving = False
        super().__init__(
            dirpath=folder,
            filename="best",
            monitor=self.SCORE if keep == "best" else "epoch",
            mode="max",
            save_top_k=1,
            save_on_train_epoch_end=True,
            enable_version_counter=False,
            auto_insert_metric_name=False,
        )

    @property
    def score(self) -> float | None:
        """The validation score of `best.ckpt`, or the last one there was; None before the first validation."""
        if self.monitor == self.SCORE:
            return None if self.best_model_score is None else float(self.best_model_score)
        return self._latest

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save where the score is better than before."""
        scores = self._monitor_candidates(trainer)
        if self.SCORE in scores:
            self._latest = float(scores[self.SCORE])
        if self.monitor in scores:  # not before the first validation, where not every epoch has one
            super().on_train_epoch_end(trainer, pl_module)

    def _save_checkpoint(self, trainer: pl.Trainer, filepath: str) -> None:
        self._saving = True
        try:
            super()._save_checkpoint(trainer, filepath)
        finally:
            self._saving = False

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        # Lightning asks this kind of callback last, so averaged weights are in their place.
        for key in self.TRAINING if self._saving else ():
            checkpoint.pop(key, None)

    def state_dict(self) -> dict[str, Any]:
        # Checkpoints are passed on, and a folder may be moved: names alone.
        state = super().state_dict()
        return state | self._placed(state, lambda path: Path(path).name) | {"dirpath": "", "latest": self._latest}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._latest = state_dict["latest"]
        # Of other folders than its own Lightning forgets which checkpoint was best, and takes the next for better.
        here = self._placed(state_dict, lambda path: str(Path(str(self.dirpath)) / Path(path).name))
        super().load_state_dict(state_dict | here | {"dirpath": str(self.dirpath)})

    @staticmethod
    def _placed(state: Mapping[str, Any], place: Callable[[str], str]) -> dict[str, Any]:
        """What of a state is paths, each in its place; no path stays none."""
        keys = ("best_model_path", "last_model_path", "kth_best_model_path")
        paths = {key: place(state[key]) if state[key] else "" for key in keys}
        return paths | {"best_k_models": {place(path): score for path, score in state["best_k_models"].items()}}
