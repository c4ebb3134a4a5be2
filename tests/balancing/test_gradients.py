"""Closed forms against solvers; gradients taken apart against autograd; training against a plain loop, and in twos."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
from kinds import classification, segmentation
from numpy.typing import NDArray
from pytorch_lightning.plugins import MixedPrecision
from pytorch_lightning.plugins.environments import LightningEnvironment
from scipy.optimize import minimize_scalar, nnls
from small_runs import forking, train
from torch import Tensor, nn
from twoheads import CLASSES, TwoHeads, cut, fit, images, module, parameters

from skinmtl.balancing.gradients import MGDA, CAGrad, Gradients, GradNorm, PCGrad, Sum, TaskGradients, UPGrad, cosine
from skinmtl.balancing.weighting import Fixed, Geometric, Uncertainty
from skinmtl.data.transforms import derive_seed
from skinmtl.distributed import collectives
from skinmtl.distributed.launch import together
from skinmtl.errors import ConfigError
from skinmtl.losses import BCE, CrossEntropy
from skinmtl.runs import checkpoints
from skinmtl.training.lightning_module import MultiTaskModule
from skinmtl.training.optim import Constant
from skinmtl.types import Batch

TASKS = ("seg", "cls")
Rows = NDArray[np.float64]  # (2, P): the tasks' gradients


def make(name: str, every: int = 0) -> Gradients:
    kinds = {"sum": Sum, "apart": Apart, "pcgrad": PCGrad, "cagrad": CAGrad, "mgda": MGDA, "upgrad": UPGrad}
    return GradNorm(cosine_every=every, tasks=TASKS) if name == "gradnorm" else kinds[name](cosine_every=every)


class Apart(Gradients):
    """The plain sum, but of gradients taken apart."""

    def combine(self, inner: Tensor, losses: Tensor) -> Tensor:
        return torch.ones_like(inner[0])


# ---- The closed forms, each against what its paper says, solved by somebody else ----


def pcgrad(g: Rows) -> Rows:
    """The paper's algorithm, loop for loop."""
    changed = []
    for i, j in ((0, 1), (1, 0)):
        dot = g[i] @ g[j]
        changed.append(g[i] - dot / (g[j] @ g[j]) * g[j] if dot < 0 else g[i])
    return changed[0] + changed[1]


def upgrad(g: Rows) -> Rows:
    """Mean of projections onto {x: g x >= 0}, each by its dual: the smallest |g_i + g^T v| over v >= 0."""
    return np.mean([own + g.T @ nnls(g.T, -own)[0] for own in g], axis=0)


def mgda(g: Rows) -> Rows:
    """The shortest point of the segment between the gradients: of w >= 0 with a costly penalty on sum(w) != 1."""
    scale = 1e4 * np.abs(g).max()
    w, _ = nnls(np.vstack([g.T, np.full((1, 2), scale)]), np.append(np.zeros(g.shape[1]), scale))
    return w @ g / w.sum()


def cagrad(g: Rows, c: float = 0.4) -> Rows:
    """The dual of the paper, over a line."""
    mean, radius = g.mean(0), c * np.linalg.norm(g.mean(0))
    mixed = lambda w: w * g[0] + (1 - w) * g[1]  # noqa: E731
    cost = lambda w: mixed(w) @ mean + radius * np.linalg.norm(mixed(w))  # noqa: E731
    best = min([0.0, 1.0, minimize_scalar(cost, bounds=(0, 1), method="bounded", options={"xatol": 1e-12}).x], key=cost)
    return mean + radius * mixed(best) / np.linalg.norm(mixed(best))


REFERENCES: dict[str, Callable[[Rows], Rows]] = {"pcgrad": pcgrad, "upgrad": upgrad, "mgda": mgda, "cagrad": cagrad}


def pairs() -> list[Rows]:
    """Pairs at every angle, with lengths from alike to a thousandfold."""
    rng, found = np.random.default_rng(0), []
    for angle in np.linspace(0.05, np.pi - 0.05, 12):
        for ratio in (1.0, 0.3, 7.0, 1e3):
            first, other = rng.normal(size=(2, 6))
            first /= np.linalg.norm(first)
            other -= other @ first * first
            other /= np.linalg.norm(other)
            found.append(np.stack([first, ratio * (np.cos(angle) * first + np.sin(angle) * other)]))
    return found


def combined(method: Gradients, g: Rows) -> Rows:
    return np.asarray(method.combine(torch.from_numpy(g @ g.T), torch.ones(len(g)))) @ g


