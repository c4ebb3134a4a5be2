"""Small data on disk, in the layouts that people have, and tables of HAM10000's shape."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from skinmtl.data.sources import DX

HAM10000_CLASSES = {"nv": 6705, "mel": 1113, "bkl": 1099, "bcc": 514, "akiec": 327, "vasc": 142, "df": 115}
HAM10000_MULTIPLICITIES = {1: 5514, 2: 1423, 3: 490, 4: 34, 5: 5, 6: 4}  # lesions by number of images


def make_image(seed: int, size: tuple[int, int] = (24, 32)) -> tuple[np.ndarray, np.ndarray]:
    """A dark disc on noise, (H, W, 3) uint8, and its mask, (H, W) in {0, 255}."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: size[0], : size[1]]
    centre, radius = rng.uniform(0.35, 0.65, 2) * size, rng.uniform(0.2, 0.35) * min(size)
    lesion = (y - centre[0]) ** 2 + (x - centre[1]) ** 2 < radius**2
    image = np.where(lesion[..., None], [90, 60, 40], [220, 180, 160]) + rng.integers(-20, 20, (*size, 3))
    return image.clip(0, 255).astype(np.uint8), (lesion * 255).astype(np.uint8)


def metadata(lesions: int) -> pd.DataFrame:
    """Rows in HAM10000's columns: lesion i has 1 + i % 2 images, diagnoses take turns."""
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
    """Images, masks and metadata as the Dataverse has them; gives the metadata."""
    table = metadata(lesions)
    parts = [root / "HAM10000_images_part_1", root / "HAM10000_images_part_2"]
    masks = root / "HAM10000_segmentations_lesion_tschandl"
    for folder in (*parts, masks):
        folder.mkdir(parents=True)
    for number, image_id in enumerate(table["image_id"]):
        image, mask = make_image(number, size)
        Image.fromarray(image).save(parts[number % 2] / f"{image_id}.jpg")
        Image.fromarray(mask).save(masks / f"{image_id}_segmentation.png")
    table.to_csv(root / "HAM10000_metadata.csv", index=False)
    return table


def write_all_but_a_mask(root: Path) -> Path:
    """The Dataverse layout, where the first image has no mask; gives its root."""
    write_dataverse(root)
    (root / "HAM10000_segmentations_lesion_tschandl" / "ISIC_0000000_segmentation.png").unlink()
    return root


def write_mirror(root: Path, lesions: int = 14) -> pd.DataFrame:
    """images/, masks/ and a one-hot GroundTruth.csv without lesion ids; gives the table of the latter."""
    table = metadata(lesions)
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True)
    for number, image_id in enumerate(table["image_id"]):
        image, mask = make_image(number)
        Image.fromarray(image).save(root / "images" / f"{image_id}.jpg")
        Image.fromarray(mask).save(root / "masks" / f"{image_id}_segmentation.png")
    hot = pd.get_dummies(table["dx"].str.upper()).astype(float)
    hot.insert(0, "image", table["image_id"])
    hot.to_csv(root / "GroundTruth.csv", index=False)
    return hot


def write_kaggle(root: Path, lesions: int = 14) -> pd.DataFrame:
    """As the Dataverse has it, but for masks, which lie in `root`-masks, and for the sources; gives the metadata."""
    table = write_dataverse(root, lesions).drop(columns="dataset")
    (root / "HAM10000_segmentations_lesion_tschandl").rename(root.with_name(f"{root.name}-masks"))
    table.to_csv(root / "HAM10000_metadata.csv", index=False)
    (root / "hmnist_28_28_L.csv").write_text("pixel0000,label\n0,1\n")
    return table


def write_task3(root: Path, lesions: int = 14) -> pd.DataFrame:
    """ISIC 2018, Task 3, with lesion groupings; gives the metadata that they were made of."""
    table = metadata(lesions)
    write_mirror(root, lesions)
    name = "ISIC2018_Task3_Training"
    (root / "images").rename(root / f"{name}_Input")
    (root / "masks").rename(root.with_name(f"{root.name}-masks"))
    (root / f"{name}_GroundTruth").mkdir()
    (root / "GroundTruth.csv").rename(root / f"{name}_GroundTruth" / f"{name}_GroundTruth.csv")
    names = {"image_id": "image", "lesion_id": "lesion_id", "dx_type": "diagnosis_confirm_type"}
    table.rename(columns=names)[list(names.values())].to_csv(root / f"{name}_LesionGroupings.csv", index=False)
    return table


def write_task1(root: Path, images: int = 20) -> None:
    """ISIC 2018, Task 1: images and masks, a licence among the former."""
    folders = root / "ISIC2018_Task1-2_Training_Input", root / "ISIC2018_Task1_Training_GroundTruth"
    for folder in folders:
        folder.mkdir(parents=True)
    (folders[0] / "LICENSE.txt").touch()
    for number in range(images):
        image, mask = make_image(number)
        Image.fromarray(image).save(folders[0] / f"ISIC_{number:07d}.jpg")
        Image.fromarray(mask).save(folders[1] / f"ISIC_{number:07d}_segmentation.png")


def write_own(root: Path, lesions: int = 14) -> pd.DataFrame:
    """photos/, outlines/<id>_mask.png and mine.csv, whose paths begin at `root`; gives the latter's table."""
    table = metadata(lesions).drop(columns=["dx_type", "dataset"])
    table["image"] = "photos/" + table["image_id"] + ".jpg"
    table["mask"] = "outlines/" + table["image_id"] + "_mask.png"
    for name in ("photos", "outlines"):
        (root / name).mkdir(parents=True)
    for number, row in enumerate(table.itertuples()):
        image, mask = make_image(number)
        Image.fromarray(image).save(root / row.image)
        Image.fromarray(mask).save(root / row.mask)
    table.to_csv(root / "mine.csv", index=False)
    return table


def ham10000_table(seed: int = 0) -> pd.DataFrame:
    """A case table of 10,015 images of 7,470 lesions with HAM10000's class counts and multiplicities."""
    rng = np.random.default_rng(seed)
    left = dict(HAM10000_CLASSES)
    rows = []
    for images in sorted(HAM10000_MULTIPLICITIES, reverse=True):  # single ones last, so that every count comes out
        for _ in range(HAM10000_MULTIPLICITIES[images]):
            room = [dx for dx in left if left[dx] >= images]
            weights = np.array([left[dx] for dx in room], dtype=float)
            dx = room[rng.choice(len(room), p=weights / weights.sum())]
            left[dx] -= images
            rows += [dx] * images
    sizes = np.repeat(list(HAM10000_MULTIPLICITIES)[::-1], list(HAM10000_MULTIPLICITIES.values())[::-1])
    lesions = np.repeat([f"HAM_{number:07d}" for number in rng.permutation(len(sizes))], sizes)
    table = pd.DataFrame({"lesion_id": lesions, "dx": pd.Categorical(rows, categories=list(DX))})
    table = table.iloc[rng.permutation(len(table))].reset_index(drop=True)
    table.insert(0, "image_id", [f"ISIC_{number:07d}" for number in range(len(table))])
    return table
