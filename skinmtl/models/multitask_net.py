"""Image to logits by task name: one encoder, and for each task the head that it asks for."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Annotated, Any, Literal, TypeVar

import timm
import torch
from annotated_types import Interval
from segmentation_models_pytorch.encoders import get_encoder
from torch import Tensor, nn

from skinmtl.errors import ConfigError, InputError, first_line
from skinmtl.models.body import Body, Output
from skinmtl.models.decoders import DECODERS
from skinmtl.models.encoders import Encoder, Statistics, check_encoder, depths, statistics
from skinmtl.models.heads import Head, Pooled, Width
from skinmtl.models.pretrained import load_encoder
from skinmtl.types import Logits

T = TypeVar("T")
REFUSALS = (ValueError, TypeError, RuntimeError, AssertionError, AttributeError, KeyError)
ANY_SIZE = ("unet", "resnet_unet_deeplab", "upsample")  # they enlarge to the size of the map before, whatever it is
Rate = Annotated[float, Interval(gt=0, le=1)]


class MultiTaskNet(nn.Module):
    """heads(encoder(normalise(image))): a map from a decoder, a row of numbers from the deepest features.

    Each task makes its own head, from what `Body` offers; a task that is not trained has none.

    `encoder` is any encoder of segmentation-models-pytorch by name, of timm as `tu-<name>`, or an `Encoder` of one's
    own. `weights` is null for random ones, `imagenet`, or a file of its weights under torchvision's or timm's names.
    `head` is the head of a task whose logits are a row of numbers; where it is null, `pooling`, `dropout` and `hidden`
    are those of a `Pooled` one.

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
        outputs: Sequence[Output],
        size: tuple[int, int],
    ) -> None:
        super().__init__()
        # Those of maps first: the others may look at what they say of the lesion.
        ordered = sorted(outputs, key=lambda output: not output.dense)
        dense = [output for output in ordered if output.dense]
        if dense:
            check_size(size, arch)
        self.encoder, name, (mean, std) = _encoder(encoder, arch if dense else None)
        pooled = _checked(head or Pooled(pooling, dropout, hidden), ordered)
        body = Body(self.encoder, self.encoder.out_channels, arch, pooled)
        # Not a ModuleDict: a checkpoint knows each head by the names of its parts.
        self._heads: dict[str, nn.Module] = {}
        for output in ordered:
            made = _build(partial(output.head, body), arch if output.dense else None, encoder)
            self._heads[output.name] = made
            for part, module in output.parts(made).items():
                self.add_module(f"{output.name}_{part}" if hasattr(self, part) else part, module)
        self._dense, self._size = [output.name for output in dense], size
        self._encoder_rate, self._rate_decay = encoder_rate, rate_decay
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1) * 255, persistent=False)
        _try(self, self._dense, size, arch, name)
        self.weights_file = None if weights is None else load_encoder(self.encoder, name, weights)

    def forward(self, image: Tensor) -> Logits:
        """Float32 logits by task name, (B, C, H, W) of a dense task or (B, C), from (B, 3, H, W) uint8 images.

        Raises:
            InputError: for anything but bytes, such as floats from 0 to 1, which would look like a black image.
        """
        if image.dtype != torch.uint8:
            raise _no_bytes(image)
        features = self.encoder((image - self.mean) / self.std)  # coarsest last
        logits: Logits = {}
        for name, head in self._heads.items():
            mask = logits[self._dense[0]] if logits and self._dense else None
            logits[name] = head(features if name in self._dense else features[-1], mask).float()
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


def check_logits(network: object, outputs: Sequence[Output], size: tuple[int, int]) -> None:
    """Refuse a network of one's own that does not give a run's logits; ours have tried themselves when they were made.

    Raises:
        ConfigError: at model, with what is missing.
    """
    if isinstance(network, MultiTaskNet):
        return
    name, key = type(network).__name__, "model._target_"
    if not isinstance(network, nn.Module):
        raise ConfigError(key, f"{name} is no network", "derive it from torch.nn.Module")
    wanted = {one.name: (2, one.outputs, *size) if one.dense else (2, one.outputs) for one in outputs}
    was_training = network.training
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            logits = network.eval()(torch.zeros(2, 3, *size, dtype=torch.uint8))
    except Exception as error:  # whatever its author's code raises
        what = f"{name} does not take (2, 3, {size[0]}, {size[1]}) uint8 images ({first_line(error)})"
        raise ConfigError(key, what, "let forward(image) take bytes, 0 to 255, and scale them itself") from None
    network.train(was_training)
    if not isinstance(logits, Mapping):
        what = f"forward of {name} gives a {type(logits).__name__}, no dict of logits by task"
        raise ConfigError(key, what, f"return {{{', '.join(f'{task!r}: ...' for task in wanted)}}}")
    for task in wanted:
        given = logits.get(task)
        if not isinstance(given, Tensor):
            raise ConfigError(key, f"{name} gives no logits[{task!r}]", f"give them, or leave {task} out of tasks")
        if tuple(given.shape) != wanted[task] or not given.is_floating_point():
            kind = str(given.dtype).removeprefix("torch.")
            what = f"{name} gives logits[{task!r}] as {kind} of shape {tuple(given.shape)} for two images"
            raise ConfigError(key, what, f"give float32 logits of shape {wanted[task]}")
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise ConfigError(key, f"{name} has no parameter to train", "give it layers as attributes")


