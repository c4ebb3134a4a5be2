"""What every loss of conf/ promises, each against someone else's computation, over every kind of batch."""

from __future__ import annotations

import copy
import functools
import itertools
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from scipy.ndimage import distance_transform_edt
from scipy.special import expit, softmax
from segmentation_models_pytorch import losses as smp
from sklearn.metrics import log_loss
from small_runs import CONF
from torch import Tensor, nn

from skinmtl.balancing.weighting import Fixed
from skinmtl.config.build import build
from skinmtl.config.schema import ALLOW
from skinmtl.errors import ConfigError, InputError
from skinmtl.losses import (
    BCE,
    LDAM,
    Boundary,
    ClassBalanced,
    CrossEntropy,
    Dice,
    DiceBCE,
    Focal,
    FocalCrossEntropy,
    FocalTversky,
    LogitAdjusted,
    Tversky,
    mean_over_labelled,
)
from skinmtl.losses.segmentation import distance_to_outline, foreground, tversky
from skinmtl.types import Batch

COUNTS = [10, 40, 5, 0]
FILES = {
    f"{task}/{file.stem}": file
    for task in ("seg", "cls")
    for file in sorted((CONF / "loss" / task).glob("*.yaml"))
    if file.stem != "none"
}
KINDS = {
    "none": ([False] * 4, [-1] * 4),
    "mask only": ([True] * 4, [-1] * 4),
    "label only": ([False] * 4, [0, 1, 2, 1]),
    "mixed": ([True, False, True, False], [0, -1, -1, 2]),
}


WEIGHTED = ("cls/cross_entropy", "cls/label_smoothing", "cls/focal")  # those that take class weights


@functools.cache
def loss_of(name: str) -> nn.Module:
    """The loss that a YAML file describes, `seg/dice` say, as a run builds it; `cls/focal sqrt` with class weights."""
    file, _, weights = name.partition(" ")
    loss: nn.Module = build(OmegaConf.load(FILES[file]), class_counts=COUNTS, class_weights=weights or "none")
    return loss


NAMES = [*FILES, *(f"{name} sqrt" for name in WEIGHTED)]


@dataclass(frozen=True)
class Case:
    """A loss and how many logits a pixel or an image has."""

    name: str
    channels: int
    loss: nn.Module

    def logits(self, count: int = 4, size: tuple[int, int] = (8, 8), seed: int = 1) -> Tensor:
        shape = (count, self.channels, *size) if self.name.startswith("seg") else (count, self.channels)
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed))

    def batch(self, has_mask: list[bool], dx: list[int], size: tuple[int, int] = (8, 8)) -> Batch:
        return batch(has_mask, dx, size=size, classes=max(2, self.channels))

    def has(self, of: Batch) -> Tensor:
        return of["has_mask"] if self.name.startswith("seg") else of["dx"] >= 0

    def perfect(self, of: Batch, size: float = 30.0) -> Tensor:
        """Logits that leave nothing to be learned."""
        if not self.name.startswith("seg"):
            smoothing = getattr(self.loss, "label_smoothing", 0.0)
            target = nn.functional.one_hot(of["dx"], self.channels).float()
            if smoothing:  # all that is left to say is how targets were smoothed, but for a class that weighs nothing
                soft = ((1 - smoothing) * target + smoothing / self.channels) * self.loss.weight
                return soft.clamp(min=1e-12).log()
            return size * target
        if self.channels == 1:
            return size * (2 * of["mask"][:, None].float() - 1)
        return size * nn.functional.one_hot(of["mask"].long(), self.channels).permute(0, 3, 1, 2).float()


def batch(
    has_mask: list[bool], dx: list[int], seed: int = 0, size: tuple[int, int] = (8, 8), classes: int = 2
) -> Batch:
    draw = torch.Generator().manual_seed(seed)
    count = len(dx)
    return Batch(
        image=torch.zeros(count, 3, *size, dtype=torch.uint8),
        mask=torch.randint(0, classes, (count, *size), generator=draw, dtype=torch.uint8),
        has_mask=torch.tensor(has_mask),
        dx=torch.tensor(dx),
        index=torch.arange(count),
    )


