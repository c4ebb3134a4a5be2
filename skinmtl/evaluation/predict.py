"""A run and images: probabilities, masks, overlays. One inference loop, for evaluation and new images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from skinmtl.config.build import build, without_weights
from skinmtl.config.check import check_saved
from skinmtl.config.tasks import settle
from skinmtl.data.images.reading import fit_image, read_image
from skinmtl.errors import InputError
from skinmtl.runs import checkpoints
from skinmtl.runs.run import Run
from skinmtl.tasks.base import Task
from skinmtl.tasks.classification.prediction import ClassPrediction
from skinmtl.tasks.segmentation.prediction import MaskPrediction

ImageLike = Path | str | NDArray[Any] | Tensor
SHAPES = "give (H, W, 3) uint8 RGB, 0 to 255, or floats from 0 to 1; grey (H, W) or (H, W, 1) and RGBA, too; or a file"
TOGETHER = 32  # images that pass through the network at once


@dataclass(frozen=True)
class Prediction:
    """What a network says of one image.

    Attributes:
        tasks: the answer of each task by its name, as `Task.read` gives it: of a segmentation a `MaskPrediction`, of a
            classification a `ClassPrediction`, of a regression a `ValuePrediction`.
    """

    tasks: Mapping[str, Any]

    def __getitem__(self, name: str) -> Any:  # noqa: ANN401 -- as each task reads it
        return self.tasks[name]

    @property
    def mask(self) -> NDArray[np.uint8] | None:
        """(H, W) uint8 index into the mask classes, at the image's own size; None without a segmentation."""
        return getattr(self._first(MaskPrediction), "mask", None)

    @property
    def mask_probability(self) -> NDArray[np.float32] | None:
        """(H, W) float32, probability of not being background, resized from the network's size; or None."""
        return getattr(self._first(MaskPrediction), "probability", None)

    @property
    def input_mask(self) -> NDArray[np.uint8] | None:
        """The mask at network size, before any resizing; or None."""
        return getattr(self._first(MaskPrediction), "input_mask", None)

    @property
    def probabilities(self) -> Mapping[str, float] | None:
        """Probability by class of the first classification, float64, summing to one; None without one."""
        return getattr(self._first(ClassPrediction), "probabilities", None)

    @property
    def dx(self) -> str | None:
        """The class of the largest probability."""
        return getattr(self._first(ClassPrediction), "label", None)

    def _first(self, kind: type) -> Any:  # noqa: ANN401
        return next((answer for answer in self.tasks.values() if isinstance(answer, kind)), None)


class Predictor:
    """A trained network, ready for images of any size. Runs in float32.

    With `flips`, probabilities are means over the image as it is and mirrored along either axis and both, each
    mask turned back: four times the work.

    Research use only: not a medical device.
    """

    def __init__(
        self,
        network: nn.Module,
        tasks: Sequence[Task],
        size: tuple[int, int],
        device: str,
        flips: bool = False,
    ) -> None:
        self.network = network.eval().to(device).to(memory_format=torch.channels_last)
        self.tasks, self.size, self.device = {task.name: task for task in tasks}, size, device
        self.views: tuple[tuple[int, ...], ...] = ((), (3,), (2,), (2, 3)) if flips else ((),)  # axes of (B, 3, H, W)

    @overload
    def predict(self, image: Path | str) -> Prediction: ...
    @overload
    def predict(self, image: list[Any] | tuple[Any, ...]) -> list[Prediction]: ...
    @overload
    def predict(self, image: NDArray[Any] | Tensor) -> Any: ...  # noqa: ANN401 -- its shape says which of the two
    def predict(self, image: ImageLike | list[Any] | tuple[Any, ...]) -> Prediction | list[Prediction]:
        """Predict one image, or a batch of them as a list.

        Args:
            image: a file; or an array or tensor whose last axis is colour: (H, W, 3) RGB, (H, W, 4) RGBA without
                transparency, (H, W) or (H, W, 1) grey. Of uint8, values are 0 to 255; of a float type, 0 to 1, neither
                normalised nor scaled, and they are rounded to bytes: x and x / 255 are one image. Or a batch: a
                list or tuple of any of these, of any sizes, or an array (B, H, W, 3), (B, H, W, 4) or (B, H, W, 1).

        Raises:
            InputError: a file is not a whole image, or an array is none by these rules.
        """
        if isinstance(image, list | tuple) or (isinstance(image, np.ndarray | Tensor) and image.ndim == 4):
            return list(self.predict_each(image))
        return next(self.predict_each([image]))

    def predict_each(self, images: Iterable[ImageLike], batch_size: int = TOGETHER) -> Iterator[Prediction]:
        """A prediction for each image, in order, as they are asked for: for more of them than memory holds.

        `batch_size` of them pass through the network together. That moves a probability by less than 1e-5 and no more
        than the pixels of a mask that are as near to a threshold.

        Args:
            images: images as `predict` takes them, one at a time; a generator may read them.
            batch_size: how many are read ahead, of which the network's size alone is kept.

        Raises:
            InputError: as `predict`.
        """
        images = iter(images)
        while batch := [(fit_image(p, self.size), p.shape[:2]) for p in map(as_bytes, islice(images, batch_size))]:
            tensor = torch.from_numpy(np.stack([fitted for fitted, _ in batch])).permute(0, 3, 1, 2).to(self.device)
            values = self._values(tensor)
            for i, (_, size) in enumerate(batch):
                yield self._one({name: value[i] for name, value in values.items()}, size)

    @torch.inference_mode()
    def _values(self, images: Tensor) -> dict[str, Tensor]:
        """Probabilities and the like by task, (B, C, H, W) at network size of a dense one, else (B, C)."""
        views = [(axes, self.network(images.flip(axes))) for axes in self.views]
        found = {}
        for name, task in self.tasks.items():
            seen = [task.probabilities(logits[name]).flip(axes if task.dense else ()) for axes, logits in views]
            found[name] = torch.stack(seen).mean(0)
        return found

    @torch.inference_mode()
    def _one(self, values: Mapping[str, Tensor], shape: tuple[int, int]) -> Prediction:
        return Prediction({name: task.read(values[name], shape) for name, task in self.tasks.items()})


