"""One constructor over all architectures: only the parts that are trained, logits where the image is."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import segmentation_models_pytorch as smp
import timm
import torch
import torchvision
from kinds import classification, outputs, segmentation
from safetensors.torch import save_file

from skinmtl.errors import ConfigError, InputError
from skinmtl.models.decoders import DECODERS
from skinmtl.models.multitask_net import MultiTaskNet, check_logits

TRUNK = 11_176_512  # ResNet-18 without its classifier, as torchvision builds it
SIZE = (64, 96)


def net(
    arch: str = "unet",
    encoder: str = "resnet18",
    weights: str | None = None,
    size: tuple[int, int] = SIZE,
    **kinds: Any,  # noqa: ANN401
) -> MultiTaskNet:
    return MultiTaskNet(arch, encoder, weights, outputs=outputs(**kinds), size=size)  # type: ignore[arg-type]


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_a_network_has_the_parts_of_its_tasks_and_no_more() -> None:
    trunk = torchvision.models.resnet18(weights=None)
    assert count(trunk) - count(trunk.fc) == TRUNK
    head = 512 * 7 + 7
    whole = smp.Unet("resnet18", encoder_weights=None, classes=1)
    assert count(net(tasks=("cls",))) == TRUNK + head
    assert count(net(tasks=("seg",))) == count(whole)
    assert count(net()) == count(whole) + head


@pytest.mark.parametrize("arch", DECODERS)
@pytest.mark.parametrize("encoder", ["resnet18", "tu-tf_efficientnet_lite0"])
def test_logits_lie_where_the_image_lies(arch: str, encoder: str) -> None:
    network = net(arch, encoder).eval()
    logits = network(torch.zeros(2, 3, 64, 96, dtype=torch.uint8))
    assert {task: tuple(values.shape) for task, values in logits.items()} == {"seg": (2, 1, 64, 96), "cls": (2, 7)}
    assert all(values.dtype == torch.float32 for values in logits.values())


@pytest.mark.parametrize("tasks", [("seg", "cls"), ("seg",), ("cls",)], ids="-".join)
@pytest.mark.parametrize("arch", DECODERS)
def test_every_weight_takes_part_as_several_processes_expect(arch: str, tasks: tuple[str, ...]) -> None:
    network = net(arch, tasks=tasks)
    logits = network(torch.zeros(2, 3, 64, 96, dtype=torch.uint8))
    torch.stack([values.sum() for values in logits.values()]).sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None] == []
    network.extra = torch.nn.Linear(1, 1)
    assert [name for name, p in network.named_parameters() if p.grad is None] == ["extra.weight", "extra.bias"]


def test_heads_are_sized_from_the_data() -> None:
    logits = net(mask_classes=3, dx_classes=2).eval()(torch.zeros(1, 3, 64, 96, dtype=torch.uint8))
    assert logits["seg"].shape[1] == 3
    assert logits["cls"].shape[1] == 2


def test_a_unet_takes_the_images_own_size_and_deeplab_says_which_fits() -> None:
    logits = net(size=(45, 60)).eval()(torch.zeros(1, 3, 45, 60, dtype=torch.uint8))
    assert logits["seg"].shape == (1, 1, 45, 60)
    with pytest.raises(ConfigError, match=r"data\.size.*\[48, 64\] or \[32, 48\]"):
        net("deeplabv3plus", size=(45, 60))


def test_the_encoders_own_statistics_normalise() -> None:
    image = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    network = net(tasks=("cls",)).eval()
    normalise = torchvision.transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    by_hand = network.class_head(network.encoder(normalise(image / 255))[-1])
    torch.testing.assert_close(network(image)["cls"], by_hand, atol=1e-4, rtol=1e-4)
    assert net(encoder="tu-tf_efficientnet_lite0").mean.flatten().tolist() == [127.5] * 3


def test_an_unknown_encoder_is_answered_with_a_guess() -> None:
    with pytest.raises(ConfigError, match=r"model\.encoder.*resnet18"):
        net(encoder="resnet81")
    with pytest.raises(ConfigError, match=r"tu-resnet18"):
        net(encoder="tu-resnet81")


def save(folder: Path, state: dict[str, torch.Tensor], digest: str | None = None) -> str:
    torch.save(state, folder / "weights.pth")
    digest = digest or hashlib.sha256((folder / "weights.pth").read_bytes()).hexdigest()[:8]
    return str((folder / "weights.pth").rename(folder / f"resnet18-{digest}.pth"))


def test_a_local_file_of_torchvision_fills_the_encoder(tmp_path: Path) -> None:
    state = torchvision.models.resnet18(weights=None).state_dict()
    network = net(weights=save(tmp_path, state))
    torch.testing.assert_close(network.encoder.state_dict()["layer4.1.conv2.weight"], state["layer4.1.conv2.weight"])


def test_a_wrong_checksum_a_misfit_and_a_missing_file_are_said(tmp_path: Path) -> None:
    state = torchvision.models.resnet18(weights=None).state_dict()
    with pytest.raises(InputError, match="sha256 begins with"):
        net(weights=save(tmp_path, state, "00000000"))
    less = {name: value for name, value in state.items() if not name.startswith("layer4")} | {"surplus": torch.ones(1)}
    with pytest.raises(InputError, match=r"missing layer4\.0\.conv1\.weight.*not known surplus"):
        net(weights=save(tmp_path, less))
    with pytest.raises(InputError, match="does not fit"):
        net(encoder="resnet34", weights=save(tmp_path, state))
    with pytest.raises(InputError, match="no such file"):
        net(weights=str(tmp_path / "none.pth"))


@pytest.mark.network_tried
@pytest.mark.parametrize("encoder", ["resnet18", "tu-tf_efficientnet_lite0"])
def test_imagenet_without_a_network_is_one_line_with_the_way_out(encoder: str) -> None:
    with pytest.raises(InputError) as caught:
        net(encoder=encoder, weights="imagenet")
    (line,) = str(caught.value).splitlines()
    assert "model.weights=<file>" in line


def test_real_imagenet_weights_fit(real_data: Callable[[str], Path]) -> None:
    (file,) = real_data("weights").glob("tf_efficientnet_lite0-*.pth")
    filled, empty = net(encoder="tu-tf_efficientnet_lite0", weights=str(file)), net(encoder="tu-tf_efficientnet_lite0")
    name = "model.conv_stem.weight"
    assert not torch.equal(filled.encoder.state_dict()[name], empty.encoder.state_dict()[name])
    # Each weight of the encoder is the file's, and each head reads what they make of an image.
    published = torch.load(file, weights_only=True)
    theirs = {f"model.{key}": value for key, value in published.items()}
    shared = filled.encoder.state_dict().keys() & theirs.keys()
    assert len(shared) > 200 and all(torch.equal(filled.encoder.state_dict()[key], theirs[key]) for key in shared)
    image = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for task in ("seg", "cls"):
        filled.zero_grad()
        logits = filled(image)[task]
        assert torch.isfinite(logits).all()
        logits.square().mean().backward()
        stem = filled.encoder.get_parameter(name).grad
        assert stem is not None and bool((stem != 0).any()), task


def test_a_twin_starts_from_the_encoder_of_its_whole() -> None:
    encoders = []
    for tasks in (("seg", "cls"), ("seg",), ("cls",)):
        torch.manual_seed(3)
        encoders.append(net(tasks=tasks).encoder.state_dict())
    for other in encoders[1:]:
        assert all(torch.equal(encoders[0][name], other[name]) for name in encoders[0])


@pytest.mark.slow
def test_an_encoder_that_cannot_serve_is_answered() -> None:
    with pytest.raises(ConfigError, match=r"model\.encoder: vgg11 does not go with deeplabv3plus"):
        net("deeplabv3plus", "vgg11")
    with pytest.raises(ConfigError, match=r"model\.encoder: tu-vit_tiny_patch16_224 does not go with a class head"):
        net(encoder="tu-vit_tiny_patch16_224", tasks=("cls",))
    with pytest.raises(ConfigError, match=r"data\.size: \[45, 60\] does not suit encoder tu-hrnet_w18_small"):
        net(encoder="tu-hrnet_w18_small", size=(45, 60))


@pytest.mark.parametrize(("arch", "size"), [("deeplabv3", (45, 60)), ("deeplabv3plus", (72, 104))])
def test_a_refused_size_would_not_come_back(arch: str, size: tuple[int, int]) -> None:
    network = net(arch).eval()
    try:
        came = network(torch.zeros(1, 3, *size, dtype=torch.uint8))["seg"].shape[2:]
    except RuntimeError:
        came = None
    assert came != size


def test_names_that_timm_changes_find_each_other(tmp_path: Path) -> None:
    # Cut to its features, stages.0 is stages_0; `state_dict` around, as training scripts save it.
    state = timm.create_model("convnext_atto", pretrained=False).state_dict()
    torch.save({"state_dict": state}, tmp_path / "convnext.pth")
    filled = net(encoder="tu-convnext_atto", tasks=("cls",), weights=str(tmp_path / "convnext.pth"))
    name = "stages.3.blocks.1.mlp.fc2.weight"
    assert torch.equal(filled.encoder.state_dict()["model." + name.replace("stages.3", "stages_3")], state[name])


def test_imagenet_weights_fetched_once_need_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = smp.encoders.get_encoder("resnet18", weights=None).state_dict()
    save_file(state, tmp_path / "model.safetensors")
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: str(tmp_path / "model.safetensors"))
    assert torch.equal(net(weights="imagenet").encoder.state_dict()["conv1.weight"], state["conv1.weight"])


def test_imagenet_weights_are_found_where_torch_keeps_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    state = smp.encoders.get_encoder("resnet18", weights=None).state_dict()
    file = checksummed(tmp_path / "checkpoints" / "resnet18.pth", state)
    assert torch.equal(net(weights="imagenet").encoder.state_dict()["conv1.weight"], state["conv1.weight"])
    shutil.copy(file, file.with_name("resnet18-0badc0de.pth"))
    with pytest.raises(InputError, match=r"has resnet18-.* and resnet18-.*; fix: choose one"):
        net(weights="imagenet")


def checksummed(path: Path, state: object) -> Path:
    torch.save(state, path)
    return path.rename(path.with_stem(f"{path.stem}-{hashlib.sha256(path.read_bytes()).hexdigest()[:8]}"))


def test_a_file_that_is_no_state_dict_is_said(tmp_path: Path) -> None:
    (tmp_path / "page.pth").write_text("<html>not found</html>")
    with pytest.raises(InputError, match="not a file of weights"):
        net(weights=str(tmp_path / "page.pth"))
    torch.save({"epoch": 3}, tmp_path / "facts.pth")
    with pytest.raises(InputError, match="holds no tensors by name"):
        net(weights=str(tmp_path / "facts.pth"))


@pytest.mark.parametrize(
    ("arch", "encoder", "size", "fix"),
    [
        ("unet", "tu-swin_tiny_patch4_window7_224", (64, 64), "use data.size=224, which it is made for, or another"),
        ("unet", "tu-vit_tiny_patch16_224", (224, 224), "take an encoder whose feature maps are each half"),
        ("deeplabv3plus", "tu-swin_tiny_patch4_window7_224", (224, 224), "take model.arch=unet, or another encoder"),
        ("deeplabv3plus", "tu-vit_tiny_patch16_224", (224, 224), "take an encoder whose feature maps are each half"),
    ],
)
def test_the_fix_of_an_encoder_that_does_not_fit_is_not_what_was_done_already(
    arch: str, encoder: str, size: tuple[int, int], fix: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        net(arch, encoder, size=size)
    assert raised.value.fix.startswith(fix)


class Plain(torch.nn.Module):
    """The least that a network of one's own is; `spoilt` says what it lacks."""

    def __init__(self, spoilt: str = "") -> None:
        super().__init__()
        self.spoilt = spoilt
        self.mask, self.name = torch.nn.Conv2d(3, 1, 1), torch.nn.Linear(3, 7)
        self.drop = torch.nn.Dropout(0.5)

    def forward(self, image: torch.Tensor) -> object:
        if self.spoilt == "bytes":
            return self.mask(image)
        x = self.drop(image / 255)
        if self.spoilt == "dict":
            return self.mask(x), self.name(x.mean((2, 3)))
        if self.spoilt == "cls":
            return {"seg": self.mask(x)}
        if self.spoilt == "shape":
            return {"seg": self.mask(x)[..., ::2], "cls": self.name(x.mean((2, 3)))}
        return {"seg": self.mask(x), "cls": self.name(x.mean((2, 3)))}


