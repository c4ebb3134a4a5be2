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
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import pytorch_lightning as pl
import torch
from annotated_types import Interval
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from skinmtl import config, processes, ranks
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
    test_time_flips: bool = False,
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
        test_time_flips: evaluate and predict with the mean over a photograph's four mirror images; the validation
            while training takes the photograph as it is.
        folder: where the run writes.

    Raises:
        SkinmtlError: an answer for the user, with its exit code.
    """
    nodes = {key: value for key, value in locals().items() if key not in ("folder", "resume", "init_from")}
    keep_memory()
    start = time.perf_counter()
    with calm():
        devices = _devices(nodes["trainer"])
    here = _home(Run(folder), resume, _plain(nodes), len(devices))
    here.path.mkdir(parents=True, exist_ok=True)
    with here.held(), calm():
        try:
            resumed = here.info_file.exists()
            here.update(_origin(nodes, here, len(devices)))
            if len(devices) == 1:
                return _run(nodes, here, init_from, resumed)
            return _run_together(nodes, here, init_from, resumed, devices)
        except BaseException as error:
            here.update({"seconds": _with_former(here, fit=time.perf_counter() - start)})
            code = _exit_code(error)
            status = "interrupted" if code == 75 else "failed"
            here.update({"status": status, "exit_code": code, "error": without_folders_in(str(error))})
            raise


def _exit_code(error: BaseException) -> int:
    if isinstance(error, SkinmtlError):
        return error.exit_code
    return 75 if isinstance(error, KeyboardInterrupt) else 1


def _devices(node: DictConfig) -> list[str]:
    """The devices that a trainer's node stands for, `cuda:0` say; each gets a process of its own."""
    precision = config.resolve_precision(node.precision, node.accelerator)
    chosen = {str(key): value for key, value in node.items()} | {"precision": precision}
    quiet = {"logger": False, "enable_progress_bar": False, "plugins": [LightningEnvironment()]}
    trainer: pl.Trainer = config.build(chosen, **quiet)
    places = getattr(trainer.strategy, "parallel_devices", None) or [trainer.strategy.root_device]
    return [str(place) for place in places]


def _run_together(
    nodes: Mapping[str, Any], here: Run, init_from: str | None, resumed: bool, devices: Sequence[str]
) -> float:
    """Run in a process for each device; this one only watches them, and draws, splits and caches the data before."""
    _data(nodes)
    work = partial(_run_rank, _plain(nodes), here.path, init_from, resumed)
    try:
        processes.together(work, devices, here.path)
    except KeyboardInterrupt:
        raise _interrupted(here) from None
    return float(here.info()["score"])