@pytest.mark.parametrize("name", REFERENCES)
def test_a_closed_form_is_what_a_solver_finds(name: str) -> None:
    method, others = make(name), [reference for other, reference in REFERENCES.items() if other != name]
    for g in pairs():
        np.testing.assert_allclose(combined(method, g), REFERENCES[name](g), atol=1e-5 * np.abs(g).max())
    assert all(any(not np.allclose(combined(method, g), other(g), rtol=1e-2) for g in pairs()) for other in others)


def test_of_two_gradients_upgrad_takes_half_of_pcgrad() -> None:
    for g in pairs():
        np.testing.assert_allclose(2 * combined(UPGrad(), g), combined(PCGrad(), g))


@pytest.mark.parametrize("name", REFERENCES)
def test_torchjd_agrees(name: str) -> None:
    from torchjd import aggregation

    if (
        name == "cagrad"
    ):  # torchjd solves a convex program for it; ours is held to `cagrad` above, a search, in any case
        pytest.importorskip("cvxpy")
    made = {"pcgrad": "PCGrad", "upgrad": "UPGrad", "mgda": "MGDA", "cagrad": "CAGrad"}[name]
    method = getattr(aggregation, made)(**({"c": 0.4} if name == "cagrad" else {}))
    if name == "upgrad":  # what it adds to the inner products would show where one gradient is far longer
        method.gramian_weighting.projector.reg_eps = 1e-12
    for g in pairs():
        theirs = method(torch.from_numpy(g))
        np.testing.assert_allclose(combined(make(name), g), theirs, atol=1e-3 * np.abs(g).max())


@pytest.mark.parametrize("name", [*REFERENCES, "gradnorm"])
def test_edges_are_finite_and_a_task_without_gradient_leaves_the_other_alone(name: str) -> None:
    one, zero = np.array([3.0, 4.0]), np.zeros(2)
    for g in ([one, zero], [zero, one]):
        np.testing.assert_allclose(combined(make(name), np.array(g)), one)
    np.testing.assert_allclose(combined(make(name), np.array([zero, zero])), zero)
    for g in ([one, one], [one, -one], [one, -2 * one], [one, 1e-9 * one]):
        assert np.isfinite(combined(make(name), np.array(g))).all(), g
    agree = combined(make(name), np.array([one, one]))
    halves = {"pcgrad": 2, "gradnorm": 2, "cagrad": 1.4}
    np.testing.assert_allclose(agree, halves.get(name, 1) * one)


def test_gradnorm_moves_against_the_derivative_of_the_papers_loss() -> None:
    method = GradNorm(alpha=1.5, rate=0.025, tasks=TASKS)
    bare, weights, first = np.array([2.0, 0.5]), np.ones(2), np.array([1.0, 2.0])
    for step, now in enumerate(np.array([[1.0, 2.0], [0.9, 1.0], [0.9, 0.4], [0.2, 0.4]])):
        lengths = weights * bare * (1 + step / 10)
        ratio = now / first
        target = lengths.mean() * (ratio / ratio.mean()) ** 1.5

        def cost(w: Rows, long: Rows = bare * (1 + step / 10), target: Rows = target) -> float:
            return float(np.abs(w * long - target).sum())

        slope = [(cost(weights + h) - cost(weights - h)) / 2e-6 for h in 1e-6 * np.eye(2)]
        assert method.combine(torch.from_numpy(np.diag(lengths**2)), torch.tensor(now)).tolist() == [1, 1]
        weights = weights - 0.025 * np.array(slope) / lengths.mean()
        weights *= 2 / weights.sum()
        np.testing.assert_allclose(method.weight, weights, rtol=1e-5)
    assert abs(weights[0] - weights[1]) > 0.05
    kept = method.weight.clone()
    for bad in ([np.inf, 1.0], [np.nan, 1.0], [0.0, 1.0]):
        method.combine(torch.diag(torch.tensor(bad, dtype=torch.float64)), torch.ones(2))
        assert torch.equal(method.weight, kept), "what float16 cannot hold teaches nothing"


# ---- Gradients taken apart ----


def terms_of(network: nn.Module, batch: Batch) -> dict[str, Tensor]:
    one = module()
    logits = network(batch["image"])
    return {name: one.tasks[name].loss(logits[name], batch) for name in TASKS}  # type: ignore[union-attr,operator]


