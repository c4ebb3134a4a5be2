"""Each weighting against NumPy, SciPy or autograd; what it remembers; what a run logs and draws of it."""

from __future__ import annotations

import itertools
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
from fakes import curves_of, metrics
from omegaconf import OmegaConf
from scipy.optimize import minimize
from scipy.stats import gmean
from small_runs import CONF
from torch import Tensor
from twoheads import Batches, cut, fit, images, module, parameters

from skinmtl.balancing.gradients import GradNorm
from skinmtl.balancing.weighting import DWA, Fixed, Geometric, Random, Uncertainty, Weighting
from skinmtl.config.build import build
from skinmtl.training.quiet import calm
from skinmtl.types import Batch

TASKS = ("seg", "cls")
LEARNED = {"uncertainty": Uncertainty, "dwa": DWA, "geometric": Geometric, "random": Random}


def losses(seg: float, cls: float) -> dict[str, Tensor]:
    return {"seg": torch.tensor(seg, requires_grad=True), "cls": torch.tensor(cls, requires_grad=True)}


def gradient(weighting: Weighting, of: dict[str, Tensor]) -> list[float]:
    return [float(g) for g in torch.autograd.grad(weighting(of), list(of.values()))]


def test_fixed_weights_are_those_given() -> None:
    weighting = Fixed(seg=0.5, cls=3.0)
    of = losses(0.8, 1.5)
    assert weighting(of).item() == pytest.approx(0.5 * 0.8 + 3 * 1.5)
    assert gradient(weighting, of) == [0.5, 3.0]
    assert weighting.weights() == {"seg": 0.5, "cls": 3.0}


def test_uncertainty_is_the_papers_sum_and_rests_where_scipy_finds_its_minimum() -> None:
    weighting = Uncertainty(tasks=TASKS)
    of, s = losses(0.8, 3.0), np.array([0.3, -0.7])
    with torch.no_grad():
        weighting.log_variance.copy_(torch.tensor(s))
    sigma = np.exp(s / 2)
    expected = np.sum([0.8, 3.0] / sigma**2 + np.log(sigma))
    assert weighting(of).item() == pytest.approx(expected, rel=1e-6)
    assert gradient(weighting, of) == pytest.approx(list(1 / sigma**2), rel=1e-6)
    weighting(of).backward()
    assert weighting.log_variance.grad is not None
    np.testing.assert_allclose(weighting.log_variance.grad, -np.array([0.8, 3.0]) / sigma**2 + 0.5, rtol=1e-6)
    best = minimize(lambda s: np.sum(np.exp(-s) * [0.8, 3.0] + s / 2), np.zeros(2)).x
    np.testing.assert_allclose(np.exp(-best), [1 / 1.6, 1 / 6.0], rtol=1e-4)  # as its docstring says


def test_dwa_is_the_papers_average_of_epochs() -> None:
    weighting = DWA(2.0, tasks=TASKS)
    epochs = np.array([[1.0, 2.0], [0.5, 1.9], [0.4, 1.0], [0.4, 0.2]])
    seen = [[float(w) for w in weighting.weights().values()]]
    for seg, cls in epochs:
        weighting.end_epoch(losses(seg, cls))
        seen.append([float(w) for w in weighting.weights().values()])
    expected = [np.ones(2), np.ones(2)]
    for last, before in zip(epochs[1:], epochs[:-1], strict=True):
        e = np.exp(last / before / 2.0)
        expected.append(2 * e / e.sum())
    np.testing.assert_allclose(seen, expected, rtol=1e-6)
    assert seen[2][1] > 1.1, "the diagnosis fell less in the second epoch"


def test_geometric_is_scipys_mean_and_autograds_gradient() -> None:
    weighting = Geometric(tasks=TASKS)
    of = losses(0.2, 5.0)
    assert weighting(of).item() == pytest.approx(gmean([0.2, 5.0]))
    mean = torch.stack(list(of.values())).log().mean().exp()
    expected = [float(g) for g in torch.autograd.grad(mean, list(of.values()))]
    assert gradient(weighting, of) == pytest.approx(expected, rel=1e-6)
    assert [float(w) for w in weighting.weights().values()] == pytest.approx(expected, rel=1e-6)
    scaled = losses(0.2 * 1000, 5.0)
    shares = [g * v.item() for g, v in zip(gradient(weighting, scaled), scaled.values(), strict=True)]
    assert shares[0] == pytest.approx(shares[1]), "scales do not matter"