def _encoder(encoder: str | Encoder, arch: str | None) -> tuple[Any, str, Statistics]:
    """The encoder as an architecture needs it, or as it is where no mask is drawn; what to call it; its statistics."""
    stride = 32 if arch is None else DECODERS[arch].stride
    if isinstance(encoder, str):
        check_encoder(encoder)
        made = _build(lambda: get_encoder(encoder, output_stride=stride), arch, encoder)
        return made, encoder, statistics(encoder)
    name = type(encoder).__name__
    if not isinstance(encoder, Encoder):
        raise ConfigError("model.encoder", f"{name} is no encoder", "derive it from skinmtl.models.encoders.Encoder")
    if stride != 32:
        what = f"{arch} needs an encoder of smp or timm, which it can dilate, and not {name}"
        raise ConfigError("model.arch", what, f"use {', '.join(ANY_SIZE)}")
    return encoder, name, encoder.statistics


def _checked(head: Head, outputs: Sequence[Output]) -> Head:
    """The head of the config, where it is one and has what it looks at."""
    if not isinstance(head, Head):
        raise ConfigError(
            "model.head", f"{type(head).__name__} is no class head", "derive it from skinmtl.models.heads.Head"
        )
    if head.needs_mask and not any(output.dense for output in outputs):
        what = f"{type(head).__name__} looks at the mask, and this run draws none"
        raise ConfigError("model.head", what, "add a segmentation to tasks, or model/head=pooled")
    return head


def _build(make: Callable[[], T], arch: str | None, encoder: str | Encoder) -> T:
    try:
        return make()
    except REFUSALS as error:
        # Not every encoder has a feature map at each scale, or can be dilated; smp and timm say so in as many ways.
        name = encoder if isinstance(encoder, str) else type(encoder).__name__
        what = f"{name} does not go with {arch or 'a class head'} ({first_line(error)})"
        raise ConfigError("model.encoder", what, _instead(arch, encoder)) from None


def _instead(arch: str | None, encoder: str | Encoder) -> str:
    """What to take where an encoder does not go with an architecture: the U-Net only where it is known to help."""
    if arch not in (None, "unet"):
        try:
            made = get_encoder(encoder) if isinstance(encoder, str) else encoder
            DECODERS["unet"].build(made, made.out_channels, 1)
            return "take model.arch=unet, or another encoder"
        except REFUSALS:
            pass
    return "take an encoder whose feature maps are each half the one before, such as resnet34 or tu-convnext_nano"


def _try(network: MultiTaskNet, dense: Sequence[str], size: tuple[int, int], arch: str, encoder: str) -> None:
    """Push shapes alone through a network; some encoders take one size only, and only they know which."""
    meta = {name: t.to("meta") for name, t in (*network.named_parameters(), *network.named_buffers())}
    image = torch.zeros(1, 3, *size, dtype=torch.uint8, device="meta")
    network.eval()  # a training step would want more than one value a channel
    try:
        logits = torch.func.functional_call(network, meta, image)
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:
        what = f"{list(size)} does not suit encoder {encoder} ({first_line(error)})"
        raise ConfigError("data.size", what, _fitting(size, encoder)) from None
    network.train()
    for name in dense:
        if (made := list(logits[name].shape[2:])) != list(size):
            what = f"{arch} makes a mask of {made} out of {encoder}'s features, not {list(size)}"
            others = [other for other in ANY_SIZE if other != arch]
            raise ConfigError("model.arch", what, f"use {' or '.join(others)}, or another encoder")


def _fitting(size: tuple[int, int], encoder: str) -> str:
    """Sides that suit an encoder: those that timm made it for, where it says so."""
    made_for = timm.get_pretrained_cfg(encoder.removeprefix("tu-")) if encoder.startswith("tu-") else None
    if made_for is not None and (sides := tuple(made_for.input_size[1:])) != tuple(size):
        height, width = sides
        size_key = f"data.size={height}" if height == width else f"'data.size=[{height},{width}]'"
        return f"use {size_key}, which it is made for, or another encoder"
    if any(side % 32 for side in size):
        return "use multiples of 32, or another encoder"
    return "use another encoder"


def _no_bytes(image: Tensor) -> InputError:
    kind = str(image.dtype).removeprefix("torch.")
    what = f"{kind} of shape {tuple(image.shape)}, and the network takes bytes: (B, 3, H, W) uint8 RGB, 0 to 255"
    fix = "give (image * 255).round().to(torch.uint8) where values are 0 to 1, not normalised"
    return InputError("image", what, f"{fix}; load_run(...).predict(image) takes either")
