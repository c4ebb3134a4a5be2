"""One training in this process: build, fit, evaluate, report."""

from __future__ import annotations

import logging
import os
import shlex
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from skinmtl.config.build import build
from skinmtl.config.run_config import RunConfig
from skinmtl.data.datamodule import DataModule
from skinmtl.distributed import collectives
from skinmtl.distributed.signals import Stop
from skinmtl.errors import ConfigError
from skinmtl.evaluation.evaluate import evaluate
from skinmtl.files import write_bytes, write_json
from skinmtl.reports.run import write_run_report
from skinmtl.runs.checkpoints import load as load_checkpoint
from skinmtl.runs.labels import stamps
from skinmtl.runs.run import Run
from skinmtl.tasks.base import Task
from skinmtl.terminal import only
from skinmtl.tracking.wandb import WandB
from skinmtl.training.build import build_data, build_module, build_trainer
from skinmtl.training.callbacks.best_checkpoint import Best
from skinmtl.training.callbacks.clock import Clock, Steps
from skinmtl.training.failures import exit_code, failure, is_of_workers
from skinmtl.training.init_from import keep_seen, start_from
from skinmtl.training.lightning_module import MultiTaskModule
from skinmtl.training.record import data_facts, seconds_with_former
from skinmtl.training.resume import Start, check_data
from skinmtl.training.tasks import class_weights, prepared, say

log = logging.getLogger(__name__)


def train(config: RunConfig, here: Run, start: Start, stop: Stop) -> None:
    """Train in this process; the first of several, or the only one, writes, evaluates and speaks to W&B.

    Args:
        config: a checked config.
        here: the run, whose folder is locked meanwhile.
        start: where it begins: anew, from a checkpoint of its own, or trained already.
        stop: hears what asks the run to stop.
    """
    with _logger(config, here) as board:
        pl.seed_everything(config.seed, verbose=False)
        data = build_data(config)
        tasks = prepared(config.task, data)
        check_data(here, data, start)
        with collectives.first_first():
            module = build_module(config, data, tasks)
        clock, keep = Clock(), Best(here.path / "checkpoints", config.keep)
        trainer = build_trainer(config, here, [clock, keep, Steps(module.steps_per_epoch)], board, stop)
        _keep_beginning(config, here, start, data, module, trainer, tasks)
        if board is not None:
            board.start(config.recorded(), stamps(here.info()))
        began = time.perf_counter()
        if not start.trained:
            fit(trainer, module, data, start.checkpoint, stop)
            if keep.score is None:
                what = "no epoch ended with a validation, so nothing was kept"
                raise ConfigError("trainer", what, "train for longer")
        fitted = time.perf_counter()
        collectives.leave()
        if collectives.rank() != 0:
            return
        if not start.trained:
            best_epoch = load_checkpoint(here.checkpoint())["epoch"] + 1
            rate = clock.images_per_second
            here.update({"trained": True, "best_epoch": best_epoch, "score": keep.score, "images_per_second": rate})
        _conclude(config, here, board, fitted - began, fitted)


@contextmanager
def _logger(config: RunConfig, here: Run) -> Iterator[WandB | None]:
    """Make the logger beside metrics.csv, in the first process alone; it is told of an error that ends the run."""
    if config.logger is None or collectives.rank() != 0:
        yield None
        return
    board: WandB = build(config.logger, folder=here.path, run_id=here.path.name)
    try:
        yield board
    except BaseException as error:
        board.finish(exit_code(error))
        raise


def _keep_beginning(
    config: RunConfig,
    here: Run,
    start: Start,
    data: DataModule,
    module: MultiTaskModule,
    trainer: pl.Trainer,
    tasks: Sequence[Task],
) -> None:
    """Take weights of another run where that is asked for, and write down what the run begins with."""
    parameters = sum(p.numel() for p in module.network.parameters())
    facts: dict[str, Any] = {"parameters": parameters, "precision": trainer.precision}
    facts["class_weights"] = class_weights(tasks)
    if start.init_from is not None:
        facts["init_from"] = start_from(Run.open(start.init_from), module, data, here)
    else:
        keep_seen(here, data)
    facts |= data_facts(data, tasks) | {"encoder_weights": getattr(module.network, "weights_file", None)}
    if collectives.rank() == 0:
        say(tasks, data, config.class_weights)
        here.update(facts)
        write_bytes(here.split_file, data.split_file.read_bytes())
        write_json(here.path / "split.json", data.certificate())


def fit(trainer: pl.Trainer, module: MultiTaskModule, data: DataModule, checkpoint: Path | None, stop: Stop) -> None:
    """Let Lightning train, from a checkpoint where there is one; what it raises becomes an answer.

    Raises:
        KeyboardInterrupt: the run was asked to stop.
    """
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
        if stop.asked and is_of_workers(error):  # one that was just being started was asked, too
            raise KeyboardInterrupt from None
        answer = failure(error, data)
        if answer is None and error is raised:
            raise
        raise answer or error from raised


def _conclude(config: RunConfig, here: Run, board: WandB | None, fit: float, fitted: float) -> None:
    """Evaluate what was trained, unless that is left for later, and write the report.

    Args:
        config: the run's.
        here: the run, which counts as finished from here on.
        board: the logger beside metrics.csv; it is given the scores and closed.
        fit: seconds that the training took.
        fitted: when it ended, by `time.perf_counter`.
    """
    if config.evaluate:
        with only(logging.WARNING, "skinmtl.data"):  # which has said what it has to say before the training
            evaluate(here)
    else:
        log.info("no test image was evaluated: skinmtl evaluate %s", shlex.quote(os.path.relpath(here.path)))
    seconds = seconds_with_former(here, fit=fit, evaluate=time.perf_counter() - fitted)
    ending = {"status": "finished", "exit_code": 0, "error": None, "seconds": seconds}
    page = write_run_report(here.path, ending)
    here.update(ending)  # last, for a run that is finished has its page
    if board is not None:
        if config.evaluate:
            board.log_run(here)
        board.finish(0)
    log.info("report: %s", page)
