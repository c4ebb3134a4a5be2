"""One run: seed, build, fit, evaluate, report."""

from __future__ import annotations

import ctypes
import json
import logging
import math
import os
import platform
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import pytorch_lightning as pl
import torch
from annotated_types import Interval
from lightning_fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from skinmtl import config
from skinmtl.callbacks import BestAndLast, Clock, EpochLines, Finite, MetricsFile
from skinmtl.checkpoints import SafeCheckpointIO
from skinmtl.checkpoints import load as load_checkpoint
from skinmtl.data.datamodule import DataModule
from skinmtl.data.splits import STAGES
from skinmtl.errors import ConfigError, InputError, Interrupted, SkinmtlError
from skinmtl.evaluate import evaluate
from skinmtl.facts import flat, stamps, without_folders, without_folders_in
from skinmtl.module import MultiTaskModule
from skinmtl.predict import network_state
from skinmtl.report import write_run_report
from skinmtl.runs import Run, find, write_bytes, write_text
from skinmtl.tasks import TASKS
from skinmtl.tracking import WandB

log = logging.getLogger(__name__)

PACKAGES = (
    "torch",
    "torchvision",
    "pytorch-lightning",
    "hydra-core",
    "segmentation-models-pytorch",
    "timm",
    "albumentations",
    "torchmetrics",
    "numpy",
    "pandas",
    "scikit-learn",
    "opencv-python-headless",
    "pillow",
)


def run(
    name: str,
    seed: Annotated[int, Interval(ge=0, lt=2**32)],
    tasks: list[str],
    data: DictConfig,
    augment: DictConfig,
    sampler: DictConfig,
    model: DictConfig,
    loss: DictConfig,
    weighting: DictConfig,
    optim: DictConfig,
    schedule: DictConfig,
    trainer: DictConfig,
    callbacks: DictConfig,
    logger: DictConfig | None = None,
    resume: str | None = None,
    init_from: str | None = None,
    *,
    folder: Path,
) -> float:
    """Train, evaluate and report; gives the validation score of the best checkpoint, which a sweeper may maximise.

    Args:
        name: the experiment's name.
        seed: the only source of chance: weights, order, augmentation and dropout follow from it.
        tasks: `seg`, `cls` or both.
        data: the data module's node, and so on: each is a node of the config, already through `config.check`.
        resume: a run's folder to go on with from its last checkpoint, or `auto`: the newest unfinished run of this
            experiment with the same config, else a new one.
        init_from: a run's folder whose best weights this run starts from.
        folder: where the run writes.

    Raises:
        SkinmtlError: an answer for the user, with its exit code.
    """
    nodes = {key: value for key, value in locals().items() if key not in ("folder", "resume", "init_from")}
    keep_memory()
    start = time.perf_counter()
    here = _home(Run(folder), resume, _plain(nodes))
    here.path.mkdir(parents=True, exist_ok=True)
    with here.held(), calm():
        board = None if logger is None else config.build(logger, folder=here.path, run_id=here.path.name)
        try:
            return _run(nodes, here, init_from, start, board)
        except BaseException as error:
            here.update({"seconds": _with_former(here, fit=time.perf_counter() - start)})
            stopped = isinstance(error, KeyboardInterrupt)
            code = error.exit_code if isinstance(error, SkinmtlError) else 75 if stopped else 1
            status = "interrupted" if code == 75 else "failed"
            here.update({"status": status, "exit_code": code, "error": without_folders_in(str(error))})
            if board is not None:
                board.finish(code)
            raise


