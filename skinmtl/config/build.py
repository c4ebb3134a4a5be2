"""The only place where anything is built from a config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omegaconf import OmegaConf

from skinmtl.config.schema import arguments, find, handed_in

Node = Mapping[str, Any]


def build(node: Mapping[str, Any], **parts: Any) -> Any:
    """Build the object of a checked node.

    Args:
        node: a mapping with `_target_`; with `_partial_` its constructor is given, bound to the node's values.
        parts: what the run hands in, by the constructors' names for it; what this one does not ask for is left out.

    Raises:
        ConfigError: a `_target_` in it is not admitted.
    """
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    _admit(node)
    constructor = find(node["_target_"])
    try:
        make = instantiate(node, _convert_="all", _partial_=True)
    except InstantiationException as error:
        if isinstance(error.__cause__, Exception):  # what the constructor said, not what Hydra says about it
            raise error.__cause__ from None
        raise
    # Not through Hydra, which would read a `${...}` in a name that a table or a checkpoint brought along.
    return make if node.get("_partial_") else make(**handed_in(constructor, parts))


def without_weights(node: Node) -> Node:
    """Give a network's node without published weights, where its `weights` may be null: others take their place."""
    weights = arguments(find(node["_target_"])).get("weights") if "weights" in node else None
    return {**node, "weights": None} if weights is not None and weights.misfit(None) is None else node


def _admit(node: Any) -> None:
    """Refuse a `_target_` that is not admitted, however deep: a saved config may come from a stranger's run folder."""
    plain = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
    if isinstance(plain, Mapping):
        if "_target_" in plain:
            find(plain["_target_"])
        plain = list(plain.values())
    if isinstance(plain, (list, tuple)):
        for part in plain:
            _admit(part)


def value_of(node: Mapping[str, Any], key: str) -> Any:
    """Give a node's value, or the constructor's own default where the key was taken out of the config."""
    return node[key] if key in node else arguments(find(node["_target_"]))[key].default
