"""Small data on disk, in the layouts that people have, and tables of HAM10000's shape."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from skinmtl.data.sources import DX

HAM10000_CLASSES = {"nv": 6705, "mel": 1113, "bkl": 1099, "bcc": 514, "akiec": 327, "vasc": 142, "df": 115}
HAM10000_MULTIPLICITIES = {1: 5514, 2: 1423, 3: 490, 4: 34, 5: 5, 6: 4}  # lesions by number of photographs


def photograph(seed: int, size: tuple[int, int] = (24, 32)) -> tuple[np.ndarray, np.ndarray]:
    """A dark disc on noise, (H, W, 3) uint8, and its mask, (H, W) in {0, 255}."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: size[0], : size[1]]
    centre, radius = rng.uniform(0.35, 0.65, 2) * size, rng.uniform(0.2, 0.35) * min(size)
    lesion = (y - centre[0]) ** 2 + (x - centre[1]) ** 2 < radius**2
    image = np.where(lesion[..., None], [90, 60, 40], [220, 180, 160]) + rng.integers(-20, 20, (*size, 3))
    return image.clip(0, 255).astype(np.uint8), (lesion * 255).astype(np.uint8)


def metadata(lesions: int) -> pd.DataFrame:
    """Rows in HAM10000's columns: lesion i has 1 + i % 2 photographs, diagnoses take turns."""
    rows = []
    for lesion in range(lesions):
        for _ in range(1 + lesion % 2):
            rows.append(
                {
                    "lesion_id": f"HAM_{lesion:07d}",
                    "image_id": f"ISIC_{len(rows):07d}",
                    "dx": DX[lesion % len(DX)],
                    "dx_type": "histo",
                    "age": str(20.0 + lesion % 60),
                    "sex": "female",
                    "localization": "back",
                    "dataset": "rosendahl",
                }
            )
    return pd.DataFrame(rows)


def write_dataverse(root: Path, lesions: int = 42, size: tuple[int, int] = (24, 32)) -> pd.DataFrame:
    """Photographs, masks and metadata as the Dataverse has them; gives the metadata."""
    table = metadata(lesions)
    parts = [root / "HAM10000_images_part_1", root / "HAM10000_images_part_2"]
    masks = root / "HAM10000_segmentations_lesion_tschandl"
    for folder in (*parts, masks):
        folder.mkdir(parents=True)
    for number, image_id in enumerate(table["image_id"]):
        image, mask = photograph(number, size)
        Image.fromarray(image).save(parts[number % 2] / f"{image_id}.jpg")
        Image.fromarray(mask).save(masks / f"{image_id}_segmentation.png")
    table.to_csv(root / "HAM10000_metadata.csv", index=False)
    return table


def write_mirror(root: Path, lesions: int = 14) -> pd.DataFrame:
    """images/, masks/ and a one-hot GroundTruth.csv without lesion ids; gives the table of the latter."""
    table = metadata(lesions)
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True)
    for number, image_id in enumerate(table["image_id"]):
        image, mask = photograph(number)
        Image.fromarray(image).save(root / "images" / f"{image_id}.jpg")
        Image.fromarray(mask).save(root / "masks" / f"{image_id}_segmentation.png")
    hot = pd.get_dummies(table["dx"].str.upper()).astype(float)
    hot.insert(0, "image", table["image_id"])
    hot.to_csv(root / "GroundTruth.csv", index=False)
    return hot


def ham10000_table(seed: int = 0) -> pd.DataFrame:
    """A case table of 10,015 photographs of 7,470 lesions with HAM10000's class counts and multiplicities."""
    rng = np.random.default_rng(seed)
    left = dict(HAM10000_CLASSES)
    rows = []
    for photographs in sorted(HAM10000_MULTIPLICITIES, reverse=True):  # single ones last, so that every count comes out
        for _ in range(HAM10000_MULTIPLICITIES[photographs]):
            room = [dx for dx in left if left[dx] >= photographs]
            weights = np.array([left[dx] for dx in room], dtype=float)
            dx = room[rng.choice(len(room), p=weights / weights.sum())]
            left[dx] -= photographs
            rows += [dx] * photographs
    sizes = np.repeat(list(HAM10000_MULTIPLICITIES)[::-1], list(HAM10000_MULTIPLICITIES.values())[::-1])
    lesions = np.repeat([f"HAM_{number:07d}" for number in rng.permutation(len(sizes))], sizes)
    table = pd.DataFrame({"lesion_id": lesions, "dx": pd.Categorical(rows, categories=list(DX))})
    table = table.iloc[rng.permutation(len(table))].reset_index(drop=True)
    table.insert(0, "image_id", [f"ISIC_{number:07d}" for number in range(len(table))])
    return table