def _run(nodes: Mapping[str, Any], here: Run, init_from: str | None, start: float, board: WandB | None) -> float:
    pl.seed_everything(nodes["seed"], verbose=False)
    resumed = here.info_file.exists()
    here.update(_origin(nodes, here))
    data = _data(nodes)
    _check_targets(nodes["tasks"], data)
    _say_shares(nodes, data)
    module = make_module(nodes, data)
    if init_from is not None:
        here.update({"init_from": _start_from(Run.open(init_from), module, data, here)})
    here.update(_facts(data) | {"encoder_weights": module.network.weights_file})
    clock, keep = Clock(), BestAndLast(here.path / "checkpoints")
    trainer = _trainer(nodes, here, [clock, keep], board)
    here.update({"parameters": sum(p.numel() for p in module.network.parameters()), "precision": trainer.precision})
    write_bytes(here.split_file, data.split_file.read_bytes())
    write_text(here.path / "split.json", json.dumps(data.certificate(), indent=1, allow_nan=False) + "\n")

    if board is not None:
        board.start(_plain(nodes), stamps(here.info()))
    fit_start = time.perf_counter()
    try:
        trainer.fit(module, data, ckpt_path=str(here.checkpoint("last")) if resumed else None)
    except (SystemExit, KeyboardInterrupt):  # Lightning makes the first of the second
        again = f"the same command with resume={os.path.relpath(here.path)} goes on from the last epoch"
        fix = again if _has_last(here) else "start again: no epoch had ended yet"
        raise Interrupted(here.path.name, "stopped from outside", fix) from None
    except MisconfigurationException as error:
        raise ConfigError("trainer", " ".join(str(error).split()), "see conf/trainer") from error
    except ValueError as error:
        if "Expected more than 1 value per channel" not in str(error):
            raise
        what = "batch normalisation needs more than one value a channel"
        raise ConfigError("data.batch_size", what, "use larger batches, or larger images") from error
    fitted = time.perf_counter()
    if keep.best_model_score is None:
        raise ConfigError("trainer", "no epoch ended with a validation, so nothing was kept", "train for longer")
    score = float(keep.best_model_score)
    best_epoch = load_checkpoint(here.checkpoint())["epoch"] + 1
    here.update({"best_epoch": best_epoch, "score": score, "images_per_second": clock.images_per_second})

    evaluate(here)
    end = time.perf_counter()
    seconds = _with_former(here, fit=fitted - fit_start, evaluate=end - fitted)
    here.update({"status": "finished", "exit_code": 0, "error": None, "seconds": seconds})
    page = write_run_report(here.path)
    if board is not None:
        board.log_run(here)
        board.finish(0)
    log.info("report: %s", page)
    return score


def _with_former(here: Run, **seconds: float) -> dict[str, float]:
    """Seconds of this attempt added to those of the ones before it, and their total."""
    former = here.info().get("seconds") or {}
    parts = {key: round(former.get(key, 0.0) + seconds.get(key, 0.0), 1) for key in ("fit", "evaluate")}
    return parts | {"total": round(sum(parts.values()), 1)}


def _check_targets(tasks: Sequence[str], data: DataModule) -> None:
    """Refuse to train or to test a task on photographs none of which shows it."""
    column = {"seg": "mask", "cls": "dx"}
    for task in tasks:
        for part in STAGES:
            if data.table[column[task]].iloc[data.rows(part)].isna().all():
                what = f"no {part} photograph has a {column[task]}, which task {task} needs"
                fix = "unpack the masks beside them" if task == "seg" else "give diagnoses"
                raise InputError(f"data.root={data.root}", what, f"{fix}, or leave {task} out of tasks")


def _start_from(parent: Run, module: MultiTaskModule, data: DataModule, here: Run) -> dict[str, Any]:
    """Take another run's best weights and give its facts; refuse what has seen these test lesions or does not fit.

    What those weights have seen is kept in seen.csv, for whoever starts from this run.
    """
    checkpoint = load_checkpoint(parent.checkpoint())
    facts = checkpoint["skinmtl"]
    split = pd.read_csv(parent.split_file, dtype=str)
    seen = split.loc[split[f"fold_{facts['fold']}"] != "test", ["image_id", "group"]]
    if (parent.path / "seen.csv").is_file():
        seen = pd.concat([seen, pd.read_csv(parent.path / "seen.csv", dtype=str)]).drop_duplicates()
    test = data.split[data.split[f"fold_{data.fold}"] == "test"]
    # What it merged may not be merged here, and the other way round: lesions of either side count.
    lesions = {name for group in seen["group"].unique() for name in [group, *group.split("+")]}
    merged = test["image_id"].map(dict(zip(data.table["image_id"], data.groups, strict=True)))
    met = set(data.groups[data.table["image_id"].isin(seen["image_id"]) | data.table["lesion_id"].isin(lesions)])
    known = test["image_id"].isin(seen["image_id"]) | test["group"].isin(seen["group"]) | merged.isin(met)
    if known.any():
        what = f"{parent.path.name} has learned from lesions of {int(known.sum())} of the {len(test)} test photographs"
        raise ConfigError("init_from", what, f"use data.split={os.path.relpath(parent.split_file)} and its fold")
    write_text(here.path / "seen.csv", seen.to_csv(index=False))
    # Without lesion ids there, nobody knows which lesions it has seen.
    data.leaky = data.leaky or bool(parent.info().get("leaky"))
    try:
        module.network.load_state_dict(network_state(checkpoint["state_dict"]))
    except RuntimeError as error:
        what = f"weights of {parent.path.name} do not fit: {' '.join(str(error).split())[:300]}"
        raise ConfigError("init_from", what, "use the model and tasks of that run") from None
    return {"run_id": parent.path.name} | {key: facts[key] for key in ("split_hash", "data_hash", "fold")}