def test_every_weighting_of_three_tasks_is_its_formula() -> None:
    names, values = ("seg", "cls", "age"), np.array([0.2, 5.0, 1.5])
    of = {name: torch.tensor(value, dtype=torch.float64) for name, value in zip(names, values, strict=True)}
    assert float(Fixed(cls=0.5, age=2.0)(of)) == pytest.approx(0.2 + 2.5 + 3.0), "1 where none is given"
    assert float(Geometric(tasks=names)(of)) == pytest.approx(gmean(values))
    uncertainty, s = Uncertainty(tasks=names), np.array([0.3, -0.7, 0.1])
    with torch.no_grad():
        uncertainty.log_variance.copy_(torch.tensor(s))
    assert uncertainty(of).item() == pytest.approx(np.sum(np.exp(-s) * values + s / 2), rel=1e-6)
    dwa = DWA(2.0, tasks=names)
    for epoch in (values, values * [0.5, 0.9, 0.7]):
        dwa.end_epoch({name: torch.tensor(value) for name, value in zip(names, epoch, strict=True)})
    e = np.exp(np.array([0.5, 0.9, 0.7]) / 2.0)
    np.testing.assert_allclose([float(w) for w in dwa.weights().values()], 3 * e / e.sum(), rtol=1e-6)
    random, sampled = Random(tasks=names), []
    for chance in (0, 1):
        random.start_step(chance)
        sampled.append([float(w) for w in random.weights().values()])
        assert sum(sampled[-1]) == pytest.approx(1)
    assert sampled[0] != sampled[1] and len(set(sampled[0])) == 3


def seen(seg: bool, cls: bool) -> dict[str, Tensor]:
    return {"seg": torch.tensor(seg), "cls": torch.tensor(cls)}


def test_geometric_leaves_out_a_task_without_labels_and_lets_a_negative_loss_be_seen() -> None:
    weighting = Geometric(tasks=TASKS)
    weighting.see(seen(False, True))
    assert gradient(weighting, losses(0.0, 5.0)) == [0.0, 1.0]
    weighting.see(seen(False, False))
    assert gradient(weighting, losses(0.0, 0.0)) == [0.0, 0.0]
    weighting.see(seen(True, True))
    assert not torch.isfinite(weighting(losses(-0.1, 5.0)))


def test_random_weights_are_softmaxed_normals_and_a_function_of_the_step() -> None:
    one, other = Random(tasks=TASKS), Random(tasks=TASKS)
    drawn = []
    for chance in range(2000):
        one.start_step(chance)
        drawn.append([float(w) for w in one.weights().values()])
    other.start_step(1234)
    assert [float(w) for w in other.weights().values()] == drawn[1234] != drawn[1235]
    np.testing.assert_allclose(np.sum(drawn, 1), 1, atol=1e-6)
    logits = np.log(np.array(drawn)[:, 0] / np.array(drawn)[:, 1])  # the difference of two standard normal numbers
    assert abs(logits.mean()) < 4 * np.sqrt(2 / 2000)
    assert logits.std() == pytest.approx(np.sqrt(2), rel=0.07)


@pytest.mark.parametrize("name", LEARNED)
def test_one_task_is_weighed_by_one(name: str) -> None:
    weighting = LEARNED[name](tasks=("cls",))
    of = {"cls": torch.tensor(0.37, requires_grad=True)}
    for chance in range(3):
        weighting.start_step(chance)
        assert weighting(of).item() == of["cls"].item()
        assert torch.autograd.grad(weighting(of), [of["cls"]])[0] == 1
        weighting.end_epoch(of)
    assert not any(p.requires_grad for p in weighting.parameters())


class Watch(pl.Callback):
    """The weighting's state around each validation, and the loss of each training epoch."""

    def __init__(self) -> None:
        self.before: list[dict[str, Tensor]] = []
        self.after: list[dict[str, Tensor]] = []

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.before.append(state(pl_module))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.after.append(state(pl_module))


def state(one: pl.LightningModule) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in one.weighting.state_dict().items()}


