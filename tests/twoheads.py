"""Two heads on one encoder, so small that a test trains them in a moment, and the trainer that does it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from kinds import classification, segmentation
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from skinmtl.balancing.gradients import Gradients
from skinmtl.balancing.weighting import Fixed, Weighting
from skinmtl.losses import BCE, CrossEntropy
from skinmtl.training.callbacks.metrics_csv import MetricsFile
from skinmtl.training.lightning_module import MultiTaskModule
from skinmtl.training.optim import Constant
from skinmtl.training.quiet import calm
from skinmtl.types import Batch, Logits

CLASSES = ("a", "b", "c")


class Still(nn.BatchNorm2d):
    """Batch normalisation as in evaluation, in training too."""

    def forward(self, input: Tensor) -> Tensor:
        return F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)


class TwoHeads(nn.Module):
    """A mask from each pixel's four features, a diagnosis from their mean."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.encoder = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), Still(4), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1))
        self.mask_head, self.class_head = nn.Conv2d(4, 1, 1), nn.Linear(4, len(CLASSES))
        self.to(memory_format=torch.channels_last)

    def forward(self, image: Tensor) -> Logits:
        features = self.encoder(image.float() / 64 - 2)
        return {
            "seg": self.mask_head(features).float(),
            "cls": self.class_head(features.mean((2, 3))).float(),
        }


class Batches:
    """Batches as they come, in the same order in every epoch."""

    def __init__(self, batches: Sequence[Batch]) -> None:
        self._batches = list(batches)

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        return iter(self._batches)


def images(count: int, seed: int = 0, masks: Sequence[int] = (1,), diagnoses: Sequence[int] = (1,)) -> Batch:
    """Noise of 8 x 8 pixels; `masks` and `diagnoses` say over and over which image has one."""
    draw = torch.Generator().manual_seed(seed)
    index = torch.arange(count)
    has_mask, has_dx = (torch.tensor(has, dtype=torch.bool)[index % len(has)] for has in (masks, diagnoses))
    dx = torch.randint(0, len(CLASSES), (count,), generator=draw)
    return Batch(
        image=torch.randint(0, 256, (count, 3, 8, 8), generator=draw, dtype=torch.uint8),
        mask=torch.randint(0, 2, (count, 8, 8), generator=draw, dtype=torch.uint8),
        has_mask=has_mask,
        dx=torch.where(has_dx, dx, -1),
        index=index,
    )


def cut(batch: Batch, start: int, stop: int) -> Batch:
    """Some images of a batch."""
    return {key: value[start:stop] for key, value in batch.items()}


def module(
    weighting: Weighting | None = None,
    gradients: Gradients | None = None,
    tasks: Sequence[str] = ("seg", "cls"),
    optimizer: Callable[..., Optimizer] | None = None,
) -> MultiTaskModule:
    both = {
        "seg": segmentation(BCE()),
        "cls": classification(CrossEntropy(class_counts=[1] * len(CLASSES)), CLASSES),
    }
    return MultiTaskModule(
        TwoHeads(),
        [both[task] for task in tasks],
        weighting or Fixed(),
        optimizer or partial(torch.optim.SGD, lr=0.1, momentum=0.9),
        Constant(),
        gradients=gradients,
        seed=0,
        total_steps=1,
        steps_per_epoch=1,
        facts={},
    )


def fit(
    one: MultiTaskModule,
    batches: Sequence[Batch],
    epochs: int = 1,
    metrics: Path | None = None,
    checkpoint: Path | None = None,
    **trainer: Any,  # noqa: ANN401
) -> pl.Trainer:
    """Train for some epochs over all batches; goes on from `checkpoint` where it is given.

    With limit_val_batches=1 it validates on the first batch.
    """
    quiet: dict[str, Any] = {f"enable_{name}": False for name in ("checkpointing", "progress_bar", "model_summary")}
    quiet["limit_val_batches"] = 0
    with calm():
        made = pl.Trainer(
            accelerator="cpu",
            max_epochs=epochs,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            logger=MetricsFile(metrics) if metrics is not None else False,
            **(quiet | trainer),
        )
        made.fit(one, Batches(batches), Batches(batches[:1]), ckpt_path=checkpoint, weights_only=checkpoint is not None)
    return made


def parameters(one: nn.Module) -> Tensor:
    """All parameters in a row."""
    return torch.cat([p.detach().flatten() for p in one.parameters()])
