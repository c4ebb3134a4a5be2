"""What loading costs a GPU: ResNet-18 U-Net, 256 px, batch 64, bf16, on loaded batches and on one batch that stays.

The share of time in which a step waits for its batch, and the rate beside that of one fixed batch. A small set is
passed over again and again until the epoch is long enough. Where there is no GPU it says so and ends.

    python tests/bench/gpu_stall.py --root <HAM10000> --workers 8
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import segmentation_models_pytorch as smp
import torch
from torch import Tensor

from skinmtl.data import transforms
from skinmtl.data.datamodule import DataModule
from skinmtl.data.samplers import Shuffle
from skinmtl.types import Batch

BATCH, SIZE, WARM = 64, 256, 20


def batches(data: DataModule) -> Iterator[Batch]:
    """Training batches without end, from one loader whose workers stay."""
    loader = data.train_dataloader()
    return itertools.chain.from_iterable(itertools.repeat(loader))


class Training:
    """One step of training both tasks, as plain as it can be, so that the loader has the hardest time."""

    def __init__(self, classes: int) -> None:
        model = smp.Unet("resnet18", encoder_weights=None, classes=1, aux_params={"classes": classes})
        self.model = model.cuda().to(memory_format=torch.channels_last).train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3)

    def step(self, image: Tensor, mask: Tensor, dx: Tensor) -> None:
        """One update; it returns when the work is queued, not when it is done."""
        x = image.float().div(255).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cuda", torch.bfloat16):
            seg, cls = self.model(x)
        outline = torch.nn.functional.binary_cross_entropy_with_logits(seg[:, 0].float(), mask.float())
        loss = outline + torch.nn.functional.cross_entropy(cls.float(), dx, ignore_index=-1)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


def measure(training: Training, source: Iterator[Batch], steps: int) -> tuple[float, float]:
    """Images per second over some steps, and the share of time in which a step waited for its batch."""
    waited, seen, start = 0.0, 0, time.perf_counter()
    for number in range(WARM + steps):
        if number == WARM:
            torch.cuda.synchronize()
            waited, seen, start = 0.0, 0, time.perf_counter()
        began = time.perf_counter()
        batch = next(source)
        waited += time.perf_counter() - began
        training.step(*(batch[key].cuda(non_blocking=True) for key in ("image", "mask", "dx")))  # type: ignore[literal-required]
        # Two steps may be queued and no more; else a late batch would hide behind those queued before it.
        if number % 2:
            torch.cuda.synchronize()
        seen += len(batch["index"])
    torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    return seen / seconds, waited / seconds


def main() -> None:
    """Alternate between the loader and one fixed batch; print each round and the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=200)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("no GPU here: nothing is measured")
        return
    with tempfile.TemporaryDirectory() as folder:
        data = DataModule(
            str(args.root), size=SIZE, batch_size=BATCH, workers=args.workers, allow_leak=True,
            cache_dir=f"{folder}/cache", split_dir=f"{folder}/splits", augment=transforms.light(), sampler=Shuffle(),
            seed=0,
        )  # fmt: skip
        data.prepare_data()
        data.setup("fit")
        training, loaded = Training(len(data.dx_classes)), batches(data)
        fixed = itertools.repeat(next(loaded))
        shares, ratios = [], []
        for number in range(args.rounds):
            rate, share = measure(training, loaded, args.steps)
            best, _ = measure(training, fixed, args.steps)
            shares.append(share)
            ratios.append(rate / best)
            words = f"loaded {rate:.0f}, fixed batch {best:.0f} images/s, ratio {ratios[-1]:.3f}, waited {share:.2%}"
            print(f"round {number + 1}: {words}", flush=True)
    print(f"medians: ratio {statistics.median(ratios):.3f}, waited {statistics.median(shares):.2%} of the time")


if __name__ == "__main__":
    main()