def keep_memory() -> None:
    """Keep what a training step frees for the next one, where the C library can be told so (glibc).

    By default every large tensor is given back to the system when freed, and its pages are cleared again a moment
    later.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, TypeError, AttributeError):  # another C library
        return
    trim_threshold, mmap_max = -1, -4  # names and numbers of malloc.h
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, 2**31 - 1)


@contextmanager
def calm() -> Iterator[None]:
    """Leave to Lightning's log and warnings what a person has to act on."""
    logger = logging.getLogger("pytorch_lightning")
    before = logger.level
    logger.setLevel(logging.WARNING)
    with warnings.catch_warnings():
        # torch 2.15 renames a class that Lightning 2.6 uses.
        warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*", category=FutureWarning)
        # A short look at a few batches is no mistake, and how many workers suit a machine is said in conf/data.
        warnings.filterwarnings("ignore", message="The number of training batches .* is smaller than the logging")
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        # A run that goes on finds its own checkpoints.
        warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
        try:
            yield
        finally:
            logger.setLevel(before)


def _home(fresh: Run, resume: str | None, config: Mapping[str, Any]) -> Run:
    """Where to write: the fresh folder, or that of the run to go on with, whose config has to be this one."""
    if resume == "auto":
        # Run ids begin with their time, so the last by name is the newest.
        runs = sorted(find(fresh.path.parent), key=lambda run: run.path.name, reverse=True)
        if (found := next((run for run in runs if _goes_on(run, config)), None)) is not None:
            return found
    if resume in (None, "auto"):
        if fresh.info_file.exists():
            what = f"{os.path.relpath(fresh.path)} holds a run already"
            raise ConfigError("hydra.run.dir", what, "go on with it by resume=<that folder>, or name another folder")
        return fresh
    run = Run.open(resume)
    if different := _differences(run, config):
        keys = ", ".join(different)
        raise ConfigError(
            "resume", f"{run.path.name} was started with other values of {keys}", "give the same overrides"
        )
    if run.info()["status"] == "finished":
        raise ConfigError("resume", f"{run.path.name} is finished", "start from its weights with init_from=")
    run.checkpoint("last")
    return run


def _goes_on(run: Run, config: Mapping[str, Any]) -> bool:
    """Whether a run stopped on the way with this very config, and no process is at it."""
    try:
        stopped = run.info()["status"] != "finished" and _has_last(run) and not run.is_held()
        return stopped and _differences(run, config) == []
    except (SkinmtlError, KeyError, YAMLError, OmegaConfBaseException):  # a neighbour that cannot be read
        return False


def _has_last(run: Run) -> bool:
    return (run.path / "checkpoints" / "last.ckpt").is_file()


def _differences(run: Run, config: Mapping[str, Any]) -> list[str]:
    """Dotted keys whose values differ between a run's saved config and this one."""
    saved = OmegaConf.to_container(run.config(), resolve=True)
    assert isinstance(saved, dict)
    before, now = (flat(dict(node)) for node in (saved, config))
    keys = sorted((before.keys() | now.keys()) - {"resume", "init_from"})
    return [key for key in keys if key not in before or key not in now or repr(before[key]) != repr(now[key])]


def _data(nodes: Mapping[str, Any]) -> DataModule:
    parts = {"augment": config.build(nodes["augment"]), "sampler": config.build(nodes["sampler"])}
    data: DataModule = config.build(nodes["data"], **parts, seed=nodes["seed"])
    data.prepare_data()
    data.setup("fit")
    return data


def make_module(nodes: Mapping[str, Any], data: DataModule) -> MultiTaskModule:
    """Network, tasks, losses and optimiser of a checked config, sized from the data."""
    tasks: list[str] = list(nodes["tasks"])
    classes = {"seg": data.mask_classes, "cls": data.dx_classes}
    counts = {"seg": {}, "cls": {"class_counts": data.class_counts("train")}}
    network = config.build(
        nodes["model"],
        tasks=tasks,
        mask_classes=len(data.mask_classes),
        dx_classes=len(data.dx_classes),
        size=data.size,
    )
    steps_per_epoch = _steps_per_epoch(nodes["trainer"], len(data.train_dataloader()))
    return MultiTaskModule(
        network.to(memory_format=torch.channels_last),
        [TASKS[task](config.build(nodes["loss"][task], **counts[task]), classes[task]) for task in tasks],
        config.build(nodes["weighting"]),
        config.build(nodes["optim"]),
        config.build(nodes["schedule"]),
        seed=nodes["seed"],
        total_steps=steps_per_epoch * nodes["trainer"].max_epochs,
        steps_per_epoch=steps_per_epoch,
        facts={
            "tasks": tasks,
            "mask_classes": list(data.mask_classes),
            "dx_classes": list(data.dx_classes),
            "size": list(data.size),
            "split_hash": data.split_hash,
            "data_hash": data.data_hash,
            "fold": data.fold,
            "config": {key: _shareable(value) for key, value in flat(_plain(nodes)).items()},
        },
    )


