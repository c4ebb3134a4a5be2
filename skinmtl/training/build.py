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
from torch import nn

from skinmtl.config import schema
from skinmtl.config.build import build, value_of
from skinmtl.config.hardware import resolve_accelerator, resolve_precision
from skinmtl.config.run_config import RunConfig
from skinmtl.data.datamodule import DataModule
from skinmtl.data.splits import SPLITS
from skinmtl.distributed import collectives
from skinmtl.distributed.signals import Stop
from skinmtl.errors import ConfigError, InputError
from skinmtl.models.multitask_net import check_logits
from skinmtl.runs.checkpoints import SafeCheckpointIO
from skinmtl.runs.record import flat
from skinmtl.runs.redaction import shareable
from skinmtl.runs.run import Run
from skinmtl.tasks.base import TASKS
from skinmtl.tracking.wandb import WandB
from skinmtl.training.callbacks.metrics_csv import MetricsFile
from skinmtl.training.callbacks.nonfinite import Finite
from skinmtl.training.callbacks.progress import EpochLines
from skinmtl.training.callbacks.resumable import Resumable
from skinmtl.training.lightning_module import MultiTaskModule
from skinmtl.training.optim import with_rates

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
    """The photographs of a checked config, drawn, split and cached, ready to train on."""
    parts = {"augment": build(config.augment), "sampler": build(config.sampler)}
    data: DataModule = build(config.data, **parts, seed=config.seed)
    data.prepare_data()
    data.setup("fit")
    return data


def check_targets(tasks: Sequence[str], data: DataModule) -> None:
    """Refuse to train or to test a task on photographs none of which shows it."""
    column = {"seg": "mask", "cls": "dx"}
    for task in tasks:
        for part in SPLITS:
            if data.table[column[task]].iloc[data.rows(part)].isna().all():
                what = f"no {part} photograph has a {column[task]}, which task {task} needs"
                fix = "unpack the masks beside them, or give data.masks" if task == "seg" else "give diagnoses"
                raise InputError(f"data.root={data.root}", what, f"{fix}, or leave {task} out of tasks")
    trained = data.table["dx"].iloc[data.rows("train")].dropna().unique()
    if "cls" in tasks and len(trained) == 1:
        what = f"every training photograph is {trained[0]}: with one diagnosis there is nothing to tell apart"
        raise InputError(f"data.root={data.root}", what, "give photographs of others, or leave cls out: tasks=[seg]")


def build_losses(config: RunConfig, data: DataModule) -> dict[str, nn.Module]:
    """The loss of each task of a checked config, by what the training photographs are."""
    given = {"class_counts": data.class_counts(), "class_weights": class_weights(config, data)}
    return {task: build(config.loss[task], **given) for task in config.tasks}


def build_module(config: RunConfig, data: DataModule) -> MultiTaskModule:
    """Network, tasks, losses and optimiser of a checked config, sized from the data."""
    tasks: list[str] = list(config.tasks)
    classes = {"seg": data.mask_classes, "cls": data.dx_classes}
    losses = build_losses(config, data)
    network = build(
        config.model,
        tasks=tasks,
        mask_classes=len(data.mask_classes),
        dx_classes=len(data.dx_classes),
        size=data.size,
    )
    check_logits(network, tasks, len(data.mask_classes), len(data.dx_classes), data.size)
    gradients = build(config.gradients, tasks=tasks)
    if (gradients.apart or gradients.cosine_every) and len(tasks) > 1 and not hasattr(network, "encoder"):
        what = f"{type(network).__name__} has no `encoder`, on which the tasks' gradients would be taken"
        raise ConfigError("gradients", what, "name the shared part so, or use gradients=none gradients.cosine_every=0")
    steps_per_epoch = _steps_per_epoch(config.trainer, len(data.train_dataloader()))
    _limited(config.trainer, "limit_val_batches", len(data.val_dataloader()))
    if config.optim.get("lr") == 0 and collectives.rank() == 0:
        log.warning("optim.lr=0: no weight will change; fix: give more, unless that is what is looked at")
    return MultiTaskModule(
        network.to(memory_format=torch.channels_last),
        [TASKS[task](losses[task], classes[task]) for task in tasks],
        build(config.weighting, tasks=tasks),
        with_rates(build(config.optim), network.rates() if hasattr(network, "rates") else {}),
        build(config.schedule),
        gradients=gradients,
        seed=config.seed,
        total_steps=steps_per_epoch * config.trainer["max_epochs"],
        steps_per_epoch=steps_per_epoch,
        facts={
            "tasks": tasks,
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
        # What logs as a batch begins comes after the save of that moment: a run that goes on logs it again.
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


def class_weights(config: RunConfig, data: DataModule) -> str | None:
    """What the key class_weights comes to; None without diagnoses.

    `auto` is sqrt for a loss that takes class weights, where neither it nor the sampler brings up rare diagnoses.
    """
    if "cls" not in config.tasks:
        return None
    loss, asked = schema.find(config.loss["cls"]["_target_"]), str(config.class_weights)
    if asked != "auto":
        return asked
    brought_up = data.sampler.rebalances or getattr(loss, "rebalances", False)
    return "sqrt" if schema.is_given(loss, "class_weights") and not brought_up else "none"


def say_shares(config: RunConfig, data: DataModule, module: MultiTaskModule) -> None:
    """Say what an epoch draws, what sampler and loss make of the diagnoses, and where both bring up the rare ones."""
    train, drawn = len(data.rows("train", source=0)), data.drawn()
    if drawn < train:
        log.info("an epoch draws %s of %s training photographs, in whole batches", f"{drawn:,}", f"{train:,}")
    if "cls" not in config.tasks:
        return
    shares = torch.tensor(data.class_shares())
    judged = data.table["dx"].iloc[data.rows("val")].dropna().unique()
    if len(judged) == 1:
        what = (
            "every validation image with a diagnosis is %s: none can be told from another, and val balanced accuracy "
        )
        log.warning(what + "and val score do not measure that; more lesions or fewer folds give it others", judged[0])
    log.info("an epoch shows %s", _shares(data.dx_classes, shares))
    weights, asked = class_weights(config, data), config.class_weights
    log.info("class weights: %s%s", weights, " (class_weights=auto)" if asked == "auto" else "")
    loss = module.tasks["cls"].loss
    weight = getattr(loss, "weight", None)
    weighs = False if weight is None else bool((weight[shares > 0] != weight[shares > 0][0]).any())
    if weight is not None and weighs:
        log.info("the loss counts them as %s", _shares(data.dx_classes, shares * weight / (shares * weight).sum()))
    if data.sampler.rebalances and (weighs or getattr(loss, "rebalances", False)):
        what, fix = ("loss", "loss/cls=cross_entropy") if weights == "none" else ("class weights", "class_weights=none")
        log.warning("sampler and %s both bring up rare diagnoses; fix: sampler=shuffle, or %s", what, fix)


def _shares(names: Sequence[str], shares: torch.Tensor) -> str:
    return ", ".join(f"{name} {share:.1%}" for name, share in zip(names, shares.tolist(), strict=True))
