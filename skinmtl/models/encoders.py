"""Image to feature maps: encoders by name, of smp or timm; the contract of further ones; a plain one of ours."""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

import segmentation_models_pytorch as smp
import timm
import torch
from annotated_types import Ge, Interval
from timm.data import constants as published
from torch import Tensor, nn
from torch.autograd.graph import Node

from skinmtl.errors import ConfigError

# Encoders of smp whose published weights expect other statistics than most, by the beginning of their names; smp itself
# would ask the network. As timm states them for the same weights: mean and standard deviation by channel, in [0, 1].
Statistics = tuple[Sequence[float], Sequence[float]]
HALF: Statistics = (published.IMAGENET_INCEPTION_MEAN, published.IMAGENET_INCEPTION_STD)
DPN: Statistics = (published.IMAGENET_DPN_MEAN, published.IMAGENET_DPN_STD)
STATISTICS = {"inception": HALF, "xception": HALF, "timm-tf_efficientnet_lite": HALF, "dpn": DPN}
IMAGENET: Statistics = (published.IMAGENET_DEFAULT_MEAN, published.IMAGENET_DEFAULT_STD)

ACTIVATIONS = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
}


class Encoder(nn.Module, ABC):
    """What every encoder gives that is not taken by its name from smp or timm.

    Attributes:
        out_channels: channels of the feature maps, the image's three first, the coarsest map's last.
        statistics: mean and standard deviation by channel, in [0, 1], with which images are normalised.
    """

    out_channels: Sequence[int]
    statistics: Statistics = IMAGENET

    @abstractmethod
    def forward(self, image: Tensor) -> list[Tensor]:
        """Feature maps of (B, 3, H, W) float32 normalised images: themselves, then each half the size before."""


class ConvPool(Encoder):
    """A plain convolutional network: `layers` times convolution, activation and pooling to half the size.

    The first layer has `filters` channels, each further one `growth` times as many. `kernel` is the convolution's side
    in pixels. `batch_norm` normalises between convolution and activation.
    """

    def __init__(
        self,
        layers: Annotated[int, Interval(ge=1, le=8)] = 4,
        filters: Annotated[int, Ge(1)] = 32,
        growth: Annotated[float, Interval(ge=1, le=4)] = 2.0,
        kernel: Literal[3, 5, 7] = 3,
        activation: Literal["relu", "leaky_relu", "elu", "gelu", "silu", "tanh"] = "relu",
        batch_norm: bool = True,
    ) -> None:
        super().__init__()
        self.out_channels = [3, *(round(filters * growth**layer) for layer in range(layers))]
        self.layers = nn.ModuleList()
        for before, after in zip(self.out_channels, self.out_channels[1:], strict=False):
            convolution = nn.Conv2d(before, after, kernel, padding=kernel // 2, bias=not batch_norm)
            norm = nn.BatchNorm2d(after) if batch_norm else nn.Identity()
            self.layers.append(nn.Sequential(convolution, norm, ACTIVATIONS[activation](), nn.MaxPool2d(2)))

    def forward(self, image: Tensor) -> list[Tensor]:
        """Feature maps at 1, 1/2, ... of the image's sides, rounded down."""
        features = [image]
        for layer in self.layers:
            features.append(layer(features[-1]))
        return features


def check_encoder(name: str) -> None:
    """Refuse a name that neither smp nor, after `tu-`, timm knows.

    Raises:
        ConfigError: at model.encoder, with the nearest names.
    """
    known = list(smp.encoders.encoders)
    if name.startswith("tu-"):
        if timm.is_model(name.removeprefix("tu-")):
            return
        known = [f"tu-{model}" for model in timm.list_models()]
    if name not in known:
        near = difflib.get_close_matches(name, known, 3)
        guess = f"did you mean {' or '.join(near)}?" if near else "take a name of smp, or tu-<a name of timm>"
        raise ConfigError("model.encoder", f"no encoder is called {name!r}", guess)


def statistics(encoder: str) -> Statistics:
    """Mean and standard deviation of each channel in [0, 1], as the encoder's published weights expect."""
    if encoder.startswith("tu-"):
        config = timm.get_pretrained_cfg(encoder.removeprefix("tu-"))
        return (config.mean, config.std) if config else IMAGENET
    return next((own for start, own in STATISTICS.items() if encoder.startswith(start)), IMAGENET)


def depths(encoder: nn.Module, size: tuple[int, int]) -> dict[str, int]:
    """Of each parameter by name the first feature map that it has a part in, 1 for the finest after the image.

    Asked of the graph of a pass over shapes alone, images of `size` (height, width), so it holds for any encoder.
    Parameters in no map stand with the coarsest.
    """
    own = {name: torch.empty_like(p, device="meta", requires_grad=True) for name, p in encoder.named_parameters()}
    buffers = {name: buffer.to("meta") for name, buffer in encoder.named_buffers()}
    was_training = encoder.training
    with torch.enable_grad():
        features = torch.func.functional_call(encoder.eval(), own | buffers, torch.empty(1, 3, *size, device="meta"))
    encoder.train(was_training)
    names = {id(tensor): name for name, tensor in own.items()}
    found: dict[str, int] = {}
    seen: set[Node] = set()
    for depth, feature in enumerate(features):
        for leaf in _leaves(feature.grad_fn, seen):
            found.setdefault(names[id(leaf)], depth)
    return {name: found.get(name, len(features) - 1) for name in own}


def _leaves(end: Node | None, seen: set[Node]) -> Iterator[Tensor]:
    """Tensors at the beginnings of a graph that are reached from its end without passing a node seen before."""
    waiting = [end]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            yield node.variable
        waiting += [before for before, _ in node.next_functions]
