"""Images per second in training, loading and stepping together: skinmtl and the plain loop in alternation.

Each measurement has a process of its own, so neither profits from what the other warmed up. skinmtl runs as in
`study=seed_protocol experiment=resnet18_unet`, in its batches, with its augmentation, metrics and logs; the plain loop
as in plain_loop.py.

    python tests/bench/throughput.py --root <HAM10000> --rounds 5
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import plain_loop
import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_dir
from torch.utils.data import DataLoader, SubsetRandomSampler

from skinmtl.config.build import build
from skinmtl.config.hardware import resolve_precision
from skinmtl.config.run_config import RunConfig
from skinmtl.distributed.launch import keep_memory
from skinmtl.training.build import build_module
from skinmtl.training.callbacks.clock import Clock
from skinmtl.training.callbacks.metrics_csv import MetricsFile
from skinmtl.training.callbacks.nonfinite import Finite
from skinmtl.training.quiet import calm
from skinmtl.training.tasks import prepared

CONF = Path(__file__).resolve().parents[2] / "conf"
WARM = 5  # steps that are not timed


def plain(root: Path, folder: Path, images: int) -> float:
    """Images per second of the plain loop over some images."""
    meta = pd.read_csv(root / "HAM10000_metadata.csv").sort_values("image_id")
    classes = sorted(meta.dx.unique())
    data = plain_loop.DecodedImages(root, meta, classes, 128)
    model = plain_loop.network(len(classes)).to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    warm, timed = (
        DataLoader(data, batch_size=16, sampler=SubsetRandomSampler(range(n)), drop_last=True)
        for n in (WARM * 16, images)
    )
    plain_loop.train_epoch(model, optimizer, warm)
    start = time.perf_counter()
    seen = plain_loop.train_epoch(model, optimizer, timed)
    return seen / (time.perf_counter() - start)


def one_epoch(
    config: RunConfig, folder: Path, accelerator: str, callbacks: list[pl.Callback], steps: int
) -> pl.Trainer:
    """Trains one epoch of some steps and nothing else, on one device, with a run's precision, clipping and logs."""
    return pl.Trainer(
        accelerator=accelerator,
        devices=1,
        precision=resolve_precision("auto", accelerator),
        max_epochs=1,
        limit_train_batches=steps,
        limit_val_batches=0,
        gradient_clip_val=config.trainer["gradient_clip_val"],
        logger=MetricsFile(folder / "metrics.csv"),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        log_every_n_steps=config.trainer["log_every_n_steps"],
        callbacks=callbacks,
    )


def ours(root: Path, folder: Path, images: int) -> float:
    """Images per second of skinmtl over some images, by its own clock."""
    keep_memory()
    overrides = ["study=seed_protocol", "experiment=resnet18_unet", "name=throughput", f"data.root={root}"]
    overrides += [f"data.{key}={folder / key}" for key in ("cache_dir", "split_dir")]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = RunConfig.of(compose("config", overrides))
    data = build(config.data, augment=build(config.augment), sampler=build(config.sampler), seed=config.seed)
    data.setup("fit")
    clock = Clock(skip=WARM)
    averaging = [build(config.callbacks["ema"])] if config.callbacks["ema"] else []
    with calm():
        callbacks = [*averaging, clock, Finite()]
        steps = images // data.batch_size + WARM
        trainer = one_epoch(config, folder, "cpu", callbacks, steps)
        trainer.fit(build_module(config, data, prepared(config.task, data)), data)
    assert clock.images_per_second is not None
    return clock.images_per_second


def _measure(act: Callable[[Path, Path, int], float], threads: int, *args: object) -> float:
    torch.set_num_threads(threads)
    return act(*args)  # type: ignore[arg-type]


def main() -> None:
    """Alternate, print each round and the median of the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=640, help="timed images of a measurement")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    args = parser.parse_args()
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(args.rounds):
            pair = []
            for act in (ours, plain) if number % 2 == 0 else (plain, ours):
                with multiprocessing.get_context("spawn").Pool(1) as process:
                    given = (act, args.threads, args.root.resolve(), Path(folder), args.images)
                    pair.append((act is plain, process.apply(_measure, given)))
            fast, slow = (value for _, value in sorted(pair))
            ratios.append(fast / slow)
            words = f"skinmtl {fast:.1f}, plain loop {slow:.1f} images/s, ratio {ratios[-1]:.3f}"
            print(f"round {number + 1}: {words}", flush=True)
    median = statistics.median(ratios)
    print(f"median ratio {median:.3f} of {len(ratios)} rounds on {args.threads} of {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
