"""Photograph to logits by task name: one encoder, a mask decoder, a class head."""

from __future__ import annotations

import difflib
import hashlib
import math
import re
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

import segmentation_models_pytorch as smp
import timm
import torch
from annotated_types import Interval
from segmentation_models_pytorch.base import ClassificationHead
from torch import Tensor, nn

from skinmtl.errors import ConfigError, InputError
from skinmtl.types import Logits

# Each decoder and the number that both sides of its image have to be divisible by. One line widens the choice,
# beside the name in the constructor's hint.
DECODERS: dict[str, tuple[type[smp.base.SegmentationModel], int]] = {
    "unet": (smp.Unet, 1),
    "deeplabv3plus": (smp.DeepLabV3Plus, 16),
    "deeplabv3": (smp.DeepLabV3, 8),
}
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class MultiTaskNet(nn.Module):
    """heads(encoder(normalise(image))): a mask from the decoder, a diagnosis from the deepest features.

    Built by segmentation-models-pytorch. A task that is not trained has no parts: without `seg` there is no decoder,
    without `cls` no class head.

    `encoder` is any encoder of smp by name, or of timm as `tu-<name>`. `weights` is null for random ones, `imagenet`,
    or a file of encoder weights under torchvision's or timm's names. `dropout` and `pooling` are the class head's.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        arch: Literal["unet", "deeplabv3plus", "deeplabv3"] = "unet",
        encoder: str = "resnet18",
        weights: str | None = None,
        dropout: Annotated[float, Interval(ge=0, lt=1)] = 0.2,
        pooling: Literal["avg", "max"] = "avg",
        *,
        tasks: Sequence[str],
        mask_classes: int,
        dx_classes: int,
        size: tuple[int, int],
    ) -> None:
        super().__init__()
        _check_encoder(encoder)
        if "seg" in tasks:
            decoder, divisor = DECODERS[arch]
            _check_size(size, divisor, arch)
            # One foreground class needs one logit; more need one each, background first.
            model = decoder(encoder, encoder_weights=None, classes=1 if mask_classes == 2 else mask_classes)
            self.encoder, self.decoder, self.mask_head = model.encoder, model.decoder, model.segmentation_head
        else:
            self.encoder = smp.encoders.get_encoder(encoder, weights=None)
        if "cls" in tasks:
            channels = self.encoder.out_channels[-1]
            self.class_head = ClassificationHead(channels, dx_classes, pooling=pooling, dropout=dropout)
            smp.base.initialization.initialize_head(self.class_head)
        self.tasks = tuple(tasks)
        mean, std = _statistics(encoder)
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1) * 255, persistent=False)
        if weights is not None:
            load_encoder(self.encoder, encoder, weights)

    def forward(self, image: Tensor) -> Logits:
        """Float32 logits by task: `seg` (B, 1 or M, H, W), `cls` (B, K), from (B, 3, H, W) uint8 photographs."""
        features = self.encoder((image - self.mean) / self.std)
        logits: Logits = {}
        if "seg" in self.tasks:
            logits["seg"] = self.mask_head(self.decoder(features)).float()
        if "cls" in self.tasks:
            logits["cls"] = self.class_head(features[-1]).float()
        return logits


def _check_encoder(name: str) -> None:
    known = list(smp.encoders.encoders)
    if name.startswith("tu-"):
        known = [f"tu-{model}" for model in timm.list_models()]
        if timm.is_model(name.removeprefix("tu-")):
            return
    if name not in known:
        near = difflib.get_close_matches(name, known, 3)
        guess = f"did you mean {' or '.join(near)}?" if near else "take a name of smp, or tu-<a name of timm>"
        raise ConfigError("model.encoder", f"no encoder is called {name!r}", guess)


def _check_size(size: tuple[int, int], divisor: int, arch: str) -> None:
    if any(side % divisor for side in size):
        up, down = ([max(divisor, act(side / divisor) * divisor) for side in size] for act in (math.ceil, math.floor))
        what = f"{list(size)} does not suit {arch}, whose image sides are multiples of {divisor}"
        raise ConfigError("data.size", what, f"use {up} or {down}")


def _statistics(encoder: str) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and standard deviation of each channel in [0, 1], as the encoder's published weights expect."""
    if encoder.startswith("tu-"):
        config = timm.get_pretrained_cfg(encoder.removeprefix("tu-"))
        return (config.mean, config.std) if config else (IMAGENET_MEAN, IMAGENET_STD)
    return IMAGENET_MEAN, IMAGENET_STD


