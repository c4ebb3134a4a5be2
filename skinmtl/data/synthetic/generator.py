"""Synthetic images in HAM10000's own layout: to try, to test and to teach without a download."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import cv2
import numpy as np
import pandas as pd
from annotated_types import Ge
from numpy.random import Generator
from numpy.typing import NDArray

from skinmtl.data.synthetic import dermatoscopy
from skinmtl.errors import InputError, ResourceError
from skinmtl.terminal import tracked

VERSION = 3  # raise when the same arguments give other images
SHARES = {"akiec": 0.12, "bcc": 0.13, "bkl": 0.16, "df": 0.10, "mel": 0.16, "nv": 0.23, "vasc": 0.10}
IMAGES_PER_LESION = (2, 1, 1, 1, 3, 1, 1, 2)  # of successive lesions: 1.5 on average, as in HAM10000 mostly one
AGES = {"akiec": 67, "bcc": 67, "bkl": 64, "df": 50, "mel": 61, "nv": 46, "vasc": 51}  # means, in years
SITES = ("back", "lower extremity", "trunk", "upper extremity", "abdomen", "face", "chest", "foot", "scalp", "neck")
SOURCES = ("rosendahl", "vidir_modern", "vidir_molemax", "vienna_dias")
METADATA = "HAM10000_metadata.csv"
MASKS = "HAM10000_segmentations_lesion_tschandl"
MARK = "synthetic.json"

Pixels = Annotated[int, Ge(32)]


@dataclass(frozen=True)
class Case:
    """One image to render, as a row of the metadata; `number` is the lesion's, `view` counts its images."""

    number: int
    view: int
    row: dict[str, str]


