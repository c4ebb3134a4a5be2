"""What it costs that a run can be stopped at any moment: an epoch with all of it, beside a plain ModelCheckpoint.

All of it: checkpoints hashed, flushed and read back, two generations, a save at each epoch's start, gradients and
losses looked at in every step, signals asked for. Both train the network of `experiment=resnet18_unet` through
Lightning on batches held in memory, one short epoch a turn. Each turn with all of it stands between two without, for a
machine's speed may drift by more than it costs. From each come the median step and the seconds in the saves of an
epoch (best and last); the ratio is that of an epoch of `--epoch` steps, such as all of HAM10000 in batches of 16.

    python tests/bench/survival.py --rounds 9
    python tests/bench/survival.py --root <HAM10000> --size 128 --rounds 5
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import pytorch_lightning as pl
import torch
from methods import Held, node
from pytorch_lightning.callbacks import ModelCheckpoint

from skinmtl.config.hardware import resolve_precision
from skinmtl.data.datamodule import DataModule
from skinmtl.distributed.launch import keep_memory
from skinmtl.distributed.signals import stoppable
from skinmtl.runs.checkpoints import SafeCheckpointIO
from skinmtl.training.build import build_data, build_module
from skinmtl.training.callbacks.best_checkpoint import Best
from skinmtl.training.callbacks.metrics_csv import MetricsFile
from skinmtl.training.callbacks.nonfinite import Finite
from skinmtl.training.callbacks.resumable import Resumable
from skinmtl.training.quiet import calm
from skinmtl.training.tasks import prepared
from skinmtl.types import Batch

WARM = 5  # steps that are not timed


class Turn(NamedTuple):
    """Seconds of a median step, and of an epoch's saves."""

    step: float
    saves: float

    def epoch(self, steps: int) -> float:
        """Seconds of an epoch of so many steps."""
        return steps * self.step + self.saves


class Steps(pl.Callback):
    """When each step ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_batch_end(self, *args: object) -> None:
        """Look at the clock."""
        self.ends.append(time.perf_counter())


def turn(ours: bool, args: argparse.Namespace, data: DataModule, batches: list[Batch], folder: Path) -> Turn:
    """One epoch with its saves."""
    folder.mkdir()
    steps, metrics, saves = Steps(), MetricsFile(folder / "metrics.csv"), [0.0]
    config = node("fixed", args, folder)
    last = folder / "checkpoints" / "last.ckpt"
    with calm(), stoppable() as stop:
        plain = ModelCheckpoint(dirpath=last.parent, save_last=True)
        mine = [Finite(), Best(last.parent, "last"), Resumable(last, 10, stop, metrics)]
        trainer = pl.Trainer(
            accelerator="auto", devices=1, max_epochs=1, limit_val_batches=0, logger=metrics,
            precision=resolve_precision("auto", "auto"), gradient_clip_val=config.trainer["gradient_clip_val"],
            callbacks=[steps, *(mine if ours else [plain])], plugins=[SafeCheckpointIO()] if ours else [],
            enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
        )  # fmt: skip
        save = trainer.save_checkpoint

        def timed(path: Path, weights_only: bool = False) -> None:
            start = time.perf_counter()
            save(path, weights_only)
            saves[0] += time.perf_counter() - start

        trainer.save_checkpoint = timed  # type: ignore[method-assign,assignment]
        trainer.fit(build_module(config, data, prepared(config.task, data)), Held(batches, args.steps))
    ends = steps.ends[WARM:]
    return Turn(statistics.median(b - a for a, b in zip(ends, ends[1:], strict=False)), saves[0])


def main() -> None:
    """Alternate, print each round and the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=45, help="of a turn")
    parser.add_argument("--epoch", type=int, default=438, help="steps of the epoch that the ratio is of")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    keep_memory()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        data = build_data(node("fixed", args, Path(name)))
        batches = list(islice(data.train_dataloader(), 8))
        before = turn(False, args, data, batches, Path(name) / "first")
        for number in range(args.rounds):
            mine, after = (turn(ours, args, data, batches, Path(name) / f"{number}{ours}") for ours in (True, False))
            plain = Turn((before.step + after.step) / 2, (before.saves + after.saves) / 2)
            ratios = mine.step / plain.step, mine.epoch(args.epoch) / plain.epoch(args.epoch)
            rows.append((*ratios, mine.saves, plain.saves))
            before = after
            print(f"round {number + 1}: {_words(*rows[-1])}; a step takes {mine.step:.4f} s", flush=True)
    medians = [statistics.median(column) for column in zip(*rows, strict=True)]
    print(f"medians: {_words(*medians)}; {args.rounds} rounds, {args.threads} threads, {args.epoch} steps an epoch")


def _words(step: float, epoch: float, saves: float, plain: float) -> str:
    return f"step {step:.3f} and epoch {epoch:.3f} of plain; saves of an epoch {saves:.2f} s, plain {plain:.2f} s"


if __name__ == "__main__":
    main()
