"""Images per second in training, loading and stepping together: skinmtl and the plain loop in alternation.

python tests/bench/throughput.py --root <HAM10000> --rounds 5 --threads 1
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import pandas as pd
import plain_loop
import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch.utils.data import DataLoader, SubsetRandomSampler

from skinmtl import config
from skinmtl.callbacks import Clock, Finite, MetricsFile
from skinmtl.train import calm, make_module

CONF = Path(__file__).resolve().parents[2] / "conf"
BATCH, SIZE, WARM = 16, 128, 5


def plain(root: Path, steps: int) -> float:
    """Images per second of the plain loop over some steps, the first few not timed."""
    meta = pd.read_csv(root / "HAM10000_metadata.csv").sort_values("image_id")
    classes = sorted(meta.dx.unique())
    data = plain_loop.Photographs(root, meta, classes, SIZE)
    model = plain_loop.network(len(classes)).to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    loaders = [DataLoader(data, batch_size=BATCH, sampler=SubsetRandomSampler(range(n * BATCH))) for n in (WARM, steps)]
    plain_loop.train_epoch(model, optimizer, loaders[0])
    start = time.perf_counter()
    seen = plain_loop.train_epoch(model, optimizer, loaders[1])
    return seen / (time.perf_counter() - start)


def ours(root: Path, steps: int, folder: Path) -> float:
    """Images per second of `experiment=resnet18_unet` with its augmentation, metrics and logs, by its own clock."""
    overrides = [f"data.root={root}", f"data.size={SIZE}", f"data.batch_size={BATCH}", "data.workers=0"]
    overrides += [f"data.{key}={folder / key}" for key in ("cache_dir", "split_dir")]
    overrides += ["experiment=resnet18_unet"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", overrides)
    cfg.name = "throughput"
    OmegaConf.resolve(cfg)
    data = config.build(cfg.data, augment=config.build(cfg.augment), sampler=config.build(cfg.sampler), seed=cfg.seed)
    data.setup("fit")
    clock = Clock(skip=WARM)
    trainer = pl.Trainer(
        accelerator="cpu",
        precision=config.resolve_precision("auto", "cpu"),
        max_epochs=1,
        limit_train_batches=steps + WARM,
        limit_val_batches=0,
        gradient_clip_val=cfg.trainer.gradient_clip_val,
        callbacks=[clock, Finite()],
        logger=MetricsFile(folder / "metrics.csv"),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        log_every_n_steps=cfg.trainer.log_every_n_steps,
    )
    trainer.fit(make_module(cfg, data), data)
    assert clock.images_per_second is not None
    return clock.images_per_second


def main() -> None:
    """Alternate, print each round and the median of the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    ratios = []
    with tempfile.TemporaryDirectory() as folder, calm():
        for number in range(args.rounds):
            pair = ours(args.root.resolve(), args.steps, Path(folder)), plain(args.root, args.steps)
            ratios.append(pair[0] / pair[1])
            words = f"skinmtl {pair[0]:.1f}, plain loop {pair[1]:.1f} images/s, ratio {ratios[-1]:.3f}"
            print(f"round {number + 1}: {words}", flush=True)
    median = statistics.median(ratios)
    print(f"median ratio {median:.3f} of {len(ratios)} rounds on {args.threads} of {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
