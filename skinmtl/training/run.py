"""One run: seed, build, fit, evaluate, report."""

from __future__ import annotations

import difflib
import json
import logging
import os
import re
import shlex
import shutil
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import pytorch_lightning as pl
from annotated_types import Gt, Interval
from lightning_fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf

from skinmtl.config.build import build
from skinmtl.config.overrides import expand
from skinmtl.data.datamodule import DataModule
from skinmtl.distributed import collectives
from skinmtl.distributed.launch import ProcessDied, keep_memory, together
from skinmtl.distributed.signals import Stop, stoppable
from skinmtl.errors import (
    ConfigError,
    Diverged,
    InputError,
    Interrupted,
    ResourceError,
    SkinmtlError,
    answer_to,
    lacks_memory,
)
from skinmtl.evaluation.evaluate import evaluate
from skinmtl.files import write_bytes, write_text
from skinmtl.reports.run import write_run_report
from skinmtl.runs.checkpoints import ELSEWHERE, LAST, newest
from skinmtl.runs.checkpoints import load as load_checkpoint
from skinmtl.runs.labels import stamps
from skinmtl.runs.record import flat
from skinmtl.runs.redaction import shareable, without_paths_in
from skinmtl.runs.run import Run
from skinmtl.terminal import only, spoken
from skinmtl.tracking.wandb import WandB
from skinmtl.training.build import (
    build_data,
    build_module,
    build_trainer,
    check_targets,
    class_weights,
    devices_of,
    say_shares,
)
from skinmtl.training.callbacks.best_checkpoint import Best
from skinmtl.training.callbacks.clock import Clock, Steps
from skinmtl.training.dry_run import check
from skinmtl.training.lightning_module import MultiTaskModule
from skinmtl.training.record import data_facts, origin, plain, seconds_with_former
from skinmtl.training.resume import Start, beginning, check_data, home, keep_seen, requeue, start_from

log = logging.getLogger(__name__)

BESIDE = ("resume", "init_from", "allow_change")  # arguments of a run that are no part of what it is


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
    class_weights: Literal["auto", "none", "sqrt", "balanced"] = "auto",
    resume: str | None = None,
    init_from: str | None = None,
    keep: Literal["best", "last"] = "best",
    save_every: Annotated[float, Gt(0)] = 10,
    allow_change: bool = False,
    test_time_flips: bool = False,
    evaluate: bool = True,
    *,
    folder: Path,
    command: str | None = None,
) -> float:
    """Train, evaluate and report; gives the validation score of the kept checkpoint, which a sweeper may maximise.

    Whoever calls it, the command line, a sweep or a notebook, gets the same: the config is checked, resolved and kept
    in the folder, the folder is held, what happens is said, a stop is heard, and run.json tells how it ended.

    Args:
        name: the experiment's name.
        seed: the only source of chance: weights, order, augmentation and dropout follow from it.
        tasks: `seg`, `cls` or both.
        data: the data module's node, and so on: each is a node of the config.
        class_weights: how far cross-entropy, label smoothing and focal loss bring up rare diagnoses; `auto` is `sqrt`
            where neither the sampler nor the loss itself does, else `none`.
        resume: a run's folder to go on with from its last checkpoint, or `auto`: the newest unfinished run of this
            experiment with the same config, else a new one.
        allow_change: go on although values differ that the result depends on.
        save_every: minutes between saves within an epoch.
        init_from: a run's folder whose best weights this run starts from.
        keep: which weights are evaluated and used: those of the best validation, or of the last epoch.
        test_time_flips: evaluate and predict with the mean over a photograph's four mirror images; the validation
            while training takes the photograph as it is.
        evaluate: end with scores of the test photographs; false leaves them, whole, to `skinmtl evaluate`.
        folder: where the run writes.
        command: how it was started, for its record.

    Raises:
        SkinmtlError: an answer for the user, with its exit code.
    """
    given = {key: value for key, value in locals().items() if key not in ("folder", "command")}
    return float(carry_out(given, folder, command).info()["score"])


