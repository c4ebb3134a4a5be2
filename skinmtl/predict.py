"""A run and photographs: probabilities, masks, overlays. One inference loop, for evaluation and new photographs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

from skinmtl import checkpoints, config
from skinmtl.data.images import fit_image, read_image
from skinmtl.errors import InputError
from skinmtl.figures import mask_palette, overlay
from skinmtl.runs import Run, write_text
from skinmtl.tasks import Diagnosis, Segmentation


@dataclass(frozen=True)
class Prediction:
    """What a network says of one photograph, at the photograph's own height H and width W.

    Attributes:
        mask: (H, W) uint8 index into the mask classes; None when the run has no `seg` task.
        mask_probability: (H, W) float32, probability of not being background, resized from the network's size; or None.
        input_mask: the mask at network size, before any resizing; or None.
        probabilities: probability by diagnosis, float64, summing to one; None when the run has no `cls` task.
    """

    mask: NDArray[np.uint8] | None
    mask_probability: NDArray[np.float32] | None
    input_mask: NDArray[np.uint8] | None
    probabilities: dict[str, float] | None

    @property
    def dx(self) -> str | None:
        """The diagnosis of the largest probability."""
        p = self.probabilities
        return None if p is None else max(p, key=p.__getitem__)


class Predictor:
    """A trained network, ready for photographs of any size. Runs in float32.

    With `flips`, probabilities are means over the photograph as it is and mirrored along either axis and both, each
    mask turned back: four times the work.

    Research use only: not a medical device.
    """

    def __init__(
        self,
        network: nn.Module,
        tasks: Sequence[str],
        mask_classes: Sequence[str],
        dx_classes: Sequence[str],
        size: tuple[int, int],
        device: str,
        flips: bool = False,
    ) -> None:
        self.network = network.eval().to(device).to(memory_format=torch.channels_last)
        self.tasks, self.size, self.device = tuple(tasks), size, device
        self.mask_classes, self.dx_classes = tuple(mask_classes), tuple(dx_classes)
        self.views: tuple[tuple[int, ...], ...] = ((), (3,), (2,), (2, 3)) if flips else ((),)  # axes of (B, 3, H, W)

    def predict(self, image: NDArray[np.uint8] | Path | str) -> Prediction:
        """Predict one photograph.

        Args:
            image: a file, or (H, W, 3) uint8 RGB.

        Raises:
            InputError: the file is not a whole photograph, or the array is none.
        """
        pixels = read_image(Path(image)) if isinstance(image, (str, Path)) else np.asarray(image)
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
            what = f"{pixels.dtype} of shape {pixels.shape}"
            raise InputError("image", what, "give (H, W, 3) uint8 RGB, 0 to 255, or a file")
        return next(self.predict_each([pixels], batch_size=1))

    def predict_each(self, images: Iterable[NDArray[np.uint8]], batch_size: int = 32) -> Iterator[Prediction]:
        """A prediction for each (H, W, 3) uint8 RGB photograph, in order, held in memory a batch at a time."""
        photographs = iter(images)
        while batch := list(islice(photographs, batch_size)):
            fitted = np.stack([fit_image(image, self.size) for image in batch])
            tensor = torch.from_numpy(fitted).permute(0, 3, 1, 2).to(self.device)
            yield from self._read(tensor, [image.shape[:2] for image in batch])

    @torch.inference_mode()
    def _read(self, images: Tensor, own: Sequence[tuple[int, ...]]) -> list[Prediction]:
        views = [(axes, self.network(images.flip(axes))) for axes in self.views]
        seg = cls = None
        if "seg" in self.tasks:
            seg = torch.stack([Segmentation.probabilities(logits["seg"]).flip(axes) for axes, logits in views]).mean(0)
        if "cls" in self.tasks:
            cls = torch.stack([Diagnosis.probabilities(logits["cls"]) for _, logits in views]).mean(0)
        return [
            self._one(None if seg is None else seg[i : i + 1], None if cls is None else cls[i], (size[0], size[1]))
            for i, size in enumerate(own)
        ]

    def _one(self, seg: Tensor | None, cls: Tensor | None, size: tuple[int, int]) -> Prediction:
        names = None if cls is None else dict(zip(self.dx_classes, cls.tolist(), strict=True))
        if seg is None:
            return Prediction(None, None, None, names)
        # Probabilities are resized, then thresholded: resizing a mask would move its edge in steps of input pixels.
        large = nn.functional.interpolate(seg, size, mode="bilinear", align_corners=False)
        lesion = large[0, 0] if large.shape[1] == 1 else 1 - large[0, 0]
        return Prediction(
            mask=Segmentation.read(large)[0].cpu().numpy(),
            mask_probability=lesion.float().cpu().numpy(),
            input_mask=Segmentation.read(seg)[0].cpu().numpy(),
            probabilities=names,
        )


def load_run(path: Path | str, which: str = "best", device: str = "auto") -> Predictor:
    """The trained network of a run folder.

    Args:
        path: the run's folder, such as outputs/demo/<run_id>.
        which: `best` (by the run's declared score) or `last`.
        device: `auto` (a GPU where there is one), `cpu`, `cuda`, `cuda:1`, ...

    Raises:
        InputError: the folder is no run, or its checkpoint cannot be read or does not fit its config.
    """
    run = Run.open(path)
    cfg = run.config()
    config.check_saved(cfg, "model")
    checkpoint = checkpoints.load(run.checkpoint(which))
    facts = checkpoint.get("skinmtl")
    if not isinstance(facts, dict):
        raise InputError(str(run.checkpoint(which)), "not a checkpoint of skinmtl", "give a run that train.py made")
    network = config.build(
        {**cfg.model, "weights": None},
        tasks=facts["tasks"],
        mask_classes=len(facts["mask_classes"]),
        dx_classes=len(facts["dx_classes"]),
        size=tuple(facts["size"]),
    )
    try:
        network.load_state_dict(network_state(checkpoint["state_dict"]))
    except RuntimeError:
        what = "its weights do not fit the run's config"
        raise InputError(str(run.checkpoint(which)), what, "restore both from one run") from None
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("mps"):
        what = "Apple's GPU (MPS) has no float64, in which probabilities are kept"
        raise InputError(f"device {device}", what, "use cpu, or auto, which takes the CPU on a Mac")
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {device}", str(error).splitlines()[0], "use auto or cpu") from None
    flips = bool(cfg.get("test_time_flips", False))
    classes = facts["mask_classes"], facts["dx_classes"]
    return Predictor(network, facts["tasks"], *classes, tuple(facts["size"]), device, flips)


def network_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The network's own tensors out of a checkpoint's, by the network's names."""
    prefix = "network."
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def write_predictions(run: Path, photographs: Sequence[Path], out: Path, device: str = "auto") -> int:
    """Predict photographs into a folder; gives the number that could not be read.

    Writes `masks/<name>.png` (the photograph's own size; 0 and 255, or a palette picture whose index is the mask class
    where there are more than two), `overlays/<name>.png`, `predictions.csv` (one row per photograph: file, diagnosis,
    every probability, the share of the image that each mask class but the background has) and `errors.csv` (file, what
    is wrong), each whole or not at all. Photographs are named by their stems; InputError when two share one.
    """
    stems = [path.stem for path in photographs]
    if twice := sorted({stem for stem in stems if stems.count(stem) > 1}):
        raise InputError(
            twice[0], "two photographs have this name", "predict their folders one at a time, each with --out"
        )
    predictor = load_run(run, device=device)
    for name in ("masks", "overlays"):
        (out / name).mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, object]] = []
    errors: list[dict[str, str]] = []
    for path in track(photographs, "predicting", console=Console(stderr=True), transient=True):
        try:
            image = read_image(path)
        except InputError as error:
            errors.append({"file": path.name, "error": error.what, "fix": error.fix})
            continue
        prediction = predictor.predict(image)
        rows.append({"file": path.name} | _write_one(prediction, image, path.stem, out, predictor.mask_classes))
    write_text(out / "predictions.csv", pd.DataFrame(rows).to_csv(index=False))
    write_text(out / "errors.csv", pd.DataFrame(errors, columns=["file", "error", "fix"]).to_csv(index=False))
    note = "Research use only: not a medical device. HAM10000 is CC BY-NC 4.0, and so are weights trained on it.\n"
    write_text(out / "README.txt", note)
    return len(errors)


def _write_one(
    prediction: Prediction, image: NDArray[np.uint8], stem: str, out: Path, mask_classes: Sequence[str]
) -> dict[str, object]:
    row: dict[str, object] = {}
    if prediction.probabilities is not None:
        row |= {"dx": prediction.dx} | {f"prob_{dx}": p for dx, p in prediction.probabilities.items()}
    if prediction.mask is not None:
        row |= {f"{name}_share": float((prediction.mask == i).mean()) for i, name in enumerate(mask_classes) if i}
        mask = Image.fromarray(prediction.mask * 255 if len(mask_classes) == 2 else prediction.mask)
        if len(mask_classes) > 2:
            mask.putpalette(mask_palette(len(mask_classes)))
        _write_png(out / "masks" / f"{stem}.png", mask)
        _write_png(out / "overlays" / f"{stem}.png", Image.fromarray(overlay(image, prediction.mask)))
    return row


def _write_png(path: Path, picture: Image.Image) -> None:
    temp = path.with_name(f".{path.name}.tmp")
    picture.save(temp, format="png")
    temp.replace(path)
