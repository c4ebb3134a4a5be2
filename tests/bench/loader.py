"""The loader beside the two that people write by hand, in alternation; its start, its workers' memory, its growth.

All flip, turn, zoom and light images and masks at 256 px, one thread a process. `albumentations`: PIL, the same
operations of albumentations, Normalize, ToTensorV2. `torchvision`: PIL, the same in torchvision's v2 on tv_tensors.
Seconds are of processor time, workers' included, unless called wall: other programs on the machine stretch the latter.

    python tests/bench/loader.py --root <HAM10000, as images/ masks/ GroundTruth.csv> --many <HAM10000, all of it>
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import albumentations as A
import numpy as np
import pandas as pd
import torch
from albumentations.pytorch import ToTensorV2
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from skinmtl.data import sources, transforms
from skinmtl.data.datamodule import DataModule
from skinmtl.data.samplers import Shuffle
from skinmtl.distributed.launch import keep_memory

SIZE, BATCH = 256, 32
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
ROWS = (25_000, 50_000, 100_000, 200_000, 400_000)

Rows = list[dict[str, object]]


class ByHand(Dataset):
    """Image and mask by PIL, then what is done to them."""

    def __init__(self, root: Path, transform: Callable[[Image.Image, Image.Image], object], images: int) -> None:
        self.images = sorted((root / "images").iterdir())[:images]
        self.masks, self.transform = root / "masks", transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> object:
        path = self.images[i]
        mask = Image.open(self.masks / f"{path.stem}_segmentation.png").convert("L")
        return self.transform(Image.open(path).convert("RGB"), mask)


class WithAlbumentations:
    """`transforms.light`, and what a network then wants."""

    def __init__(self) -> None:
        self.compose = A.Compose(
            [
                A.Resize(SIZE, SIZE),
                A.HorizontalFlip(p=0.5),
                A.VerticalFlip(p=0.5),
                A.Affine(scale=(0.9, 1.1), keep_ratio=True, rotate=(-180, 180), border_mode=4, p=0.75),
                A.RandomBrightnessContrast(0.1, 0.1, p=1.0),
                A.Normalize(MEAN, STD),
                ToTensorV2(),
            ]
        )

    def __call__(self, image: Image.Image, mask: Image.Image) -> object:
        out = self.compose(image=np.array(image), mask=np.array(mask))
        return out["image"], out["mask"]


class WithTorchvision:
    """The same with torchvision; its turns leave black corners, for it mirrors nothing."""

    def __init__(self) -> None:
        self.compose = v2.Compose(
            [
                v2.Resize((SIZE, SIZE), antialias=True),
                v2.RandomHorizontalFlip(),
                v2.RandomVerticalFlip(),
                v2.RandomApply(
                    [v2.RandomAffine(180, scale=(0.9, 1.1), interpolation=v2.InterpolationMode.BILINEAR)], 0.75
                ),
                v2.ColorJitter(brightness=0.1, contrast=0.1),
                v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True),
                v2.Normalize(MEAN, STD),
            ]
        )

    def __call__(self, image: Image.Image, mask: Image.Image) -> object:
        return self.compose(v2.functional.to_image(image), tv_tensors.Mask(np.array(mask)))


def by_hand(
    root: Path, transform: Callable[[Image.Image, Image.Image], object], workers: int, images: int
) -> DataLoader:
    """A loader as most are written, of so many images."""
    data = ByHand(root, transform, images)
    return DataLoader(data, BATCH, shuffle=True, drop_last=True, num_workers=workers, persistent_workers=workers > 0)


def ours(root: Path, folder: Path, workers: int, size: int = SIZE) -> DataModule:
    """The project's data, ready to load; splits and cache under `folder`."""
    data = DataModule(
        str(root), size=size, batch_size=BATCH, workers=workers, allow_leak=True, cache_dir=str(folder / "cache"),
        split_dir=str(folder / "splits"), augment=transforms.light(), sampler=Shuffle(), seed=0,
    )  # fmt: skip
    data.prepare_data()
    data.setup("fit")
    return data


def processor_seconds(loader: DataLoader) -> float:
    """Of this process and the loader's workers so far."""
    seconds = time.process_time()
    for worker in getattr(loader._iterator, "_workers", []):
        fields = Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split()
        seconds += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return seconds


def rates(loader: DataLoader) -> tuple[float, float]:
    """Images per second of processor time and per second on the clock, over an epoch."""
    seen, start, wall = 0, processor_seconds(loader), time.perf_counter()
    for batch in loader:
        seen += len(batch["index"] if isinstance(batch, dict) else batch[0])
    return seen / (processor_seconds(loader) - start), seen / (time.perf_counter() - wall)


def alternate(loaders: dict[str, DataLoader], rounds: int, workers: int) -> Iterable[dict[str, object]]:
    """A warm epoch of each, then rounds in which each has its turn, the order turned about every time."""
    for loader in loaders.values():
        rates(loader)
    measured: dict[str, list[tuple[float, float]]] = {name: [] for name in loaders}
    for number in range(rounds):
        for name in list(loaders) if number % 2 == 0 else list(loaders)[::-1]:
            measured[name].append(rates(loaders[name]))
            for what, value in zip(("images/s", "images/s wall"), measured[name][-1], strict=True):
                yield row(f"{workers} workers", name, number + 1, value, what)
    for name in list(loaders)[1:]:
        for place, what in enumerate(("ratio", "ratio wall")):
            each = [a[place] / b[place] for a, b in zip(measured["skinmtl"], measured[name], strict=True)]
            yield row(f"{workers} workers", f"skinmtl / {name}", "median", statistics.median(each), what)


