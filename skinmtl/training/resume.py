"""An unfinished run that is resumed: which one, from which checkpoint, with which values."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from skinmtl.config.hardware import resolve_precision
from skinmtl.config.schema import arguments
from skinmtl.config.schema import find as constructor
from skinmtl.config.tasks import named, settle
from skinmtl.data.datamodule import DataModule
from skinmtl.errors import ConfigError, SkinmtlError
from skinmtl.runs.checkpoints import LAST, PREVIOUS, newest
from skinmtl.runs.record import dig, flat
from skinmtl.runs.redaction import PLACES
from skinmtl.runs.run import Run, find
from skinmtl.training.slurm import job

log = logging.getLogger(__name__)

ALLOW = "allow_change=true"
# What may be another value when a run is resumed: the same bits come of it.
FREE = {"resume", "allow_change", "save_every", "data.workers", "data.cache", "data.cache_dir"}
FREE |= {"evaluate", "data.split_dir"}  # what comes after training; the split is compared itself
# What `allow_change` lets be another: what is read anew when a run is resumed. The rest is saved with the weights, and
# would silently keep the old value, or would not fit.
CHANGEABLE = ("name", "seed", "loss.", "class_weights", "augment.", "sampler.", "data.", "trainer.", "test_time_flips")
# Of these, what a run is counted in (batches and steps of an epoch), and what says which images it may see, what
# their classes are, and how its scores are labelled.
KEPT = (
    *("data.batch_size", "data.auxiliary", "trainer.limit_train_batches", "trainer.accumulate_grad_batches"),
    *("trainer.overfit_batches", "trainer.fast_dev_run", "data.split", "data.split_by", "data.split_seed"),
    *("data.fold", "data.folds", "data.duplicates", "data.diagnoses", "data.mask_classes", "data.shuffled"),
)
ANOTHER = "give the same again, or start another run with init_from=<run>"


@dataclass(frozen=True)
class Start:
    """Where a run begins: anew, from a checkpoint of its own, or trained already and only to be evaluated.

    Attributes:
        init_from: the run whose weights it starts from, as the command that began it said.
        checkpoint: its own, to be resumed from; None before the first save.
        trained: whether only the evaluation is left.
        resumed: whether the run was begun before.
        allow_change: whether values may differ from those that it began with.
    """

    init_from: str | None
    checkpoint: Path | None
    trained: bool
    resumed: bool
    allow_change: bool


def beginning(here: Run, init_from: str | None, allow_change: bool) -> Start:
    """Read from a run's folder where it stands; a fresh one begins anew.

    Raises:
        InputError: it was saved, and no checkpoint is sound.
    """
    if not here.info_file.exists():
        return Start(init_from, None, trained=False, resumed=False, allow_change=allow_change)
    given = here.config().get("init_from")  # of the command that began it
    folder = here.path / "checkpoints"
    saved = any((folder / name).exists() for name in (LAST, PREVIOUS))
    checkpoint = newest(folder) if saved else None  # none before the first save: it begins again
    trained = bool(here.info().get("trained"))
    return Start(given, checkpoint, trained, resumed=True, allow_change=allow_change)


def check_data(here: Run, data: DataModule, start: Start) -> None:
    """Refuse to resume with other images or another split than the run began with.

    Raises:
        ConfigError: at `data.split`, `data.root` or an auxiliary data set's root.
    """
    info = here.info()
    split, images = dig(info, "split", "hash"), dig(info, "data", "hash")
    for key, before, now, same, fix in (
        # Under another split the run would be tested on lesions that it has learned from.
        ("data.split", split, data.split_hash, split in (None, data.split_hash), ANOTHER),
        (
            "data.root",
            images,
            data.data_hash,
            images is None or data.is_of(images),
            f"give the same again, or resume with {ALLOW}",
        ),
    ):
        may = start.allow_change and key != "data.split"
        if start.resumed and not may and not same:
            raise ConfigError(key, f"sha256 {now[:12]}, the run began with {str(before)[:12]}", fix)
    for name, before in dig(info, "also_hashes", default={}).items():  # younger than some runs
        here_now = data.auxiliary_hashes.get(name, before)  # without this source the config was refused already
        if start.resumed and not start.allow_change and here_now != before:
            what = f"sha256 {here_now[:12]}, the run began with {before[:12]}"
            raise ConfigError(f"data.auxiliary.{name}.root", what, f"give the same again, or resume with {ALLOW}")


def choose_run(
    fresh: Run, resume: str | None, config: Mapping[str, Any], world_size: int, allow_change: bool = False
) -> Run:
    """Find where to write: the fresh folder, or that of the run to resume, whose config has to be this one.

    Args:
        fresh: a run of this experiment that does not exist yet; `auto` looks beside it.
        resume: a run's folder, or `auto`; None begins a new run, but in a job that SLURM requeued it is `auto`.
        config: all keys of the config, plain.
        world_size: how many processes will train.
        allow_change: whether values may differ that the result depends on.

    Raises:
        ConfigError: that run is finished, was begun with other values, or cannot be resumed here.
        InputError: there is no such run.
    """
    requeued = job() if os.environ.get("SLURM_RESTART_COUNT", "0") != "0" else None
    if resume == "auto" or (resume is None and requeued is not None):
        # Run ids begin with their time, so the last by name is the newest.
        runs = sorted(find(fresh.path.parent), key=lambda run: run.path.name, reverse=True)
        able = (run for run in runs if _can_be_resumed(run, config))
        mine = (run for run in able if requeued is None or run.info().get("slurm_job") == requeued)
        if (found := next(mine, None)) is not None:
            _check_world_size(found, world_size)
            _check_precision(found, config, allow_change)
            log.info("resuming %s", os.path.relpath(found.path))
            return found
        log.info("there is no unfinished run with this config: a new one begins")
    if resume in (None, "auto"):
        if fresh.info_file.exists():
            what = f"{os.path.relpath(fresh.path)} holds a run already"
            raise ConfigError("hydra.run.dir", what, "resume it by resume=<that folder>, or name another folder")
        return fresh
    run = Run.open(resume)
    finished = run.info().get("status") == "finished"
    if not finished and "class_weights" not in run.config():
        what = f"{run.path.name} was begun by an earlier version, which counts the losses of an epoch in another way"
        before = f"that version (commit {run.info().get('commit')})"
        fix = f"resume it with {before}, or start from its weights with init_from="
        raise ConfigError("resume", what, fix)
    _check_world_size(run, world_size)
    different = _differences(run, config)
    if kept := [words for key, words in different.items() if not _may_change(key)]:
        raise ConfigError("resume", f"{run.path.name} cannot be resumed with other values: {', '.join(kept)}", ANOTHER)
    if different and not allow_change:
        what = f"{run.path.name} was started with other values: {', '.join(different.values())}"
        raise ConfigError("resume", what, f"give the same overrides, or resume all the same with {ALLOW}")
    _check_precision(run, config, allow_change)
    if finished:
        raise ConfigError("resume", f"{run.path.name} is finished", "start from its weights with init_from=")
    return run


def _check_world_size(run: Run, now: int) -> None:
    """Refuse to resume with another number of processes, which would get other batches."""
    before = run.info().get("world_size", 1)
    if before != now:
        what = f"{run.path.name} was started with world size {before} (devices), this command has {now}"
        raise ConfigError("trainer.devices", what, f"use {before} again, or start another run with init_from=")


def _check_precision(run: Run, config: Mapping[str, Any], allow_change: bool) -> None:
    """Refuse to resume where `auto` stands for another precision than on the machine that the run began on."""
    before, chosen = run.info().get("precision"), config["trainer"]["precision"]
    now = resolve_precision(chosen, config["trainer"]["accelerator"])
    if chosen == "auto" and before not in (None, now) and not allow_change:
        what = f"auto is {now} on this machine, {run.path.name} was started with {before}"
        raise ConfigError("trainer.precision", what, f"resume it where it began, or all the same with {ALLOW}")


def _can_be_resumed(run: Run, config: Mapping[str, Any]) -> bool:
    """Tell whether a run stopped on the way with this very config, and no process is at it."""
    try:
        stopped = run.info().get("status") != "finished" and not run.is_held()
        return stopped and not _differences(run, config)
    except (SkinmtlError, OSError):  # a neighbour that cannot be read
        return False


def _may_change(key: str) -> bool:
    kept = any(key == name or key.startswith(f"{name}.") for name in KEPT)
    return f"{key}.".startswith(CHANGEABLE) and not kept


def _differences(run: Run, config: Mapping[str, Any]) -> dict[str, str]:
    """Give each dotted key whose value differs between a run's saved config and this one, with both values in words.

    A folder is the same however it is written. A key that the saved config does not know, since it is younger than the
    run, is no difference where it has its default.
    """
    before, now = (flat(_settled(node)) for node in (run.config(), OmegaConf.create(dict(config))))
    keys = sorted(key for key in (before.keys() | now.keys()) - FREE if not key.startswith("logger"))
    # A weight that stands nowhere is 1.
    young = {f"weighting.{name}": 1.0 for name in named()} | _defaults(config)
    found = {}
    for key in keys:
        then, this = (repr(_place(key, values.get(key, young.get(key, "not there")))) for values in (before, now))
        if then != this:
            found[key] = f"{key} {before.get(key, 'not there')!r}, now {now.get(key, 'not there')!r}"
    return found


def _settled(config: DictConfig) -> dict[str, Any]:
    """A config as plain values, with a node of each task, which those of older versions lack."""
    settle(config)
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _defaults(config: Mapping[str, Any], above: str = "") -> dict[str, object]:
    """Give the constructors' own defaults by dotted key, whether the config gives them or not."""
    found: dict[str, object] = {"init_from": None} if not above else {}
    if isinstance(target := config.get("_target_"), str):
        known = arguments(constructor(target))
        found |= {f"{above}{name}": each.default for name, each in known.items() if each.is_key and not each.is_needed}
    for key, node in config.items():
        if isinstance(node, Mapping):
            found |= _defaults(node, f"{above}{key}.")
    return found


def _place(key: str, value: object) -> object:
    """Give a value to be compared: of what names a folder or a file the place itself."""
    named = key.rpartition(".")[2] in PLACES and isinstance(value, str) and value not in ("auto", "not there")
    return os.path.realpath(os.path.expanduser(str(value))) if named else value
