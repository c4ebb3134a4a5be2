"""Steps whose loss or gradient is not finite: skipped, counted, and after several in a row the end."""

from __future__ import annotations

import logging
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor, nn
from torch.optim import Optimizer

from skinmtl.distributed import collectives
from skinmtl.errors import Diverged
from skinmtl.terminal import first

log = logging.getLogger(__name__)


class Finite(Callback):
    """Skip a step whose loss or gradient is not finite, as if it had not been; stop after more than `most` in a row.

    All processes skip together, for they share their gradients. A step skipped leaves weights, optimiser and running
    statistics as they were; what float16's scaler skips while it looks for its scale is its own affair.

    Args:
        most: steps in a row that may be skipped.

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
        """Remember the rows of a batch, and at the first of a step what a forward pass changes."""
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self._finite, self._rows, self._sound = torch.tensor(True), [], []
            self._keep(pl_module)
        self._rows.append(batch["index"])

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note whether the losses of this batch were finite, here and in all processes."""
        self._finite = self._finite.to(pl_module.device) & pl_module.step_is_finite  # type: ignore[operator]
        self._sound.append(pl_module.own_loss_is_finite)  # type: ignore[arg-type]

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Skip a step that is not finite in some process: no gradient, and statistics as before.

        Leaves the norm of the gradients, a scalar before clipping, in the module's `gradient_norm`.

        Raises:
            Diverged: more than `most` steps in a row were skipped.
        """
        gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients) if gradients else torch.zeros(())
        pl_module.gradient_norm = norm
        finite, scaled = self._finite, trainer.scaler is not None
        (lost,) = collectives.any_of([not (finite if scaled else finite & torch.isfinite(norm))])
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
        where = f"epoch {trainer.current_epoch + 1}, step {trainer.global_step + 1}"
        norms = f"the training loss or its gradient (norm {float(norm):.3g}) is not finite"
        what = f"{norms}, of the images {first(names, 8)}"
        if self.skipped > self.most:
            fix = "lower optim.lr, or look at these images and their masks"
            raise Diverged(where, f"{what}; {self.most} steps in a row were skipped before", fix)
        log.warning("%s: %s: the step is skipped", where, what)

    def _blamed(self) -> list[int]:
        """Rows of the batches, of all processes, whose loss is not finite; of all batches where each is."""
        lost = [rows for rows, sound in zip(self._rows, self._sound, strict=True) if not sound]
        each = collectives.of_each([[row for rows in some for row in rows.tolist()] for some in (lost, self._rows)])
        return [row for some, _ in each for row in some] or [row for _, every in each for row in every]

    def state_dict(self) -> dict[str, Any]:
        """Give how many steps in a row were skipped."""
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take what `state_dict` gave."""
        self.skipped = state_dict["skipped"]