CASES = [
    Case(name, channels, loss_of(name)) for name in NAMES for channels in ((1, 3) if name.startswith("seg") else (4,))
]
each_loss = pytest.mark.parametrize("case", CASES, ids=[f"{case.name} {case.channels}" for case in CASES])


# What all promise.


def filled(of: Batch, channels: int) -> Iterator[Batch]:
    """The batch as drawn, with empty masks, and with full ones."""
    yield of
    for fill in (0, max(1, channels - 1)):
        yield of | {"mask": torch.full_like(of["mask"], fill)}  # type: ignore[misc]


def check_finite(case: Case, dtype: torch.dtype) -> None:
    for labels, scale in itertools.product(KINDS.values(), (1, 300)):
        for of in filled(case.batch(*labels), case.channels):
            logits = (scale * case.logits()).to(dtype).requires_grad_()
            value, has = case.loss(logits, of), case.has(of)
            value.backward()
            assert torch.isfinite(value) and value.dtype == torch.float32
            assert torch.equal(value, case.loss(logits.detach().float(), of)), "bfloat16 is only how logits arrive"
            assert logits.grad is not None and torch.isfinite(logits.grad).all()
            assert (logits.grad[~has] == 0).all()
            if not has.any():
                assert value.item() == 0
            elif scale == 1:
                assert logits.grad[has].abs().max() > 1e-6


def check_minimum(case: Case) -> None:
    for of in filled(case.batch([True] * 3, [0, 1, 2]), case.channels):
        for size in (200.0, 30.0):
            right = case.perfect(of, size).requires_grad_()
            best = case.loss(right, of)
            best.backward()
            assert right.grad is not None and torch.isfinite(right.grad).all()
            assert right.grad.abs().max() < 1e-4, "a perfect prediction has nothing to learn"
        right = right.detach()
        one_wrong = right.clone()
        one_wrong[(0, slice(None), *(2,) * (right.ndim - 2))] *= -1
        noise = case.logits(3)
        for worse in (torch.zeros_like(right), one_wrong, -right, right / 60 + noise, noise):
            assert best < case.loss(worse, of) - 1e-4
        if not getattr(case.loss, "label_smoothing", 0):
            assert best.item() == pytest.approx(0, abs=1e-5)


def has_right_gradient(loss: Callable[[Tensor, Batch], Tensor], logits: Tensor, of: Batch) -> bool:
    """Whether it is that of finite differences; coarser ones for a loss that is float32 within."""
    logits = logits.double().requires_grad_()
    coarse = {} if loss(logits, of).dtype == torch.float64 else {"eps": 1e-3, "atol": 1e-3}
    return torch.autograd.gradcheck(lambda z: loss(z, of), logits, **coarse, raise_exception=False)


def check_gradient(case: Case) -> None:
    of = case.batch([True, False, True], [0, -1, 2], size=(3, 4))
    assert has_right_gradient(case.loss, case.logits(3, (3, 4)), of)


def check_mean(case: Case) -> None:
    """The loss of a batch is the mean, by class weights where there are some, of its labelled samples' own losses."""
    of, logits = case.batch(*KINDS["mixed"]), case.logits()
    rows = case.has(of).nonzero()[:, 0].tolist()
    single = []
    for row in range(4):
        one: Batch = {name: value[row : row + 1] for name, value in of.items()}  # type: ignore[assignment,index]
        single.append(float(case.loss(logits[row : row + 1], one)))
    weight = getattr(case.loss, "weight", torch.ones(4))[of["dx"][rows]].tolist()
    value = float(case.loss(logits, of))
    assert value == pytest.approx(np.average([single[row] for row in rows], weights=weight), abs=1e-5)
    # A sample without the target changes nothing, not even one that is not finite.
    logits[~case.has(of)] = float("nan")
    assert float(case.loss(logits, of)) == pytest.approx(value)


@each_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_finite_on_every_batch_and_mask(case: Case, dtype: torch.dtype) -> None:
    check_finite(case, dtype)


@each_loss
def test_least_where_the_prediction_is_perfect(case: Case) -> None:
    check_minimum(case)


@each_loss
def test_gradient_is_that_of_finite_differences(case: Case) -> None:
    check_gradient(case)


@each_loss
def test_mean_over_the_labelled_samples(case: Case) -> None:
    check_mean(case)


