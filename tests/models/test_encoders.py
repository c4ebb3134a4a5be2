"""Encoders: a plain one against torch's own functions, those by name through both heads, how deep parameters lie."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from kinds import outputs
from torch import Tensor, nn
from torch.nn import functional as F

from skinmtl.errors import ConfigError
from skinmtl.models.encoders import ACTIVATIONS, ConvPool, Encoder, depths
from skinmtl.models.multitask_net import MultiTaskNet

BY_NAME = ["resnet18", "resnet34", "resnet50", "tu-tf_efficientnet_lite0", "tu-convnext_nano"]
BY_NAME += ["tu-mobilenetv3_large_100", "mit_b0"]


def net(
    encoder: str | Encoder,
    arch: str = "unet",
    weights: str | None = None,
    tasks: Sequence[str] = ("seg", "cls"),
    size: tuple[int, int] = (64, 64),
) -> MultiTaskNet:
    return MultiTaskNet(arch, encoder, weights, outputs=outputs(tasks), size=size)  # type: ignore[arg-type]


@pytest.mark.parametrize("encoder", BY_NAME)
def test_an_encoder_learns_through_both_heads(encoder: str) -> None:
    network = net(encoder)
    logits = network(torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8))
    assert {task: tuple(values.shape) for task, values in logits.items()} == {"seg": (2, 1, 64, 64), "cls": (2, 7)}
    seg, cls = (logits[task].square().mean() for task in ("seg", "cls"))
    own, name_head, mask_head = (
        list(part.parameters()) for part in (network.encoder, network.class_head, network.mask_head)
    )
    assert all(gradient is None for gradient in gradients(seg, name_head) + gradients(cls, mask_head))
    deepest = max(depths(network.encoder, (64, 64)).values())
    assert deepest == 5 and learns(gradients(cls, own[-8:])), "the diagnosis reaches the deepest layers"
    assert learns(gradients(seg + cls, own)), "and both the whole encoder"


def gradients(loss: Tensor, parameters: list[nn.Parameter]) -> list[Tensor | None]:
    return list(torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True))


def learns(found: list[Tensor | None]) -> bool:
    """Whether every parameter has a finite gradient, and hardly any is zero throughout."""
    given = [gradient for gradient in found if gradient is not None and bool(gradient.isfinite().all())]
    return len(given) == len(found) and sum(bool((gradient != 0).any()) for gradient in given) > 0.9 * len(found)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_layer_is_convolution_activation_and_pooling(activation: str) -> None:
    torch.manual_seed(0)
    encoder = ConvPool(2, filters=4, growth=1.5, kernel=5, activation=activation, batch_norm=False)  # type: ignore[arg-type]
    assert encoder.out_channels == [3, 4, 6]
    image = torch.randn(2, 3, 30, 21)
    expected = [image]
    for weight, bias in zip(*[iter(encoder.parameters())] * 2, strict=True):
        convolved = F.conv2d(expected[-1], weight, bias, padding=2)
        act = torch.tanh if activation == "tanh" else getattr(F, activation)
        expected.append(F.max_pool2d(act(convolved), 2))
    found = encoder(image)
    assert [tuple(map_.shape) for map_ in found] == [(2, 3, 30, 21), (2, 4, 15, 10), (2, 6, 7, 5)]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
    torch.testing.assert_close(found[1], expected[1])
    assert not torch.allclose(found[1], F.max_pool2d(F.conv2d(image, encoder.layers[0][0].weight, padding=2), 2))


def test_batch_norm_takes_the_place_of_a_bias() -> None:
    with_norm, without = ConvPool(3, 8), ConvPool(3, 8, batch_norm=False)
    channels = 8 + 16 + 32
    weights = sum(9 * a * b for a, b in ((3, 8), (8, 16), (16, 32)))
    assert sum(p.numel() for p in with_norm.parameters()) == weights + 2 * channels
    assert sum(p.numel() for p in without.parameters()) == weights + channels


def test_a_image_that_is_pooled_to_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"data\.size: \[8, 8\] does not suit encoder ConvPool"):
        net(ConvPool(4), size=(8, 8))


def test_depths_are_those_of_a_resnets_stages() -> None:
    found = depths(net("resnet18").encoder, (64, 64))
    stages = {"conv1": 1, "bn1": 1, "layer1": 2, "layer2": 3, "layer3": 4, "layer4": 5}
    assert found == {name: stages[name.partition(".")[0]] for name in found}


@pytest.mark.parametrize("encoder", ["tu-mobilenetv3_small_050", "mit_b0"])
def test_a_parameters_depth_is_the_first_map_that_its_gradient_comes_from(encoder: str) -> None:
    network = net(encoder, tasks=("cls",)).eval()
    own = dict(network.encoder.named_parameters())
    expected: dict[str, int] = {}
    for depth, feature in enumerate(network.encoder(torch.randn(1, 3, 64, 64))):
        if feature.requires_grad:
            gradients = torch.autograd.grad(feature.sum(), list(own.values()), retain_graph=True, allow_unused=True)
            for name, gradient in zip(own, gradients, strict=True):
                if gradient is not None:
                    expected.setdefault(name, depth)
    assert depths(network.encoder, (64, 64)) == expected
    assert len(set(expected.values())) > 3


class Half(nn.Module):
    out_channels = (3, 4)

    def forward(self, image: Tensor) -> list[Tensor]:
        return [image, image[:, :1].repeat(1, 4, 1, 1)[..., ::2, ::2]]


def test_what_cannot_be_an_encoder_is_said() -> None:
    said = r"model\.encoder: Half is no encoder; fix: derive it from skinmtl\.models\.encoders"
    with pytest.raises(ConfigError, match=said):
        net(Half())  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"model\.arch: deeplabv3 needs an encoder of smp or timm"):
        net(ConvPool(5), "deeplabv3")
    with pytest.raises(ConfigError, match=r"model\.arch: fpn makes a mask of \[\d+, \d+\] out of ConvPool's features"):
        net(ConvPool(3, 8), "fpn")
    with pytest.raises(ConfigError, match=r"model\.weights: no ImageNet weights are published under ConvPool"):
        net(ConvPool(2, 4), weights="imagenet")
