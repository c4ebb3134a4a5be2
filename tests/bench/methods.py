"""Seconds of a training step under each weighting and each gradient method, beside fixed weights.

Every method trains the network of `experiment=resnet18_unet` through Lightning, with metrics and logs, on the same few
batches held in memory, so that no loading is timed. Rounds go through all methods in turn, each round beginning at
another one; a method's ratio is to the mean of fixed weights just before it and just after it, for a machine's speed
may drift by more than a method costs. Short turns and many rounds tell more than the reverse. A look at the cosine is
timed in every step; one in fifty costs a fiftieth of it. Images are drawn unless `--root` is given.

    python tests/bench/methods.py --rounds 15 --steps 12
    python tests/bench/methods.py --root <HAM10000> --rounds 5 --methods fixed pcgrad
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from throughput import one_epoch

from skinmtl.config.run_config import RunConfig
from skinmtl.data.datamodule import DataModule
from skinmtl.distributed.launch import keep_memory
from skinmtl.training.build import build_data, build_module
from skinmtl.training.callbacks.clock import Clock
from skinmtl.training.quiet import calm
from skinmtl.training.tasks import prepared
from skinmtl.types import Batch

CONF = Path(__file__).resolve().parents[2] / "conf"
WARM = 3  # steps that are not timed
LOOK = "fixed, cosine every step"
EVERY = 50  # optimiser steps from one look at the cosine to the next, as in conf/gradients
METHODS = {
    "fixed": [],
    **{name: [f"weighting={name}"] for name in ("uncertainty", "dwa", "geometric", "random")},
    **{name: [f"gradients={name}"] for name in ("gradnorm", "pcgrad", "cagrad", "mgda", "upgrad")},
    LOOK: ["gradients.cosine_every=1"],
}


class Held:
    """A number of batches, from a few that are held in memory."""

    def __init__(self, batches: list[Batch], steps: int) -> None:
        self._batches, self._steps = batches, steps

    def __len__(self) -> int:
        return self._steps

    def __iter__(self) -> Iterator[Batch]:
        return islice(cycle(self._batches), self._steps)


def node(method: str, args: argparse.Namespace, folder: Path) -> RunConfig:
    """The config of a run under a method."""
    places = [f"data.{key}={folder / key}" for key in ("cache_dir", "split_dir")]
    places += (
        [f"data.root={args.root.resolve()}"]
        if args.root
        else ["data=synthetic", "data.synthetic.lesions=100", f"data.root={folder / 'drawn'}"]
    )
    sizes = [f"data.size={args.size}", f"data.batch_size={args.batch_size}", "data.workers=0", "name=methods"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", ["experiment=resnet18_unet", *places, *sizes, *METHODS[method]])
    return RunConfig.of(cfg)


def seconds(config: RunConfig, data: DataModule, batches: list[Batch], steps: int, folder: Path) -> float:
    """Seconds of one step, in the mean over `steps`, by the clock of a run."""
    clock = Clock(skip=WARM)
    accelerator = "gpu" if torch.cuda.is_available() else "cpu"
    with calm():
        trainer = one_epoch(config, folder, accelerator, [clock], steps + WARM)
        trainer.fit(build_module(config, data, prepared(config.task, data)), Held(batches, steps + WARM))
    return clock.seconds * data.batch_size / clock.images


def main() -> None:
    """Go round, print each round's ratios and at last their medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20, help="timed steps of a measurement")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    keep_memory()
    names = [name for name in args.methods if name != "fixed"]
    ratios: dict[str, list[float]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as temp:
        folder = Path(temp)
        configs = {name: node(name, args, folder) for name in ("fixed", *names)}
        data = build_data(configs["fixed"])
        batches = list(islice(data.train_dataloader(), 8))
        for number in range(args.rounds):
            start = number % len(names)
            before = seconds(configs["fixed"], data, batches, args.steps, folder)
            for name in names[start:] + names[:start]:
                own, after = (seconds(configs[each], data, batches, args.steps, folder) for each in (name, "fixed"))
                ratios[name].append(2 * own / (before + after))
                print(f"round {number + 1}: {name}: {own:.4f} s, ratio {ratios[name][-1]:.3f}", flush=True)
                before = after
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{args.threads} of {os.cpu_count()} cores"
    for name in names:
        spread = f"{min(ratios[name]):.3f} to {max(ratios[name]):.3f}"
        print(
            f"{name}: median ratio {statistics.median(ratios[name]):.3f} ({spread}) of {args.rounds} rounds on {where}"
        )
        if name == LOOK:
            print(f"cosine every {EVERY} steps, hence: {1 + (statistics.median(ratios[name]) - 1) / EVERY:.3f}")


if __name__ == "__main__":
    main()