@each_loss
def test_divided_by_the_labels_of_all_processes(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    of, logits = case.batch(*KINDS["mixed"]), case.logits()
    alone = float(case.loss(logits, of))
    # As if beside another process that has no labels: what is averaged over the two is then twice the loss and nothing.
    for name, answer in {"is_initialized": True, "get_world_size": 2, "all_reduce": None}.items():
        monkeypatch.setattr(torch.distributed, name, lambda *_, answer=answer: answer)
    assert float(case.loss(logits, of)) == pytest.approx(2 * alone)
    with torch.no_grad():
        assert float(case.loss(logits, of)) == pytest.approx(alone)


@each_loss
def test_autocast_changes_nothing(case: Case) -> None:
    of, logits = case.batch(*KINDS["mixed"]), case.logits()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = case.loss(logits, of)
    assert inside.dtype == torch.float32
    assert float(inside) == pytest.approx(float(case.loss(logits, of)), rel=1e-6)


of_diagnoses = pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("cls")])


@of_diagnoses
@pytest.mark.parametrize("dx", [[3, 0], [3, -1], [3, 3]])
def test_a_diagnosis_without_training_images_gives_the_loss_of_a_rare_one(name: str, dx: list[int]) -> None:
    logits = torch.randn(2, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    value = loss_of(name)(logits, batch([False] * 2, dx))
    value.backward()
    assert logits.grad is not None and torch.isfinite(logits.grad).all()
    # The third has the fewest images of those that have any: with its logits, and labels, exchanged, the same.
    rarest = loss_of(name)(logits[:, [0, 1, 3, 2]], batch([False] * 2, [2 if one == 3 else one for one in dx]))
    assert value.item() == pytest.approx(rarest.item(), rel=1e-6) and 0.01 < value.item() < 10
    right = loss_of(name)(10 * nn.functional.one_hot(torch.tensor(dx).clamp(min=0), 4).float(), batch([False] * 2, dx))
    assert right < value, "a network that knows it all the same is better"


@of_diagnoses
@pytest.mark.parametrize("counts", [[0, 0, 0], []])
def test_no_diagnosis_in_training_is_an_answer(name: str, counts: list[int]) -> None:
    with pytest.raises(InputError, match="class_counts: no training image has a diagnosis; fix: give diagnoses"):
        build(OmegaConf.load(FILES[name.split()[0]]), class_counts=counts)


@of_diagnoses
def test_what_weighs_nothing_has_a_loss_of_zero(name: str) -> None:
    """A class weight of 0, as a loss of one's own may have it, is no division by what is next to nothing."""
    loss, logits = copy.deepcopy(loss_of(name)), torch.randn(2, 4, requires_grad=True)
    if hasattr(loss, "weight"):
        loss.weight = loss.weight * torch.tensor([1, 1, 1, 0])
        value = loss(logits, batch([False] * 2, [3, -1]))
        value.backward()
        assert value.item() == 0 and logits.grad is not None and (logits.grad == 0).all()


@of_diagnoses
def test_logits_at_the_end_of_their_range_give_no_nan(name: str) -> None:
    largest = torch.finfo(torch.float16).max
    logits = torch.tensor([[largest, -largest, 0, 0], [-largest, largest, 0, 0]], requires_grad=True)
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        value = loss_of(name)(logits.to(dtype), batch([False] * 2, [0, 0]))
        assert torch.isfinite(value) and value > 1000


def test_the_checks_see_what_they_are_for() -> None:
    class Own(nn.Module):
        def __init__(self, of: Callable[[Tensor, Batch], Tensor]) -> None:
            super().__init__()
            self.forward = of

    def bce(logits: Tensor, of: Batch) -> Tensor:
        return nn.functional.binary_cross_entropy_with_logits(logits[:, 0].float(), of["mask"].float())

    unlabelled_too = Case("seg/own", 1, Own(bce))
    for check in (check_mean, lambda case: check_finite(case, torch.float32)):
        with pytest.raises(AssertionError):
            check(unlabelled_too)
    shifted = Case("seg/own", 1, Own(lambda logits, of: BCE()(logits - 3, of)))
    inverted = Case("seg/own", 1, Own(lambda logits, of: BCE()(-logits, of)))
    root = Case("seg/own", 1, Own(lambda logits, of: Dice()(logits, of) ** 0.5))
    rounded = Case("seg/own", 1, Own(lambda z, of: mean_over_labelled(z.exp().mean((1, 2, 3)), of["has_mask"])))
    for case in (inverted, root):
        with pytest.raises(AssertionError):
            check_minimum(case)
    check_minimum(shifted)  # a margin has its least at a perfect prediction, too
    with pytest.raises(AssertionError):
        check_finite(rounded, torch.bfloat16)
    of, logits = batch([True] * 2, [0, 1], size=(3, 4)), torch.randn(2, 1, 3, 4)
    for dtype in (torch.float64, torch.float32):
        whole = lambda z, of, dtype=dtype: (z.to(dtype).sigmoid() * z.to(dtype)).mean()  # noqa: E731
        part = lambda z, of, dtype=dtype: (z.to(dtype).sigmoid().detach() * z.to(dtype)).mean()  # noqa: E731
        assert has_right_gradient(whole, logits, of) and not has_right_gradient(part, logits, of)


def test_the_loss_that_the_documentation_adds_is_admitted_and_keeps_the_promises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = (CONF.parent / "docs" / "examples" / "mine" / "losses.py").read_text(encoding="utf-8")
    (tmp_path / "elsewhere.py").write_text(shown)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "elsewhere", raising=False)
    with pytest.raises(ConfigError, match="not an admitted constructor"):
        build({"_target_": "elsewhere.Brier"})
    monkeypatch.setenv(ALLOW, "elsewhere")
    for channels in (1, 3):
        case = Case("seg/brier", channels, build({"_target_": "elsewhere.Brier"}))
        check_finite(case, torch.bfloat16)
        check_minimum(case)
        check_gradient(case)
        check_mean(case)