def as_bytes(image: ImageLike) -> NDArray[np.uint8]:
    """One image as (H, W, 3) uint8 RGB, by the rules of `Predictor.predict`.

    Raises:
        InputError: it is none by these rules.
    """
    if isinstance(image, str | Path):
        return read_image(Path(image))
    if not isinstance(image, np.ndarray | Tensor):
        what = f"a {type(image).__module__}.{type(image).__name__}".replace("builtins.", "")
        raise InputError("image", what, f"{SHAPES}; of a PIL picture numpy.asarray(picture.convert('RGB'))")
    if isinstance(image, Tensor):
        image = image.detach().cpu()
        image = image.float().numpy() if image.is_floating_point() else image.numpy()
    what = f"{image.dtype} of shape {image.shape}"
    if not (image.ndim == 2 or (image.ndim == 3 and image.shape[2] in (1, 3, 4))) or not image.size:
        first = image.ndim == 3 and image.shape[0] in (1, 3, 4)
        fix = (
            "put colour last: numpy.moveaxis(image, 0, -1), or image.permute(1, 2, 0) of a tensor" if first else SHAPES
        )
        raise InputError("image", what, fix)
    pixels = _scaled(image, what)
    if pixels.ndim == 3 and pixels.shape[2] == 4:
        if pixels[..., 3].min() < 255:
            raise InputError("image", f"{what} with transparent pixels", "lay it on a background, and give RGB")
        pixels = pixels[..., :3]
    if pixels.ndim == 2 or pixels.shape[2] == 1:
        pixels = np.repeat(pixels.reshape(*pixels.shape[:2], 1), 3, axis=2)
    return np.ascontiguousarray(pixels)


def _scaled(image: NDArray[Any], what: str) -> NDArray[np.uint8]:
    """Bytes as they are, floats from 0 to 1 as the nearest bytes."""
    if image.dtype == np.uint8:
        return image
    if not np.issubdtype(image.dtype, np.floating):
        fix = "give uint8: image.astype(numpy.uint8) where values are 0 to 255, else scaled as you mean it"
        raise InputError("image", what, fix)
    low, high = float(image.min()), float(image.max())
    if not (low >= 0 and high <= 1):
        fix = "give floats from 0 to 1, not normalised, or uint8: image.astype(numpy.uint8) where values are 0 to 255"
        raise InputError("image", f"{what} from {low:.4g} to {high:.4g}", fix)
    return np.rint(image.astype(np.float32, copy=False) * 255).astype(np.uint8)


def load_run(path: Path | str, which: str = "best", device: str = "auto") -> Predictor:
    """The trained network of a run folder.

    Args:
        path: the run's folder, such as `outputs/demo/<run_id>`.
        which: `best` (by the run's declared score) or `last`.
        device: `auto` (a GPU where there is one), `cpu`, `cuda`, `cuda:1`, ...

    Raises:
        InputError: the folder is no run, or its checkpoint cannot be read or does not fit its config.
    """
    run = Run.open(path)
    cfg = run.config()
    settle(cfg)
    check_saved(cfg, "model", "task")
    checkpoint = checkpoints.load(run.checkpoint(which))
    facts = checkpoint.get("skinmtl")
    if not isinstance(facts, dict):
        raise InputError(str(run.checkpoint(which)), "not a checkpoint of skinmtl", "give a run that train.py made")
    tasks = [build(cfg.task[name], name=name) for name in facts["tasks"]]
    for task in tasks:
        task.restore(facts)
    sizes = {"mask_classes": len(facts["mask_classes"]), "dx_classes": len(facts["dx_classes"])}
    parts = {"outputs": tasks, "tasks": facts["tasks"], "size": tuple(facts["size"])} | sizes
    network = build(without_weights(cfg.model), **parts)
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
    return Predictor(network, tasks, tuple(facts["size"]), device, flips)


def network_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The network's own tensors out of a checkpoint's, by the network's names."""
    prefix = "network."
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