def carry_out(given: Mapping[str, Any], folder: Path, command: str | None = None) -> Run:
    """Do what `run` does, and give the run: that of the folder, or the one that goes on."""
    with spoken(), calm():
        cfg = OmegaConf.create(dict(given))
        check(cfg, run)
        expand(cfg)
        OmegaConf.resolve(cfg)
        keep_memory()
        nodes = {str(key): value for key, value in cfg.items() if key not in BESIDE}
        devices = devices_of(nodes["trainer"])
        fresh = Run(Path(os.path.abspath(folder)))
        asked = plain(nodes) | {"init_from": cfg.get("init_from")}
        here = home(fresh, cfg.get("resume"), asked, len(devices), bool(cfg.get("allow_change")))
        if here != fresh and [path.name for path in fresh.path.glob("*")] == [".hydra"]:
            shutil.rmtree(fresh.path)  # which Hydra made before it was known that another run goes on
        here.path.mkdir(parents=True, exist_ok=True)
        if threading.current_thread() is not threading.main_thread():
            log.warning("not in this process's first thread: Ctrl-C, SIGTERM and SIGUSR1 do not stop and save this run")
        _held(cfg, nodes, here, devices, command)
    return here


def _held(cfg: DictConfig, nodes: Mapping[str, Any], here: Run, devices: Sequence[str], command: str | None) -> None:
    """Train in a folder that is held meanwhile, and keep there what began and how it ended."""
    began = time.perf_counter()
    with here.held(), stoppable() as stop:
        try:
            start = beginning(here, cfg.get("init_from"), bool(cfg.get("allow_change")))
            if not start.resumed:
                (here.path / ".hydra").mkdir(exist_ok=True)
                write_text(here.path / ".hydra" / "config.yaml", OmegaConf.to_yaml(cfg))
            here.update(origin(nodes, here, len(devices), command))
            if len(devices) == 1:
                _run(nodes, here, start, stop)
            else:
                _run_together(nodes, here, start, devices)
        except BaseException as raised:
            answer = answer_to(raised, here.path, ELSEWHERE)
            # Asked to stop, compiled code answers in ways of its own.
            stopped = isinstance(raised, KeyboardInterrupt) or (stop.asked and answer is None)
            error = _interrupted(here) if stopped else answer or raised
            with suppress(OSError):  # a full disk takes this neither
                _keep_ending(here, nodes, error, time.perf_counter() - began)
            if stopped:
                requeue(stop.number or next(iter(raised.args), None))
            if error is raised:
                raise
            raise error from (None if stopped else raised)


def _keep_ending(here: Run, nodes: Mapping[str, Any], error: BaseException, seconds: float) -> None:
    """Write into run.json how a run ended that did not finish."""
    code = _exit_code(error)
    told = flat(plain(nodes)).items()
    private = [value for key, value in told if isinstance(value, str) and shareable(key, value) != value]
    private += [os.path.abspath(value) for value in private if value]  # errors name folders from the root
    status = "interrupted" if code == 75 else "failed"
    facts = {
        "status": status,
        "exit_code": code,
        "error": without_paths_in(str(error).replace(f"{here.path}/", ""), private),
    }
    here.update(facts | {"seconds": seconds_with_former(here, fit=seconds)})


def _exit_code(error: BaseException) -> int:
    if isinstance(error, SkinmtlError):
        return error.exit_code
    return 75 if isinstance(error, KeyboardInterrupt) else 1


def _run_together(nodes: Mapping[str, Any], here: Run, start: Start, devices: Sequence[str]) -> None:
    """Run in a process for each device; this one only watches them, and draws, splits and caches the data before."""
    build_data(nodes)
    try:
        together(partial(_run_rank, plain(nodes), here.path, start), devices, here.path)
    except ProcessDied as died:
        raise _left_by(died, here) from None


