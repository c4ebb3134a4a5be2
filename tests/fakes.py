"""Run folders made with NumPy, not by any training: what pages and answers are tested on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from matplotlib.figure import Figure

from skinmtl.evaluation import scores
from skinmtl.tasks import tables
from skinmtl.tasks.curves import training_curves

DX = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")
SHARES = (0.04, 0.06, 0.12, 0.03, 0.12, 0.6, 0.03)


def predictions(seed: int = 0, images: int = 400, skill: float = 1.0, fold: int = 0) -> pd.DataFrame:
    """A predictions table: validation and test, the test images of a fold the same for every seed and skill."""
    ground = np.random.default_rng(1000 + fold)
    network = np.random.default_rng((seed, fold))
    dx = ground.choice(len(DX), images, p=SHARES)
    p = network.dirichlet(np.full(len(DX), 0.6), images)
    p[np.arange(images), dx] += skill * network.uniform(0, 1, images)
    p /= p.sum(1, keepdims=True)
    tp = ground.integers(2000, 40000, images)
    fp, fn = (network.exponential(0.09 * tp).astype(int) for _ in range(2))
    dice = 2 * tp / (2 * tp + fp + fn)
    return pd.DataFrame(
        {
            "image_id": [f"SYN_{fold}{i:05d}" for i in range(images)],
            "lesion_id": [f"SYN_L{fold}{i // 2 * 2 if i % 5 else i:05d}" for i in range(images)],
            "source": ground.choice(["vidir_modern", "rosendahl"], images),
            "split": np.where(np.arange(images) < images // 3, "val", "test"),
            "fold": fold,
            "age": np.where(ground.random(images) < 0.02, np.nan, ground.integers(1, 18, images) * 5.0),
            "sex": ground.choice(["male", "female", "unknown"], images, p=[0.5, 0.48, 0.02]),
            "localization": ground.choice(
                ["back", "trunk", "lower extremity", "face", "ear"], images, p=[0.4, 0.3, 0.2, 0.08, 0.02]
            ),
            "dx_type": ground.choice(
                ["histo", "follow_up", "consensus", "confocal"], images, p=[0.5, 0.36, 0.12, 0.02]
            ),
            "dx": np.array(DX)[dx],
            "predicted_dx": np.array(DX)[p.argmax(1)],
            **{f"prob_{name}": p[:, i] for i, name in enumerate(DX)},
            "height": 450,
            "width": 600,
            "tp_lesion": tp,
            "fp_lesion": fp,
            "fn_lesion": fn,
            "tn_lesion": 270000 - tp - fp - fn,
            "dice": dice,
            "iou": dice / (2 - dice),
            "hd95": network.exponential(20, images),
            "table_version": 2,
            "assd": network.exponential(6, images),
            "dice_input": np.clip(dice + 0.002, 0, 1),
        }
    )


def curves_of(log: pd.DataFrame) -> Figure:
    """The training curves of a run with both tasks."""
    return training_curves(log, list(tables.today().values()))


def metrics(epochs: int = 12) -> pd.DataFrame:
    """What a run logs: a training and a validation row for each epoch, with each other's cells empty."""
    rows: list[dict[str, float]] = []
    for epoch in range(epochs):
        start = {"step": epoch * 10 + 9, "time": 1.7e9 + epoch, "epoch": epoch}
        rows.append(start | {"train/loss": 2 * 0.85**epoch, "train/score": 0.5 + epoch / 40})
        score = 0.6 + 0.04 * epoch - 0.002 * epoch**2
        names = ("val/score", "val/seg/mean_image_dice", "val/cls/balanced_accuracy", "val/cls/accuracy")
        rows.append(
            start | {"val/loss": 2 * 0.9**epoch} | dict(zip(names, score + np.array([0, 0.2, -0.2, 0]), strict=True))
        )
    return pd.DataFrame(rows)


def write_run(folder: Path, seed: int = 0, fold: int = 0, skill: float = 1.0, **changes: Any) -> Path:  # noqa: ANN401
    """A finished run's folder without checkpoints and figures; `changes` replace what run.json says."""
    (folder / ".hydra").mkdir(parents=True)
    table = predictions(seed, skill=skill, fold=fold)
    table.to_csv(folder / "predictions.csv", index=False)
    metrics().to_csv(folder / "metrics.csv", index=False)
    result = scores.evaluate(table.assign(leaky=bool(changes.get("leaky"))), draws=200)
    result |= {"split": {"hash": "5" * 64, "fold": fold}}
    (folder / "scores.json").write_text(json.dumps(result))
    counts = {
        "images": 1000,
        "lesions": 800,
        "classes": {name: int(1000 * s) for name, s in zip(DX, SHARES, strict=True)},
    }
    info = {
        "run_id": folder.name,
        "name": "resnet18_unet",
        "status": "finished",
        "exit_code": 0,
        "started": "2026-01-02T03:04:05+00:00",
        "seconds": {"total": 912.4, "fit": 801.5, "evaluate": 108.0},
        "commit": "0123456789ab",
        "command": "python train.py experiment=resnet18_unet data.root=[path]",
        "versions": {"python": "3.11.2", "torch": "2.9.0", "numpy": "2.4.6"},
        "threads": 1,
        "cores": 2,
        "device": "CPU (x86_64)",
        "capability": "AVX512",
        "precision": "32-true",
        "seed": seed,
        "tasks": ["seg", "cls"],
        "dx_classes": list(DX),
        "mask_classes": ["skin", "lesion"],
        "leaky": False,
        "synthetic": False,
        "size": [192, 256],
        "split": {"hash": "5" * 64, "fold": fold, "folds": 2, "train": counts, "val": counts, "test": counts},
        "data": {"hash": "d" * 64, "layout": "dataverse", "images": 3000},
        "parameters": 14_330_000,
        "best_epoch": 11,
        "score": 0.8,
        "images_per_second": 41.3,
    }
    (folder / "run.json").write_text(json.dumps(info | changes))
    config = {
        "name": "resnet18_unet",
        "seed": seed,
        "data": {"root": "/home/somebody/ham10000", "size": [192, 256]},
        "loss": {"seg": None},
    }
    (folder / ".hydra" / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def write_sweep(folder: Path, weights: tuple[str, ...] = ("0.25", "1", "4"), seeds: int = 2, folds: int = 1) -> Path:
    """A sweep over a loss weight, seeds and folds, with a sweep.csv."""
    rows = []
    jobs = [(w, s, f) for w in weights for s in range(seeds) for f in range(folds)]
    for number, (weight, seed, fold) in enumerate(jobs):
        skill = 1 - 0.15 * weights.index(weight)
        run = write_run(folder / str(number), seed=seed, fold=fold, skill=skill)
        overrides = [
            f"weighting.seg={weight}",
            f"seed={seed}",
            f"data.fold={fold}",
            "data.root=/home/somebody/ham10000",
        ]
        (run / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(overrides))
        rows.append(
            {"job": number, "overrides": " ".join(overrides), "status": "finished", "exit_code": 0, "score": 0.8}
        )
    pd.DataFrame(rows).assign(seconds=912.4, folder="").to_csv(folder / "sweep.csv", index=False)
    return folder
