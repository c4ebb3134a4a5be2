"""Photograph to logits by task name: one encoder, a mask decoder, a class head."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, TypeVar

import torch
from annotated_types import Interval
from segmentation_models_pytorch.encoders import get_encoder
from torch import Tensor, nn

from skinmtl.decoders import DECODERS
from skinmtl.encoders import Encoder, Statistics, check_encoder, depths, statistics
from skinmtl.errors import ConfigError, first_line
from skinmtl.heads import Head, Pooled, Width
from skinmtl.types import Logits
from skinmtl.weights import load_encoder

T = TypeVar("T")
Rate = Annotated[float, Interval(gt=0, le=1)]


class MultiTaskNet(nn.Module):
    """heads(encoder(normalise(image))): a mask from the decoder, a diagnosis from the deepest features.

    A task that is not trained has no parts: without `seg` there is no decoder, without `cls` no class head.

    `encoder` is any encoder of segmentation-models-pytorch by name, of timm as `tu-<name>`, or an `Encoder` of one's
    own. `weights` is null for random ones, `imagenet`, or a file of its weights under torchvision's or timm's names.
    `head` is the class head; where it is null, `pooling`, `dropout` and `hidden` are those of a `Pooled` one.

    The encoder's parameters learn at `encoder_rate` times the learning rate, and those that stand d feature maps before
    the deepest one at `rate_decay` ** d times that (Howard and Ruder 2018, arXiv:1801.06146).

    In training, batch normalisation needs more than one value a channel: batches of two or more under deeplabv3 and
    deeplabv3plus, whose pyramids pool an image to one pixel.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        arch: Literal[
            "unet", "deeplabv3plus", "deeplabv3", "unetplusplus", "fpn", "resnet_unet_deeplab", "upsample"
        ] = "unet",
        encoder: str | Encoder = "resnet18",
        weights: str | None = None,
        dropout: Annotated[float, Interval(ge=0, lt=1)] = 0.2,
        pooling: Literal["avg", "max"] = "avg",
        hidden: Width | None = None,
        head: Head | None = None,
        encoder_rate: Rate = 1.0,
        rate_decay: Rate = 1.0,
        *,
        tasks: Sequence[str],
        mask_classes: int,
        dx_classes: int,
        size: tuple[int, int],
    ) -> None:
        super().__init__()
        if "seg" in tasks:
            check_size(size, arch)
        self.encoder, name, (mean, std) = _encoder(encoder, arch if "seg" in tasks else None)
        if "seg" in tasks:
            # One foreground class needs one logit; more need one each, background first.
            classes = 1 if mask_classes == 2 else mask_classes
            channels = self.encoder.out_channels
            parts = _build(lambda: DECODERS[arch].build(self.encoder, channels, classes), arch, name)
            self.decoder, self.mask_head = parts
        if "cls" in tasks:
            self.class_head = _head(head or Pooled(pooling, dropout, hidden), tasks)
            self.class_head.connect(self.encoder.out_channels[-1], dx_classes)
        self.tasks, self._size = tuple(tasks), size
        self._encoder_rate, self._rate_decay = encoder_rate, rate_decay
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1) * 255, persistent=False)
        _try(self, size, arch, name)
        self.weights_file = None if weights is None else load_encoder(self.encoder, name, weights)

    def forward(self, image: Tensor) -> Logits:
        """Float32 logits by task: `seg` (B, 1 or M, H, W), `cls` (B, K), from (B, 3, H, W) uint8 photographs."""
        features = self.encoder((image - self.mean) / self.std)  # coarsest last
        logits: Logits = {}
        if "seg" in self.tasks:
            logits["seg"] = self.mask_head(self.decoder(features)).float()
        if "cls" in self.tasks:
            logits["cls"] = self.class_head(features[-1], logits.get("seg")).float()
        return logits

    def rates(self) -> dict[nn.Parameter, float]:
        """The share of the learning rate of each of the encoder's parameters; empty where all learn at the whole."""
        if self._encoder_rate == self._rate_decay == 1:
            return {}
        depth = depths(self.encoder, self._size)
        deepest = max(depth.values())
        return {
            parameter: self._encoder_rate * self._rate_decay ** (deepest - depth[name])
            for name, parameter in self.encoder.named_parameters()
        }


def check_size(size: tuple[int, int], arch: str) -> None:
    """Refuse image sides, in pixels, from which a decoder would not come back to the same sides.

    Raises:
        ConfigError: at data.size, with the nearest sizes that fit.
    """
    divisor = DECODERS[arch].multiple
    if any(side % divisor for side in size):
        fits = [[max(divisor, act(side / divisor) * divisor) for side in size] for act in (math.ceil, math.floor)]
        what = f"{list(size)} does not suit {arch}, whose image sides are multiples of {divisor}"
        raise ConfigError("data.size", what, f"use {' or '.join(dict.fromkeys(map(str, fits)))}")


def _encoder(encoder: str | Encoder, arch: str | None) -> tuple[Any, str, Statistics]:
    """The encoder as an architecture needs it, or as it is where no mask is drawn; what to call it; its statistics."""
    stride = 32 if arch is None else DECODERS[arch].stride
    if isinstance(encoder, str):
        check_encoder(encoder)
        made = _build(lambda: get_encoder(encoder, output_stride=stride), arch or "a class head", encoder)
        return made, encoder, statistics(encoder)
    name = type(encoder).__name__
    if not isinstance(encoder, Encoder):
        raise ConfigError("model.encoder", f"{name} is no encoder", "derive it from skinmtl.encoders.Encoder")
    if stride != 32:
        what = f"{arch} needs an encoder of smp or timm, which it can dilate, and not {name}"
        raise ConfigError("model.arch", what, "use unet, resnet_unet_deeplab or upsample")
    return encoder, name, encoder.statistics


def _head(head: Head, tasks: Sequence[str]) -> Head:
    if not isinstance(head, Head):
        raise ConfigError("model.head", f"{type(head).__name__} is no class head", "derive it from skinmtl.heads.Head")
    if head.needs_mask and "seg" not in tasks:
        what = f"{type(head).__name__} looks at the mask, and this run draws none"
        raise ConfigError("model.head", what, "add seg to tasks, or model/head=pooled")
    return head


def _build(make: Callable[[], T], what: str, encoder: str) -> T:
    try:
        return make()
    except (ValueError, TypeError, RuntimeError, AssertionError, AttributeError, KeyError) as error:
        # Not every encoder has a feature map at each scale, or can be dilated; smp and timm say so in as many ways.
        fix = "take model.arch=unet or another encoder"
        raise ConfigError("model.encoder", f"{encoder} does not go with {what} ({first_line(error)})", fix) from None


def _try(network: MultiTaskNet, size: tuple[int, int], arch: str, encoder: str) -> None:
    """Push shapes alone through a network; some encoders take one size only, and only they know which."""
    meta = {name: t.to("meta") for name, t in (*network.named_parameters(), *network.named_buffers())}
    image = torch.zeros(1, 3, *size, dtype=torch.uint8, device="meta")
    network.eval()  # a training step would want more than one value a channel
    try:
        logits = torch.func.functional_call(network, meta, image)
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:
        what = f"{list(size)} does not suit encoder {encoder} ({first_line(error)})"
        raise ConfigError("data.size", what, "use multiples of 32, or another encoder") from None
    network.train()
    if "seg" in logits and logits["seg"].shape[2:] != tuple(size):
        what = f"{arch} makes a mask of {list(logits['seg'].shape[2:])} out of {encoder}'s features, not {list(size)}"
        raise ConfigError("model.arch", what, "use unet, resnet_unet_deeplab or upsample")