def _run_rank(
    plain: Mapping[str, Any],
    folder: Path,
    start: Start,
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
    with calm(), stoppable() as stop:
        collectives.join(meeting, rank, world_size, device)
        _run({str(key): value for key, value in nodes.items()}, Run(folder), start, stop)


def _run(nodes: Mapping[str, Any], here: Run, start: Start, stop: Stop) -> None:
    """Train in this process; the first of several, or the only one, writes, evaluates and speaks to W&B."""
    logger = nodes["logger"]
    first = collectives.rank() == 0
    board = build(logger, folder=here.path, run_id=here.path.name) if first and logger is not None else None
    try:
        _train(nodes, here, start, stop, board)
    except BaseException as error:
        if board is not None:
            board.finish(_exit_code(error))
        raise


def _train(nodes: Mapping[str, Any], here: Run, start: Start, stop: Stop, board: WandB | None) -> None:
    pl.seed_everything(nodes["seed"], verbose=False)
    first = collectives.rank() == 0
    data = build_data(nodes)
    check_targets(nodes["tasks"], data)
    check_data(here, data, start)
    with collectives.first_first():
        module = build_module(nodes, data)
    clock, keep = Clock(), Best(here.path / "checkpoints", nodes["keep"])
    trainer = build_trainer(nodes, here, [clock, keep, Steps(module.steps_per_epoch)], board, stop)
    parameters = sum(p.numel() for p in module.network.parameters())
    facts: dict[str, Any] = {"parameters": parameters, "precision": trainer.precision}
    facts["class_weights"] = class_weights(nodes, data)
    if start.init_from is not None:
        facts["init_from"] = start_from(Run.open(start.init_from), module, data, here)
    else:
        keep_seen(here, data)
    facts |= data_facts(data) | {"encoder_weights": getattr(module.network, "weights_file", None)}
    if first:
        say_shares(nodes, data, module)
        here.update(facts)
        write_bytes(here.split_file, data.split_file.read_bytes())
        write_text(here.path / "split.json", json.dumps(data.certificate(), indent=1, allow_nan=False) + "\n")
    if board is not None:
        board.start(plain(nodes), stamps(here.info()))
    fit_start = time.perf_counter()
    if not start.trained:
        _fit(trainer, module, data, start.checkpoint, stop)
        if keep.score is None:
            raise ConfigError("trainer", "no epoch ended with a validation, so nothing was kept", "train for longer")
    fitted = time.perf_counter()
    collectives.leave()
    if not first:
        return
    if not start.trained:
        best_epoch = load_checkpoint(here.checkpoint())["epoch"] + 1
        rate = clock.images_per_second
        here.update({"trained": True, "best_epoch": best_epoch, "score": keep.score, "images_per_second": rate})
    _conclude(nodes, here, board, fitted - fit_start, fitted)


def _conclude(nodes: Mapping[str, Any], here: Run, board: WandB | None, fit: float, fitted: float) -> None:
    """Evaluate what was trained, unless that is left for later, and write the page."""
    if nodes["evaluate"]:
        with only(logging.WARNING, "skinmtl.data"):  # it has said what it has to
            evaluate(here)
    else:
        log.info("no test photograph was looked at: skinmtl evaluate %s", shlex.quote(os.path.relpath(here.path)))
    seconds = seconds_with_former(here, fit=fit, evaluate=time.perf_counter() - fitted)
    ending = {"status": "finished", "exit_code": 0, "error": None, "seconds": seconds}
    page = write_run_report(here.path, ending)
    here.update(ending)  # last, for a run that is finished has its page
    if board is not None:
        if nodes["evaluate"]:
            board.log_run(here)
        board.finish(0)
    log.info("report: %s", page)


def _fit(trainer: pl.Trainer, module: MultiTaskModule, data: DataModule, checkpoint: Path | None, stop: Stop) -> None:
    try:
        trainer.fit(module, data, ckpt_path=checkpoint)
        if trainer.should_stop and trainer.current_epoch < (trainer.max_epochs or 0):
            watched = ", ".join(stopping.monitor for stopping in trainer.early_stopping_callbacks)
            why = f"early stopping on {watched}" if watched else "a callback asked for it"
            log.info("stopped after epoch %d of %d: %s", trainer.current_epoch, trainer.max_epochs, why)
    except SystemExit:  # what Lightning makes of Ctrl-C
        raise KeyboardInterrupt from None
    except Exception as raised:
        error: BaseException = raised
        if "iter(combined_loader)" in str(raised) and raised.__context__ is not None:
            error = raised.__context__  # Lightning's way out fails in its turn where loading never began
        if stop.asked and _is_of_workers(error):  # one that was just being started was asked, too
            raise KeyboardInterrupt from None
        answer = _failure(error, data)
        if answer is None and error is raised:
            raise
        raise answer or error from raised


def _failure(error: BaseException, data: DataModule) -> SkinmtlError | None:
    """The answer that a failed training stands for; None where it speaks for itself."""
    if isinstance(error, SkinmtlError):
        return None
    said = " ".join(str(error).split())
    if isinstance(error, MisconfigurationException):
        return ConfigError("trainer", said, "see conf/trainer")
    if lacks_memory(error):
        return _out_of_memory(said, data)
    if _is_of_workers(error):
        fix = "take fewer data.workers, or data.workers=0; then go on with resume="
        return ResourceError("data.workers", said[:200] + _shared_memory(), fix)
    if "Expected more than 1 value per channel" in said:
        what = "batch normalisation needs more than one value a channel"
        return ConfigError("data.batch_size", what, "use larger batches, or larger images")
    if found := re.search(r"conditioned on metric `(.+?)` which is not available.* any of the following: (.+)", said):
        known = sorted(name for name in re.findall(r"`([^`]+)`", found[2]) if not name.startswith("step/"))
        near = difflib.get_close_matches(found[1], known, 1)
        fix = f"did you mean {near[0]!r}?" if near else f"it should be {', '.join(known)}"
        return ConfigError("callbacks.early_stopping.monitor", f"nothing logs {found[1]!r}", fix)
    if "returned nan values in its" in said:
        return Diverged("trainer.detect_anomaly", said[:300], "lower optim.lr, or look at the images of this step")
    if "find_unused_parameters" in said:
        what = "some of its weights take no part in the loss, and other processes wait for their gradients"
        return ConfigError("model", what, "trainer.strategy=ddp_find_unused_parameters_true")
    return None


def _is_of_workers(error: BaseException) -> bool:
    """Whether loader workers died, hung, or could not be started."""
    known = ("DataLoader worker", "DataLoader timed out", "unable to allocate shared memory")
    started = error.__traceback__ is not None and "SemLock" in "".join(traceback.format_tb(error.__traceback__))
    return any(words in str(error) for words in known) or (isinstance(error, OSError) and started)


def _shared_memory() -> str:
    """How much is left of what workers send batches through, and of memory; nothing where nobody says."""
    try:
        shared, pages = shutil.disk_usage("/dev/shm"), os.sysconf("SC_AVPHYS_PAGES")
    except (OSError, ValueError):
        return ""
    free = pages * os.sysconf("SC_PAGE_SIZE")
    words = f"{shared.free / 1e6:.1f} of {shared.total / 1e6:.1f} MB in /dev/shm, {free / 1e9:.1f} GB of memory"
    return f"; free are {words}"


def _out_of_memory(said: str, data: DataModule) -> ResourceError:
    height, width = data.size
    what = f"not enough for {data.batch_size} photographs of {height} x {width} a step ({said[:160]})"
    fix = "lower data.batch_size (+trainer.accumulate_grad_batches= makes one step of several), or data.size"
    return ResourceError("memory", what, fix)


def _interrupted(here: Run, what: str = "stopped from outside") -> Interrupted:
    saved = (here.path / "checkpoints" / LAST).exists()
    fix = f"the same command with {shlex.quote(f'resume={os.path.relpath(here.path)}')} "
    fix += "goes on from the last save" if saved else "begins again, for nothing was saved yet"
    return Interrupted(here.path.name, what, fix)


def _left_by(died: ProcessDied, here: Run) -> SkinmtlError:
    """What the death of one of several processes leaves: a run that can go on, or nothing."""
    try:
        newest(here.path / "checkpoints")
    except InputError:
        return ResourceError(died.where, died.what, died.fix)
    return _interrupted(here, f"{died.where} {died.what}")


@contextmanager
def calm() -> Iterator[None]:
    """Leave to Lightning's log and warnings what a person has to act on."""
    with only(logging.WARNING, "pytorch_lightning"), warnings.catch_warnings():
        # torch 2.15 renames a class that Lightning 2.6 uses.
        warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*", category=FutureWarning)
        # A short look at a few batches is no mistake, and how many workers suit a machine is said in conf/data.
        warnings.filterwarnings("ignore", message="The number of training batches .* is smaller than the logging")
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        # The CPU where a GPU is was asked for, or the GPU is a Mac's, which cannot be used.
        warnings.filterwarnings("ignore", message="GPU available but not used")
        # A run that goes on finds its own checkpoints.
        warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
        # Within an epoch, too: our sampler begins at the batch where training stands.
        warnings.filterwarnings("ignore", message="You're resuming from a checkpoint that ended before the epoch ended")
        # Of several processes one may have nothing to validate, and all log what is the same for all.
        warnings.filterwarnings("ignore", message="The ``compute`` method of metric .* was called before")
        warnings.filterwarnings("ignore", message="It is recommended to use .*sync_dist=True")
        yield