def test_each_head_is_passed_once_and_the_encoder_once_a_task() -> None:
    network, passes = TwoHeads(), {"encoder": 0, "mask_head": 0, "class_head": 0}

    def count(name: str) -> Callable[..., None]:
        def hook(*_: object) -> None:
            passes[name] += 1

        return hook

    # The first convolution asks for no gradient of the image, and of its last stage a hook sees every pass.
    for name, part in (("encoder", network.encoder[3]), *((n, getattr(network, n)) for n in list(passes)[1:])):
        part.register_full_backward_hook(count(name))
    batch = images(4)
    terms = terms_of(network, batch)
    apart = TaskGradients(network.encoder)
    apart.backward(sum(terms.values()), list(terms.values()), torch.ones(2), torch.ones(2))
    assert passes == {"encoder": 2, "mask_head": 1, "class_head": 1}

    for i, name in enumerate(TASKS):
        alone = TwoHeads()
        terms_of(alone, batch)[name].backward()
        for mine, theirs in zip(apart._sums[i], alone.encoder.parameters(), strict=True):
            torch.testing.assert_close(mine, theirs.grad)
            assert mine is not None and mine.stride() == theirs.stride(), "as an optimiser expects it"
    both = TwoHeads()
    sum(terms_of(both, batch).values()).backward()  # type: ignore[union-attr]
    for name, parameter in network.named_parameters():
        if name.startswith("encoder"):
            assert parameter.grad is None
        else:
            torch.testing.assert_close(parameter.grad, both.get_parameter(name).grad)

    rows = [torch.cat([g.flatten() for g in task if g is not None]) for task in apart._sums]
    inner = torch.stack([torch.stack([(a.double() * b.double()).sum() for b in rows]) for a in rows])
    torch.testing.assert_close(apart.inner(), inner, rtol=1e-5, atol=1e-9)
    expected = torch.nn.functional.cosine_similarity(rows[0], rows[1], 0).item()
    assert cosine(apart.inner()) == pytest.approx(expected, abs=1e-6)
    assert cosine(torch.zeros(2, 2)) is None


def plain_loop(name: str, batches: list[Batch], weights: tuple[float, float] = (1.0, 1.0)) -> Tensor:
    """The parameters after one pass, by autograd and the references above, in float64 where they combine."""
    network = TwoHeads().train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    encoder, heads = list(network.encoder.parameters()), [*network.mask_head.parameters()]
    heads += network.class_head.parameters()
    learned, first = np.ones(2), np.zeros(0)
    for batch in batches:
        losses = terms_of(network, batch)
        used = [w * own * loss for w, own, loss in zip(weights, learned, losses.values(), strict=True)]
        tasks = [torch.autograd.grad(loss, encoder, retain_graph=True) for loss in used]
        rows = np.stack([np.concatenate([g.double().numpy().ravel() for g in task]) for task in tasks])
        for parameter, own in zip(heads, torch.autograd.grad(sum(used), heads), strict=True):  # type: ignore[type-var]
            parameter.grad = own
        total = REFERENCES.get(name, lambda g: g.sum(0))(rows)
        start = 0
        for parameter in encoder:
            part = total[start : start + parameter.numel()].reshape(parameter.shape)
            parameter.grad = torch.empty_like(parameter).copy_(torch.from_numpy(part))
            start += parameter.numel()
        if name == "gradnorm":
            now = np.array([loss.item() for loss in losses.values()])
            first = first if first.size else now
            lengths, ratio = np.linalg.norm(rows, axis=1), now / first
            aim = lengths.mean() * (ratio / ratio.mean()) ** 1.5
            learned = learned - 0.025 * np.sign(lengths - aim) * lengths / learned / lengths.mean()
            learned *= 2 / learned.sum()
        optimizer.step()
    return parameters(network)


METHODS = ("apart", "pcgrad", "cagrad", "mgda", "upgrad", "gradnorm")


@pytest.mark.parametrize("name", METHODS)
def test_training_is_that_of_a_plain_loop(name: str) -> None:
    batches = [images(6, seed, masks=(1, 1, 0), diagnoses=(1, 0)) for seed in range(4)]
    one = module(Fixed(seg=1.5), make(name))
    fit(one, batches)
    torch.testing.assert_close(parameters(one.network), plain_loop(name, batches, (1.5, 1.0)), rtol=1e-4, atol=1e-5)
    if name != "apart":
        assert (plain_loop(name, batches) - plain_loop("apart", batches)).abs().max() > 1e-3, "which is not the sum's"


