"""Photograph to logits by task name: one encoder, a mask decoder, a class head."""

from __future__ import annotations

import difflib
import hashlib
import logging
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import segmentation_models_pytorch as smp
import timm
import torch
from annotated_types import Interval
from segmentation_models_pytorch.base import ClassificationHead
from timm.data import constants as published
from torch import Tensor, nn

from skinmtl.errors import ConfigError, InputError, first_line
from skinmtl.types import Logits

log = logging.getLogger(__name__)

# Each decoder and the number that both sides of its image have to be divisible by. One line widens the choice,
# beside the name in the constructor's hint.
DECODERS: dict[str, tuple[type[smp.base.SegmentationModel], int]] = {
    "unet": (smp.Unet, 1),
    "deeplabv3plus": (smp.DeepLabV3Plus, 16),
    "deeplabv3": (smp.DeepLabV3, 8),
}
# Encoders of smp whose published weights expect other statistics than most, by the beginning of their names; smp itself
# would ask the network. As timm states them for the same weights: mean and standard deviation by channel, in [0, 1].
Statistics = tuple[Sequence[float], Sequence[float]]
HALF: Statistics = (published.IMAGENET_INCEPTION_MEAN, published.IMAGENET_INCEPTION_STD)
DPN: Statistics = (published.IMAGENET_DPN_MEAN, published.IMAGENET_DPN_STD)
STATISTICS = {"inception": HALF, "xception": HALF, "timm-tf_efficientnet_lite": HALF, "dpn": DPN}
IMAGENET: Statistics = (published.IMAGENET_DEFAULT_MEAN, published.IMAGENET_DEFAULT_STD)
T = TypeVar("T")


class MultiTaskNet(nn.Module):
    """heads(encoder(normalise(image))): a mask from the decoder, a diagnosis from the deepest features.

    Built by segmentation-models-pytorch. A task that is not trained has no parts: without `seg` there is no decoder,
    without `cls` no class head.

    `encoder` is any encoder of smp by name, or of timm as `tu-<name>`. `weights` is null for random ones, `imagenet`,
    or a file of encoder weights under torchvision's or timm's names. `dropout` and `pooling` are the class head's.

    In training, batch normalisation needs more than one value a channel: batches of two or more under DeepLab, whose
    pyramid pools an image to one pixel.
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
        check_encoder(encoder)
        if "seg" in tasks:
            check_size(size, arch)
            # One foreground class needs one logit; more need one each, background first.
            channels = 1 if mask_classes == 2 else mask_classes
            model = _build(lambda: DECODERS[arch][0](encoder, encoder_weights=None, classes=channels), arch, encoder)
            self.encoder, self.decoder, self.mask_head = model.encoder, model.decoder, model.segmentation_head
        else:
            self.encoder = _build(lambda: smp.encoders.get_encoder(encoder, weights=None), "a class head", encoder)
        if "cls" in tasks:
            features = self.encoder.out_channels[-1]
            self.class_head = ClassificationHead(features, dx_classes, pooling=pooling, dropout=dropout)
            smp.base.initialization.initialize_head(self.class_head)
        self.tasks = tuple(tasks)
        mean, std = statistics(encoder)
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1) * 255, persistent=False)
        _try(self, size, encoder)
        self.weights_file = None if weights is None else load_encoder(self.encoder, encoder, weights)

    def forward(self, image: Tensor) -> Logits:
        """Float32 logits by task: `seg` (B, 1 or M, H, W), `cls` (B, K), from (B, 3, H, W) uint8 photographs."""
        features = self.encoder((image - self.mean) / self.std)  # coarsest last
        logits: Logits = {}
        if "seg" in self.tasks:
            logits["seg"] = self.mask_head(self.decoder(features)).float()
        if "cls" in self.tasks:
            logits["cls"] = self.class_head(features[-1]).float()
        return logits


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


def check_size(size: tuple[int, int], arch: str) -> None:
    """Refuse image sides, in pixels, from which a decoder would not come back to the same sides.

    Raises:
        ConfigError: at data.size, with the nearest sizes that fit.
    """
    divisor = DECODERS[arch][1]
    if any(side % divisor for side in size):
        fits = [[max(divisor, act(side / divisor) * divisor) for side in size] for act in (math.ceil, math.floor)]
        what = f"{list(size)} does not suit {arch}, whose image sides are multiples of {divisor}"
        raise ConfigError("data.size", what, f"use {' or '.join(dict.fromkeys(map(str, fits)))}")


def statistics(encoder: str) -> Statistics:
    """Mean and standard deviation of each channel in [0, 1], as the encoder's published weights expect."""
    if encoder.startswith("tu-"):
        config = timm.get_pretrained_cfg(encoder.removeprefix("tu-"))
        return (config.mean, config.std) if config else IMAGENET
    return next((own for start, own in STATISTICS.items() if encoder.startswith(start)), IMAGENET)


def _build(make: Callable[[], T], what: str, encoder: str) -> T:
    try:
        return make()
    except (ValueError, TypeError, RuntimeError, AssertionError, AttributeError, KeyError) as error:
        # Not every encoder has a feature map at each scale, or can be dilated; smp and timm say so in as many ways.
        fix = "take model.arch=unet or another encoder"
        raise ConfigError("model.encoder", f"{encoder} does not go with {what} ({first_line(error)})", fix) from None


