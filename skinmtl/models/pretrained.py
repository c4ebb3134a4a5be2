"""Published weights into an encoder: which file they are, whether it is whole, whether it fits."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path

import segmentation_models_pytorch as smp
import timm
import torch
from torch import Tensor, nn

from skinmtl.errors import ConfigError, InputError
from skinmtl.files import digest
from skinmtl.terminal import first

log = logging.getLogger(__name__)


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
        found = "; ".join(f"{what} {first(names, 8)}" for what, names in faults.items() if names)
        raise InputError(weights, f"does not fit encoder {name}: {found}", "give that encoder's own weights")
    encoder.load_state_dict({key: given.get(_flat(key), value) for key, value in own.items()})
    return {"file": file.name, "sha256": digest(file)}


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
    found = re.search(r"-([0-9a-f]{8,64})$", path.stem)
    if found and not (sha := digest(path)).startswith(found[1]):
        what = f"its sha256 begins with {sha[: len(found[1])]}, not {found[1]} as its name says"
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
    elif settings := smp.encoders.encoders.get(name, {}).get("pretrained_settings", {}).get("imagenet"):
        return settings["repo_id"], settings["revision"]
    raise ConfigError("model.weights", f"no ImageNet weights are published under {name}", fix)


def _beyond_features(encoder: str) -> set[str]:
    """Flat names of the published classifier that an encoder leaves out: what comes after its deepest features."""
    if not encoder.startswith("tu-"):
        return {f"{layer}_{part}" for layer in ("fc", "last_linear", "classifier") for part in ("weight", "bias")}
    with torch.device("meta"):  # names alone, no memory
        return {_flat(key) for key in timm.create_model(encoder.removeprefix("tu-"), pretrained=False).state_dict()}
