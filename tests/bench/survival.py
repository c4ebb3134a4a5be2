"""What it costs that a run can be stopped at any moment: a step with all of it, beside a plain ModelCheckpoint.

All of it: checkpoints hashed, flushed and read back, two generations, a save at each epoch's start and by the clock,
gradients and losses looked at in every step, signals asked for. Both train the network of `experiment=resnet18_unet`
through Lightning on batches held in memory and save each epoch, in alternation, each time turned about. Seconds are of
the whole fit, saves and all, by its steps. Beside them stands what was spent in the callbacks themselves, of which a
noisy machine makes less: the gradients' norm is counted there, though the clipping needs it on either side.

    python tests/bench/survival.py --rounds 5
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytorch_lightning as pl
import torch
from methods import Held, node
from pytorch_lightning.callbacks import ModelCheckpoint

from skinmtl import config
from skinmtl.callbacks import Best, Finite, MetricsFile
from skinmtl.checkpoints import SafeCheckpointIO
from skinmtl.data.datamodule import DataModule
from skinmtl.processes import keep_memory, stoppable
from skinmtl.resumable import Resumable
from skinmtl.train import calm
from skinmtl.train.build import build_data, build_module
from skinmtl.types import Batch


class Spent:
    """Seconds within the hooks of callbacks."""

    def __init__(self, callbacks: list[pl.Callback]) -> None:
        self.seconds, self._inside = 0.0, False
        for callback in callbacks:
            for name in dir(callback):
                if name.startswith("on_"):
                    setattr(callback, name, self._timed(getattr(callback, name)))

    def _timed(self, hook: Callable[..., None]) -> Callable[..., None]:
        def timed(*args: object, **kwargs: object) -> None:
            if self._inside:  # a save asks the callbacks, too
                return hook(*args, **kwargs)
            self._inside, start = True, time.perf_counter()
            try:
                return hook(*args, **kwargs)
            finally:
                self._inside = False
                self.seconds += time.perf_counter() - start

        return timed


class Timed(pl.Callback):
    """Seconds from the first step to the end of training, saves and all."""

    seconds = 0.0

    def on_train_batch_start(self, trainer: pl.Trainer, *args: object) -> None:
        """Begin after the first few steps, for kernels are chosen there."""
        if trainer.global_step == 5:
            self._start, self._steps = time.perf_counter(), trainer.global_step

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """End when all is saved."""
        self.seconds = (time.perf_counter() - self._start) / (trainer.global_step - self._steps)


def step(
    ours: bool, args: argparse.Namespace, data: DataModule, batches: list[Batch], folder: Path
) -> tuple[float, float]:
    """Seconds of a step, saves and all; those spent in callbacks among them."""
    timed, metrics = Timed(), MetricsFile(folder / "metrics.csv")
    cfg = node("fixed", args, folder)
    with calm(), stoppable() as stop:
        last = folder / "checkpoints" / "last.ckpt"
        callbacks = (
            [Finite(), Best(last.parent, "last"), Resumable(last, 10, stop, metrics)]
            if ours
            else [ModelCheckpoint(dirpath=last.parent, save_last=True)]
        )
        spent = Spent(callbacks)
        trainer = pl.Trainer(
            accelerator="auto", devices=1, max_epochs=args.epochs, limit_val_batches=0,
            precision=config.resolve_precision("auto", "auto"),
            gradient_clip_val=cfg.trainer.gradient_clip_val, logger=metrics,
            callbacks=[timed, *callbacks], plugins=[SafeCheckpointIO()] if ours else [], enable_progress_bar=False,
            enable_model_summary=False, use_distributed_sampler=False,
        )  # fmt: skip
        trainer.fit(build_module(cfg, data), Held(batches, args.steps))
    return timed.seconds, spent.seconds / (args.epochs * args.steps)


def main() -> None:
    """Alternate, print each round and the median of the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--steps", type=int, default=200, help="of an epoch")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    keep_memory()
    ratios, shares = [], []
    with tempfile.TemporaryDirectory() as name:
        data = build_data(node("fixed", args, Path(name)))
        batches = list(islice(data.train_dataloader(), 8))
        for number in range(args.rounds):
            taken = {}
            for ours in (True, False) if number % 2 else (False, True):
                folder = Path(name) / f"{number}{ours}"
                folder.mkdir()
                taken[ours] = step(ours, args, data, batches, folder)
            (whole, own), (plain, theirs) = taken[True], taken[False]
            ratios.append(whole / plain)
            shares.append((plain - theirs + own) / plain)
            words = f"{whole:.4f} s a step, plain {plain:.4f} s, ratio {ratios[-1]:.3f}"
            words += f"; in callbacks {1000 * own:.1f} ms, plain {1000 * theirs:.1f} ms, ratio by them {shares[-1]:.3f}"
            print(f"round {number + 1}: {words}", flush=True)
    medians = f"{statistics.median(ratios):.3f}, by callbacks {statistics.median(shares):.3f}"
    print(f"median ratio {medians}, of {args.rounds} rounds, {args.threads} threads")


if __name__ == "__main__":
    main()
