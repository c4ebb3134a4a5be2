"""The dry run: every part of a config built once, at no cost, before any data is read."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import ModelCheckpoint

from skinmtl.config import check as config
from skinmtl.config.build import Node, build, value_of, without_weights
from skinmtl.config.hardware import resolve_accelerator, resolve_precision
from skinmtl.errors import ConfigError, Faults, SkinmtlError
from skinmtl.models.multitask_net import check_logits


def check(cfg: DictConfig, run: Callable[..., Any]) -> None:
    """Check a whole config, then build of it what costs nothing, for what only the constructors know to refuse.

    Args:
        cfg: a composed or a saved config; whole numbers written as 8.0 become 8 in it.
        run: the function that takes the top-level keys, `skinmtl.training.run.run`.

    Raises:
        Faults: every fault found, each with its dotted key.
    """
    config.check(cfg, run)
    tree = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(tree, dict)
    if faults := list(_dry({str(key): value for key, value in tree.items()})):
        raise Faults(faults)


def _dry(tree: Node) -> Iterator[SkinmtlError]:
    """Build what costs nothing, for what only the constructors themselves know to refuse."""
    for key in ("augment", "sampler", "weighting", "gradients"):
        yield from _attempt(tree[key], key, lambda node: build(node, tasks=tree["tasks"]))
    for task in tree["tasks"]:
        yield from _attempt(tree["loss"][task], f"loss.{task}", lambda node: build(node, class_counts=[1, 1]))
    yield from _dry_callbacks({f"callbacks.{name}": node for name, node in tree["callbacks"].items() if node})
    one = [torch.nn.Parameter(torch.zeros(1))]
    yield from _attempt(tree["optim"], "optim", lambda node: build(node)(one))
    any_optimizer = torch.optim.SGD(one, lr=1.0)

    def schedule(node: Node) -> None:
        made = build(node)
        made.on(any_optimizer, 10, 5)
        if getattr(made, "by", None) not in ("step", "score"):
            what = f"{type(made).__name__} does not say by what it is stepped"
            raise ConfigError("schedule._target_", what, 'give it an attribute `by`, "step" or "score"')

    yield from _attempt(tree["schedule"], "schedule", schedule)
    size = value_of(tree["data"], "size")
    parts = {"tasks": tree["tasks"], "size": (size, size) if isinstance(size, int) else tuple(size)}

    def connect(node: Node) -> None:
        # As many classes as any data has. Not on the meta device, where smp's mit_* encoders cannot be built.
        sized = parts | {"mask_classes": 2, "dx_classes": 2}
        check_logits(build(without_weights(node), **sized), **sized)

    yield from _attempt(tree["model"], "model", connect)
    trainer = dict(tree["trainer"])
    trainer["accelerator"] = resolve_accelerator(value_of(trainer, "accelerator"))
    trainer["precision"] = resolve_precision(trainer.get("precision"), trainer["accelerator"])
    yield from _attempt(trainer, "trainer", lambda node: build(node, logger=False, callbacks=[ModelCheckpoint()]))


def _dry_callbacks(nodes: Mapping[str, Node]) -> Iterator[SkinmtlError]:
    """Faults of callbacks, and those whose states a checkpoint could not tell apart."""
    known: dict[str, str] = {}

    def make(where: str, node: Node) -> None:
        same = known.setdefault(build(node).state_key, where)
        if same != where:
            raise ConfigError(where, f"it does what {same} does already", "keep one of the two")

    for where, node in nodes.items():
        yield from _attempt(node, where, partial(make, where))


def _attempt(node: Node, where: str, make: Callable[[Node], Any]) -> Iterator[SkinmtlError]:
    """The fault of a node that does not build, at the key without which it would."""
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