@pytest.mark.parametrize("name", LEARNED)
def test_training_moves_the_weights_and_a_validation_does_not(name: str, tmp_path: Path) -> None:
    watch, one = Watch(), module(LEARNED[name](tasks=TASKS))
    batches, validate = [images(6, seed) for seed in range(2)], {"limit_val_batches": 1, "callbacks": [watch]}
    fit(one, batches, 3, tmp_path / "metrics.csv", **validate)
    assert len(watch.after) == 3
    for before, after in zip(watch.before, watch.after, strict=True):
        assert all(torch.equal(before[key], after[key]) for key in before)
    assert any(not torch.equal(watch.after[0][key], state(one)[key]) for key in state(one))
    log = pd.read_csv(tmp_path / "metrics.csv")
    epochs = log.dropna(subset=["weight/seg"])
    assert epochs["epoch"].tolist() == [0, 1, 2] and epochs["weight/cls"].notna().all()
    assert epochs["weight/seg"].nunique() == 3 - (name == "dwa"), "of dwa the first two epochs are alike"
    if name == "dwa":  # from the losses that the run itself has logged
        seg, cls = (log[f"train/{task}/loss"].dropna().to_numpy() for task in TASKS)
        e = np.exp(np.array([seg[1] / seg[0], cls[1] / cls[0]]) / 2)
        np.testing.assert_allclose(epochs[["weight/seg", "weight/cls"]].iloc[2], 2 * e / e.sum(), rtol=1e-5)


@pytest.mark.parametrize("name", [*LEARNED, "gradnorm"])
def test_a_run_that_goes_on_weighs_as_an_unbroken_one(name: str, tmp_path: Path) -> None:
    def fresh() -> pl.LightningModule:
        if name == "gradnorm":
            return module(gradients=GradNorm(tasks=TASKS))
        return module(LEARNED[name](tasks=TASKS))

    batches = [images(6, seed) for seed in range(2)]
    whole, first, second, forgetful = (fresh() for _ in range(4))
    fit(whole, batches, 3)
    fit(first, batches, 2).save_checkpoint(tmp_path / "half.ckpt")
    fit(second, batches, 3, checkpoint=tmp_path / "half.ckpt")
    assert torch.equal(parameters(second), parameters(whole))
    assert all(torch.equal(value, second.state_dict()[key]) for key, value in whole.state_dict().items())
    if name in ("random", "geometric"):
        return  # what they remember is for a validation alone
    kept = torch.load(tmp_path / "half.ckpt", weights_only=True)
    for key, value in forgetful.state_dict().items():
        if key.startswith(("weighting.", "gradients.")):
            kept["state_dict"][key] = value
    torch.save(kept, tmp_path / "half.ckpt")
    fit(forgetful, batches, 3, checkpoint=tmp_path / "half.ckpt")
    assert not torch.equal(parameters(forgetful), parameters(whole)), "without its memory it would weigh differently"


def test_learned_variances_take_no_weight_decay() -> None:
    optimizer = partial(torch.optim.SGD, lr=0.1, weight_decay=0.05)
    one = module(Uncertainty(tasks=TASKS), optimizer=optimizer)
    groups = one.configure_optimizers()["optimizer"].param_groups
    of = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert of.pop(id(one.weighting.log_variance)) == 0
    assert set(of) == {id(p) for p in one.network.parameters()} and set(of.values()) == {0.05}
    assert len(module(optimizer=optimizer).configure_optimizers()["optimizer"].param_groups) == 1


def test_weights_are_drawn_where_they_vary() -> None:
    log = metrics(4)
    first = log.groupby("epoch").cumcount() == 0
    constant = log.assign(**{"weight/seg": np.where(first, 1.0, np.nan), "weight/cls": np.where(first, 2.0, np.nan)})
    assert len(curves_of(constant).axes) == len(curves_of(log).axes) == 2
    moving = constant.assign(**{"weight/seg": np.where(first, 1 + log["epoch"] / 10, np.nan)})
    axes = curves_of(moving).axes
    lines = {str(line.get_label()): line for line in axes[2].lines}
    np.testing.assert_allclose(lines["mask"].get_ydata(), [1.0, 1.1, 1.2, 1.3])
    np.testing.assert_allclose(lines["diagnosis"].get_ydata(), [2.0] * 4)
    assert axes[2].get_ylabel() == "weight of the loss" and axes[2].get_xlabel() == "epoch"


