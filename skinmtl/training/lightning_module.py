"""How one step of training goes; it knows tasks, not what they are about."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any, Protocol

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torchmetrics import Metric

from skinmtl.balancing.gradients import Gradients, Sum, TaskGradients, cosine
from skinmtl.balancing.weighting import Weighting
from skinmtl.data.transforms import derive_seed
from skinmtl.distributed import collectives
from skinmtl.tasks.base import Task
from skinmtl.tasks.metrics import Means
from skinmtl.types import Batch, Logits

COSINE = "gradients/cosine"


class Schedule(Protocol):
    """What a schedule of `skinmtl.training.optim` offers."""

    by: str  # "step": stepped after every optimiser step; "score": after every validation

    def on(self, optimizer: Optimizer, total_steps: int, steps_per_epoch: int) -> Any:
        """The torch scheduler on this optimiser."""


class MultiTaskModule(pl.LightningModule):
    """Network, tasks and weighting, stepped together.

    Logs `stage/task/loss`, `stage/task/<score>` and `stage/score`, the mean of the tasks' scores, which selects the
    best checkpoint and stops a run early; `weight/<task>`, the mean over an epoch's steps of what the task's loss was
    multiplied by; `gradients/cosine`, between the tasks' gradients on the encoder; of more than two the
    mean, and that of each two. `gradients` None is their plain sum.
    `facts` are plain values that a checkpoint carries, so that it can be used without its run folder.
    """

    def __init__(
        self,
        network: nn.Module,
        tasks: Sequence[Task],
        weighting: Weighting,
        optimizer: Callable[..., Optimizer],
        schedule: Schedule,
        *,
        seed: int,
        total_steps: int,
        steps_per_epoch: int,
        facts: Mapping[str, Any],
        gradients: Gradients | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.tasks = nn.ModuleDict({task.name: task for task in tasks})
        self.metrics = nn.ModuleDict(
            {f"{stage}_metrics": nn.ModuleDict({t.name: t.metric() for t in tasks}) for stage in ("train", "val")}
        )
        # Of training what each task adds to the loss, then its loss; of validation its loss.
        self.means = nn.ModuleDict({"train_means": Means(2 * len(tasks)), "val_means": Means(len(tasks))})
        self.means["weights"] = Means(len(tasks))
        self.weighting = weighting
        self.gradients = gradients if gradients is not None and len(tasks) > 1 else Sum()
        self.gradients.check(len(tasks))
        # A network that trains one task, or the plain sum unwatched, may be of any make.
        self._by_task = TaskGradients(getattr(network, "encoder", network))
        self._terms: list[Tensor] = []
        self._epoch: tuple[dict[str, Tensor], dict[str, Tensor]] = {}, {}  # losses, and which are of labels
        self._optimizer, self._schedule = optimizer, schedule
        self._seed, self._total_steps, self.steps_per_epoch = seed, total_steps, steps_per_epoch
        self._facts = dict(facts)
        self._by_score: Any = None
        self._counts: list[dict[str, dict[str, Tensor]]] | None = None
        # Whether the last batch's losses were finite, in all processes and in this one. Asking would make a GPU wait.
        self.step_is_finite = self.own_loss_is_finite = torch.tensor(True)
        self.gradient_norm: Tensor | None = None  # before clipping, where a callback has looked at it

    def forward(self, image: Tensor) -> Logits:
        """Logits by task name, float32, for (B, 3, H, W) uint8 images."""
        # Ours give float32 as it is; one of somebody else's may give what autocast makes.
        return {name: values.float() for name, values in self.network(image).items()}

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        """Give the loss of a batch, a scalar, weighed over its tasks."""
        return self._step(batch, "train")

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        """Add a batch to the losses and scores of the validation."""
        self._step(batch, "val")

    def _step(self, batch: Batch, stage: str) -> Tensor:
        logits = self(batch["image"])
        losses: dict[str, Tensor] = {name: task(logits[name], batch) for name, task in self.tasks.items()}
        mass = torch.stack([task.mass(batch) for task in self.tasks.values()])  # type: ignore[operator]
        for name, task in self.tasks.items():
            task.count(self.metrics[f"{stage}_metrics"][name], logits[name].detach(), batch)  # type: ignore[index,operator]
        values = torch.stack(list(losses.values())).detach()
        if stage == "train":
            return self._weighed(losses, collectives.mean(mass), len(batch["index"]))
        self.means["val_means"].update(values, mass, torch.isfinite(values).all())  # type: ignore[operator]
        return values

    def _weighed(self, losses: dict[str, Tensor], mass: Tensor, count: int) -> Tensor:
        """The loss of a training step, from its tasks' losses and the mean (T,) mass of a process."""
        self.weighting.see(self._by_name(mass > 0))
        terms = self.gradients.weigh(self.weighting.terms(losses))
        loss = torch.stack(list(terms.values())).sum()
        values = torch.stack([loss, *terms.values(), *losses.values()]).detach()
        self.own_loss_is_finite = torch.isfinite(values).all()
        # Of the losses of several processes the mean is that of all their images; one by itself says nothing.
        total, added, own = collectives.mean(values).split([1, len(mass), len(mass)])  # type: ignore[no-untyped-call]
        self.step_is_finite = torch.isfinite(torch.cat([total, added, own])).all()
        finite = self.step_is_finite
        self.means["train_means"].update(torch.cat([added, own]), mass.repeat(2), finite)  # type: ignore[operator]
        self._terms, self._losses = list(terms.values()), (own, mass)  # for the backward pass
        self.means["weights"].update(self._weights(), torch.full_like(mass[0], count), finite)  # type: ignore[operator]
        self._log_step(torch.cat([total, own]))
        return loss

    def _by_name(self, values: Tensor) -> dict[str, Tensor]:
        """(T,) values by task name."""
        return dict(zip(self.tasks, values.unbind(), strict=True))

    def _weights(self) -> Tensor:
        """(T,) what each task's loss is multiplied by now."""
        now = self.weighting.weights()
        tensors = {name: torch.zeros((), device=self.device) + now[name] for name in self.tasks}
        return torch.stack(list(self.gradients.weigh(tensors).values()))

    def _log_step(self, values: Tensor) -> None:
        steps = dict(zip(self._loss_keys("step"), values, strict=True))
        steps["step/lr"] = torch.tensor(self.trainer.optimizers[0].param_groups[0]["lr"])
        self.log_dict(steps, on_step=True, on_epoch=False)

    def _log_means(self, stage: str) -> None:
        """Log an epoch's losses, each over the images of all processes that have its target, by their weights.

        The loss of a validation is what the tasks' losses of the whole epoch make together; that of training is the sum
        of what each has added to the steps' losses, in the mean.
        """
        mean: Means = self.means[f"{stage}_means"]  # type: ignore[assignment]
        (means, mass), tasks = mean.compute(), len(self.tasks)
        mean.reset()
        losses, seen = self._by_name(means[-tasks:]), self._by_name(mass[-tasks:] > 0)
        if stage == "train":
            self._epoch = losses, seen
            terms = means[:tasks]
        else:
            self.weighting.see(seen)
            terms = torch.stack(list(self.gradients.weigh(self.weighting.terms(losses)).values()))
        values = [terms.sum(), *losses.values()]
        self.log_dict(
            dict(zip(self._loss_keys(stage), values, strict=True)), on_step=False, on_epoch=True, batch_size=1
        )

    def _log_weights(self) -> None:
        """Log what the losses of an epoch's steps were multiplied by, in the mean."""
        mean: Means = self.means["weights"]  # type: ignore[assignment]
        keys = [f"weight/{name}" for name in self.tasks]
        means, _ = mean.compute()
        self.log_dict(dict(zip(keys, means, strict=True)), on_step=False, on_epoch=True, batch_size=1)
        mean.reset()

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
        """Seed dropout, weighting and gradients for this step, each by seed and step."""
        # Dropout is a function of (seed, step, rank), so a resumed run draws what an unbroken one draws.
        done = self.trainer.fit_loop.epoch_loop.batch_progress.total.processed  # type: ignore[attr-defined]
        torch.manual_seed(derive_seed(self._seed, done, self.global_rank))
        chance = derive_seed(self._seed, self.trainer.global_step)
        self.weighting.start_step(chance)
        self.gradients.start_step(chance)

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_index: int) -> None:
        """Log an epoch's mean losses and weights after its last batch."""
        if self.trainer.is_last_batch:
            self._log_means("train")
            self._log_weights()

    def on_train_epoch_end(self) -> None:
        """Log the training scores, and tell the weighting the epoch's losses."""
        self._log_scores("train")
        losses, seen = self._epoch
        self.weighting.see(seen)
        self.weighting.end_epoch(losses)

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """One backward pass, or one for each task where the method wants their gradients apart."""
        terms, self._terms = self._terms, []
        if self.gradients.apart:
            self._by_task.backward(loss, terms, *self._losses)
            return
        if self._looks():
            self._by_task.measure(loss, terms)
        super().backward(loss, *args, **kwargs)

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Any,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Lightning's step, with one gradient made of the tasks' own inside it: before unscaling and clipping."""

        def closure() -> Any:
            loss = optimizer_closure() if optimizer_closure is not None else None
            if self._by_task:
                self._combine()
            return loss

        super().optimizer_step(epoch, batch_idx, optimizer, closure)

    @torch.no_grad()
    def _combine(self) -> None:
        """Make one gradient of the tasks' own, after the last batch of a step and before float16 scales it back."""
        by_task, apart = self._by_task, self.gradients.apart
        by_task.average(list(self.parameters()) if apart else [])
        inner = by_task.inner()
        if self._looks() and (values := self._cosines(inner)):
            # Not by self.log, which writes only the rows that log_every_n_steps asks for.
            for logger in self.trainer.loggers:
                logger.log_metrics({**values, "epoch": self.current_epoch}, step=self.trainer.global_step)
        if apart:
            by_task.combine(self.gradients.combine(inner, by_task.losses()))
        by_task.forget()

    def _cosines(self, inner: Tensor) -> dict[str, float]:
        """The mean cosine between two tasks' gradients, and that of each two where there are more, by logged name.

        Two of which one is zero are left out.
        """
        names = list(self.tasks)
        each = {(i, j): cosine(inner, i, j) for i, j in combinations(range(len(names)), 2)}
        found = {f"{COSINE}/{names[i]}/{names[j]}": value for (i, j), value in each.items() if value is not None}
        if not found:
            return {}
        mean = {COSINE: sum(found.values()) / len(found)}
        return mean | found if len(each) > 1 else mean

    def hold(self, parameters: set[nn.Parameter]) -> None:
        """Leave these parameters of the encoder out when the tasks' gradients are compared: they take no step."""
        self._by_task.held = parameters

    def _looks(self) -> bool:
        """Whether this step is one whose cosine is logged."""
        every = self.gradients.cosine_every
        return every > 0 and len(self.tasks) > 1 and (self.trainer.global_step + 1) % every == 0

    def on_validation_epoch_start(self) -> None:
        """Share the first process's running statistics with the others."""
        # Each process keeps running statistics of its own images; those of the first are validated and saved.
        collectives.share(self.buffers())

    def on_validation_epoch_end(self) -> None:
        """Log the validation's losses and scores, and step a schedule that goes by the score."""
        self._log_means("val")
        score = self._log_scores("val")
        if self._by_score is not None and not self.trainer.sanity_checking:
            self._by_score.step(float(score))

    def _metrics(self) -> Iterator[tuple[str, Metric]]:
        return ((name, module) for name, module in self.named_modules() if isinstance(module, Metric))

    def configure_optimizers(self) -> Any:
        """Make the optimiser and its schedule; learned weights of losses have no weight decay."""
        own = [p for p in self.weighting.parameters() if p.requires_grad]
        known = {id(p) for p in own}
        groups: list[dict[str, Any]] = [
            {"params": [p for p in self.parameters() if p.requires_grad and id(p) not in known]}
        ]
        if own:  # decay would draw learned weights towards 1
            groups.append({"params": own, "weight_decay": 0.0})
        optimizer = self._optimizer(groups)
        scheduler = self._schedule.on(optimizer, self._total_steps, self.steps_per_epoch)
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
        """Clip the gradients by norm or by value, of fused optimisers too."""
        # Lightning refuses to clip for fused optimisers, for the sake of float16's scaler; without one it is safe.
        if not gradient_clip_val or self.trainer.scaler is not None:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        elif gradient_clip_algorithm == "value":
            nn.utils.clip_grad_value_(self.parameters(), gradient_clip_val)
        else:
            norm = self.gradient_norm
            if norm is None:
                nn.utils.clip_grad_norm_(self.parameters(), gradient_clip_val)
            else:  # which costs as much as the clipping
                nn.utils.clip_grads_with_norm_(self.parameters(), gradient_clip_val, norm)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the facts, what each process has counted of an unfinished epoch, and a schedule by score."""
        checkpoint["skinmtl"] = self._facts
        # What has been counted of an unfinished epoch, by each process for itself.
        checkpoint["counts"] = collectives.of_each(
            {name: {key: getattr(m, key).cpu().clone() for key in m._defaults} for name, m in self._metrics()}
        )
        if self._by_score is not None:
            checkpoint["by_score"] = self._by_score.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take what `on_save_checkpoint` added, to be put in its place by `on_fit_start`."""
        self._counts = checkpoint["counts"]
        if "by_score" in checkpoint:
            self._by_score_state = checkpoint["by_score"]

    def on_fit_start(self) -> None:
        """Put counts and schedule of a checkpoint in their places; leave averaging of gradients to `_combine`."""
        if self.gradients.apart and isinstance(self.trainer.model, DistributedDataParallel):
            # It would average what one backward pass leaves in `.grad`; `_combine` averages the tasks' gradients.
            self.trainer.model.require_backward_grad_sync = False
        if self._counts is not None:
            mine = self._counts[self.global_rank]
            for name, metric in self._metrics():
                for key, value in mine[name].items():
                    setattr(metric, key, value.to(self.device))
                metric._update_count = 1  # else it would warn that it has seen nothing
            self._counts = None
        state = self.__dict__.pop("_by_score_state", None)
        if state is not None and self._by_score is not None:
            self._by_score.load_state_dict(state)
