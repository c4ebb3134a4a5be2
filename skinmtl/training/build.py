"""A checked config into what trains: data, module, trainer."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from pytorch_lightning.callbacks import LearningRateMonitor
from pytorch_lightning.profilers import Profiler

from skinmtl.config.build import build, value_of
from skinmtl.config.hardware import resolve_accelerator, resolve_precision
from skinmtl.config.run_config import RunConfig
from skinmtl.data.datamodule import DataModule
from skinmtl.distributed import collectives
from skinmtl.distributed.signals import Stop
from skinmtl.errors import ConfigError
from skinmtl.models.multitask_net import check_logits
from skinmtl.runs.checkpoints import SafeCheckpointIO
from skinmtl.runs.record import flat
from skinmtl.runs.redaction import shareable
from skinmtl.runs.run import Run
from skinmtl.tasks.base import Task
from skinmtl.tracking.wandb import WandB
from skinmtl.training.callbacks.metrics_csv import MetricsFile
from skinmtl.training.callbacks.nonfinite import Finite
from skinmtl.training.callbacks.progress import EpochLines
from skinmtl.training.callbacks.resumable import Resumable
from skinmtl.training.lightning_module import MultiTaskModule
from skinmtl.training.optim import with_rates
from skinmtl.training.tasks import build_tasks, columns, give_losses

log = logging.getLogger(__name__)


def devices_of(node: Mapping[str, Any]) -> list[str]:
    """The devices that a trainer's node stands for, `cuda:0` say; each gets a process of its own."""
    chosen = {**node, **_resolved(node)}
    quiet = {"logger": False, "enable_progress_bar": False, "plugins": [LightningEnvironment()]}
    trainer: pl.Trainer = build(chosen, **quiet)
    places = getattr(trainer.strategy, "parallel_devices", None) or [trainer.strategy.root_device]
    return [str(place) for place in places]


def _resolved(node: Mapping[str, Any]) -> dict[str, Any]:
    """What `auto` stands for on this machine, in a trainer's node."""
    precision, accelerator = (value_of(node, key) for key in ("precision", "accelerator"))
    accelerator = resolve_accelerator(accelerator)
    return {"accelerator": accelerator, "precision": resolve_precision(precision, accelerator)}


def build_data(config: RunConfig) -> DataModule:
    """Build the data of a checked config: generated where synthetic, split and cached, ready to train on."""
    parts = {"augment": build(config.augment), "sampler": build(config.sampler)}
    parts["columns"] = columns(build_tasks(config.task))
    data: DataModule = build(config.data, **parts, seed=config.seed)
    data.prepare_data()
    data.setup("fit")
    return data


def build_module(config: RunConfig, data: DataModule, tasks: Sequence[Task]) -> MultiTaskModule:
    """Network, losses and optimiser of a checked config, sized from the data, for its prepared tasks."""
    names = [task.name for task in tasks]
    give_losses(tasks, config.loss, data, config.class_weights)
    # Ours takes `outputs`; one of the user's own may ask for numbers instead.
    sizes = {"mask_classes": len(data.mask_classes), "dx_classes": len(data.dx_classes), "size": data.size}
    network = build(config.model, outputs=tasks, tasks=names, **sizes)
    check_logits(network, tasks, data.size)
    gradients = build(config.gradients, tasks=names)
    if (gradients.apart or gradients.cosine_every) and len(tasks) > 1 and not hasattr(network, "encoder"):
        what = f"{type(network).__name__} has no `encoder`, on which the tasks' gradients would be taken"
        raise ConfigError("gradients", what, "name the shared part so, or use gradients=none gradients.cosine_every=0")
    steps_per_epoch = _steps_per_epoch(config.trainer, len(data.train_dataloader()))
    _limited(config.trainer, "limit_val_batches", len(data.val_dataloader()))
    if config.optim.get("lr") == 0 and collectives.rank() == 0:
        log.warning("optim.lr=0: no weight will change; fix: give more, unless that is what is looked at")
    return MultiTaskModule(
        network.to(memory_format=torch.channels_last),
        tasks,
        build(config.weighting, tasks=names),
        with_rates(build(config.optim), network.rates() if hasattr(network, "rates") else {}),
        build(config.schedule),
        gradients=gradients,
        seed=config.seed,
        total_steps=steps_per_epoch * config.trainer["max_epochs"],
        steps_per_epoch=steps_per_epoch,
        facts={
            "tasks": names,
            "targets": {task.name: task.facts for task in tasks},
            "mask_classes": list(data.mask_classes),
            "dx_classes": list(data.dx_classes),
            "size": list(data.size),
            "split_hash": data.split_hash,
            "data_hash": data.data_hash,
            "fold": data.fold,
            "config": {key: shareable(key, value) for key, value in flat(config.recorded()).items()},
        },
    )


def _steps_per_epoch(trainer: Mapping[str, Any], batches: int) -> int:
    # Counted here and not by the trainer, which would build its loaders to know, and lose a resumed position.
    batches = _limited(trainer, "limit_train_batches", batches)
    return math.ceil(batches / (trainer.get("accumulate_grad_batches") or 1))  # the last group may be smaller


def _limited(trainer: Mapping[str, Any], key: str, batches: int) -> int:
    """How many of an epoch's batches a limit leaves, which is a number of them or a share.

    Raises:
        ConfigError: it leaves none.
    """
    limit = trainer.get(key)
    left = batches if limit is None else min(batches, limit) if isinstance(limit, int) else int(batches * limit)
    if batches and not left:
        raise ConfigError(f"trainer.{key}", f"{limit} of {batches} batches leaves none", "give more, or a whole number")
    return left


def build_trainer(
    config: RunConfig, here: Run, callbacks: list[pl.Callback], board: WandB | None, stop: Stop
) -> pl.Trainer:
    """Lightning's trainer with the config's callbacks and ours; metrics.csv and last.ckpt are always written."""
    chosen = [build(node) for node in config.callbacks.values() if node is not None]
    monitors = [callback for callback in chosen if isinstance(callback, LearningRateMonitor)]
    others = [callback for callback in chosen if callback not in monitors]
    first = collectives.rank() == 0
    metrics = MetricsFile(here.path / "metrics.csv" if first else None)
    loggers: list[Any] = [metrics, *([board] if board is not None else [])]
    resumable = Resumable(here.path / "checkpoints" / "last.ckpt", config.save_every, stop, metrics)
    node = config.trainer
    together = collectives.world_size() > 1
    node = {**node, **_resolved(node)}
    trainer: pl.Trainer = build(
        node if together else {**node, "strategy": "auto"},
        # What logs as a batch begins comes after the save of that moment: a resumed run logs it again.
        callbacks=[*others, EpochLines(), Finite(), *callbacks, resumable, *monitors],
        logger=loggers,
        # Its own environment: processes are started here, whatever a cluster's variables say.
        plugins=[SafeCheckpointIO(), LightningEnvironment()],
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        enable_model_summary=False,
        default_root_dir=str(here.path),
    )
    if node.get("profiler") is not None:
        profiler: Profiler = trainer.profiler  # type: ignore[attr-defined]
        profiler.dirpath, profiler.filename = here.path, "profile"  # else it would tell a log that nobody reads
        log.info("profile: %s, when training ends", here.path / "fit-profile.txt")
    return trainer