def test_a_step_without_labels_of_a_task_moves_nothing_of_its_variance() -> None:
    weighting = Uncertainty(tasks=TASKS)
    weighting.see(seen(False, True))
    weighting({"seg": torch.tensor(0.0), "cls": torch.tensor(1.5)}).backward()
    assert weighting.log_variance.grad is not None
    assert weighting.log_variance.grad.tolist() == [0, 0.5 - 1.5]


def test_an_epoch_without_labels_of_a_task_is_no_progress() -> None:
    weighting = DWA(tasks=TASKS)
    for seg, cls in ((0.8, 1.0), (0.0, 1.0), (0.4, 1.0)):
        weighting.see(seen(seg > 0, True))
        weighting.end_epoch({"seg": torch.tensor(seg), "cls": torch.tensor(cls)})
        if seg == 0:
            assert weighting.weight.tolist() == [1, 1]
    expected = 2 * torch.softmax(torch.tensor([0.4 / 0.8, 1.0]) / 2, 0)
    torch.testing.assert_close(weighting.weight, expected)


def test_a_loss_of_zero_that_has_labels_is_a_loss() -> None:
    geometric, uncertainty, dwa = Geometric(tasks=TASKS), Uncertainty(tasks=TASKS), DWA(tasks=TASKS)
    for near in (0.0, 1e-12):
        of = losses(near, 5.0)
        assert geometric(of).item() == pytest.approx(gmean([near, 5.0]), abs=1e-9)
        assert gradient(geometric, of)[1] == pytest.approx(0, abs=1e-6), "as near zero, so at zero"
        uncertainty.zero_grad()
        uncertainty(of).backward()
        assert uncertainty.log_variance.grad is not None
        np.testing.assert_allclose(uncertainty.log_variance.grad, [0.5 - near, 0.5 - 5.0], rtol=1e-6)
    assert gradient(geometric, losses(0.0, 5.0)) == [0, 0]
    for seg in (0.8, 0.0, 0.4):
        dwa.end_epoch(losses(seg, 1.0))
        ratio = {0.8: 1.0, 0.0: 0.0, 0.4: 1.0}[seg]  # after none and after 0 nothing can be said
        expected = 2 * torch.softmax(torch.tensor([ratio, 1.0]) / 2, 0)
        torch.testing.assert_close(dwa.weight, expected)


@pytest.mark.parametrize("masks", [(1,), (1, 0), (0,)])
def test_a_run_tells_its_weighting_which_tasks_have_labels(masks: tuple[int, ...]) -> None:
    uncertainty = Uncertainty(tasks=TASKS)
    one = module(uncertainty, optimizer=partial(torch.optim.SGD, lr=0.1))
    one.tasks["seg"].loss.forward = lambda logits, batch: 0.0 * logits.sum()  # type: ignore[union-attr]
    fit(one, [images(6, masks=masks)])
    assert uncertainty.log_variance[0].item() == pytest.approx(-0.05 if any(masks) else 0.0)


class Validated(Batches):
    """The same images in batches of some size."""

    def __init__(self, whole: Batch, size: int) -> None:
        count = len(whole["index"])
        super().__init__([cut(whole, start, min(start + size, count)) for start in range(0, count, size)])


FILES = {task: [f.stem for f in sorted((CONF / "loss" / task).glob("*.yaml")) if f.stem != "none"] for task in TASKS}
PAIRS = list(itertools.zip_longest(*FILES.values(), fillvalue="cross_entropy"))
COUNTS = [50.0, 6.0, 0.0]  # training images: of the last diagnosis there are none
PARTLY = {"masks": (1, 1, 0), "diagnoses": (1, 0, 1, 1)}


def with_losses(seg: str, cls: str, weighting: Weighting | None = None, **made: Any) -> pl.LightningModule:  # noqa: ANN401
    """The two heads under losses as a run builds them, with class weights where the loss takes some."""
    one = module(weighting, **made)
    for task, name in (("seg", seg), ("cls", cls)):
        node = OmegaConf.load(CONF / "loss" / task / f"{name}.yaml")
        one.tasks[task].loss = build(node, class_counts=COUNTS, class_weights="balanced")  # type: ignore[index,union-attr]
    return one