class Synthetic:
    """A synthetic data set of all seven diagnoses, mildly unbalanced, with 1.5 images a lesion.

    The same arguments give the same bytes: each image has random numbers of its own, keyed by seed, lesion and
    image. Ids start with SYN_, so that nobody takes them for HAM10000.

    Args:
        lesions: how many, at least one of each diagnosis.
        size: (height, width) of an image in pixels.
        seed: of the metadata and of every image.
    """

    def __init__(
        self,
        lesions: Annotated[int, Ge(7)] = 800,
        size: tuple[Pixels, Pixels] = (96, 128),
        seed: Annotated[int, Ge(0)] = 0,
    ) -> None:
        self.lesions, self.size, self.seed = lesions, (size[0], size[1]), seed

    def write(self, root: Path) -> None:
        """Write the data set, whole or not at all; do nothing where it already is.

        Args:
            root: its folder, which must not be there, or be empty.

        Raises:
            InputError: something else is at `root`.
            ResourceError: it cannot be written.
        """
        root = Path(root).absolute()
        if self._is_at(root):
            return
        try:
            root.parent.mkdir(parents=True, exist_ok=True)
            self._write_beside(root)
        except OSError as error:
            if self._is_at(root):  # another process was faster
                return
            fix = "free some space, or point data.root at another folder"
            raise ResourceError(str(root), f"cannot be written ({error})", fix) from error

    def _write_beside(self, root: Path) -> None:
        beside = Path(tempfile.mkdtemp(prefix=f".{root.name}-", dir=root.parent))
        try:
            beside.chmod(0o755)  # mkdtemp's folders are for their owner alone
            self._write_all(beside)
            os.rename(beside, root)  # over an empty folder at most
        finally:
            shutil.rmtree(beside, ignore_errors=True)

    def _arguments(self) -> dict[str, object]:
        return {"lesions": self.lesions, "size": list(self.size), "seed": self.seed, "version": VERSION}

    def _is_at(self, root: Path) -> bool:
        """Tell whether just these images are at `root`; False where nothing is."""
        if not root.exists() or (root.is_dir() and not any(root.iterdir())):
            return False
        try:
            found = json.loads((root / MARK).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            fix = "point data.root at an empty folder, or set data.synthetic=null to use what is there"
            raise InputError(str(root), "synthetic images would go here, but other files are there", fix) from None
        if found != self._arguments():
            what = f"synthetic images of {found}, but {self._arguments()} are asked for"
            raise InputError(str(root), what, "delete the folder, or point data.root at another")
        return True

    def _write_all(self, root: Path) -> None:
        cases = list(self.cases())
        for folder in ("HAM10000_images_part_1", "HAM10000_images_part_2", MASKS):
            (root / folder).mkdir()
        pd.DataFrame([case.row for case in cases]).to_csv(root / METADATA, index=False)
        (root / MARK).write_text(json.dumps(self._arguments()) + "\n", encoding="utf-8")

        half = (len(cases) + 1) // 2
        parts = [root / f"HAM10000_images_part_{1 if n < half else 2}" for n in range(len(cases))]
        with ThreadPoolExecutor(2) as pool:
            for _ in tracked(pool.map(self._write_case, cases, parts), "rendering images", len(cases)):
                pass

    def _write_case(self, case: Case, folder: Path) -> None:
        image, mask = self.render(case)
        name = case.row["image_id"]
        _write(folder / f"{name}.jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])
        _write(folder.parent / MASKS / f"{name}_segmentation.png", mask * 255, [cv2.IMWRITE_PNG_COMPRESSION, 6])

    def render(self, case: Case) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Render the image and the mask of a case.

        Args:
            case: one of `cases`.

        Returns:
            The image (H, W, 3) uint8, RGB, and its mask (H, W) uint8 in {0, 1}.
        """
        traits = np.random.default_rng([self.seed, case.number])
        pose = np.random.default_rng([self.seed, case.number, case.view + 1])
        return dermatoscopy.render(case.row["dx"], traits, pose, self.size)

    def cases(self) -> Iterator[Case]:
        """Yield every image's metadata, lesion after lesion."""
        rng = np.random.default_rng(self.seed)
        image = 0
        for number, dx in enumerate(_diagnoses(self.lesions, rng)):
            about = _metadata(dx, rng)
            for view in range(IMAGES_PER_LESION[number % len(IMAGES_PER_LESION)]):
                row = {"lesion_id": f"SYN_L{number:06d}", "image_id": f"SYN_{image:07d}", "dx": dx, **about}
                yield Case(number, view, row)
                image += 1


def _diagnoses(lesions: int, rng: Generator) -> list[str]:
    """Assign a diagnosis to each lesion, in the shares of SHARES but each at least once, shuffled."""
    rest = lesions - len(SHARES)
    edges = np.round(np.cumsum(list(SHARES.values())) * rest).astype(int)
    counts = 1 + np.diff(edges, prepend=0)
    return [str(dx) for dx in rng.permutation(np.repeat(list(SHARES), counts))]


def _metadata(dx: str, rng: Generator) -> dict[str, str]:
    """Make up the metadata of one lesion; a few ages are blank, as in HAM10000."""
    age = int(np.clip(5 * np.round(rng.normal(AGES[dx], 14) / 5), 5, 85))
    histology = dx in ("akiec", "bcc", "mel") or rng.random() < 0.4
    return {
        "dx_type": "histo"
        if histology
        else str(rng.choice(["follow_up", "consensus", "confocal"], p=[0.6, 0.35, 0.05])),
        "age": "" if rng.random() < 0.02 else f"{age}.0",
        "sex": str(rng.choice(["male", "female", "unknown"], p=[0.53, 0.46, 0.01])),
        "localization": str(rng.choice(SITES)),
        "dataset": str(rng.choice(SOURCES)),
    }


def _write(path: Path, pixels: NDArray[np.uint8], options: list[int]) -> None:
    # encoded here and written by Python, which says so when the disk is full
    done, encoded = cv2.imencode(path.suffix, pixels, options)
    assert done
    path.write_bytes(encoded.tobytes())