def test_the_sum_taken_apart_is_the_sum_whatever_the_weighting() -> None:
    batches = [images(6, seed) for seed in range(3)]
    for weighting in (Fixed, partial(Uncertainty, tasks=TASKS), partial(Geometric, tasks=TASKS)):
        whole, apart = module(weighting(), Sum()), module(weighting(), Apart())
        fit(whole, batches)
        fit(apart, batches)
        torch.testing.assert_close(parameters(whole), parameters(apart), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["sum", "pcgrad", "gradnorm"])
def test_with_one_task_every_method_is_plain_training(name: str) -> None:
    batches = [images(6, seed) for seed in range(2)]
    plain, one = module(tasks=["cls"]), module(tasks=["cls"], gradients=make(name, every=1))
    fit(plain, batches)
    fit(one, batches)
    assert torch.equal(parameters(plain), parameters(one))
    assert plain.state_dict().keys() == one.state_dict().keys()


def test_a_frozen_encoder_leaves_the_heads_to_train() -> None:
    frozen = module(gradients=PCGrad(cosine_every=1))
    frozen.network.encoder.requires_grad_(False)  # type: ignore[union-attr]
    before = {name: p.clone() for name, p in frozen.network.named_parameters()}
    fit(frozen, [images(6)])
    assert {n for n, p in frozen.network.named_parameters() if not torch.equal(p, before[n])} == {
        n for n in before if "head" in n
    }


@pytest.mark.parametrize("name", METHODS)
def test_two_batches_of_one_step_are_one_batch_of_both(name: str) -> None:
    whole = [images(8, seed) for seed in range(3)]
    halves = [cut(batch, *half) for batch in whole for half in ((0, 4), (4, 8))]
    one, two, wrong = (module(gradients=make(name)) for _ in range(3))
    fit(one, whole)
    fit(two, halves, accumulate_grad_batches=2)
    torch.testing.assert_close(parameters(one), parameters(two), rtol=1e-4, atol=1e-5)
    fit(wrong, halves)
    assert not torch.allclose(parameters(one), parameters(wrong), rtol=1e-4, atol=1e-5)


# ---- Precision ----


class Scaled(MixedPrecision):
    """float16's scaler around float32 passes: a power of two changes no bit, so whatever differs is a mistake."""

    def __init__(self, scale: float) -> None:
        super().__init__("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=10**6))

    def autocast_context_manager(self) -> Any:  # noqa: ANN401
        return nullcontext()


@pytest.mark.filterwarnings("ignore:Detected call of .lr_scheduler.step..:UserWarning")  # the first step is left out
@pytest.mark.parametrize(("name", "fused"), [*((name, False) for name in METHODS), ("pcgrad", True)])
def test_float16s_scale_is_taken_back_and_an_overflow_is_no_step(name: str, fused: bool) -> None:
    batches = [images(6, seed) for seed in range(2)]
    optimizer = partial(torch.optim.SGD, lr=0.1, fused=fused)
    plain, scaled = (module(gradients=make(name), optimizer=optimizer) for _ in range(2))
    over = module(Fixed(seg=1e6), make(name), optimizer=optimizer)
    fit(plain, batches)
    fit(scaled, batches, plugins=[Scaled(2.0**10)])
    torch.testing.assert_close(parameters(scaled), parameters(plain), rtol=1e-6, atol=1e-7)
    before = parameters(over)
    fit(over, batches, plugins=[Scaled(2.0**127)])
    assert torch.equal(parameters(over), before)
    if name == "gradnorm":
        assert torch.equal(over.gradients.weight, torch.ones(2))
        assert not torch.equal(plain.gradients.weight, torch.ones(2))


class Dtypes(pl.Callback):
    """The types of the gradients that the optimiser gets."""

    def __init__(self) -> None:
        self.seen: set[torch.dtype] = set()

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: object) -> None:
        self.seen |= {p.grad.dtype for p in pl_module.parameters() if p.grad is not None}


@pytest.mark.parametrize("name", METHODS)
def test_under_bf16_autocast_gradients_are_float32_and_near(name: str) -> None:
    batches = [images(6, seed) for seed in range(2)]
    plain, mixed, dtypes = module(gradients=make(name)), module(gradients=make(name)), Dtypes()
    start = parameters(plain)
    fit(plain, batches)
    fit(mixed, batches, precision="bf16-mixed", callbacks=[dtypes])
    moved, other = parameters(plain) - start, parameters(mixed) - start
    assert dtypes.seen == {torch.float32}
    assert 1e-4 < (moved - other).norm() / moved.norm() < 0.1, "near, and by its rounding another"


# ---- The cosine ----


