"""How one step of training goes; it knows tasks, not what they are about."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from skinmtl import ranks
from skinmtl.data.transforms import mix
from skinmtl.metrics import Means
from skinmtl.tasks import Task
from skinmtl.types import Batch, Logits


class Schedule(Protocol):
    """What a schedule of `skinmtl.optim` offers."""

    by: str  # "step": stepped after every optimiser step; "score": after every validation

    def on(self, optimizer: Optimizer, total_steps: int, steps_per_epoch: int) -> Any:
        """The torch scheduler on this optimiser."""


class MultiTaskModule(pl.LightningModule):
    """Network, tasks and weighting, stepped together.

    Logs `stage/task/loss`, `stage/task/<score>` and `stage/score`, the mean of the tasks' scores, which selects the
    best checkpoint and stops a run early. `facts` are plain values that a checkpoint carries, so that it can be used
    without its run folder.
    """

    def __init__(
        self,
        network: nn.Module,
        tasks: Sequence[Task],
        weighting: nn.Module,
        optimizer: Callable[..., Optimizer],
        schedule: Schedule,
        *,
        seed: int,
        total_steps: int,
        steps_per_epoch: int,
        facts: Mapping[str, Any],
    ) -> None:
        super().__init__()
        self.network = network
        self.tasks = nn.ModuleDict({task.name: task for task in tasks})
        self.metrics = nn.ModuleDict(
            {f"{stage}_metrics": nn.ModuleDict({t.name: t.metric() for t in tasks}) for stage in ("train", "val")}
        )
        self.means = nn.ModuleDict({f"{stage}_means": Means(1 + len(tasks)) for stage in ("train", "val")})
        self.weighting = weighting
        self._optimizer, self._schedule = optimizer, schedule
        self._seed, self._total_steps, self._steps_per_epoch = seed, total_steps, steps_per_epoch
        self._facts = dict(facts)
        self._by_score: Any = None

    def forward(self, image: Tensor) -> Logits:
        """Logits by task name, float32, for (B, 3, H, W) uint8 photographs."""
        logits: Logits = self.network(image)
        return logits

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        return self._step(batch, "train")

    def validation_step(self, batch: Batch, batch_index: int) -> Tensor:
        return self._step(batch, "val")

    def _step(self, batch: Batch, stage: str) -> Tensor:
        logits = self(batch["image"])
        losses: dict[str, Tensor] = {name: task(logits[name], batch) for name, task in self.tasks.items()}
        loss: Tensor = self.weighting(losses)
        for name, task in self.tasks.items():
            task.count(self.metrics[f"{stage}_metrics"][name], logits[name].detach(), batch)  # type: ignore[index,operator]
        values = torch.stack([loss, *losses.values()]).detach()
        self.means[f"{stage}_means"].update(values, len(batch["index"]))  # type: ignore[operator]
        if stage == "train":
            self._log_step(values)
        return loss

    def _log_step(self, values: Tensor) -> None:
        # Of the losses of several processes the mean is that of all their photographs; one by itself says nothing.
        steps = dict(zip(self._loss_keys("step"), ranks.mean(values), strict=True))
        steps["step/lr"] = torch.tensor(self.trainer.optimizers[0].param_groups[0]["lr"])
        self.log_dict(steps, on_step=True, on_epoch=False)

    def _log_means(self, stage: str) -> None:
        """Log an epoch's losses over all photographs of all processes."""
        mean: Means = self.means[f"{stage}_means"]  # type: ignore[assignment]
        means = dict(zip(self._loss_keys(stage), mean.compute(), strict=True))
        mean.reset()
        self.log_dict(means, on_step=False, on_epoch=True, batch_size=1)

    def _loss_keys(self, stage: str) -> list[str]:
        return [f"{stage}/loss", *(f"{stage}/{name}/loss" for name in self.tasks)]

    def _log_scores(self, stage: str) -> Tensor:
        scores = []
        for name, task in self.tasks.items():
            metric = self.metrics[f"{stage}_metrics"][name]  # type: ignore[index]
            values: dict[str, Tensor] = metric.compute()
            metric.reset()
            self.log_dict({f"{stage}/{name}/{key}": value for key, value in values.items()})
            scores.append(values[task.score])  # type: ignore[index]
        score = torch.stack(scores).mean()
        self.log(f"{stage}/score", score)
        return score

    def on_train_batch_start(self, batch: Batch, batch_index: int) -> None:
        # Dropout is a function of (seed, step, rank), so a resumed run draws what an unbroken one draws.
        torch.manual_seed(mix(self._seed, self.trainer.fit_loop.total_batch_idx, self.global_rank))

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_index: int) -> None:
        if self.trainer.is_last_batch:
            self._log_means("train")

    def on_train_epoch_end(self) -> None:
        self._log_scores("train")

    def on_validation_epoch_start(self) -> None:
        # Each process keeps running statistics of its own photographs; those of the first are validated and saved.
        ranks.share(self.buffers())

    def on_validation_epoch_end(self) -> None:
        self._log_means("val")
        score = self._log_scores("val")
        if self._by_score is not None and not self.trainer.sanity_checking:
            self._by_score.step(float(score))

    def configure_optimizers(self) -> Any:
        optimizer = self._optimizer([p for p in self.parameters() if p.requires_grad])
        scheduler = self._schedule.on(optimizer, self._total_steps, self._steps_per_epoch)
        if self._schedule.by == "score":
            # Stepped here and saved below: Lightning's own stepping of a plateau does not resume to the same values.
            self._by_score = scheduler
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        # Lightning refuses to clip for fused optimisers, for the sake of float16's scaler; without one it is safe.
        if gradient_clip_val and self.trainer.scaler is None and gradient_clip_algorithm in (None, "norm"):
            nn.utils.clip_grad_norm_(self.parameters(), gradient_clip_val)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["skinmtl"] = self._facts
        if self._by_score is not None:
            checkpoint["by_score"] = self._by_score.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if "by_score" in checkpoint:
            self._by_score_state = checkpoint["by_score"]

    def on_fit_start(self) -> None:
        state = self.__dict__.pop("_by_score_state", None)
        if state is not None and self._by_score is not None:
            self._by_score.load_state_dict(state)