def row(measure: str, what: str, number: object, value: float, unit: str) -> dict[str, object]:
    """One line of the results, printed as it comes."""
    line = {"measure": measure, "what": what, "round": number, "value": float(f"{value:.4g}"), "unit": unit}
    print("  ".join(map(str, line.values())), flush=True)
    return line


def speed(root: Path, folder: Path, rounds: int, images: int) -> Iterable[dict[str, object]]:
    """Rates with two workers and without, and what `later` measures in between."""
    kinds = {"albumentations": WithAlbumentations(), "torchvision": WithTorchvision()}
    for workers in (2, 0):  # workers first, as in a training: what the parent has kept, a worker may copy
        loaders = {"skinmtl": ours(root, folder, workers).train_dataloader()}
        loaders |= {name: by_hand(root, transform, workers, images) for name, transform in kinds.items()}
        yield from alternate(loaders, rounds, workers)
        if workers:
            yield from later(loaders["skinmtl"], rounds)


def later(loader: DataLoader, rounds: int) -> Iterable[dict[str, object]]:
    """The first batch of a later epoch, and what workers that have seen several have to themselves."""
    for number in range(rounds):
        start = time.perf_counter()
        batches = iter(loader)
        next(batches)
        yield row("later epoch", "first batch", number + 1, time.perf_counter() - start, "s wall")
        for _ in batches:
            pass
    for worker in loader._iterator._workers:
        rollup = Path(f"/proc/{worker.pid}/smaps_rollup").read_text().splitlines()
        own = {line.split(":")[0]: int(line.split()[1]) / 1024 for line in rollup if line.startswith("Private_")}
        yield row("memory", "a worker's own", worker.name, own["Private_Dirty"], "MiB")
        # Of the cache, mostly: the page is the system's, which may drop it, and another process's once it looks at it.
        yield row("memory", "files mapped by it alone so far", worker.name, own["Private_Clean"], "MiB")


def start(many: Path, folder: Path, rounds: int) -> Iterable[dict[str, object]]:
    """From nothing but imports to the first batch, with the cache and the split at hand; files opened meanwhile."""
    opened: list[str] = []
    sys.addaudithook(lambda event, given: opened.append(str(given[0])) if event == "open" else None)
    ours(many, folder, workers=0)
    for workers in (0, 2):
        for number in range(rounds):
            opened.clear()
            wall, processor = time.perf_counter(), time.process_time()
            data = ours(many, folder, workers)
            batches = iter(data.train_dataloader())
            next(batches)
            name = f"first batch of {len(data.table):,}, {workers} workers"
            yield row("start", name, number + 1, time.perf_counter() - wall, "s wall")
            yield row("start", name, number + 1, time.process_time() - processor, "s, this process")
            images = sum(path.endswith((".jpg", ".png")) for path in opened)
            yield row("start", name, number + 1, images, "images and masks opened by this process")
            del batches


def growth(folder: Path) -> Iterable[dict[str, object]]:
    """Seconds by number of rows, of tables whose images are one file: set up with a new split, again, an epoch."""
    file = folder / "image.png"
    Image.new("RGB", (8, 8)).save(file)
    read = sources.read
    for count in ROWS:
        rng = np.random.default_rng(count)
        table = pd.DataFrame({name: pd.Series(pd.NA, index=range(count), dtype="str") for name in sources.COLUMNS})
        table["image_id"] = [f"ISIC_{i:07d}" for i in range(count)]
        table["lesion_id"] = [f"HAM_{i:07d}" for i in rng.integers(0, count * 3 // 4, count)]
        codes = (pd.factorize(table["lesion_id"])[0] * 2_654_435_761 % 97 % 7).astype(int)  # one diagnosis a lesion
        table["dx"] = pd.Categorical.from_codes(codes, categories=list(sources.DX))
        table["image"], table["age"] = str(file), np.nan
        table.attrs |= {"leaky": False, "layout": "dataverse"}
        sources.read = lambda *_, table=table, **__: table
        for what in ("split drawn", "split at hand"):
            began = time.process_time()
            data = DataModule(
                str(folder), size=SIZE, cache="off", split_dir=str(folder / "splits"), augment=transforms.none(),
                sampler=Shuffle(), seed=0, duplicates="none",  # all rows are one file
            )  # fmt: skip
            data.setup("fit")
            yield row("growth", f"set up {count:,}, {what}", "", time.process_time() - began, "s")
        sampler = data.train_dataloader().sampler
        began = time.process_time()
        places = sum(1 for _ in sampler)
        yield row("growth", f"order {count:,}", "", (time.process_time() - began) / places * 1e6, "us a place")
    sources.read = read


def main() -> None:
    """Measure all, print each line, and write them where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--many", type=Path, help="without it, the start is not measured")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--images", type=int, default=576, help="in an epoch of those written by hand")
    parser.add_argument("--out", type=Path, help="write the lines to this .csv, too")
    args = parser.parse_args()
    torch.set_num_threads(1)
    keep_memory()
    rows: Rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows += speed(args.root, folder, args.rounds, args.images)
        if args.many is not None:
            rows += start(args.many, folder, args.rounds)
        rows += growth(folder)
    if args.out is not None:
        with args.out.open("w", newline="") as file:
            table = csv.DictWriter(file, rows[0], lineterminator="\n")
            table.writeheader()
            table.writerows(rows)


if __name__ == "__main__":
    main()