def _steps_per_epoch(trainer: DictConfig, batches: int) -> int:
    # Counted here and not by the trainer, which would build its loaders to know, and lose a resumed position.
    limit = trainer.get("limit_train_batches")
    if limit is not None:
        batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
    return math.ceil(batches / (trainer.get("accumulate_grad_batches") or 1))  # the last group may be smaller


def _trainer(nodes: Mapping[str, Any], here: Run, callbacks: list[pl.Callback], board: WandB | None) -> pl.Trainer:
    chosen = [config.build(node) for node in nodes["callbacks"].values() if node is not None]
    loggers: list[Any] = [MetricsFile(here.path / "metrics.csv")] + ([board] if board is not None else [])
    node = nodes["trainer"]
    trainer: pl.Trainer = config.build(
        {**node, "precision": config.resolve_precision(node.precision, node.accelerator)},
        callbacks=[*chosen, EpochLines(), Finite(), *callbacks],
        logger=loggers,
        plugins=[SafeCheckpointIO()],
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        enable_model_summary=False,
        default_root_dir=str(here.path),
    )
    return trainer


def _say_shares(nodes: Mapping[str, Any], data: DataModule) -> None:
    """Say what the sampler makes of the diagnoses, and warn where the loss corrects for the same thing again."""
    if "cls" not in nodes["tasks"] or not data.sampler.rebalances:
        return
    shares = zip(data.dx_classes, data.class_shares(), strict=True)
    log.info("an epoch shows %s", ", ".join(f"{name} {share:.1%}" for name, share in shares))
    if nodes["loss"].cls.get("class_weights", "none") != "none":
        log.warning(
            "sampler and loss.cls.class_weights both bring up rare diagnoses; set one of them to shuffle or none"
        )


def _origin(nodes: Mapping[str, Any], here: Run) -> dict[str, Any]:
    """What is known before anything is built; of a run that goes on, only what the new attempt changes."""
    now = _attempt(nodes, here.path)
    if not here.info_file.exists():
        return now
    again = {key: now[key] for key in ("started", "command", "commit", "versions", "device", "threads")}
    return {"status": "running", "exit_code": None, "resumed": [*here.info().get("resumed", []), again]}


def _attempt(nodes: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    return {
        "run_id": folder.name,
        "name": nodes["name"],
        "status": "running",
        "exit_code": None,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": without_folders_in(" ".join(["python train.py", *sys.argv[1:]])),
        "commit": _commit(),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU ({platform.machine()})",
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "seed": nodes["seed"],
        "tasks": list(nodes["tasks"]),
    }


def _facts(data: DataModule) -> dict[str, Any]:
    """What the photographs and the split are, without a folder's name that could name a person or a place."""
    parts = {}
    for part in ("train", "val", "test"):
        rows = data.table.iloc[data.rows(part)]
        counts = rows["dx"].value_counts().reindex(data.dx_classes, fill_value=0)
        parts[part] = {
            "images": len(rows),
            "lesions": int(rows["lesion_id"].nunique()),
            "classes": {name: int(counts[name]) for name in data.dx_classes},
        }
    return {
        "dx_classes": list(data.dx_classes),
        "mask_classes": list(data.mask_classes),
        "leaky": data.leaky,
        "synthetic": data.synthetic is not None,
        "size": list(data.size),
        "split": {
            "hash": data.split_hash,
            "fold": data.fold,
            "folds": data.folds,
            "merged_pairs": len(data.pairs),
            **parts,
        },
        "data": {"hash": data.data_hash, "layout": data.layout, "images": len(data.table)},
    }


def _plain(nodes: Mapping[str, Any]) -> dict[str, Any]:
    """The nodes as plain dicts, lists, numbers and words: what a checkpoint may hold."""
    return {
        key: OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
        for key, value in nodes.items()
    }


def _shareable(value: object) -> object:
    """A value of the config without the folders of whoever trained: checkpoints are passed on."""
    return without_folders(value) if isinstance(value, str) else value


def _commit() -> str | None:
    here = Path(__file__).parent
    command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