def _try(network: MultiTaskNet, size: tuple[int, int], encoder: str) -> None:
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
    assert "seg" not in logits or logits["seg"].shape[2:] == tuple(size)


def load_encoder(encoder: nn.Module, name: str, weights: str) -> dict[str, str]:
    """Fill an encoder from `imagenet` or from a file; weights of the classifier beyond its features are left over.

    Gives the file's name and sha256.

    Raises:
        InputError: the file is not there, its checksum is not the one in its name, or names or shapes do not fit.
    """
    file = _imagenet_file(name) if weights == "imagenet" else Path(weights).expanduser()
    state = read_weights(file)
    log.info("encoder weights: %s", file)
    own = encoder.state_dict()
    given = {_flat(key): value for key, value in state.items()}
    needed = {key: given.get(_flat(key)) for key in own if not key.endswith("num_batches_tracked")}
    missing = [key for key, value in needed.items() if value is None]
    shapes = [
        f"{key} {tuple(value.shape)} for {tuple(own[key].shape)}"
        for key, value in needed.items()
        if value is not None and value.shape != own[key].shape
    ]
    known = {_flat(key) for key in own} | _beyond_features(name)
    left = [key for key in state if _flat(key) not in known]
    faults = {"missing": missing, "of another shape": shapes, "not known": left}
    if any(faults.values()):
        found = "; ".join(f"{what} {_some(names)}" for what, names in faults.items() if names)
        raise InputError(weights, f"does not fit encoder {name}: {found}", "give that encoder's own weights")
    encoder.load_state_dict({key: given.get(_flat(key), value) for key, value in own.items()})
    return {"file": file.name, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}


def _flat(key: str) -> str:
    # One tensor, three names: timm's `stages.0.x` is `stages_0.x` once cut to features, and `model.stages_0.x` in smp.
    return key.removeprefix("model.").replace(".", "_")


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors by name from a .pth or .safetensors file; a checksum at the end of its name (-1a2b3c4d) is verified.

    Raises:
        InputError: there is no such file, its sha256 is another, or it holds anything but tensors by name.
    """
    if not path.is_file():
        raise InputError(f"model.weights={path}", "no such file", "give `imagenet`, null or a file of weights")
    if found := re.search(r"-([0-9a-f]{8,64})$", path.stem):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if not digest.startswith(found[1]):
            what = f"its sha256 begins with {digest[: len(found[1])]}, not {found[1]} as its name says"
            raise InputError(str(path), what, "fetch it again; rename it if that was no checksum")
    try:
        state = _read(path)
    except Exception as error:  # a damaged file can fail anywhere in a reader
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


def _imagenet_file(name: str) -> Path:
    """The file of an encoder's published ImageNet weights: where torch or the hub keeps such files, or fetched."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache

    shelf, model = Path(torch.hub.get_dir()) / "checkpoints", name.removeprefix("tu-")
    kept = [file for file in shelf.glob(f"{model}-*.pth") if re.fullmatch(rf"{model}-[0-9a-f]{{8,64}}", file.stem)]
    if len(kept) > 1:
        names = " and ".join(sorted(file.name for file in kept))
        raise InputError("model.weights=imagenet", f"{shelf} has {names}", "choose one with model.weights=<file>")
    if kept:
        return kept[0]
    repository, revision = _published(name)
    file = "model.safetensors"
    url = hf_hub_url(repository, file, revision=revision)
    cached = try_to_load_from_cache(repository, file, revision=revision)
    if isinstance(cached, str):
        return Path(cached)
    try:
        get_hf_file_metadata(url, timeout=5)  # one knock: without a network the download itself tries for minutes
        return Path(hf_hub_download(repository, file, revision=revision))
    except Exception as error:
        fix = f"fetch {model}-<checksum>.pth elsewhere and put it into {shelf}, or give model.weights=<file>"
        what = f"{url} cannot be fetched ({type(error).__name__})"
        raise InputError("model.weights=imagenet", what, fix) from None


def _published(name: str) -> tuple[str, str | None]:
    """Repository and revision of an encoder's ImageNet weights."""
    fix = "give a file of its weights, or null for random ones"
    if name.startswith("tu-"):
        config = timm.get_pretrained_cfg(name.removeprefix("tu-"))
        if config and config.hf_hub_id:
            return config.hf_hub_id, None
        fix = f"fetch {config.url} and give it as model.weights=<file>" if config and config.url else fix
    elif settings := smp.encoders.encoders[name]["pretrained_settings"].get("imagenet"):
        return settings["repo_id"], settings["revision"]
    raise ConfigError("model.weights", f"no ImageNet weights are published under {name}", fix)


def _beyond_features(encoder: str) -> set[str]:
    """Flat names of the published classifier that an encoder leaves out: what comes after its deepest features."""
    if not encoder.startswith("tu-"):
        return {f"{layer}_{part}" for layer in ("fc", "last_linear", "classifier") for part in ("weight", "bias")}
    with torch.device("meta"):  # names alone, no memory
        return {_flat(key) for key in timm.create_model(encoder.removeprefix("tu-"), pretrained=False).state_dict()}


def _some(names: Sequence[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
