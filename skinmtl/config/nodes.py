"""Faults that one node of a config shows: what it names, its keys, their values."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from skinmtl.config.build import Node
from skinmtl.config.schema import Argument, arguments, find
from skinmtl.config.signatures import ANY, UNREAD
from skinmtl.errors import ConfigError, no_package

# What a run asks of each part, by methods that only such a thing has: a loss is no network.
ROLES = {
    "task": ("learn", "labelled", "metric", "count", "head", "scoring"),
    "data": ("train_dataloader", "val_dataloader", "class_counts", "certificate"),
    "sampler": ("order", "weights"),
    "model": ("forward",),
    "loss": ("forward",),
    "weighting": ("terms", "weights", "start_step", "end_epoch"),
    "gradients": ("combine", "weigh"),
    "optim": ("zero_grad", "step"),
    "schedule": ("on",),
    "trainer": ("fit",),
    "callbacks": ("on_train_epoch_end", "state_dict"),
    "logger": ("log_run", "start", "finish"),
}
BY_NAME = ("task", "loss", "callbacks")  # several parts, each under a name of its own, where null is none
ONE = ("data", "augment", "sampler", "model", "weighting", "gradients", "optim", "schedule", "trainer")
PACKAGED = ("experiment", "study", "arm", "global")  # groups of conf/ whose files say things about the whole config
MOVED = ("class_weights",)  # once an argument that a config gave to a part, now a key of the whole run
# Name and arguments of a target, at a key; None where nothing is known of it.
Look = Callable[[object, str], "tuple[str, Mapping[str, Argument]] | None"]


def _look(target: object, where: str) -> tuple[str, Mapping[str, Argument]]:
    """Do as `outline`, of the thing itself."""
    constructor = find(target, where)
    return getattr(constructor, "__name__", str(constructor)), arguments(constructor)


def shape_faults(key: str, node: Any) -> Iterator[ConfigError]:
    """Yield parts without their `_target_`: a typing error would leave them out of everything else."""
    nodes = {key: node}
    if key in BY_NAME and isinstance(node, dict):
        nodes = {f"{key}.{name}": item for name, item in node.items() if item is not None}
    elif key not in ONE and not (key == "logger" and node is not None) and key not in BY_NAME:
        return
    for dotted, item in nodes.items():
        if not isinstance(item, dict):
            yield ConfigError(dotted, f"{item!r} is no part of a run", "choose one of conf/ or give a _target_")
        elif "_target_" not in item:
            yield ConfigError(dotted, "it has no _target_", "start from one of conf/, or give the name of a class")


def node_faults(node: Any, where: str, tree: Node, look: Look = _look) -> Iterator[ConfigError]:
    """Yield the faults of every `_target_` at or below a node.

    Args:
        node: plain values.
        where: its dotted key.
        tree: the whole config, in which a misplaced key may be at home.
        look: gives name and arguments of a target; `outline` knows less and imports nothing.
    """
    if isinstance(node, list):
        for i, item in enumerate(node):
            yield from node_faults(item, f"{where}[{i}]", tree, look)
    if not isinstance(node, dict):
        return
    if "_target_" in node:
        try:
            seen = look(node["_target_"], where)
        except ConfigError as fault:
            yield fault
        else:
            if look is _look:
                yield from _role_faults(find(node["_target_"]), where)
            if seen is not None:
                yield from call_faults(node, seen, where, tree)
    for key, item in node.items():
        yield from node_faults(item, f"{where}.{key}", tree, look)


def _role_faults(constructor: Callable[..., Any], where: str) -> Iterator[ConfigError]:
    part, _, rest = where.partition(".")
    is_part = rest.count(".") == 0 and bool(rest) == (part in BY_NAME)
    for method in ROLES.get(part, ()) if is_part and isinstance(constructor, type) else ():
        if not hasattr(constructor, method):
            what = f"{constructor.__name__} has no method {method}, which a run asks of it"
            group = {"task": "tasks"}.get(part, part)
            yield ConfigError(f"{where}._target_", what, f"see conf/{group} for classes that do")
            return


def call_faults(node: Any, seen: tuple[str, Mapping[str, Argument]], where: str, tree: Node) -> Iterator[ConfigError]:
    """Yield unknown, missing and unfit arguments of one call; a number that is meant as an integer becomes one.

    Args:
        node: the call's values by key.
        seen: name and arguments of what is called.
        where: the node's dotted key; empty for the whole config.
        tree: the whole config.
    """
    name, known = seen
    for key, value in list(node.items()):
        dotted = f"{where}.{key}".lstrip(".")
        if key == "_target_" and where:
            continue
        if str(key).startswith("_") and str(key) not in known:
            if (key, where) != ("_partial_", "optim"):
                yield ConfigError(dotted, "only optim is built in two steps, everything else as it stands", "remove it")
        elif key in PACKAGED and not where:
            yield no_package(str(key))
        elif (argument := known.get(str(key), known.get(ANY))) is None:
            keys = [argument.name for argument in known.values() if argument.is_key]
            yield ConfigError(dotted, f"{name} has no such argument", _guess(str(key), keys, tree, dotted))
        elif (fault := _value_fault(dotted, argument, value, name)) is not None:
            yield fault
        else:
            node[key] = argument.meant(value)
    if where == "optim" and node.get("_partial_") is not True:
        yield ConfigError("optim._partial_", "the run gives the optimiser its parameters", "set it to true")
    missing = [argument.name for argument in known.values() if argument.is_needed and argument.name not in node]
    for key in missing if where != "optim" else ():
        yield ConfigError(f"{where}.{key}".lstrip("."), f"{name} needs it", "give it a value")


def _value_fault(dotted: str, argument: Argument, value: object, name: str) -> ConfigError | None:
    if argument.refusal is not None:
        return None if argument.default in (value, UNREAD) else ConfigError(dotted, *argument.refusal)
    if not argument.is_key:
        fix = f"use {argument.name}={value}, a key of its own" if argument.name in MOVED else "remove it"
        return ConfigError(dotted, f"{name} is given this by the run", fix)
    misfit = argument.misfit(argument.meant(value))
    return None if misfit is None else ConfigError(dotted, f"{value!r} does not fit", misfit)


def _guess(key: str, keys: Sequence[str], tree: Node, where: str) -> str:
    """Suggest the nearest of a node's keys, else where a key of this very name is at home, else name all keys."""
    if near := difflib.get_close_matches(key, keys, 1):
        return f"did you mean {near[0]!r}?"
    if homes := [dotted for dotted in _dotted(tree) if dotted.endswith(f".{key}") and dotted != where]:
        return f"did you mean {homes[0]!r}?"
    return f"it has {', '.join(sorted(keys))}" if keys else "it has none; remove it"


def _dotted(node: Node, where: str = "") -> Iterator[str]:
    """Yield keys by their whole path, but for a top-level one that holds no more."""
    for key, value in node.items():
        if where:
            yield f"{where}{key}"
        if isinstance(value, dict):
            yield from _dotted(value, f"{where}{key}.")
