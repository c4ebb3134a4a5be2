"""The tasks of a config, however they are written: a list of names, and a node for each."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from skinmtl.errors import ConfigError

CONF = Path(__file__).resolve().parents[2] / "conf"


def settle(cfg: DictConfig, chosen: bool = False, folders: Sequence[Path] = ()) -> None:
    """Give a config `tasks`, a list of names, and `task`, the node of each by its name, in place.

    The group `tasks` puts nodes below `task`. A list of names, in an experiment's body or in a saved config, has nodes
    there, or stands for files of the group: what such a file says of the task and of its loss is taken where the config
    says nothing itself.

    Args:
        cfg: a composed or a saved config; one that is settled already stays as it is.
        chosen: whether the command chose of the group `tasks`, which counts more than any list.
        folders: further folders of configs, which are searched before our own.

    Raises:
        ConfigError: a name of which there is no file, or what is no list of names.
    """
    nodes = cfg.get("task") or {}
    names = None if chosen else cfg.get("tasks")
    listed = _listed(list(nodes) if names is None else names)
    homes = [folder / "tasks" for folder in (*folders, CONF)]
    with open_dict(cfg):
        given = {str(name): node for name, node in nodes.items()}
        for name in listed:
            if name not in given:
                _take(cfg, given, name, homes)
        # Of the group's own choice what is not listed goes; a node that stands in no file was meant to be trained.
        kept = [*listed, *(name for name in given if name not in listed and _file(name, homes) is None)]
        cfg.task = {name: given[name] for name in kept if name in given}
        cfg.tasks = listed


def _listed(names: Any) -> list[str]:
    if isinstance(names, str):
        names = [names]
    if isinstance(names, dict | DictConfig) or not all(isinstance(name, str) for name in names):
        raise ConfigError("tasks", f"{names} is no list of names", "write them as [name, name], see conf/tasks")
    return [str(name) for name in names]


def _take(cfg: DictConfig, given: dict[str, Any], name: str, homes: Sequence[Path]) -> None:
    """Add what the file of a task says, where the config itself says nothing."""
    file = _file(name, homes)
    if file is None:
        return
    said = OmegaConf.load(file)
    assert isinstance(said, DictConfig)
    if "defaults" in said:
        fix = f"choose it on the command line, tasks=[{name}], or by `override /tasks: [{name}]` in defaults"
        raise ConfigError(f"tasks.{name}", f"{file} has a defaults list, which a list of names does not follow", fix)
    given[name] = said.task[name]
    if (loss := OmegaConf.select(said, f"loss.{name}")) is not None and name not in (cfg.get("loss") or {}):
        OmegaConf.update(cfg, f"loss.{name}", loss)


def _file(name: str, homes: Sequence[Path]) -> Path | None:
    return next((file for home in homes if (file := home / f"{name}.yaml").is_file()), None)


def named() -> list[str]:
    """Names of the tasks that stand in files of our own."""
    return sorted(file.stem for file in (CONF / "tasks").glob("*.yaml"))


def refusal(name: str) -> ConfigError:
    """The answer to a task without a node."""
    known = named()
    near = difflib.get_close_matches(name, known, 1)
    fix = f"did you mean {near[0]!r}?" if near else f"use {', '.join(known)}, or give a node, task.{name}"
    return ConfigError("tasks", f"there is no task {name}", fix)