# What each is, said by someone else: of one image's logits (C, H, W) and mask, or of logits (n, K) and diagnoses (n,).


def parts(z: np.ndarray, mask: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Probability and target of each foreground class, (H, W)."""
    if len(z) == 1:
        return [(expit(z[0]), mask == 1)]
    return [(p, mask == number) for number, p in enumerate(softmax(z, axis=0)) if number > 0]


def all_classes(z: np.ndarray) -> np.ndarray:
    """Probabilities (pixels, classes), background first."""
    p = np.stack([1 - expit(z[0]), expit(z[0])]) if len(z) == 1 else softmax(z, axis=0)
    return p.reshape(len(p), -1).T


def by_class(loss: nn.Module, z: np.ndarray, mask: np.ndarray) -> float:
    """A loss of smp that takes probabilities, on each foreground class by itself."""
    pairs = [[torch.from_numpy(part.astype(np.float64))[None, None] for part in pair] for pair in parts(z, mask)]
    return float(np.mean([float(loss(p, target)) for p, target in pairs]))


def bce(z: np.ndarray, mask: np.ndarray) -> float:
    p = all_classes(z)
    return float(log_loss(mask.ravel(), p, labels=list(range(p.shape[1]))))


def dice(z: np.ndarray, mask: np.ndarray) -> float:
    return by_class(smp.DiceLoss("binary", from_logits=False, smooth=0.5), z, mask)


def smp_tversky(z: np.ndarray, mask: np.ndarray, power: float = 1.0) -> float:
    return by_class(smp.TverskyLoss("binary", None, False, False, 1.0, alpha=0.3, beta=0.7, gamma=power), z, mask)


def focal(z: np.ndarray, mask: np.ndarray) -> float:
    if len(z) == 1:
        return float(smp.FocalLoss("binary", gamma=2.0)(torch.from_numpy(z)[None], torch.from_numpy(mask)[None]))
    own = all_classes(z)[np.arange(mask.size), mask.ravel()]
    return float(-((1 - own) ** 2 * np.log(own)).mean())


def lovasz(z: np.ndarray, mask: np.ndarray) -> float:
    if len(z) == 1:
        return extended(np.maximum(1 - z[0] * np.where(mask == 1, 1, -1), 0), mask == 1)
    pairs = zip(all_classes(z).T, range(len(z)), strict=True)
    return float(np.mean([extended(np.abs((mask.ravel() == c) - p), mask.ravel() == c) for p, c in pairs]))


def extended(errors: np.ndarray, truth: np.ndarray) -> float:
    """The Lovász extension by its definition: what each more pixel that is wrong costs of IoU, the worst ones first."""
    predicted, total, before = truth.ravel().copy(), 0.0, 0.0
    for pixel in np.argsort(-errors.ravel()):
        predicted[pixel] ^= True
        cost = 1 - (truth.ravel() & predicted).sum() / (truth.ravel() | predicted).sum()
        total += errors.ravel()[pixel] * (cost - before)
        before = cost
    return float(total)


def boundary(z: np.ndarray, mask: np.ndarray) -> float:
    far = []
    for p, target in parts(z, mask):
        signed = distance_transform_edt(~target) - distance_transform_edt(target)
        far.append(np.mean((np.abs(signed) - 0.5) * np.abs(p - target)) / np.hypot(*mask.shape))
    return float(np.mean(far)) + dice(z, mask)


def weighted(z: np.ndarray, dx: np.ndarray, weight: np.ndarray) -> float:
    return float(log_loss(dx, softmax(z, axis=1), labels=list(range(4)), sample_weight=weight[dx]))


SQRT = np.array([10, 40, 5, 5]) ** -0.5


def label_smoothing(z: np.ndarray, dx: np.ndarray, weight: np.ndarray | None = None) -> float:
    other = nn.CrossEntropyLoss(None if weight is None else torch.from_numpy(weight), label_smoothing=0.1)
    return float(other(torch.from_numpy(z), torch.from_numpy(dx)))


def focal_of_diagnoses(z: np.ndarray, dx: np.ndarray, weight: np.ndarray | None = None) -> float:
    own = softmax(z, axis=1)[np.arange(len(dx)), dx]
    each = [-((1 - p) ** 2) * np.log(p) for p in own]
    return float(np.average(each, weights=None if weight is None else weight[dx]))


def class_balanced(z: np.ndarray, dx: np.ndarray) -> float:
    return weighted(z, dx, np.array([1 / sum(0.999**k for k in range(n or 5)) for n in COUNTS]))


def logit_adjusted(z: np.ndarray, dx: np.ndarray) -> float:
    joint = softmax(z, axis=1) * [10, 40, 5, 5]
    return float(log_loss(dx, joint / joint.sum(1, keepdims=True), labels=list(range(4))))


def ldam(z: np.ndarray, dx: np.ndarray) -> float:
    margin = 0.5 * (5 / np.array([10, 40, 5, 5])) ** 0.25
    rows = [np.delete(row - row[y], y) + margin[y] for row, y in zip(z, dx, strict=True)]
    return float(np.mean([np.log1p(np.exp(row).sum()) for row in rows]))


REFERENCES: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "seg/bce": bce,
    "seg/dice": dice,
    "seg/dice_bce": lambda z, mask: dice(z, mask) + bce(z, mask),
    "seg/tversky": smp_tversky,
    "seg/focal": focal,
    "seg/focal_tversky": functools.partial(smp_tversky, power=0.75),
    "seg/lovasz": lovasz,
    "seg/boundary": boundary,
    "cls/cross_entropy": functools.partial(weighted, weight=np.ones(4)),
    "cls/cross_entropy sqrt": functools.partial(weighted, weight=SQRT),
    "cls/label_smoothing sqrt": functools.partial(label_smoothing, weight=SQRT),
    "cls/focal sqrt": functools.partial(focal_of_diagnoses, weight=SQRT),
    "cls/label_smoothing": label_smoothing,
    "cls/focal": focal_of_diagnoses,
    "cls/class_balanced": class_balanced,
    "cls/logit_adjusted": logit_adjusted,
    "cls/ldam": ldam,
}


@each_loss
def test_equals_an_independent_reference(case: Case) -> None:
    assert case.name in REFERENCES, "a loss of conf/ needs a reference by someone else's code"
    reference = REFERENCES[case.name]
    dx = [0, 1, 2, 1]
    of, logits = case.batch([True] * 4, dx, size=(4, 5)), 2 * case.logits(4, (4, 5))
    z = logits.double().numpy()
    if case.name.startswith("seg"):
        rows = [np.s_[i] for i in range(4)]
        expected = np.mean([reference(z[i], of["mask"][i].numpy()) for i in rows])
        wrong = np.mean([reference(z[i], of["mask"][(i + 1) % 4].numpy()) for i in rows])
    else:
        expected, wrong = reference(z, np.array(dx)), reference(z, np.roll(dx, 1))
    assert float(case.loss(logits, of)) == pytest.approx(expected, abs=1e-4)
    assert float(case.loss(logits, of)) != pytest.approx(wrong, abs=1e-2), "other targets, another value"


# What is particular to one.


@pytest.mark.parametrize("channels", [1, 3])
def test_at_the_ends_of_their_arguments_losses_become_one_another(channels: int) -> None:
    of = batch([True] * 4, [0, 1, 2, 1], classes=max(2, channels))
    seg, cls = torch.randn(4, channels, 8, 8), torch.randn(4, 4)
    sqrt: dict[str, Any] = {"class_weights": "sqrt"}
    plain, counts = CrossEntropy(class_counts=COUNTS)(cls, of), {"class_counts": COUNTS}
    pairs = [
        (Tversky(0.5, 0.5, smooth=1.0)(seg, of), Dice(smooth=2.0)(seg, of)),
        (FocalTversky(gamma=1.0)(seg, of), Tversky()(seg, of)),
        (Focal(0.0)(seg, of), BCE()(seg, of)),
        (FocalCrossEntropy(0.0, **counts)(cls, of), plain),
        (FocalCrossEntropy(0.0, **counts, **sqrt)(cls, of), CrossEntropy(**counts, **sqrt)(cls, of)),
        (ClassBalanced(0.0, **counts)(cls, of), plain),
        (ClassBalanced(1 - 1e-9, **counts)(cls, of), CrossEntropy(**counts, class_weights="balanced")(cls, of)),
        (ClassBalanced(1.0, **counts)(cls, of), CrossEntropy(**counts, class_weights="balanced")(cls, of)),
        (LogitAdjusted(class_counts=[7, 7, 7, 7])(cls, of), plain),
        (LDAM(margin=1e-9, **counts)(cls, of), plain),
        (LDAM(0.5, scale=3.0, **counts)(cls, of), LDAM(1.5, **counts)(3 * cls, of)),
    ]
    for one, other in pairs:
        assert float(one) == pytest.approx(float(other), rel=1e-4)
    assert abs(float(Focal(2.0)(seg, of) - BCE()(seg, of))) > 0.1


def test_the_power_alone_would_have_no_gradient_at_a_perfect_mask() -> None:
    of = batch([True], [0])
    logits = (200.0 * (2 * of["mask"][:, None].float() - 1)).requires_grad_()
    FocalTversky()(logits, of).backward()
    assert logits.grad is not None and torch.isfinite(logits.grad).all()
    logits.grad = None
    (tversky(*foreground(logits, of["mask"]), 0.3, 0.7, 1.0) ** 0.75).sum().backward()
    assert not torch.isfinite(logits.grad).all()


def test_logit_adjustment_is_at_rest_where_every_diagnosis_is_as_likely_as_another() -> None:
    counts = [10, 40, 5]
    of = batch([False] * 55, np.repeat([0, 1, 2], counts).tolist())
    for loss, rests in ((LogitAdjusted(class_counts=counts), True), (CrossEntropy(class_counts=counts), False)):
        logits = torch.zeros(3, requires_grad=True)
        loss(logits.expand(55, 3), of).backward()
        assert logits.grad is not None and (logits.grad.abs().max() < 1e-6) == rests


def disc(size: int, x: float) -> Tensor:
    """(size, size) mask of a disc, a quarter of the image wide, at `x` of its width."""
    at = (torch.arange(size) + 0.5) / size
    return ((at - x)[None] ** 2 + (at - 0.5)[:, None] ** 2).sqrt() < 0.125


def test_the_boundary_loss_knows_how_far_and_not_how_many_pixels() -> None:
    loss, values = Boundary(dice=0.0), {}
    for size, x in itertools.product((64, 256), (0.5, 0.6, 0.8)):
        of = batch([True], [0], size=(size, size))
        of["mask"] = disc(size, 0.5)[None].to(torch.uint8)
        logits = torch.where(disc(size, x), 30.0, -30.0)[None, None]
        values[size, x] = float(loss(logits, of))
    for size in (64, 256):
        assert values[size, 0.5] == pytest.approx(0, abs=1e-6)
        assert values[size, 0.6] < values[size, 0.8] / 3
    for x in (0.6, 0.8):
        assert values[64, x] == pytest.approx(values[256, x], rel=0.1)


def test_distances_are_those_of_scipy_and_one_without_an_outline() -> None:
    drawn = torch.rand(2, 3, 6, 9, generator=torch.Generator().manual_seed(0))
    masks = drawn > torch.tensor([0.2, 0.5, 0.8])[:, None, None]
    masks[0, 0], masks[1, 2] = True, False
    found = distance_to_outline(masks.float())
    assert found.shape == masks.shape and found.dtype == torch.float32
    assert (found[0, 0] == 1).all() and (found[1, 2] == 1).all()
    for i, j in ((0, 1), (0, 2), (1, 0), (1, 1)):
        mask = masks[i, j].numpy()
        exact = distance_transform_edt(mask) + distance_transform_edt(~mask) - 0.5
        np.testing.assert_allclose(found[i, j] * np.hypot(6, 9), exact, rtol=1e-5)
    assert float(found.min()) > 0 and distance_to_outline(masks.double()).dtype == torch.float64


def test_a_loss_of_regions_minds_a_class_that_the_image_does_not_show() -> None:
    of = batch([True], [0])
    of["mask"] = torch.tensor([[[0, 1]]], dtype=torch.uint8)
    right, absent = torch.zeros(1, 3, 1, 2), torch.zeros(1, 3, 1, 2)
    right[0, 0, 0, 0] = right[0, 1, 0, 1] = absent[0, 2, 0, 0] = absent[0, 1, 0, 1] = 30
    for loss in (Dice(), Tversky(), FocalTversky(), Boundary()):
        assert float(loss(absent, of)) > float(loss(right, of)) + 0.1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("weights", "smoothing", "dtype"), list(itertools.product(
    ["none", "balanced"], [0.0, 0.1], [torch.float32, torch.bfloat16]
)))  # fmt: skip
def test_two_losses_equal_a_plain_loop(kind: str, weights: str, smoothing: float, dtype: torch.dtype) -> None:
    has_mask, dx = KINDS[kind]
    of = batch(has_mask, dx)
    seg = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1)).to(dtype)
    cls = torch.randn(4, 4, generator=torch.Generator().manual_seed(2)).to(dtype)
    loss = CrossEntropy(smoothing, class_counts=COUNTS, class_weights=weights)  # type: ignore[arg-type]
    total = DiceBCE()(seg, of) + loss(cls, of)

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


@pytest.mark.parametrize(("weights", "power"), [("none", 0), ("sqrt", -0.5), ("balanced", -1)])
def test_class_weights_follow_the_counts(weights: str, power: float) -> None:
    weight = CrossEntropy(class_counts=COUNTS, class_weights=weights).weight.numpy()  # type: ignore[arg-type]
    assert weight[3] == weight.max(), "without training images as the rarest that has some"
    np.testing.assert_allclose(weight[:3] / weight[0], (np.array(COUNTS[:3]) / COUNTS[0]) ** power, rtol=1e-6)
    assert (weight * COUNTS).sum() / sum(COUNTS) == pytest.approx(1)


def test_fixed_weights_multiply_and_add() -> None:
    losses = {"seg": torch.tensor(2.0), "cls": torch.tensor(3.0)}
    assert float(Fixed(seg=0.5, cls=2.0)(losses)) == 7.0
    assert float(Fixed(seg=0.5, cls=2.0)({"cls": torch.tensor(3.0)})) == 6.0
    three = losses | {"site": torch.tensor(5.0)}
    assert float(Fixed(seg=0.5, site=2.0)(three)) == 1.0 + 3.0 + 10.0, "a task without a weight counts once"


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
    loss = DiceBCE()(seg, of) + CrossEntropy(0.1, class_counts=COUNTS, class_weights="sqrt")(logits, of)
    loss.backward()
    assert logits.grad is not None and seg.grad is not None
    return [logits.grad.numpy(), seg.grad.numpy()]
