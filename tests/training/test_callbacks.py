"""What is held still stays as it is to the bit, and what is let go learns; which steps count as lost."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
from kinds import outputs
from torch import Tensor

from skinmtl.errors import Diverged
from skinmtl.models.encoders import ConvPool
from skinmtl.models.multitask_net import MultiTaskNet
from skinmtl.training.callbacks.freeze import Freeze
from skinmtl.training.callbacks.nonfinite import Finite


def epochs(freeze: Freeze, count: int, world_size: int = 1, own: tuple[str, ...] = ()) -> list[dict[str, Tensor]]:
    """The network's state at first and after each epoch of one step, in Lightning's order of hooks.

    Args:
        freeze: what is tried.
        count: how many epochs.
        world_size: how many processes the trainer says there are.
        own: parameters of the encoder that do not learn anyway.
    """
    torch.manual_seed(0)
    kinds = {"outputs": outputs(dx_classes=3), "size": (16, 16)}
    module: Any = SimpleNamespace(hold=lambda held: None, network=MultiTaskNet("unet", ConvPool(2, 4), **kinds))  # type: ignore[arg-type]
    network = module.network
    for name in own:
        network.encoder.get_parameter(name).requires_grad_(False)
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=0.1, weight_decay=0.5)
    freeze.on_fit_start(None, module)  # type: ignore[arg-type]
    states = [{name: tensor.clone() for name, tensor in network.state_dict().items()}]
    for epoch in range(count):
        trainer: Any = SimpleNamespace(current_epoch=epoch, world_size=world_size)
        freeze.on_train_epoch_start(trainer, module)
        logits = network(torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8))
        optimizer.zero_grad()
        torch.stack([values.square().mean() for values in logits.values()]).sum().backward()
        if world_size > 1:  # which wait for the gradient of every parameter that learnt when they met
            assert all(p.grad is not None for p in network.parameters())
        freeze.on_before_optimizer_step(trainer, module, optimizer)
        optimizer.step()
        states.append({name: tensor.clone() for name, tensor in network.state_dict().items()})
    return states


def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    """Names of the encoder's tensors that are not the same bits."""
    return {name for name in before if name.startswith("encoder.") and not torch.equal(before[name], after[name])}


def all_names(state: dict[str, Tensor]) -> set[str]:
    return {name for name in state if name.startswith("encoder.")}


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_frozen_encoder_stays_to_the_bit_and_then_learns(world_size: int) -> None:
    states = epochs(Freeze(encoder_epochs=2), 3, world_size)
    assert [len(moved(*pair)) for pair in zip(states[:2], states[1:3], strict=True)] == [0, 0]
    assert moved(states[2], states[3]) == all_names(states[0])
    head = "class_head.3.weight"
    assert not torch.equal(states[0][head], states[1][head]), "the rest learns meanwhile"


@pytest.mark.parametrize("world_size", [1, 2])
def test_frozen_batch_norm_keeps_its_statistics_scales_and_shifts(world_size: int) -> None:
    states = epochs(Freeze(batch_norm=True), 2, world_size)
    convolutions = {name for name in all_names(states[0]) if states[0][name].ndim == 4}
    for pair in zip(states, states[1:], strict=False):
        assert moved(*pair) == convolutions
    decoder = next(name for name in states[0] if name.startswith("decoder.") and name.endswith("running_mean"))
    assert not torch.equal(states[0][decoder], states[1][decoder]), "the decoder's is its own"


def test_an_encoder_that_is_let_go_keeps_its_batch_norm_if_told_so() -> None:
    states = epochs(Freeze(encoder_epochs=1, batch_norm=True), 2)
    assert moved(states[0], states[1]) == set()
    assert moved(states[1], states[2]) == {name for name in all_names(states[0]) if states[0][name].ndim == 4}


def test_by_itself_everything_learns() -> None:
    states = epochs(Freeze(), 1)
    assert moved(states[0], states[1]) == all_names(states[0])


def test_what_does_not_learn_anyway_is_not_let_go() -> None:
    own = "layers.0.0.weight"
    states = epochs(Freeze(encoder_epochs=1), 2, own=(own,))
    assert moved(states[1], states[2]) == all_names(states[0]) - {f"encoder.{own}"}


def stepped(finite: Finite, scaler: object, *, loss: bool, gradient: float) -> Tensor | None:
    """The gradient that an optimiser would find after a batch whose loss is finite, or not."""
    table = pd.DataFrame({"image_id": ["ISIC_0", "ISIC_1", "ISIC_2"]})
    trainer: Any = SimpleNamespace(accumulate_grad_batches=1, scaler=scaler, current_epoch=0, global_step=6)
    trainer.datamodule = SimpleNamespace(table=table)
    weight = torch.nn.Parameter(torch.ones(2))
    weight.grad = torch.full((2,), gradient)
    module: Any = SimpleNamespace(buffers=lambda: iter(()), parameters=lambda: [weight], device="cpu")
    module.step_is_finite = module.own_loss_is_finite = torch.tensor(loss)
    finite.on_train_batch_start(trainer, module, {"index": torch.tensor([0, 2])}, 0)
    finite.on_after_backward(trainer, module)
    finite.on_before_optimizer_step(trainer, module, None)  # type: ignore[arg-type]
    return weight.grad


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_what_float16s_scaler_skips_by_itself_does_not_count(value: float) -> None:
    finite = Finite()
    for _ in range(9):
        left = stepped(finite, object(), loss=True, gradient=value)
        assert left is not None and not left.isfinite().any(), "the scaler has to see it"
    assert finite.skipped == 0
    for _ in range(3):  # negative control: of a loss that is not finite it knows no better either
        stepped(finite, object(), loss=False, gradient=value)
    with pytest.raises(Diverged, match="ISIC_0, ISIC_2; 3 steps in a row"):
        stepped(finite, object(), loss=False, gradient=value)


def test_a_gradient_alone_that_is_not_finite_counts_without_a_scaler_and_a_good_step_forgives() -> None:
    finite = Finite()
    for _ in range(5):
        for skipped in (1, 2, 3):
            assert stepped(finite, None, loss=True, gradient=float("inf")) is None
            assert finite.skipped == skipped
        assert stepped(finite, None, loss=True, gradient=1.0) is not None
        assert finite.skipped == 0