@pytest.mark.parametrize(
    ("spoilt", "says"),
    [
        ("bytes", r"does not take \(2, 3, 64, 96\) uint8 images.*scale them itself"),
        ("dict", "gives a tuple, no dict of logits by task"),
        ("cls", r"gives no logits\['cls'\]"),
        ("shape", r"float32 of shape \(2, 1, 64, 48\).*give float32 logits of shape \(2, 1, 64, 96\)"),
    ],
)
def test_a_network_of_ones_own_is_told_what_it_lacks(spoilt: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        check_logits(Plain(spoilt), outputs(), SIZE)


def test_looking_at_a_network_of_ones_own_leaves_it_and_all_chance_as_they_were() -> None:
    network = Plain()
    torch.manual_seed(0)
    wanted = torch.rand(1)
    torch.manual_seed(0)
    check_logits(network, outputs(), SIZE)
    assert network.training and torch.rand(1) == wanted
    network.requires_grad_(False)
    with pytest.raises(ConfigError, match="no parameter to train"):
        check_logits(network, outputs(), SIZE)


def test_two_tasks_of_one_kind_have_parts_of_their_own() -> None:
    tasks = [segmentation(), segmentation(classes="abc", name="rim"), classification()]
    network = MultiTaskNet(outputs=tasks, size=SIZE)
    logits = network(torch.zeros(2, 3, *SIZE, dtype=torch.uint8))
    assert {name: tuple(values.shape) for name, values in logits.items()} == {
        "seg": (2, 1, *SIZE),
        "rim": (2, 3, *SIZE),
        "cls": (2, 3),
    }
    parts = {name for name, _ in network.named_children()}
    assert parts == {"encoder", "decoder", "mask_head", "rim_decoder", "rim_mask_head", "class_head"}
