"""Class heads: the coarsest features, and the mask where a head looks at it, to a diagnosis's logits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Interval
from segmentation_models_pytorch.base.initialization import initialize_head
from torch import Tensor, nn
from torch.nn import functional as F

DropoutRate = Annotated[float, Interval(ge=0, lt=1)]
Width = Annotated[int, Ge(1)]


class Head(nn.Module, ABC):
    """What every class head offers. Its constructor takes keys of the config; its layers come when widths are known."""

    needs_mask: ClassVar[bool] = False  # whether it cannot do without a network that draws masks

    @abstractmethod
    def connect(self, channels: int, classes: int) -> None:
        """Make the layers between `channels` of the coarsest features and `classes` diagnoses."""

    @abstractmethod
    def forward(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, K) logits, from (B, C, h, w) features and the mask's (B, 1 or M, H, W) float32 logits, if any."""


class Pooled(Head):
    """Features pooled over the image, dropout, one linear layer; with `hidden` another one of that width before.

    `pooling` takes the mean or the largest value of a channel.
    """

    def __init__(
        self, pooling: Literal["avg", "max"] = "avg", dropout: DropoutRate = 0.2, hidden: Width | None = None
    ) -> None:
        super().__init__()
        self.pooling, self.dropout, self.hidden = pooling, dropout, hidden

    def connect(self, channels: int, classes: int) -> None:
        """Make the layers, numbered as in smp's head, under which names checkpoints know them."""
        pool = nn.AdaptiveAvgPool2d(1) if self.pooling == "avg" else nn.AdaptiveMaxPool2d(1)
        layers = [pool, nn.Flatten(), *dense(channels, classes, self.dropout, self.hidden)]
        for place, layer in enumerate(layers):
            self.add_module(str(place), layer)

    def forward(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, K) logits, from (B, C, h, w) features."""
        for layer in self.children():
            features = layer(features)
        return features


class MaskGuided(Head):
    """Features pooled inside the lesion that the network draws, then layers as in `Pooled`.

    With `stop_gradient` the diagnosis uses the mask as it is; without, its loss also moves the mask. While there is no
    lesion yet the features are pooled over the image.
    """

    needs_mask = True

    def __init__(self, stop_gradient: bool = True, dropout: DropoutRate = 0.2, hidden: Width | None = None) -> None:
        super().__init__()
        self.stop_gradient, self.dropout, self.hidden = stop_gradient, dropout, hidden

    def connect(self, channels: int, classes: int) -> None:
        """Make the layers."""
        self.layers = nn.Sequential(*dense(channels, classes, self.dropout, self.hidden))

    def forward(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, K) logits, from (B, C, h, w) features and the mask's (B, 1 or M, H, W) float32 logits."""
        assert mask is not None
        lesion = lesion_probability(mask.detach() if self.stop_gradient else mask)
        logits: Tensor = self.layers(pool_inside(features.float(), lesion))
        return logits


def lesion_probability(mask: Tensor) -> Tensor:
    """(B, 1, H, W) probability of anything but the first mask class, from (B, 1 or M, H, W) logits."""
    return mask.sigmoid() if mask.shape[1] == 1 else 1 - mask.softmax(1)[:, :1]


def pool_inside(features: Tensor, lesion: Tensor, floor: float = 1e-3) -> Tensor:
    """(B, C) means of (B, C, h, w) features, each place weighted by the lesion's mean probability there plus `floor`.

    sum_p (w_p + floor) f_p / sum_p (w_p + floor): for an empty mask the plain mean, so nothing is divided by zero.

    Args:
        features: float32.
        lesion: (B, 1, H, W) in [0, 1], of any size from h x w up.
        floor: above 0; how much the skin around counts beside a sure lesion.
    """
    height, width = features.shape[2:]
    weight = F.adaptive_avg_pool2d(lesion, (height, width)) + floor
    return (features * weight).sum((2, 3)) / weight.sum((2, 3))


def dense(channels: int, classes: int, dropout: float, hidden: int | None) -> list[nn.Module]:
    """Layers from pooled features to logits, with weights drawn as smp draws those of its heads."""
    first = [] if hidden is None else [nn.Linear(channels, hidden), nn.ReLU()]
    drop = nn.Dropout(dropout) if dropout else nn.Identity()
    layers = nn.ModuleList([*first, drop, nn.Linear(hidden or channels, classes)])
    initialize_head(layers)
    return list(layers)