def _run_rank(
    plain: Mapping[str, Any],
    folder: Path,
    init_from: str | None,
    resumed: bool,
    meeting: Path,
    rank: int,
    world_size: int,
    device: str,
) -> None:
    """One process's share of a run; its parent keeps the folder and says how it ended."""
    logging.basicConfig(level=logging.WARNING if rank else logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.getLogger("skinmtl.data").setLevel(logging.WARNING)  # the parent has said it
    keep_memory()
    nodes = OmegaConf.create(dict(plain))
    with calm():
        ranks.join(meeting, rank, world_size, device)
        _run({str(key): value for key, value in nodes.items()}, Run(folder), init_from, resumed)


def _run(nodes: Mapping[str, Any], here: Run, init_from: str | None, resumed: bool) -> float:
    """Train in this process; the first of several, or the only one, writes, evaluates and speaks to W&B."""
    logger = nodes["logger"]
    first = ranks.rank() == 0
    board = config.build(logger, folder=here.path, run_id=here.path.name) if first and logger is not None else None
    try:
        return _train(nodes, here, init_from, resumed, board)
    except BaseException as error:
        if board is not None:
            board.finish(_exit_code(error))
        raise


def _train(nodes: Mapping[str, Any], here: Run, init_from: str | None, resumed: bool, board: WandB | None) -> float:
    pl.seed_everything(nodes["seed"], verbose=False)
    first = ranks.rank() == 0
    data = _data(nodes)
    _check_targets(nodes["tasks"], data)
    with ranks.first_first():
        module = make_module(nodes, data)
    clock, keep = Clock(), BestAndLast(here.path / "checkpoints")
    trainer = _trainer(nodes, here, [clock, keep], board)
    parameters = sum(p.numel() for p in module.network.parameters())
    facts: dict[str, Any] = {"parameters": parameters, "precision": trainer.precision}
    if init_from is not None:
        facts["init_from"] = _start_from(Run.open(init_from), module, data, here)
    facts |= _facts(data) | {"encoder_weights": module.network.weights_file}
    if first:
        _say_shares(nodes, data, module)
        here.update(facts)
        write_bytes(here.split_file, data.split_file.read_bytes())
        write_text(here.path / "split.json", json.dumps(data.certificate(), indent=1, allow_nan=False) + "\n")
    if board is not None:
        board.start(_plain(nodes), stamps(here.info()))
    fit_start = time.perf_counter()
    _fit(trainer, module, data, here, resumed)
    fitted = time.perf_counter()
    if keep.best_model_score is None:
        raise ConfigError("trainer", "no epoch ended with a validation, so nothing was kept", "train for longer")
    score = float(keep.best_model_score)
    ranks.leave()
    if not first:
        return score
    best_epoch = load_checkpoint(here.checkpoint())["epoch"] + 1
    here.update({"best_epoch": best_epoch, "score": score, "images_per_second": clock.images_per_second})

    evaluate(here)
    seconds = _with_former(here, fit=fitted - fit_start, evaluate=time.perf_counter() - fitted)
    here.update({"status": "finished", "exit_code": 0, "error": None, "seconds": seconds})
    page = write_run_report(here.path)
    if board is not None:
        board.log_run(here)
        board.finish(0)
    log.info("report: %s", page)
    return score


def _fit(trainer: pl.Trainer, module: MultiTaskModule, data: DataModule, here: Run, resumed: bool) -> None:
    try:
        trainer.fit(module, data, ckpt_path=str(here.checkpoint("last")) if resumed else None)
    except (SystemExit, KeyboardInterrupt):  # Lightning makes the first of the second
        raise _interrupted(here) from None
    except MisconfigurationException as error:
        raise ConfigError("trainer", " ".join(str(error).split()), "see conf/trainer") from error
    except ValueError as error:
        if "Expected more than 1 value per channel" not in str(error):
            raise
        what = "batch normalisation needs more than one value a channel"
        raise ConfigError("data.batch_size", what, "use larger batches, or larger images") from error
    except RuntimeError as error:
        if "find_unused_parameters" not in str(error):
            raise
        what = "some of its weights take no part in the loss, and other processes wait for their gradients"
        raise ConfigError("model", what, "trainer.strategy=ddp_find_unused_parameters_true") from error


def _interrupted(here: Run) -> Interrupted:
    again = f"the same command with resume={os.path.relpath(here.path)} goes on from the last epoch"
    fix = again if _has_last(here) else "start again: no epoch had ended yet"
    return Interrupted(here.path.name, "stopped from outside", fix)


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
                fix = "unpack the masks beside them, or give data.masks" if task == "seg" else "give diagnoses"
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
    if ranks.rank() == 0:
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
        # Of several processes one may have nothing to validate, and all log what is the same for all.
        warnings.filterwarnings("ignore", message="The ``compute`` method of metric .* was called before")
        warnings.filterwarnings("ignore", message="It is recommended to use .*sync_dist=True")
        try:
            yield
        finally:
            logger.setLevel(before)


def _home(fresh: Run, resume: str | None, config: Mapping[str, Any], world_size: int) -> Run:
    """Where to write: the fresh folder, or that of the run to go on with, whose config has to be this one."""
    if resume == "auto":
        # Run ids begin with their time, so the last by name is the newest.
        runs = sorted(find(fresh.path.parent), key=lambda run: run.path.name, reverse=True)
        if (found := next((run for run in runs if _goes_on(run, config)), None)) is not None:
            _check_world_size(found, world_size)
            return found
    if resume in (None, "auto"):
        if fresh.info_file.exists():
            what = f"{os.path.relpath(fresh.path)} holds a run already"
            raise ConfigError("hydra.run.dir", what, "go on with it by resume=<that folder>, or name another folder")
        return fresh
    run = Run.open(resume)
    _check_world_size(run, world_size)
    if different := _differences(run, config):
        keys = ", ".join(different)
        raise ConfigError(
            "resume", f"{run.path.name} was started with other values of {keys}", "give the same overrides"
        )
    if run.info()["status"] == "finished":
        raise ConfigError("resume", f"{run.path.name} is finished", "start from its weights with init_from=")
    run.checkpoint("last")
    return run


def _check_world_size(run: Run, now: int) -> None:
    """Refuse to go on with another number of processes, which would share out other batches."""
    before = run.info().get("world_size", 1)
    if before != now:
        what = f"{run.path.name} was started with world size {before} (devices), this command has {now}"
        raise ConfigError("trainer.devices", what, f"use {before} again, or start another run with init_from=")


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
    counts = {"seg": {}, "cls": {"class_counts": data.class_counts()}}
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
    first = ranks.rank() == 0
    loggers: list[Any] = [MetricsFile(here.path / "metrics.csv" if first else None)]
    loggers += [board] if board is not None else []
    node = nodes["trainer"]
    together = ranks.world_size() > 1
    node = {**node, "precision": config.resolve_precision(node.precision, node.accelerator)}
    trainer: pl.Trainer = config.build(
        node if together else node | {"strategy": "auto"},
        callbacks=[*chosen, EpochLines(), Finite(), *callbacks],
        logger=loggers,
        # Its own environment: processes are started here, whatever a cluster's variables say.
        plugins=[SafeCheckpointIO(), *([LightningEnvironment()] if together else [])],
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        enable_model_summary=False,
        default_root_dir=str(here.path),
    )
    return trainer


def _say_shares(nodes: Mapping[str, Any], data: DataModule, module: MultiTaskModule) -> None:
    """Say what sampler and loss make of the diagnoses, and warn where both bring up the rare ones."""
    if "cls" not in nodes["tasks"]:
        return
    shares = torch.tensor(data.class_shares())
    log.info("an epoch shows %s", _shares(data.dx_classes, shares))
    weight = getattr(module.tasks["cls"].loss, "weight", None)
    if weight is None or bool((weight[shares > 0] == weight[shares > 0][0]).all()):
        return
    log.info("the loss counts them as %s", _shares(data.dx_classes, shares * weight / (shares * weight).sum()))
    if data.sampler.rebalances:
        log.warning("sampler and class weights both bring up rare diagnoses; fix: sampler=shuffle, or no class weights")


def _shares(names: Sequence[str], shares: torch.Tensor) -> str:
    return ", ".join(f"{name} {share:.1%}" for name, share in zip(names, shares.tolist(), strict=True))


def _origin(nodes: Mapping[str, Any], here: Run, world_size: int) -> dict[str, Any]:
    """What is known before anything is built; of a run that goes on, only what the new attempt changes."""
    now = _attempt(nodes, here.path, world_size)
    if not here.info_file.exists():
        return now
    again = {key: now[key] for key in ("started", "command", "commit", "versions", "device", "threads")}
    return {"status": "running", "exit_code": None, "resumed": [*here.info().get("resumed", []), again]}


def _attempt(nodes: Mapping[str, Any], folder: Path, world_size: int) -> dict[str, Any]:
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
        "threads": torch.get_num_threads() if world_size == 1 else processes.threads(world_size),
        "cores": os.cpu_count(),
        "world_size": world_size,
        "global_batch": nodes["data"].batch_size * world_size,
        "seed": nodes["seed"],
        "tasks": list(nodes["tasks"]),
        "test_time_flips": nodes["test_time_flips"],
    }


def _facts(data: DataModule) -> dict[str, Any]:
    """What the photographs and the split are, without a folder's name that could name a person or a place."""
    parts = {}
    for part in ("train", "val", "test"):
        rows = data.table.iloc[data.rows(part, source=0)]
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
        "data": {"hash": data.data_hash, "layout": data.layout, "images": int((data.source == 0).sum())},
        "also": {
            name: {
                "images": int((data.source == number).sum()),
                "masks": int(data.table["mask"][data.source == number].notna().sum()),
                "diagnoses": int(data.table["dx"][data.source == number].notna().sum()),
                "share": source.share,
            }
            for number, (name, source) in enumerate(data.also.items(), start=1)
        },
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
