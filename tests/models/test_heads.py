"""Class heads: smp's bit by bit; pooling inside a mask against sums by hand, whatever the mask."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from kinds import outputs
from scipy.special import expit, softmax
from segmentation_models_pytorch.base import ClassificationHead
from segmentation_models_pytorch.base.initialization import initialize_head
from torch import Tensor, nn

from skinmtl.errors import ConfigError
from skinmtl.models.heads import MaskGuided, Pooled, lesion_probability, pool_inside
from skinmtl.models.multitask_net import MultiTaskNet

SIZE = (64, 64)


@pytest.mark.parametrize("pooling", ["avg", "max"])
def test_the_pooled_head_is_smps_to_the_bit(pooling: str) -> None:
    torch.manual_seed(5)
    theirs = ClassificationHead(12, 7, pooling=pooling, dropout=0.2)
    initialize_head(theirs)
    torch.manual_seed(5)
    ours = Pooled(pooling, 0.2)  # type: ignore[arg-type]
    ours.connect(12, 7)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    features = torch.randn(2, 12, 4, 3)
    for mode in (True, False):
        seen = []
        for head in (theirs, ours):
            torch.manual_seed(6)
            seen.append(head.train(mode)(features))
        assert torch.equal(*seen)
    assert not torch.equal(ours.train()(features), ours.eval()(features)), "dropout drops"


def test_a_hidden_layer_comes_before_the_last() -> None:
    head = Pooled("max", dropout=0.5, hidden=5)
    head.connect(4, 3)
    features = torch.randn(2, 4, 3, 3)
    first, last = (layer for layer in head.modules() if isinstance(layer, nn.Linear))
    (w1, b1), (w2, b2) = ([p.detach().numpy() for p in layer.parameters()] for layer in (first, last))
    hidden = np.maximum(features.numpy().max((2, 3)) @ w1.T + b1, 0)
    assert w1.shape == (5, 4)
    np.testing.assert_allclose(head.eval()(features).detach().numpy(), hidden @ w2.T + b2, rtol=1e-5, atol=1e-6)


def by_hand(features: np.ndarray, lesion: np.ndarray, floor: float) -> np.ndarray:
    """(B, C) from (B, C, h, w) features and a lesion twice as large."""
    found = np.zeros(features.shape[:2])
    for b, c in np.ndindex(*found.shape):
        above = below = 0.0
        for y, x in np.ndindex(*features.shape[2:]):
            weight = lesion[b, 0, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2].mean() + floor
            above, below = above + weight * features[b, c, y, x], below + weight
        found[b, c] = above / below
    return found


def test_features_are_pooled_inside_the_lesion() -> None:
    rng = np.random.default_rng(0)
    features, lesion = rng.normal(size=(2, 3, 4, 5)), rng.uniform(size=(2, 1, 8, 10))
    found = pool_inside(torch.tensor(features), torch.tensor(lesion), floor=0.01)
    np.testing.assert_allclose(found.numpy(), by_hand(features, lesion, 0.01))
    assert not np.allclose(found.numpy(), features.mean((2, 3)), atol=1e-3)


@pytest.mark.parametrize("level", [0.0, 1.0])
def test_of_an_empty_or_a_full_mask_the_plain_mean_is_taken(level: float) -> None:
    features = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(pool_inside(features, torch.full((2, 1, 16, 16), level)), features.mean((2, 3)))
    half = torch.zeros(2, 1, 16, 16)
    half[..., :8] = 1
    torch.testing.assert_close(pool_inside(features, half), features[..., :2].mean((2, 3)), atol=1e-2, rtol=0)


def test_the_lesion_is_anything_but_the_first_class() -> None:
    one, three = torch.randn(2, 1, 4, 4), torch.randn(2, 3, 4, 4)
    np.testing.assert_allclose(lesion_probability(one).numpy(), expit(one.numpy()), rtol=1e-5)
    expected = softmax(three.numpy(), axis=1)[:, 1:].sum(1, keepdims=True)
    np.testing.assert_allclose(lesion_probability(three).numpy(), expected, rtol=1e-4, atol=1e-6)


def guided(stop: bool, **kinds: Any) -> MultiTaskNet:  # noqa: ANN401
    torch.manual_seed(0)
    head = MaskGuided(stop_gradient=stop, dropout=0.0, hidden=6)
    return MultiTaskNet(head=head, outputs=outputs(**kinds), size=SIZE)


@pytest.mark.parametrize("stop", [True, False])
@pytest.mark.parametrize("classes", [2, 3])
def test_the_mask_learns_from_the_diagnosis_unless_it_is_stopped(stop: bool, classes: int) -> None:
    network = guided(stop, mask_classes=classes)
    image = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    loss = network(image)["cls"].square().mean()
    mask = torch.autograd.grad(loss, list(network.mask_head.parameters()), retain_graph=True, allow_unused=True)
    assert all((gradient is None) == stop for gradient in mask)
    assert stop or any(bool((gradient != 0).any()) for gradient in mask)
    (first,) = torch.autograd.grad(loss, [network.encoder.conv1.weight])
    assert bool(first.isfinite().all()) and bool((first != 0).any())


@pytest.mark.parametrize("level", [-1e4, 1e4])
def test_a_mask_guided_diagnosis_is_finite_under_bf16_whatever_the_mask(level: float) -> None:
    head = MaskGuided(stop_gradient=False, dropout=0.0)
    head.connect(8, 7)
    features = torch.randn(2, 8, 2, 2, dtype=torch.bfloat16, requires_grad=True)
    mask = torch.full((2, 1, 64, 64), level, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        head(features, mask).float().square().mean().backward()
    for tensor in (features, mask, *head.parameters()):
        assert tensor.grad is not None and bool(tensor.grad.isfinite().all())


def test_a_diagnosis_inside_the_mask_needs_a_mask() -> None:
    with pytest.raises(ConfigError, match=r"model\.head: MaskGuided looks at the mask, and this run draws none"):
        guided(True, tasks=("cls",))


def test_what_is_no_head_is_said() -> None:
    class Mean(nn.Module):
        def forward(self, features: Tensor) -> Tensor:
            return features.mean((2, 3))

    said = r"model\.head: Mean is no class head; fix: derive it from skinmtl\.models\.heads"
    with pytest.raises(ConfigError, match=said):
        MultiTaskNet(head=Mean(), outputs=outputs(["cls"]), size=SIZE)  # type: ignore[arg-type]