def logged(path: Path) -> pd.Series:
    table = pd.read_csv(path)
    return table.dropna(subset=["gradients/cosine"]).set_index("step")["gradients/cosine"]


@pytest.mark.parametrize("name", ["sum", "pcgrad"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_looking_at_the_cosine_changes_no_bit(name: str, accumulate: int, tmp_path: Path) -> None:
    batches = [images(6, seed) for seed in range(6)]
    blind, seeing = module(gradients=make(name)), module(gradients=make(name, every=2))
    options = {"accumulate_grad_batches": accumulate, "log_every_n_steps": 5}
    fit(blind, batches, 2, tmp_path / "blind.csv", **options)
    fit(seeing, batches, 2, tmp_path / "seeing.csv", **options)
    assert torch.equal(parameters(blind), parameters(seeing))
    assert "gradients/cosine" not in pd.read_csv(tmp_path / "blind.csv")
    values = logged(tmp_path / "seeing.csv")
    assert values.index.tolist() == list(range(1, 12 // accumulate, 2))
    assert values.between(-1, 1).all() and values.nunique() == len(values)


def test_the_cosine_is_that_of_the_tasks_gradients_whatever_the_method(tmp_path: Path) -> None:
    batch = images(8)
    network = TwoHeads()
    terms = terms_of(network, batch)
    rows = [
        torch.cat([g.flatten() for g in torch.autograd.grad(t, list(network.encoder.parameters()), retain_graph=True)])
        for t in terms.values()
    ]
    expected = torch.nn.functional.cosine_similarity(rows[0], rows[1], 0).item()
    for name in ("sum", *METHODS):
        fit(module(Fixed(seg=3.0), make(name, 1)), [batch], metrics=tmp_path / f"{name}.csv", log_every_n_steps=50)
        assert logged(tmp_path / f"{name}.csv").tolist() == pytest.approx([expected], abs=1e-5), name
    halves = [cut(batch, 0, 4), cut(batch, 4, 8)]
    fit(module(gradients=make("sum", 1)), halves, metrics=tmp_path / "halves.csv", accumulate_grad_batches=2)
    assert logged(tmp_path / "halves.csv").tolist() == pytest.approx([expected], abs=1e-5)


def test_a_run_of_the_real_network_logs_its_weights_and_its_cosine(synthetic_root: Path, tmp_path: Path) -> None:
    words = ["weighting=uncertainty", "gradients=pcgrad", "gradients.cosine_every=2", "callbacks=ema"]
    run = train(tmp_path / "run", synthetic_root, [*words, "trainer.precision=32-true", "evaluate=false"])
    log = pd.read_csv(run.path / "metrics.csv")
    assert logged(run.path / "metrics.csv").index.tolist() == [1]
    assert log["weight/seg"].count() == log["weight/cls"].count() == 1 and log["weight/seg"].min() != 1
    state = checkpoints.load(run.checkpoint("last"))["state_dict"]
    assert state["weighting.log_variance"].abs().min() > 0
    assert run.info()["status"] == "finished"


# ---- Two processes ----


def half_held(name: str) -> Any:  # noqa: ANN401
    """A module of whose encoder the first parameter is held still, though it is given gradients."""
    one = module(gradients=make(name))
    first = next(one.network.encoder.parameters())
    one.hold({first})

    def forget(*_: object) -> None:
        first.grad = None

    one.on_before_optimizer_step = forget  # type: ignore[method-assign]
    return one


LABELS = {"masks": (1, 1, 1, 1, 0, 0, 1, 0), "diagnoses": (1, 1, 1, 1, 0, 1, 0, 0)}  # four and two, four and one
TOGETHER = {
    **{name: partial(module, gradients=make(name)) for name in METHODS},
    "sum": partial(module, gradients=Sum(cosine_every=1)),
    "uncertainty and pcgrad": partial(module, Uncertainty(tasks=TASKS), PCGrad(cosine_every=1)),
    "geometric": partial(module, Geometric(tasks=TASKS)),
    "geometric and cagrad": partial(module, Geometric(tasks=TASKS), CAGrad()),
    **{f"held and {name}": partial(half_held, name) for name in ("gradnorm", "mgda")},
}


def steps() -> list[Batch]:
    return [images(8, seed, **LABELS) for seed in range(3)]


def half(name: str, folder: Path, rank: int, accumulate: int = 1) -> Tensor:
    """What one of two processes makes of its half of every batch, or of its quarters."""
    one, size = TOGETHER[name](), 4 // accumulate
    starts = [4 * rank + size * part for part in range(accumulate)]
    mine = [cut(batch, start, start + size) for batch in steps() for start in starts]
    fit(
        one, mine, metrics=folder / f"{name}.csv" if rank == 0 else None, devices=2, strategy="ddp",
        plugins=[LightningEnvironment()], accumulate_grad_batches=accumulate,
    )  # fmt: skip
    return parameters(one)


def look(folder: Path, meeting: Path, rank: int, world_size: int, device: str) -> None:
    """What one of two processes does; the answers go to a file."""
    collectives.join(meeting, rank, world_size, device)
    found = {name: half(name, folder, rank) for name in TOGETHER}
    found["pcgrad in quarters"] = half("pcgrad", folder, rank, accumulate=2)
    exact, TaskGradients.average = TaskGradients.average, lambda *_: None  # type: ignore[method-assign,assignment]
    found["control"] = half("pcgrad", folder, rank)
    TaskGradients.average = exact  # type: ignore[method-assign]
    torch.save(found, folder / f"{rank}.pt")
    collectives.leave()


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Mapping[str, Tensor]], Path]:
    """What each of two processes found, which ran once for all tests."""
    folder = tmp_path_factory.mktemp("two")
    with forking():
        together(partial(look, folder), ["cpu", "cpu"], folder)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)], folder


