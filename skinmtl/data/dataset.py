"""Samples of images, masks and diagnoses, and the loader that stacks them into batches."""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, get_worker_info

from skinmtl.data.cache import Images
from skinmtl.data.mixing import Mixing, Partners
from skinmtl.data.samplers import SampleKey
from skinmtl.data.transforms import Transform
from skinmtl.errors import ConfigError, ResourceError, SkinmtlError, first_line
from skinmtl.types import Batch, Sample

HANGS = 300.0  # seconds without a batch after which a worker is taken for stuck, such as on a network disk that is gone


@dataclass(frozen=True)
class Mix:
    """How training images are mixed, with which, and how many places a step has on all processes together."""

    by: Mixing
    partners: Partners
    places: int


class Samples(Dataset[Sample | SkinmtlError]):
    """Samples by (epoch, position, row): the row says which image, all three how it is augmented.

    An image that cannot be read comes as the error itself, for `Loader` to raise: an exception raised in a worker
    would arrive as a RuntimeError without its name.

    Args:
        images: N images and masks at network size.
        dx: (N,) index of each row's diagnosis, -1 where missing.
        transform: the augmentation.
        seed: of augmentation and mixing.
        mix: how another image is mixed into some; None for no mixing.
        masks: (N,) the row whose mask each row comes with; None for its own.
        targets: further targets by their key in the batch, each (N, ...) by row.
    """

    def __init__(
        self,
        images: Images,
        dx: NDArray[np.int64],
        transform: Transform,
        seed: int,
        mix: Mix | None = None,
        masks: NDArray[np.int64] | None = None,
        targets: Mapping[str, NDArray[Any]] | None = None,
    ) -> None:
        self._images, self._dx, self._transform, self._seed = images, dx, transform, seed
        self._mix, self._masks, self._targets = mix, masks, dict(targets or {})

    def __getitem__(self, place: SampleKey) -> Sample | SkinmtlError:
        epoch, position, row = place
        try:
            own = self._one(row, (self._seed, epoch, position))
            return own if self._mix is None else self._mixed(own, self._mix, epoch, position)
        except SkinmtlError as error:
            return error
        except Exception as error:
            if get_worker_info() is None:
                raise
            fix = "look at that image and at augment; data.workers=0 shows where it came from"
            return ResourceError(self._images.name(row), f"a worker failed at it ({first_line(error)})", fix)

    def _one(self, row: int, key: tuple[int, ...]) -> Sample:
        image, mask = self._images.read(row)
        if self._masks is not None and (other := int(self._masks[row])) != row:
            mask = self._images.read(other)[1]
        size = image.shape
        image, mask = self._transform(image, mask, key)
        if image.shape != size or mask.shape != size[:2]:
            what = f"it makes {image.shape} of an image of shape {size}, and {mask.shape} of its mask"
            raise ConfigError("augment", what, "keep the size of both: data.size is that of the network")
        has_mask, dx = self._images.has_mask(row), int(self._dx[row])
        targets = {key: array[row] for key, array in self._targets.items()}
        return Sample(image=image, mask=mask, has_mask=has_mask, dx=dx, index=row, targets=targets)

    def _mixed(self, own: Sample, mix: Mix, epoch: int, position: int) -> Sample:
        size = (own["mask"].shape[0], own["mask"].shape[1])
        share = mix.by.share(size, self._seed, epoch, position // mix.places)
        rng = mix.by.rng(self._seed, epoch, position)
        pair, partner = own, mix.partners.sample(rng)
        if rng.random() < mix.by.p and own["dx"] >= 0 and partner != own["index"]:
            other = self._one(partner, (self._seed, epoch, position, 1))
            pair = mix.by.pair(own, other, share, rng)
            if "dx_other" in pair:  # it was mixed
                pair = {**pair, "targets_other": other.get("targets", {})}
        others = pair.get("targets_other", pair.get("targets", {}))
        return {**pair, "dx_other": pair.get("dx_other", pair["dx"]), "targets_other": others, "share": share}


class Loader(DataLoader[Sample | SkinmtlError]):
    """A DataLoader that raises the errors of its workers as they were."""

    def __len__(self) -> int:
        # Of several processes one may have no batch to validate. Lightning would leave its validation out, and the
        # others would wait for it; it comes, and finds nothing, when it is told of one.
        return max(1, super().__len__())

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        return map(_raised, super().__iter__())


def _raised(batch: Batch | SkinmtlError) -> Batch:
    if isinstance(batch, SkinmtlError):
        try:
            raise batch
        finally:
            # Else error and frame would hold each other (in a generator, too), and workers that are left to the garbage
            # collector take 5 s each to stop.
            del batch
    return batch


def collate(samples: Sequence[Sample | SkinmtlError]) -> Batch | SkinmtlError:
    """Stack samples into tensors; images stay bytes.

    Args:
        samples: as `Samples` gives them, of one size.

    Returns:
        The batch; or the first error, where there is one.
    """
    errors = [sample for sample in samples if isinstance(sample, SkinmtlError)]
    if errors:
        return errors[0]
    good = [sample for sample in samples if not isinstance(sample, SkinmtlError)]
    height, width = good[0]["mask"].shape
    images = torch.empty((len(good), 3, height, width), dtype=torch.uint8)
    for place, sample in zip(images.numpy(), good, strict=True):
        cv2.split(sample["image"], list(place))  # (H, W, 3) to (3, H, W), many times faster than a permuted copy
    batch = Batch(
        image=images,
        mask=torch.from_numpy(np.stack([sample["mask"] for sample in good])),
        has_mask=torch.tensor([sample["has_mask"] for sample in good]),
        dx=torch.tensor([sample["dx"] for sample in good]),
        index=torch.tensor([sample["index"] for sample in good]),
    )
    further = good[0].get("targets", {})
    batch |= {key: _stacked([sample["targets"][key] for sample in good]) for key in further}
    if "share" in good[0]:
        batch["dx_other"] = torch.tensor([sample["dx_other"] for sample in good])
        batch |= {f"{key}_other": _stacked([s["targets_other"][key] for s in good]) for key in further}
        batch["share"] = torch.tensor(good[0]["share"])
    return batch


def _stacked(values: Sequence[Any]) -> torch.Tensor:
    """Stack numbers or arrays, one of each sample, into one tensor of their type."""
    return torch.from_numpy(np.stack(values))


def _one_thread(_: int) -> None:
    """Prepare a worker. Workers share the cores already; more threads in each would only wait for one another."""
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    _keep_memory_small()
    _end_with_parent()
    _leave_signals_to_parent()


def _leave_signals_to_parent() -> None:
    """Work on when a terminal, or SLURM, asks every process to stop: the training process says when that is."""
    for name in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(name, signal.SIG_IGN)
    if not hasattr(signal, "sigwaitinfo"):  # macOS
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def wait() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
            pass
        os._exit(0)  # as DataLoader ends a worker that hangs

    threading.Thread(target=wait, daemon=True).start()


def _end_with_parent() -> None:
    """Die with the training process, however that dies: a worker left over would hold its run's folder for seconds."""
    with suppress(OSError, TypeError, AttributeError):  # another system than Linux
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _keep_memory_small() -> None:
    """Copy little of what the parent shares, and give batches back to the system, each of which is sent only once."""
    gc.freeze()  # else the first collection would write to every object of the parent
    with suppress(OSError, TypeError, AttributeError):  # another C library than glibc
        mallopt = ctypes.CDLL(None).mallopt
        trim_threshold, mmap_threshold, mmap_max = -1, -3, -4  # names and numbers of malloc.h
        mallopt(mmap_max, 65536)  # their own default: the parent may have kept it all
        mallopt(mmap_threshold, 2**20)  # images are smaller, batches larger
        mallopt(trim_threshold, 2**24)
