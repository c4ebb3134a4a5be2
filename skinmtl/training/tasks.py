"""A checked config's tasks, with what they take from the data and the losses that they learn by."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from skinmtl.config import schema
from skinmtl.config.build import build
from skinmtl.data.datamodule import DataModule
from skinmtl.errors import InputError
from skinmtl.tasks.base import Task

log = logging.getLogger(__name__)


def build_tasks(nodes: Mapping[str, Any]) -> list[Task]:
    """Build the tasks of a config's `task`, by name, which know nothing of any data yet."""
    return [build(node, name=str(name)) for name, node in nodes.items()]


def prepared(nodes: Mapping[str, Any], data: DataModule) -> list[Task]:
    """Build the tasks of a config's `task` and prepare them for these data, as `prepare` does."""
    tasks = build_tasks(nodes)
    prepare(tasks, data)
    return tasks


def columns(tasks: Sequence[Task]) -> dict[str, str]:
    """Give the column of the case table that says which images have a task's target, by the task's name."""
    return {task.name: task.column for task in tasks}


def prepare(tasks: Sequence[Task], data: DataModule) -> None:
    """Have tasks learn what they need from the training images, and batches carry their targets.

    Raises:
        InputError: an image in each split is needed that shows what a task learns, and there is none.
    """
    targets: dict[str, dict[str, NDArray[Any]]] = {}
    for task in tasks:
        task.learn(data)
        for what, fix in task.faults(data):
            raise InputError(f"data.root={data.root}", what, fix)
        targets.setdefault(task.column, {}).update(task.target(data.table))
    data.carry(targets)


def give_losses(tasks: Sequence[Task], nodes: Mapping[str, Any], data: DataModule, class_weights: str) -> None:
    """Build the loss of each task, by what the training images are.

    Args:
        tasks: prepared ones.
        nodes: the config's `loss`.
        data: the data module.
        class_weights: the config's key.
    """
    for task in tasks:
        node = nodes[task.name]
        task.class_weights = task.class_weights_of(data, schema.find(node["_target_"]), class_weights)
        task.loss = build(node, **task.loss_parts(data, task.class_weights))


def class_weights(tasks: Sequence[Task]) -> str | dict[str, str] | None:
    """Give what the key class_weights came to; None without classes, by task where it differs."""
    found = {task.name: task.class_weights for task in tasks if task.class_weights is not None}
    distinct = set(found.values())
    return found if len(distinct) > 1 else next(iter(distinct), None)


def say(tasks: Sequence[Task], data: DataModule, class_weights: str) -> None:
    """Say how many images an epoch samples, and what it shows of each task."""
    train, sampled = len(data.rows("train", source=0)), data.images_per_epoch()
    if sampled < train:
        log.info("an epoch samples %s of %s training images, in whole batches", f"{sampled:,}", f"{train:,}")
    for task in tasks:
        task.say(data, class_weights)
