"""Learning rates step by step, against their formulas."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from kinds import outputs

from skinmtl.models.encoders import ConvPool
from skinmtl.models.multitask_net import MultiTaskNet
from skinmtl.training.optim import Constant, Cosine, Plateau, Step, with_rates


def rates(schedule: Cosine | Step | Constant, total: int, per_epoch: int = 5) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = schedule.on(optimizer, total, per_epoch)
    found = []
    for _ in range(total):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def test_cosine_warms_up_and_falls_to_its_end() -> None:
    found = rates(Cosine(warmup=0.1, end=0.2), 100)
    assert found[:10] == pytest.approx([(i + 1) / 11 for i in range(10)])
    assert found[10:] == pytest.approx([0.2 + 0.8 * (1 + math.cos(math.pi * i / 90)) / 2 for i in range(90)])


def test_cosine_without_warm_up_is_torchs() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)
    expected = []
    for _ in range(20):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates(Cosine(warmup=0.0), 20) == pytest.approx(expected)


def test_step_falls_after_its_epochs_and_constant_does_not() -> None:
    assert rates(Step(every=2, gamma=0.5), 25, per_epoch=5) == pytest.approx([0.5 ** (i // 10) for i in range(25)])
    assert rates(Constant(), 7) == [1.0] * 7


def test_plateau_falls_when_the_score_no_longer_rises() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = Plateau(factor=0.5, patience=1).on(optimizer, 100, 10)
    found = []
    for score in (0.1, 0.2, 0.2, 0.2, 0.3):
        scheduler.step(score)
        found.append(optimizer.param_groups[0]["lr"])
    assert found == [1.0, 1.0, 1.0, 0.5, 0.5]


def test_each_parameter_learns_at_its_share_of_the_rate_and_all_follow_the_schedule() -> None:
    whole, half, tenth = (torch.nn.Parameter(torch.zeros(1)) for _ in range(3))
    rates = {tenth: 0.1, half: 0.5}
    optimizer = with_rates(partial(torch.optim.SGD, lr=2.0), rates)([{"params": [tenth, whole, half]}])
    scheduler = Step(every=1, gamma=0.5).on(optimizer, 2, 1)
    for _ in range(2):
        for parameter in (whole, half, tenth):
            parameter.grad = -torch.ones(1)
        optimizer.step()
        scheduler.step()
    assert [p.item() for p in (whole, half, tenth)] == pytest.approx([2 + 1, (2 + 1) * 0.5, (2 + 1) * 0.1])
    assert optimizer.param_groups[0]["lr"] == 0.5, "the whole rate stands first, where the log takes it from"


def test_where_all_learn_at_the_whole_rate_the_optimiser_is_as_it_comes() -> None:
    make = partial(torch.optim.SGD, lr=2.0)
    assert with_rates(make, {}) is make


def test_the_encoders_rate_decays_towards_the_image() -> None:
    kinds = {"outputs": outputs(dx_classes=3), "size": (16, 16)}

    def shares(**rates: float) -> list[float]:
        network = MultiTaskNet("upsample", ConvPool(3, 4, batch_norm=False), **rates, **kinds)  # type: ignore[arg-type]
        found = network.rates()
        assert found.keys() <= set(network.encoder.parameters())
        return list(found.values())

    assert shares() == []
    assert shares(encoder_rate=0.1) == [0.1] * 6
    assert shares(encoder_rate=0.1, rate_decay=0.5) == pytest.approx([0.025] * 2 + [0.05] * 2 + [0.1] * 2)
