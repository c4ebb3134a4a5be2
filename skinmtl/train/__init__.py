"""One run: seed, build, fit, evaluate, report."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import pytorch_lightning as pl
from annotated_types import Interval
from lightning_fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf

from skinmtl import config, logs, processes, ranks
from skinmtl.callbacks import BestAndLast, Clock
from skinmtl.checkpoints import load as load_checkpoint
from skinmtl.data.datamodule import DataModule
from skinmtl.errors import ConfigError, Interrupted, SkinmtlError
from skinmtl.evaluate import evaluate
from skinmtl.facts import stamps, without_folders_in
from skinmtl.module import MultiTaskModule
from skinmtl.processes import keep_memory
from skinmtl.report import write_run_report
from skinmtl.runs import Run, write_bytes, write_text
from skinmtl.tracking import WandB
from skinmtl.train.build import build_data, build_module, build_trainer, check_targets, devices_of, say_shares
from skinmtl.train.record import data_facts, origin, plain, seconds_with_former
from skinmtl.train.resume import has_last, home, keep_seen, start_from

log = logging.getLogger(__name__)


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
    gradients: DictConfig,
    optim: DictConfig,
    schedule: DictConfig,
    trainer: DictConfig,
    callbacks: DictConfig,
    logger: DictConfig | None = None,
    resume: str | None = None,
    init_from: str | None = None,
    keep: Literal["best", "last"] = "best",
    test_time_flips: bool = False,
    *,
    folder: Path,
) -> float:
    """Train, evaluate and report; gives the validation score of the kept checkpoint, which a sweeper may maximise.

    Args:
        name: the experiment's name.
        seed: the only source of chance: weights, order, augmentation and dropout follow from it.
        tasks: `seg`, `cls` or both.
        data: the data module's node, and so on: each is a node of the config, already through `config.check`.
        resume: a run's folder to go on with from its last checkpoint, or `auto`: the newest unfinished run of this
            experiment with the same config, else a new one.
        init_from: a run's folder whose best weights this run starts from.
        keep: which weights are evaluated and used: those of the best validation, or of the last epoch.
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
        devices = devices_of(nodes["trainer"])
    here = home(Run(folder), resume, plain(nodes), len(devices))
    here.path.mkdir(parents=True, exist_ok=True)
    with here.held(), calm():
        try:
            resumed = here.info_file.exists()
            here.update(origin(nodes, here, len(devices)))
            if len(devices) == 1:
                return _run(nodes, here, init_from, resumed)
            return _run_together(nodes, here, init_from, resumed, devices)
        except BaseException as error:
            here.update({"seconds": seconds_with_former(here, fit=time.perf_counter() - start)})
            code = _exit_code(error)
            status = "interrupted" if code == 75 else "failed"
            here.update({"status": status, "exit_code": code, "error": without_folders_in(str(error))})
            raise


def _exit_code(error: BaseException) -> int:
    if isinstance(error, SkinmtlError):
        return error.exit_code
    return 75 if isinstance(error, KeyboardInterrupt) else 1


def _run_together(
    nodes: Mapping[str, Any], here: Run, init_from: str | None, resumed: bool, devices: Sequence[str]
) -> float:
    """Run in a process for each device; this one only watches them, and draws, splits and caches the data before."""
    build_data(nodes)
    work = partial(_run_rank, plain(nodes), here.path, init_from, resumed)
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
    data = build_data(nodes)
    check_targets(nodes["tasks"], data)
    with ranks.first_first():
        module = build_module(nodes, data)
    clock, keep = Clock(), BestAndLast(here.path / "checkpoints", nodes["keep"])
    trainer = build_trainer(nodes, here, [clock, keep], board)
    parameters = sum(p.numel() for p in module.network.parameters())
    facts: dict[str, Any] = {"parameters": parameters, "precision": trainer.precision}
    if init_from is not None:
        facts["init_from"] = start_from(Run.open(init_from), module, data, here)
    else:
        keep_seen(here, data)
    facts |= data_facts(data) | {"encoder_weights": module.network.weights_file}
    if first:
        say_shares(nodes, data, module)
        here.update(facts)
        write_bytes(here.split_file, data.split_file.read_bytes())
        write_text(here.path / "split.json", json.dumps(data.certificate(), indent=1, allow_nan=False) + "\n")
    if board is not None:
        board.start(plain(nodes), stamps(here.info()))
    fit_start = time.perf_counter()
    _fit(trainer, module, data, here, resumed)
    fitted = time.perf_counter()
    if (score := keep.score) is None:
        raise ConfigError("trainer", "no epoch ended with a validation, so nothing was kept", "train for longer")
    ranks.leave()
    if not first:
        return score
    best_epoch = load_checkpoint(here.checkpoint())["epoch"] + 1
    here.update({"best_epoch": best_epoch, "score": score, "images_per_second": clock.images_per_second})

    with logs.only(logging.WARNING, "skinmtl.data"):  # it has said what it has to
        evaluate(here)
    seconds = seconds_with_former(here, fit=fitted - fit_start, evaluate=time.perf_counter() - fitted)
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
    fix = again if has_last(here) else "start again: no epoch had ended yet"
    return Interrupted(here.path.name, "stopped from outside", fix)


@contextmanager
def calm() -> Iterator[None]:
    """Leave to Lightning's log and warnings what a person has to act on."""
    with logs.only(logging.WARNING, "pytorch_lightning"), warnings.catch_warnings():
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
        yield
