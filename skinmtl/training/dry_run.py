"""The dry run: every part of a config built once, at no cost, before any data is read."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from omegaconf import OmegaConf
from pytorch_lightning.callbacks import ModelCheckpoint

from skinmtl.config.build import Node, build, value_of, without_weights
from skinmtl.config.check import check
from skinmtl.config.hardware import resolve_accelerator, resolve_precision
from skinmtl.config.overrides import expand
from skinmtl.config.run_config import RunConfig
from skinmtl.errors import ConfigError, Faults, SkinmtlError
from skinmtl.models.multitask_net import check_logits
from skinmtl.runs.aliases import renamed
from skinmtl.training.tasks import build_tasks


def checked(given: Mapping[str, Any]) -> RunConfig:
    """Check a whole config, then build of it what costs nothing, for what only the constructors know to refuse.

    Args:
        given: a composed or a saved config. Whole numbers written as 8.0 become 8, `~` becomes one's home.

    Returns:
        The config as a run takes it, resolved.

    Raises:
        Faults: every fault found, each with its dotted key.
    """
    cfg = renamed(OmegaConf.create(dict(given)), warn=True)
    check(cfg)
    expand(cfg)
    config = RunConfig.of(cfg)
    if faults := list(_faults(config)):
        raise Faults(faults)
    return config


def _faults(config: RunConfig) -> Iterator[SkinmtlError]:
    """Build what costs nothing; yield the faults that only the constructors themselves know."""
    for key in ("augment", "sampler", "weighting", "gradients"):
        yield from _attempt(getattr(config, key), key, lambda node: build(node, tasks=config.tasks))
    for name in config.tasks:
        yield from _attempt(config.task[name], f"task.{name}", partial(build, name=name))
        yield from _attempt(config.loss[name], f"loss.{name}", partial(build, class_counts=[1, 1]))
    yield from _dry_callbacks({f"callbacks.{name}": node for name, node in config.callbacks.items() if node})
    one = [torch.nn.Parameter(torch.zeros(1))]
    yield from _attempt(config.optim, "optim", lambda node: build(node)(one))
    any_optimizer = torch.optim.SGD(one, lr=1.0)

    def schedule(node: Node) -> None:
        made = build(node)
        made.on(any_optimizer, 10, 5)
        if getattr(made, "by", None) not in ("step", "score"):
            what = f"{type(made).__name__} does not say by what it is stepped"
            raise ConfigError("schedule._target_", what, 'give it an attribute `by`, "step" or "score"')

    yield from _attempt(config.schedule, "schedule", schedule)
    size = value_of(config.data, "size")
    height, width = (size, size) if isinstance(size, int) else size

    def connect(node: Node) -> None:
        tasks = build_tasks(config.task)
        for task in tasks:
            task.assume()
        # As many classes as any data has. Not on the meta device, where smp's mit_* encoders cannot be built.
        sizes = {"mask_classes": 2, "dx_classes": 2, "size": (height, width)}
        network = build(without_weights(node), outputs=tasks, tasks=config.tasks, **sizes)
        check_logits(network, tasks, (height, width))

    yield from _attempt(config.model, "model", connect)
    trainer = dict(config.trainer)
    trainer["accelerator"] = resolve_accelerator(value_of(trainer, "accelerator"))
    trainer["precision"] = resolve_precision(trainer.get("precision"), trainer["accelerator"])
    yield from _attempt(trainer, "trainer", lambda node: build(node, logger=False, callbacks=[ModelCheckpoint()]))


def _dry_callbacks(nodes: Mapping[str, Node]) -> Iterator[SkinmtlError]:
    """Build the callbacks; yield their faults, and those whose states a checkpoint could not tell apart."""
    known: dict[str, str] = {}

    def make(where: str, node: Node) -> None:
        same = known.setdefault(build(node).state_key, where)
        if same != where:
            raise ConfigError(where, f"it does what {same} does already", "keep one of the two")

    for where, node in nodes.items():
        yield from _attempt(node, where, partial(make, where))


def _attempt(node: Node, where: str, make: Callable[[Node], Any]) -> Iterator[SkinmtlError]:
    """Build a node; yield its fault where that fails, at the key without which it would not."""
    try:
        make(node)
    except SkinmtlError as fault:
        yield fault
    except Exception as error:  # torch and Lightning refuse with many kinds, all of them about these values
        said = re.sub(r"\s+", " ", str(error)).strip() or type(error).__name__
        culprits = [key for key in node if key != "_target_" and _builds(node, key, make)]
        dotted = f"{where}.{culprits[0]}" if culprits else where
        value = f"{node[culprits[0]]!r} is refused: " if culprits else ""
        yield ConfigError(dotted, value + said[:300], f"change it; conf/{where.partition('.')[0]} has values that work")


def _builds(node: Node, without: str, make: Callable[[Node], Any]) -> bool:
    try:
        make({key: value for key, value in node.items() if key != without})
    except Exception:
        return False
    return True