@pytest.mark.parametrize("name", TOGETHER)
def test_two_processes_train_as_one(two: tuple[list[Mapping[str, Tensor]], Path], name: str, tmp_path: Path) -> None:
    found, folder = two
    alone = TOGETHER[name]()
    fit(alone, steps(), metrics=tmp_path / "alone.csv")
    assert torch.equal(found[0][name], found[1][name])
    torch.testing.assert_close(found[0][name], parameters(alone), rtol=1e-4, atol=1e-5)
    if alone.gradients.cosine_every == 1:
        theirs = logged(folder / f"{name}.csv")
        np.testing.assert_allclose(theirs, logged(tmp_path / "alone.csv"), atol=1e-4)
        assert len(theirs) == 3


def test_each_processs_own_gradients_would_not_do(two: tuple[list[Mapping[str, Tensor]], Path]) -> None:
    (first, second), _ = two
    assert not torch.allclose(first["control"], first["pcgrad"], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(first["control"], second["control"], rtol=1e-4, atol=1e-5)

    # In one process, a batch of the two that hold a quarter at a time.
    quarters, both = module(gradients=make("pcgrad")), [(0, 1, 4, 5), (2, 3, 6, 7)]
    batches = [{key: value[list(rows)] for key, value in batch.items()} for batch in steps() for rows in both]
    fit(quarters, batches, accumulate_grad_batches=2)  # type: ignore[arg-type]
    torch.testing.assert_close(first["pcgrad in quarters"], parameters(quarters), rtol=1e-4, atol=1e-5)


def triples() -> list[Rows]:
    """Threes and fours of gradients that conflict and agree, of like and of unlike lengths."""
    rng = np.random.default_rng(2)
    found = [rng.normal(size=(count, 4)) for count in (3, 3, 3, 3, 4, 4)]
    return [*found, *(g * np.array([1.0, 5.0, 0.2, 1.0])[: len(g), None] for g in found)]


@pytest.mark.parametrize("name", ["pcgrad", "upgrad", "mgda"])
def test_torchjd_agrees_on_more_tasks_than_two(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchjd import aggregation

    theirs: Any = {
        "pcgrad": aggregation.PCGrad(),
        "upgrad": aggregation.UPGrad(),
        "mgda": aggregation.MGDA(epsilon=1e-8, max_iters=20000),
    }[name]
    if name == "upgrad":  # what it adds to the inner products would show
        theirs.gramian_weighting.projector.reg_eps = 1e-12
    method = make(name)
    for chance, g in enumerate(triples()):
        method.start_step(chance)
        orders = iter([])
        if name == "pcgrad":
            rng = np.random.default_rng(chance)
            orders = iter([torch.from_numpy(rng.permutation(len(g))) for _ in g])
        monkeypatch.setattr(torch, "randperm", lambda *_, orders=orders, **__: next(orders))
        expected = theirs(torch.from_numpy(g)).numpy()
        # torchjd's MGDA comes near by ever smaller steps; that ours is exact is shown below.
        near = {"pcgrad": 1e-12, "upgrad": 1e-6, "mgda": 2e-3}[name] * np.abs(g).max()
        np.testing.assert_allclose(combined(method, g), expected, rtol=0, atol=near)
    assert any(not np.allclose(combined(method, g), g.sum(0), rtol=1e-2) for g in triples()), "their plain sum is none"


def test_pcgrad_of_more_tasks_takes_them_in_an_order_that_the_step_draws() -> None:
    method, steps = PCGrad(), []
    angle = np.deg2rad([0, 100, 215])  # all in conflict
    g = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    for chance in (0, 1, 2, 3, 0):
        method.start_step(chance)
        steps.append(combined(method, g))
    np.testing.assert_array_equal(steps[0], steps[4])
    assert any(not np.allclose(steps[0], step) for step in steps[1:4])


def test_mgda_of_more_tasks_is_the_shortest_of_all_mixtures() -> None:
    draw = np.random.default_rng(3)
    for g in triples():
        shortest = np.linalg.norm(combined(MGDA(), g))
        mixtures = draw.dirichlet(np.full(len(g), 0.5), 2000) @ g
        assert shortest <= np.linalg.norm(mixtures, axis=1).min() + 1e-9
        assert (g @ combined(MGDA(), g)).min() >= shortest**2 - 1e-6 * np.abs(g).max() ** 2


@pytest.mark.parametrize("gradients", [pairs, triples])
def test_cagrad_serves_the_task_that_gains_least_as_no_other_step_within_reach_does(
    gradients: Callable[[], list[Rows]],
) -> None:
    draw = np.random.default_rng(4)
    for g in gradients():
        step, mean = combined(CAGrad(0.4), g), g.mean(0)
        radius = 0.4 * np.linalg.norm(mean)
        assert np.linalg.norm(step - mean) == pytest.approx(radius)
        aside = draw.normal(size=(2000, g.shape[1]))
        others = mean + radius * aside / np.linalg.norm(aside, axis=1, keepdims=True)
        assert (others @ g.T).min(1).max() <= (g @ step).min() + 1e-9
        np.testing.assert_allclose(combined(CAGrad(0.0), g), mean)


def unlike(count: int) -> list[Rows]:
    """Gradients in fewer dimensions than there are of them, as many and more, with lengths up to a thousandfold."""
    rng = np.random.default_rng(count)
    sizes = [(dimensions, ratio) for dimensions in (count - 1, count, 12) for ratio in (1.0, 30.0, 1e3)]
    lengths = [ratio ** rng.uniform(-0.5, 0.5, size=(count, 1)) for _, ratio in sizes]
    return [rng.normal(size=(count, d)) * length for (d, _), length in zip(sizes, lengths, strict=True)]


@pytest.mark.parametrize("count", [3, 4, 6])
def test_mgda_and_cagrad_of_more_tasks_meet_what_only_an_optimum_meets(count: int) -> None:
    short, best, control = [], [], []
    for g in unlike(count):
        inner, scale = torch.from_numpy(g @ g.T), np.square(g).sum(1).max()
        for name, found in (("mgda", short), ("upgrad", control)):
            x = combined(make(name), g)  # no gradient is nearer to 0 along the shortest point of their hull
            found.append((x @ x - (g @ x).min()) / scale)
        # The least gain of the best step is as large as the dual, which no step's can pass.
        c = np.asarray(CAGrad(0.4).combine(inner, torch.ones(count)))
        w, mean = (c - 1 / count) / (c - 1 / count).sum(), g.mean(0)
        radius = 0.4 * np.linalg.norm(mean)
        assert w.min() >= -1e-12
        assert np.linalg.norm(c @ g - mean) == pytest.approx(radius)
        best.append(((w @ g) @ mean + radius * np.linalg.norm(w @ g) - (g @ (c @ g)).min()) / scale)
    assert max(short) < 1e-12 and np.abs(best).max() < 1e-12
    assert max(control) > 1e-3, "another method's point is not the shortest"


@pytest.mark.parametrize("name", REFERENCES)
def test_three_gradients_that_leave_nothing_to_choose_are_combined(name: str) -> None:
    one, other = np.array([3.0, 4.0]), np.array([-4.0, 3.0])
    for g in ([one, -one, other], [one, -2 * one, 1e-9 * other], [one, other, -one - other], [one, one, 1e-12 * one]):
        assert np.isfinite(combined(make(name), np.array(g))).all(), g
    agree = {"pcgrad": 3, "cagrad": 1.4}
    np.testing.assert_allclose(combined(make(name), np.array([one, one, one])), agree.get(name, 1) * one)


@pytest.mark.parametrize("name", REFERENCES)
def test_a_solver_of_several_finds_what_the_closed_form_of_two_does(name: str) -> None:
    method: Any = make(name)
    for g in pairs():
        inner = g @ g.T
        scale = inner.diagonal().max()
        several = method.of_several(inner / scale) @ g
        np.testing.assert_allclose(several, combined(method, g), atol=1e-4 * np.abs(g).max())


@pytest.mark.parametrize("name", [*REFERENCES, "gradnorm"])
def test_of_three_tasks_one_without_gradient_leaves_the_others_as_two(name: str) -> None:
    rng = np.random.default_rng(5)
    two, zero = rng.normal(size=(2, 6)), np.zeros((1, 6))
    method = GradNorm(cosine_every=0, tasks=("a", "b", "c")) if name == "gradnorm" else make(name)
    expected = two.sum(0) if name == "gradnorm" else combined(make(name), two)
    np.testing.assert_allclose(combined(method, np.vstack([two, zero])), expected, atol=1e-4)
    np.testing.assert_allclose(combined(method, np.vstack([two[:1], zero, zero])), two[0])
    np.testing.assert_allclose(combined(method, np.zeros((3, 6))), 0)


def test_three_tasks_are_refused_by_a_method_of_ones_own_that_is_written_for_two() -> None:
    with pytest.raises(ConfigError, match=r"gradients: Apart compares the gradients of two tasks, not of 3; fix: use"):
        three(Apart())
    for name in (*REFERENCES, "sum"):
        assert three(make(name, 50)).gradients.cosine_every == 50


THREE = (*TASKS, "site")


class ThreeHeads(TwoHeads):
    """With a second class of the image."""

    def __init__(self) -> None:
        super().__init__()
        self.site_head = nn.Linear(4, len(CLASSES))

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        features = self.encoder(image.float() / 64 - 2)
        pooled = features.mean((2, 3))
        return {"seg": self.mask_head(features), "cls": self.class_head(pooled), "site": self.site_head(pooled)}


def three(method: Gradients) -> MultiTaskModule:
    """A module of three tasks, as somebody makes one from Python."""
    classes = [classification(CrossEntropy(class_counts=[1, 1, 1]), CLASSES, name) for name in THREE[1:]]
    tasks = [segmentation(BCE()), *classes]
    step = {"seed": 0, "total_steps": 1, "steps_per_epoch": 1, "facts": {}}
    optimizer = partial(torch.optim.SGD, lr=0.1)
    return MultiTaskModule(ThreeHeads(), tasks, Fixed(), optimizer, Constant(), gradients=method, **step)


@pytest.mark.parametrize("name", ["sum", *METHODS])
def test_three_tasks_are_trained_as_the_method_says(name: str, tmp_path: Path) -> None:
    method = GradNorm(cosine_every=1, tasks=THREE) if name == "gradnorm" else make(name, every=1)
    if name == "apart":
        method.of_many = True  # type: ignore[misc]
    one, batch = three(method), images(6)
    batch["site"] = torch.randint(0, 3, (6,), generator=torch.Generator().manual_seed(1))
    encoder = list(one.network.encoder.parameters())  # type: ignore[union-attr,arg-type]
    before, logits = torch.cat([p.detach().flatten() for p in encoder]), one.network(batch["image"])
    losses = [task(logits[key], batch) for key, task in one.tasks.items()]
    tasks = [torch.autograd.grad(loss, encoder, retain_graph=True) for loss in losses]
    rows = np.stack([np.concatenate([g.double().numpy().ravel() for g in task]) for task in tasks])
    fit(one, [batch], metrics=tmp_path / "metrics.csv")
    step = (before - torch.cat([p.detach().flatten() for p in encoder])).numpy() / 0.1
    reference = make("sum" if name == "gradnorm" else name)
    reference.start_step(derive_seed(0, 0))
    np.testing.assert_allclose(step, combined(reference, rows), atol=2e-5 * np.abs(rows).max())
    if name in REFERENCES:
        assert not np.allclose(step, rows.sum(0), atol=1e-3 * np.abs(rows).max()), "which is not the sum's"

    # The cosine of each two, and their mean.
    table = pd.read_csv(tmp_path / "metrics.csv")
    angles = rows @ rows.T / np.outer(*[np.linalg.norm(rows, axis=1)] * 2)
    each = {f"gradients/cosine/{THREE[i]}/{THREE[j]}": angles[i, j] for i, j in ((0, 1), (0, 2), (1, 2))}
    for key, value in {**each, "gradients/cosine": np.mean(list(each.values()))}.items():
        assert table[key].dropna().tolist() == pytest.approx([value], abs=1e-4), key