def validation(one: pl.LightningModule, whole: Batch, size: int) -> dict[str, float]:
    quiet: dict[str, Any] = {f"enable_{name}": False for name in ("checkpointing", "progress_bar", "model_summary")}
    with calm():
        trainer = pl.Trainer(accelerator="cpu", logger=False, use_distributed_sampler=False, **quiet)
        trainer.validate(one, Validated(whole, size), verbose=False)
    return {key: float(value) for key, value in trainer.callback_metrics.items()}


@pytest.mark.parametrize(("seg", "cls"), PAIRS)
def test_the_loss_of_a_validation_is_the_same_for_every_batch_size(seg: str, cls: str) -> None:
    whole = images(40, **PARTLY)
    one = with_losses(seg, cls, Fixed(seg=0.7, cls=2.0))
    with torch.no_grad():
        logits = one.eval()(whole["image"])
        own = {name: float(task(logits[name], whole)) for name, task in one.tasks.items()}  # type: ignore[operator]
    expected = {f"val/{name}/loss": value for name, value in own.items()}
    expected["val/loss"] = 0.7 * own["seg"] + 2.0 * own["cls"]
    for size in (1, 8, 32, 40):
        found = validation(one, whole, size)
        assert {key: found[key] for key in expected} == pytest.approx(expected, rel=2e-6), size
    if cls == "cross_entropy":
        plain = float(torch.nn.functional.cross_entropy(logits["cls"], whole["dx"], ignore_index=-1))
        assert abs(plain - own["cls"]) > 0.01, "a mean over batches of one, which knows no weights, would be seen"


@pytest.mark.parametrize("name", LEARNED)
def test_a_learned_weighting_weighs_the_losses_of_the_whole_validation(name: str) -> None:
    weighting = LEARNED[name](tasks=TASKS)
    for key, value in {"log_variance": [0.3, -0.7], "weight": [0.4, 1.6]}.items():
        if hasattr(weighting, key):
            getattr(weighting, key).data.copy_(torch.tensor(value))
    one, whole = with_losses("dice_bce", "cross_entropy", weighting), images(40, **PARTLY)
    values = []
    for size in (1, 8, 40):
        found = validation(one, whole, size)
        values.append(found["val/loss"])
        own = np.array([found["val/seg/loss"], found["val/cls/loss"]])
        s = np.array([0.3, -0.7])
        expected = {"uncertainty": (np.exp(-s) * own + s / 2).sum(), "geometric": gmean(own)}.get(
            name, own @ [0.4, 1.6]
        )
        assert found["val/loss"] == pytest.approx(expected, rel=1e-5)
    assert values == pytest.approx([values[0]] * 3, rel=2e-6)


def test_an_epochs_losses_are_means_over_labelled_images_by_their_weights(tmp_path: Path) -> None:
    frozen, whole, names = partial(torch.optim.SGD, lr=0.0), images(12, **PARTLY), ["loss", "seg/loss", "cls/loss"]
    rows = []
    for size in (1, 5, 12):
        one = with_losses("bce", "cross_entropy", Fixed(seg=0.7, cls=2.0), optimizer=frozen)
        fit(one, list(Validated(whole, size)), metrics=tmp_path / f"{size}.csv")
        rows.append(pd.read_csv(tmp_path / f"{size}.csv")[[f"train/{name}" for name in names]].dropna().to_numpy()[0])
    np.testing.assert_allclose(rows, [rows[-1]] * 3, rtol=1e-5)
    assert rows[0][0] == pytest.approx(0.7 * rows[0][1] + 2.0 * rows[0][2])


def test_an_epochs_losses_are_means_over_labelled_images(tmp_path: Path) -> None:
    frozen = partial(torch.optim.SGD, lr=0.0)
    parts = [images(4, 1, masks=(1, 0, 0, 0)), images(4, 2, masks=(0,)), images(4, 3)]
    fit(module(optimizer=frozen), parts, metrics=tmp_path / "apart.csv")
    whole = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}  # type: ignore[literal-required]
    fit(module(optimizer=frozen), [whole], metrics=tmp_path / "whole.csv")  # type: ignore[list-item]
    names = ["train/seg/loss", "train/cls/loss"]
    apart, one = (pd.read_csv(tmp_path / f"{name}.csv")[names].dropna().to_numpy() for name in ("apart", "whole"))
    np.testing.assert_allclose(apart, one, rtol=1e-5)
