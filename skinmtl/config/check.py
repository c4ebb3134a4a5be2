"""The check of every config, before anything is built: every fault at once.

Plain YAML with `_target_`; the typed constructor is the schema (`skinmtl.config.schema`). An argument added to a
constructor is a key from then on, with no line to change here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from skinmtl.config.nodes import call_faults, node_faults, shape_faults
from skinmtl.config.rules import faults_across
from skinmtl.config.run_config import RunConfig
from skinmtl.config.schema import arguments, outline
from skinmtl.config.tasks import settle
from skinmtl.errors import ConfigError, Faults, SkinmtlError


def check_names(cfg: DictConfig) -> None:
    """Check what source texts alone can tell, before torch is imported, which takes seconds: names, plain types.

    Raises:
        Faults: every fault found, each with its dotted key.
    """
    settle(cfg)
    faults: list[SkinmtlError] = []
    tree = _resolved(cfg, "", faults)
    faults += call_faults(tree, ("the config", arguments(RunConfig)), "", tree)
    for key, node in tree.items():
        faults += shape_faults(str(key), node)
        faults += node_faults(node, str(key), tree, outline)
    if faults:
        raise Faults(faults)


def check(cfg: DictConfig) -> None:
    """Check a whole config before anything is built or any data is read.

    A whole number that is written as 8.0 where only an integer fits becomes 8 in it.

    Args:
        cfg: a composed or a saved config.

    Raises:
        Faults: every fault found, each with its dotted key.
    """
    settle(cfg)
    faults: list[SkinmtlError] = []
    tree = _resolved(cfg, "", faults)
    assert isinstance(tree, dict)
    faults += call_faults(tree, ("the config", arguments(RunConfig)), "", tree)
    for key, node in tree.items():
        faults += shape_faults(str(key), node)
        faults += node_faults(node, str(key), tree)
    # Rules about several parts rely on each being sound.
    faults = faults or list(faults_across(tree))
    if faults:
        raise Faults(faults)
    _write_back(cfg, tree)


def check_saved(cfg: Mapping[str, Any], *keys: str) -> None:
    """Check some nodes of a run's saved config before they are built: anybody may have edited them.

    Raises:
        Faults: every fault that the constructors' signatures show.
    """
    faults: list[SkinmtlError] = []
    for key in keys:
        if key not in cfg:
            faults.append(ConfigError(key, "the saved config has no such part", "restore the run's .hydra/config.yaml"))
            continue
        node = _resolved(cfg[key], key, faults)
        faults += [*shape_faults(key, node), *node_faults(node, key, {key: node})]
    if faults:
        raise Faults(faults)


def _resolved(node: Any, where: str, faults: list[SkinmtlError]) -> Any:
    """Give a config as plain dicts and lists; what cannot be resolved becomes a fault and a None."""
    if not OmegaConf.is_config(node):
        return node
    places = node.keys() if OmegaConf.is_dict(node) else range(len(node))
    found = {}
    for place in places:
        dotted = f"{where}.{place}".lstrip(".") if OmegaConf.is_dict(node) else f"{where}[{place}]"
        try:
            value = node[place]
        except OmegaConfBaseException as error:
            said = str(error).splitlines()[:1] if not OmegaConf.is_missing(node, place) else []
            faults.append(ConfigError(dotted, said[0] if said else "it has no value", "give it one"))
            continue
        found[place] = _resolved(value, dotted, faults)
    return found if OmegaConf.is_dict(node) else list(found.values())


def _write_back(cfg: Any, tree: Any) -> None:
    """Give a config the integers that its plain copy has in the place of numbers such as 8.0."""
    for place, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        if isinstance(value, (dict, list)):
            _write_back(cfg[place], value)
        elif type(value) is int and isinstance(cfg[place], float):
            cfg[place] = value
