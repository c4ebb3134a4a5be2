"""Segmentation as it is learned: a class for every pixel, background first."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from skinmtl.data.images.reading import read_mask
from skinmtl.models.body import MapHead
from skinmtl.tasks.base import Better, Task
from skinmtl.tasks.metrics import ImageDice
from skinmtl.tasks.segmentation.prediction import MaskPrediction
from skinmtl.tasks.segmentation.scoring import SegmentationScoring
from skinmtl.types import Batch

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from skinmtl.data.datamodule import DataModule


class Segmentation(Task):
    """The lesion's mask: each pixel's class of the largest probability, background first.

    With one class beside the background a pixel is lesion where its probability is above one half. The classes are
    those of `mask_classes`. A mixed image (`data.mixing`) has the mask that its mixing gives it, or none.
    """

    score = "mean_image_dice"
    logged: ClassVar[Mapping[str, Better]] = {"mean_image_dice": "max"}
    dense = True
    mixes = False
    column = "mask"
    keys = ("mask",)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the mask classes, (M,), background first."""
        return tuple(self.facts["classes"])

    def learn(self, data: DataModule) -> None:
        """Take the names of the mask classes."""
        self.facts = {"classes": list(data.mask_classes)}

    def _of_before(self, kept: Mapping[str, Any]) -> dict[str, Any]:
        return {"classes": list(kept["mask_classes"])}

    def truth(self, case: Mapping[str, Any], shape: tuple[int, int], data: DataModule) -> NDArray[np.uint8] | None:
        """(H, W) uint8 index into the mask classes, at the image's own size."""
        path = case[self.column]
        return data.mask_rule.of(read_mask(Path(path), shape)) if isinstance(path, str) else None

    @property
    def outputs(self) -> int:
        """One foreground class needs one logit; more need one each, background first."""
        return 1 if len(self.classes) == 2 else len(self.classes)

    def parts(self, head: nn.Module) -> Mapping[str, nn.Module]:
        """Decoder and mask head by themselves, by the names under which checkpoints know them."""
        return {"decoder": head.decoder, "mask_head": head.last} if isinstance(head, MapHead) else super().parts(head)

    def labelled(self, batch: Batch) -> Tensor:
        """As of any task."""
        return batch["has_mask"]

    def metric(self) -> ImageDice:
        """Dice of each image, at the network's size."""
        return ImageDice(len(self.classes))

    def count(self, metric: ImageDice, logits: Tensor, batch: Batch) -> None:
        """As of any task."""
        has = self.labelled(batch)
        metric.update(self.index(self.probabilities(logits))[has], batch["mask"][has])

    def probabilities(self, logits: Tensor) -> Tensor:
        """(B, 1, H, W) of the lesion, or (B, M, H, W) of each class."""
        logits = logits.float()
        return logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(1)

    @staticmethod
    def index(probabilities: Tensor) -> Tensor:
        """(B, H, W) uint8 index into the mask classes, from (B, 1, H, W) or (B, M, H, W) probabilities."""
        index = probabilities[:, 0] > 0.5 if probabilities.shape[1] == 1 else probabilities.argmax(1)
        return index.to(torch.uint8)

    def read(self, values: Tensor, shape: tuple[int, int]) -> MaskPrediction:
        """The mask at the image's own size."""
        small = values[None]
        # Probabilities are resized, then thresholded: resizing a mask would move its edge in steps of input pixels.
        large = F.interpolate(small, shape, mode="bilinear", align_corners=False)
        lesion = large[0, 0] if large.shape[1] == 1 else 1 - large[0, 0]
        return MaskPrediction(
            mask=self.index(large)[0].cpu().numpy(),
            probability=lesion.float().cpu().numpy(),
            input_mask=self.index(small)[0].cpu().numpy(),
        )

    def scoring(self) -> SegmentationScoring:
        """As of any task."""
        return SegmentationScoring(self.name, self.classes)

    def _where_to_get(self) -> str:
        return "unpack the masks beside them, or give data.masks"
