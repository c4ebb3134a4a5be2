"""A plain PyTorch loop for HAM10000, as written in an afternoon: what `experiment=resnet18_unet` is compared with.

ResNet-18 U-Net from segmentation-models-pytorch with its own classification head, PIL decoding, Adam 1e-3, batch 16,
binary cross-entropy + cross-entropy, no augmentation, bf16 + channels_last, no validation. It imports nothing of
skinmtl, reads the Dataverse layout by itself and writes the same predictions table, for a comparison by lesion.

    python tests/bench/plain_loop.py --root <HAM10000> --split <run>/split.csv --fold 0 --out outputs/plain_loop
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import pandas as pd
import segmentation_models_pytorch as smp
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


class DecodedImages(Dataset):
    """Images of some rows with mask and diagnosis, float-normalised, resized by PIL."""

    def __init__(self, root: Path, rows: pd.DataFrame, classes: list[str], size: int) -> None:
        self.folders = sorted(root.glob("HAM10000_images_part_*"))
        self.masks = root / "HAM10000_segmentations_lesion_tschandl"
        self.ids, self.size = rows.image_id.tolist(), size
        self.dx = [classes.index(dx) for dx in rows.dx]

    def __len__(self) -> int:
        return len(self.ids)

    def image(self, image_id: str) -> Image.Image:
        path = next(p for folder in self.folders if (p := folder / f"{image_id}.jpg").exists())
        return Image.open(path).convert("RGB")

    def mask(self, image_id: str) -> Image.Image:
        return Image.open(self.masks / f"{image_id}_segmentation.png").convert("L")

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor, int]:
        image = self.image(self.ids[i]).resize((self.size, self.size), Image.Resampling.BILINEAR)
        mask = self.mask(self.ids[i]).resize((self.size, self.size), Image.Resampling.NEAREST)
        x = (torch.from_numpy(np.array(image)).float() / 255 - MEAN) / STD
        return x.permute(2, 0, 1).contiguous(), torch.from_numpy(np.array(mask) > 127).float(), self.dx[i]


def network(classes: int) -> nn.Module:
    """The U-Net and the pooled linear classifier of smp, from scratch."""
    return smp.Unet("resnet18", encoder_weights=None, classes=1, aux_params={"classes": classes})


def train_epoch(model: nn.Module, optimizer: torch.optim.Optimizer, loader: DataLoader) -> int:
    """One pass over the loader; gives the number of images seen."""
    model.train()
    bce, ce, seen = nn.BCEWithLogitsLoss(), nn.CrossEntropyLoss(), 0
    for image, mask, dx in loader:
        with torch.autocast("cpu", torch.bfloat16):
            seg, cls = model(image.contiguous(memory_format=torch.channels_last))
        loss = bce(seg[:, 0].float(), mask) + ce(cls.float(), dx)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen += len(image)
    return seen


@torch.inference_mode()
def predict(model: nn.Module, data: DecodedImages, rows: pd.DataFrame, classes: list[str]) -> pd.DataFrame:
    """One row per image: probabilities, pixel counts at its own size, Dice there and at input size."""
    model.eval()
    table = []
    for i, (image, target, _) in enumerate(data):
        seg, cls = model(image[None].contiguous(memory_format=torch.channels_last))
        own = np.array(data.mask(data.ids[i])) > 127
        big = nn.functional.interpolate(seg.sigmoid(), own.shape, mode="bilinear", align_corners=False)
        found = big[0, 0].numpy() > 0.5
        small, small_target = seg[0, 0].numpy() > 0, target.numpy() > 0
        row = rows.iloc[i]
        tp, fp = int((found & own).sum()), int((found & ~own).sum())
        fn, tn = int((~found & own).sum()), int((~found & ~own).sum())
        p = cls[0].double().softmax(0).numpy()
        table.append(
            {"image_id": row.image_id, "lesion_id": row.lesion_id, "source": row.get("dataset"), "split": "test"}
            | {"dx": row.dx, "predicted_dx": classes[int(p.argmax())]}
            | {f"prob_{name}": value for name, value in zip(classes, p, strict=True)}
            | {"tp_lesion": tp, "fp_lesion": fp, "fn_lesion": fn, "tn_lesion": tn}
            | {"height": own.shape[0], "width": own.shape[1], "dice": dice(found, own), "iou": iou(found, own)}
            | {"dice_input": dice(small, small_target)}
        )
    return pd.DataFrame(table)


def dice(a: np.ndarray, b: np.ndarray) -> float:
    """2 |A and B| / (|A| + |B|); two empty masks agree."""
    total = a.sum() + b.sum()
    return float(2 * (a & b).sum() / total) if total else 1.0


def iou(a: np.ndarray, b: np.ndarray) -> float:
    """|A and B| / |A or B|; two empty masks agree."""
    union = (a | b).sum()
    return float((a & b).sum() / union) if union else 1.0


def main() -> None:
    """Train on the rows that the split calls train, predict those that it calls test."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--split", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--fold", type=int, default=0)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)

    meta = pd.read_csv(args.root / "HAM10000_metadata.csv").sort_values("image_id")
    classes = sorted(meta.dx.unique())
    part = pd.read_csv(args.split).set_index("image_id")[f"fold_{args.fold}"].reindex(meta.image_id).to_numpy()
    train, test = meta[part == "train"], meta[part == "test"]
    model = network(len(classes)).to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    data = DecodedImages(args.root, train, classes, args.size)
    loader = DataLoader(data, batch_size=16, shuffle=True, num_workers=args.workers, drop_last=True)
    args.out.mkdir(parents=True, exist_ok=True)
    start, seen = time.perf_counter(), 0
    for epoch in range(args.epochs):
        seen += train_epoch(model, optimizer, loader)
        print(f"epoch {epoch + 1}: {seen / (time.perf_counter() - start):.1f} images/s", flush=True)
    seconds = time.perf_counter() - start
    predict(model, DecodedImages(args.root, test, classes, args.size), test, classes).to_csv(
        args.out / "predictions.csv", index=False
    )
    facts = vars(args) | {"seconds": seconds, "images_per_second": seen / seconds, "train_images": len(train)}
    (args.out / "run.json").write_text(json.dumps(facts, default=str, indent=1))


if __name__ == "__main__":
    main()