def load_encoder(encoder: nn.Module, name: str, weights: str) -> None:
    """Fill an encoder from `imagenet` or from a file.

    Raises:
        InputError: the file is missing, its checksum is not the one in its name, or names or shapes do not fit.
    """
    if weights == "imagenet":
        _load_imagenet(encoder, name)
        return
    state = read_weights(Path(weights))
    own = encoder.state_dict()
    # smp keeps timm's models under `model.`; torchvision's ResNets have its own names.
    prefix = "model." if all(key.startswith("model.") for key in own) else ""
    state = {prefix + key: value for key, value in state.items()}
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    shapes = [f"{key} {tuple(state[key].shape)} for {tuple(own[key].shape)}" for key in own if _unlike(state, own, key)]
    beyond = _beyond_features(name)
    left = [key for key in state if key not in own and key.removeprefix(prefix) not in beyond]
    faults = [f"missing {_some(missing)}"] * bool(missing) + [f"of another shape {_some(shapes)}"] * bool(shapes)
    faults += [f"not known {_some(left)}"] * bool(left)
    if faults:
        raise InputError(
            weights, f"does not fit encoder {name}: {'; '.join(faults)}", "give that encoder's own weights"
        )
    encoder.load_state_dict({key: state.get(key, value) for key, value in own.items()})


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors by name from a .pth or .safetensors file; a checksum at the end of its name (-1a2b3c4d) is verified."""
    if not path.is_file():
        raise InputError(f"model.weights={path}", "no such file", "give `imagenet`, null or a file of weights")
    if found := re.search(r"-([0-9a-f]{8,64})$", path.stem):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if not digest.startswith(found[1]):
            raise InputError(str(path), f"its sha256 begins with {digest[:8]}, not {found[1]}", "fetch the file again")
    try:
        state = _read(path)
    except Exception as error:
        raise InputError(str(path), f"not a file of weights ({type(error).__name__})", "fetch it again") from None
    for wrapper in ("state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(str(path), "holds no tensors by name", "give a state dict")
    return dict(state)


def _read(path: Path) -> object:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    return torch.load(path, map_location="cpu", weights_only=True)


def _load_imagenet(encoder: nn.Module, name: str) -> None:
    fix = "give a local file of its ImageNet weights as model.weights=<file>, or model.weights=null"
    if name.startswith("tu-"):
        config = timm.get_pretrained_cfg(name.removeprefix("tu-"))
        source = config.url or f"hf.co/{config.hf_hub_id}" if config else None
    else:
        source = name
    if not _online():
        what = f"no network to fetch {source} from"
        raise InputError("model.weights=imagenet", what, f"fetch it elsewhere and {fix}")
    try:
        if name.startswith("tu-"):
            fetched = timm.create_model(name.removeprefix("tu-"), pretrained=True).state_dict()
            own = encoder.state_dict()
            encoder.load_state_dict({key: fetched[key.removeprefix("model.")] for key in own})
        else:
            encoder.load_state_dict(smp.encoders.get_encoder(name, weights="imagenet").state_dict())
    except Exception as error:
        raise InputError("model.weights=imagenet", f"cannot be had for {name} ({type(error).__name__})", fix) from None


def _online() -> bool:
    """Whether the hub that smp and timm fetch from answers within seconds; their own retries take minutes."""
    try:
        socket.create_connection(("huggingface.co", 443), timeout=5).close()
    except OSError:
        return False
    return True


def _unlike(state: Mapping[str, Tensor], own: Mapping[str, Tensor], key: str) -> bool:
    return key in state and state[key].shape != own[key].shape


def _beyond_features(encoder: str) -> set[str]:
    """Names of the published classifier that an encoder leaves out: what comes after its deepest features."""
    if not encoder.startswith("tu-"):
        return {"fc.weight", "fc.bias", "last_linear.weight", "last_linear.bias"}
    with torch.device("meta"):  # names alone, no memory
        return set(timm.create_model(encoder.removeprefix("tu-"), pretrained=False).state_dict())


def _some(names: Sequence[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
