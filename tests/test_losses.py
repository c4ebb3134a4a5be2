"""Each loss against torch or NumPy, over every kind of batch."""

from __future__ import annotations

import itertools
from multiprocessing.queues import SimpleQueue
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from skinmtl.losses import BCE, CrossEntropy, Dice, DiceBCE
from skinmtl.types import Batch
from skinmtl.weighting import Fixed

SEG = {"bce": BCE(), "dice": Dice(), "dice_bce": DiceBCE()}
COUNTS = [10, 40, 5, 0]


def batch(has_mask: list[bool], dx: list[int], seed: int = 0) -> Batch:
    draw = torch.Generator().manual_seed(seed)
    count = len(dx)
    return Batch(
        image=torch.zeros(count, 3, 8, 8, dtype=torch.uint8),
        mask=torch.randint(0, 2, (count, 8, 8), generator=draw, dtype=torch.uint8),
        has_mask=torch.tensor(has_mask),
        dx=torch.tensor(dx),
        index=torch.arange(count),
    )


KINDS = {
    "none": ([False] * 4, [-1] * 4),
    "mask only": ([True] * 4, [-1] * 4),
    "label only": ([False] * 4, [0, 1, 2, 1]),
}
KINDS |= {"mixed": ([True, False, True, False], [0, -1, -1, 2])}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("weights", "smoothing", "dtype"), list(itertools.product(
    ["none", "balanced"], [0.0, 0.1], [torch.float32, torch.bfloat16]
)))  # fmt: skip
def test_losses_are_finite_and_equal_a_plain_loop(
    kind: str, weights: str, smoothing: float, dtype: torch.dtype
) -> None:
    has_mask, dx = KINDS[kind]
    of = batch(has_mask, dx)
    seg = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1)).to(dtype).requires_grad_()
    cls = torch.randn(4, 4, generator=torch.Generator().manual_seed(2)).to(dtype).requires_grad_()
    loss = CrossEntropy(weights, smoothing, class_counts=COUNTS)  # type: ignore[arg-type]
    total = DiceBCE()(seg, of) + loss(cls, of)
    total.backward()
    assert torch.isfinite(total)
    for logits in (seg, cls):
        assert logits.grad is not None and torch.isfinite(logits.grad).all()

    rows = [i for i in range(4) if has_mask[i]]
    plain = np.mean([_dice_bce(seg[i, 0], of["mask"][i]) for i in rows]) if rows else 0.0
    known = [i for i in range(4) if dx[i] >= 0]
    if known:
        other = torch.nn.CrossEntropyLoss(loss.weight, label_smoothing=smoothing)
        plain += other(cls[known].float(), of["dx"][known]).item()
    assert total.item() == pytest.approx(plain, abs=1e-5)


def _dice_bce(logits: Tensor, mask: Tensor) -> float:
    z, t = logits.detach().float().numpy().astype(np.float64), mask.numpy().astype(np.float64)
    p = 1 / (1 + np.exp(-z))
    bce = -(t * np.log(p) + (1 - t) * np.log(1 - p)).mean()
    return float(bce + 1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1))


@pytest.mark.parametrize("name", SEG)
@pytest.mark.parametrize("fill", [0, 1])
def test_empty_and_full_masks_have_their_minimum_at_themselves(name: str, fill: int) -> None:
    of = batch([True], [0])
    of["mask"] = torch.full((1, 8, 8), fill, dtype=torch.uint8)
    right = torch.full((1, 1, 8, 8), 30.0 * (2 * fill - 1))
    values = [float(SEG[name](logits, of)) for logits in (right, torch.zeros_like(right), -right)]
    assert values[0] == pytest.approx(0, abs=0.02)
    assert values[0] < values[1] < values[2] < np.inf


@pytest.mark.parametrize("name", SEG)
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    of = batch([True, True], [0, 1])
    logits = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(3)).requires_grad_()
    SEG[name](logits, of).backward()
    step = torch.zeros_like(logits)
    step[1, 0, 4, 4] = 1e-2
    with torch.no_grad():
        numeric = (SEG[name](logits + step, of) - SEG[name](logits - step, of)) / 2e-2
    assert logits.grad is not None
    assert float(logits.grad[1, 0, 4, 4]) == pytest.approx(float(numeric), rel=0.05, abs=1e-4)


def test_an_unlabelled_sample_changes_nothing_even_when_it_is_not_finite() -> None:
    of, one = batch([True, False], [1, -1]), batch([True], [1])
    one["mask"] = of["mask"][:1]
    logits = torch.randn(2, 1, 8, 8)
    logits[1] = float("nan")
    assert float(DiceBCE()(logits, of)) == pytest.approx(float(DiceBCE()(logits[:1], one)))


@pytest.mark.parametrize(("weights", "power"), [("none", 0), ("sqrt", -0.5), ("balanced", -1)])
def test_class_weights_follow_the_counts(weights: str, power: float) -> None:
    weight = CrossEntropy(weights, class_counts=COUNTS).weight.numpy()  # type: ignore[arg-type]
    assert weight[3] == 0  # no photograph of it: nothing to weigh
    np.testing.assert_allclose(weight[:3] / weight[0], (np.array(COUNTS[:3]) / COUNTS[0]) ** power, rtol=1e-6)
    assert (weight * COUNTS).sum() / sum(COUNTS) == pytest.approx(1)


def test_fixed_weights_multiply_and_add() -> None:
    losses = {"seg": torch.tensor(2.0), "cls": torch.tensor(3.0)}
    assert float(Fixed(0.5, 2.0)(losses)) == 7.0
    assert float(Fixed(0.5, 2.0)({"cls": torch.tensor(3.0)})) == 6.0


def test_two_processes_give_the_gradient_of_one(tmp_path: Path) -> None:
    of, logits = batch([True] * 4 + [False] * 3 + [True], [0, 1, 2, 1, -1, -1, 0, -1]), torch.randn(8, 4)
    seg = torch.randn(8, 1, 8, 8)
    context = torch.multiprocessing.get_context("fork")
    parts = [{name: value[half] for name, value in of.items()} for half in (slice(4), slice(4, 8))]  # type: ignore[index]
    answers = context.SimpleQueue()
    given = [(rank, tmp_path / "meet", parts[rank], logits[4 * rank :][:4], seg[4 * rank :][:4]) for rank in (0, 1)]
    processes = [context.Process(target=_gradients, args=(*each, answers)) for each in given]
    for process in processes:
        process.start()
    found = dict(answers.get() for _ in processes)
    for process in processes:
        process.join(60)
    for alone, together in zip(_backward(of, logits, seg), zip(found[0], found[1], strict=True), strict=True):
        # Each holds its own samples, and gradients are averaged over the two.
        np.testing.assert_allclose(np.concatenate(together) / 2, alone, atol=1e-6)


def _gradients(rank: int, meet: Path, of: Batch, logits: Tensor, seg: Tensor, answers: SimpleQueue[object]) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{meet}", rank=rank, world_size=2)
    answers.put((rank, _backward(of, logits, seg)))
    torch.distributed.destroy_process_group()


def _backward(of: Batch, logits: Tensor, seg: Tensor) -> list[np.ndarray]:
    logits, seg = logits.clone().requires_grad_(), seg.clone().requires_grad_()
    loss = DiceBCE()(seg, of) + CrossEntropy("sqrt", 0.1, class_counts=COUNTS)(logits, of)
    loss.backward()
    assert logits.grad is not None and seg.grad is not None
    return [logits.grad.numpy(), seg.grad.numpy()]
