"""What of Lightning and torch is let in works here: steps, learning rate, record and resuming are right with each.

What is not let in is refused by name, with a reason; and nothing of either is in neither list.
"""

from __future__ import annotations

import copy
import functools
import inspect
import signal
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest
import pytorch_lightning as pl
import pytorch_lightning.callbacks
import torch
from small_runs import SHORT, compose
from torch import Tensor

from skinmtl.config import allowlist
from skinmtl.config.run_config import RunConfig
from skinmtl.config.schema import find
from skinmtl.data.datamodule import DataModule
from skinmtl.distributed.signals import Stop
from skinmtl.errors import ConfigError, Diverged, Faults
from skinmtl.runs.run import Run
from skinmtl.training.build import build_data, build_module, build_trainer
from skinmtl.training.callbacks.best_checkpoint import Best
from skinmtl.training.callbacks.clock import Steps
from skinmtl.training.dry_run import checked
from skinmtl.training.fit import fit as fit_module
from skinmtl.training.lightning_module import MultiTaskModule
from skinmtl.training.optim import Cosine
from skinmtl.training.quiet import calm
from skinmtl.training.tasks import prepared

EPOCHS, BATCHES = 3, 3
TINY = [*SHORT, "model/encoder=conv_pool", "model.encoder.layers=1", "model.encoder.filters=2"]
TINY += [f"trainer.max_epochs={EPOCHS}", f"trainer.limit_train_batches={BATCHES}", "trainer.log_every_n_steps=1"]
TINY += ["trainer.precision=32-true"]


class Fitted:
    """What a training left: its weights, its learning rate by step, its steps and epochs."""

    def __init__(self, trainer: pl.Trainer, module: MultiTaskModule, began: dict[str, Tensor], folder: Path) -> None:
        self.began = began
        self.weights: dict[str, Tensor] = {name: t.clone() for name, t in module.network.state_dict().items()}
        self.rows = pd.read_csv(folder / "metrics.csv")
        self.rates = self.rows["step/lr"].dropna().tolist()
        self.steps, self.epochs, self.folder = trainer.global_step, trainer.current_epoch, folder


class StopsAt(pl.Callback):
    """Ends a training as Ctrl-C does before a step, once it is saved."""

    def __init__(self, step: int, stop: Stop) -> None:
        self.step, self.stop = step, stop

    def on_train_batch_start(self, trainer: pl.Trainer, *args: object) -> None:
        self.stop.number = signal.SIGINT if trainer.global_step == self.step else None


@pytest.fixture(scope="module")
def data(synthetic_root: Path, tmp_path_factory: pytest.TempPathFactory) -> DataModule:
    """The images of every training here."""
    place = tmp_path_factory.mktemp("foreign")
    words = [f"data.root={synthetic_root}", "data.synthetic=null"]
    words += [f"data.{key}={place / key}" for key in ("cache_dir", "split_dir")]
    return build_data(RunConfig.of(compose([*TINY, *words])))


@functools.cache
def composed(words: tuple[str, ...]) -> RunConfig:
    """A checked config."""
    with calm():
        return checked(compose([*TINY, *words]))


def fit(folder: Path, data: DataModule, words: Sequence[str], stop_at: int = -1) -> Fitted:
    """Train as a run does, but without data of its own and without an evaluation; go on where a checkpoint is."""
    config = copy.deepcopy(composed(tuple(words)))
    with calm():
        pl.seed_everything(0, verbose=False)
        module, stop = build_module(config, data, prepared(config.task, data)), Stop()
        began = {name: t.clone() for name, t in module.network.state_dict().items()}
        folder.mkdir(exist_ok=True)
        ours = [StopsAt(stop_at, stop), Best(folder / "checkpoints"), Steps(module.steps_per_epoch)]
        trainer = build_trainer(config, Run(folder), ours, None, stop)
        last = folder / "checkpoints" / "last.ckpt"
        try:
            fit_module(trainer, module, data, last if last.exists() else None, stop)
        except KeyboardInterrupt:
            assert stop.asked
        return Fitted(trainer, module, began, folder)


def expected_rates(lr: float, steps: int) -> list[float]:
    schedule = Cosine(warmup=0.05)
    return [lr * schedule.factor(step, steps) for step in range(steps)]


def check_all(folder: Path, data: DataModule, words: Sequence[str], per_epoch: int = BATCHES) -> Fitted:
    """Train unbroken and stopped once; both have to be the same bits, at the rates of the schedule's formula."""
    whole = fit(folder / "whole", data, words)
    assert whole.epochs == EPOCHS and whole.steps == EPOCHS * per_epoch
    lr = composed(tuple(words)).optim["lr"]
    assert whole.rates == pytest.approx(expected_rates(lr, whole.steps), rel=1e-5)
    assert fit(folder / "parts", data, words, stop_at=4).steps == 4, "within an epoch, but where gradients are added up"
    parts = fit(folder / "parts", data, words)
    assert parts.steps == whole.steps and parts.rates == whole.rates
    assert all(torch.equal(whole.weights[name], parts.weights[name]) for name in whole.weights)
    assert parts.rows.drop(columns="time").equals(whole.rows.drop(columns="time"))
    return whole


@pytest.fixture(scope="module")
def plain(data: DataModule, tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    """A training with nothing special."""
    return check_all(tmp_path_factory.mktemp("plain"), data, [])


@pytest.mark.parametrize(
    "name",
    [
        name if name in ("Adam", "AdamW", "SGD") else pytest.param(name, marks=pytest.mark.long)
        for name in allowlist.OPTIMISERS
    ],
)
def test_every_optimiser_that_is_let_in_learns_by_the_schedule_and_resumes(
    name: str, data: DataModule, tmp_path: Path
) -> None:
    words = [f"optim._target_=torch.optim.{name}", "~optim.fused", "~optim.weight_decay"]
    fitted = check_all(tmp_path, data, words)
    learnt = [name for name, t in fitted.began.items() if not torch.equal(t, fitted.weights[name])]
    assert "class_head.3.weight" in learnt


def callback(name: str, **arguments: object) -> str:
    more = "".join(f",{key}:{value}" for key, value in arguments.items())
    return f"+callbacks.{name.lower()}={{_target_:pytorch_lightning.callbacks.{name}{more}}}"


def test_callbacks_that_only_look_change_nothing_of_a_training(
    data: DataModule, tmp_path: Path, plain: Fitted, capsys: pytest.CaptureFixture[str]
) -> None:
    looking = [callback("LearningRateMonitor", logging_interval="step"), callback("RichModelSummary")]
    fitted = check_all(tmp_path, data, looking)
    assert "Total params" in capsys.readouterr().out
    assert fitted.rows["lr-AdamW"].dropna().tolist() == pytest.approx(fitted.rates)
    assert all(torch.equal(fitted.weights[name], plain.weights[name]) for name in plain.weights)


def test_a_moving_average_is_let_in_and_resumes(data: DataModule, tmp_path: Path, plain: Fitted) -> None:
    fitted = check_all(tmp_path, data, [callback("EMAWeightAveraging", decay=0.5, update_every_n_steps=2)])
    assert any(not torch.equal(fitted.weights[name], plain.weights[name]) for name in plain.weights)


def test_early_stopping_stops_after_an_epoch_but_not_before_min_epochs(data: DataModule, tmp_path: Path) -> None:
    at_once = ["+callbacks.early_stopping.stopping_threshold=-1"]
    assert fit(tmp_path / "stopped", data, at_once).epochs == 1
    words = [*at_once, "+trainer.min_epochs=2"]
    whole = fit(tmp_path / "later", data, words)
    assert (whole.epochs, whole.steps) == (2, 2 * BATCHES)
    fit(tmp_path / "parts", data, words, stop_at=4)
    parts = fit(tmp_path / "parts", data, words)
    assert parts.epochs == 2
    assert all(torch.equal(whole.weights[name], parts.weights[name]) for name in whole.weights)


@pytest.mark.parametrize(
    ("words", "per_epoch", "same"),
    [
        (["+trainer.accumulate_grad_batches=2"], 2, False),
        (["trainer.gradient_clip_val=0.001", "+trainer.gradient_clip_algorithm=norm"], BATCHES, False),
        (["trainer.limit_train_batches=0.5", "trainer.limit_val_batches=0.5"], 5, False),
        (["trainer.precision=bf16-mixed"], BATCHES, False),
        (["+trainer.benchmark=true", "+trainer.strategy=auto", "+trainer.num_nodes=1"], BATCHES, True),
        (
            [f"+trainer.{key}=true" for key in ("deterministic", "detect_anomaly")] + ["+trainer.inference_mode=false"],
            BATCHES,
            True,
        ),
    ],
    ids=lambda case: " ".join(case) if isinstance(case, list) else "",
)
def test_arguments_of_the_trainer_that_are_let_in_keep_schedule_record_and_resuming(
    words: list[str], per_epoch: int, same: bool, data: DataModule, tmp_path: Path, plain: Fitted
) -> None:
    try:
        fitted = check_all(tmp_path, data, words, per_epoch)
    finally:
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.benchmark = False
    assert same == all(torch.equal(fitted.weights[name], plain.weights[name]) for name in plain.weights)


@pytest.mark.parametrize(("precision", "fused"), [("32-true", "false"), ("bf16-mixed", "true")])
def test_gradients_are_clipped_by_value(precision: str, fused: str, data: DataModule, tmp_path: Path) -> None:
    words = ["optim._target_=torch.optim.SGD", f"optim.fused={fused}", "optim.weight_decay=0", "optim.lr=1"]
    words += ["schedule=constant", f"trainer.precision={precision}", "trainer.gradient_clip_val=1e-4"]
    still = fit(tmp_path / "still", data, [*words, "optim.lr=0"])

    def furthest(algorithm: str) -> float:
        fitted = fit(tmp_path / algorithm, data, [*words, f"+trainer.gradient_clip_algorithm={algorithm}"])
        moves = [
            (fitted.weights[n] - t).abs().max()
            for n, t in still.weights.items()
            if "running" not in n and t.is_floating_point()
        ]
        return float(torch.stack(moves).max())

    steps = EPOCHS * BATCHES
    assert furthest("value") == pytest.approx(steps * 1e-4, rel=0.01), (
        "plain SGD moves by the gradient, as it is clipped"
    )
    assert furthest("norm") < steps * 0.9e-4


@pytest.mark.parametrize("name", allowlist.PROFILERS)
def test_a_profile_is_written_into_the_run_folder(name: str, data: DataModule, tmp_path: Path) -> None:
    fitted = fit(tmp_path, data, [f"+trainer.profiler={name}"])
    assert "training_step" in (fitted.folder / "fit-profile.txt").read_text()


def classes(module: ModuleType) -> set[str]:
    return {name for name, thing in vars(module).items() if inspect.isclass(thing)}


def test_every_callback_and_every_argument_of_the_trainer_is_let_in_or_refused_by_name() -> None:
    assert classes(pytorch_lightning.callbacks) == {*allowlist.CALLBACKS, *allowlist.NOT_CALLBACKS}
    assert not set(allowlist.CALLBACKS) & set(allowlist.NOT_CALLBACKS)
    known = [*allowlist.TRAINER, *allowlist.GIVEN, *allowlist.NOT_TRAINER]
    assert sorted(known) == sorted(set(inspect.signature(pl.Trainer.__init__).parameters) - {"self"})
    assert classes(torch.optim) == {*allowlist.OPTIMISERS, *allowlist.NOT_OPTIMISERS}


@pytest.mark.parametrize("name", allowlist.NOT_CALLBACKS)
def test_a_callback_that_is_not_let_in_is_refused_with_a_reason(name: str) -> None:
    with pytest.raises(ConfigError, match=f"^callbacks.x: {name}: .*; fix: "):
        find(f"pytorch_lightning.callbacks.{name}", "callbacks.x")


@pytest.mark.parametrize("unit", ["step", "epoch"])
def test_a_moving_average_that_begins_late_is_refused_for_untrained_weights_would_be_scored(unit: str) -> None:
    cfg = compose([f"+callbacks.ema.update_starting_at_{unit}=5", "callbacks=ema"], "demo")
    with pytest.raises(Faults, match=f"callbacks.ema.update_starting_at_{unit}: .*; fix: remove it"):
        checked(cfg)


@pytest.mark.parametrize(
    "target", ["torch.optim.LBFGS", "torch.optim.swa_utils.SWALR", "torch.optim.lr_scheduler.StepLR"]
)
def test_so_is_an_optimiser(target: str) -> None:
    with pytest.raises(ConfigError, match="; fix: use "):
        find(target, "optim")


class Accumulates(pl.Callback):
    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        trainer.accumulate_grad_batches = 2


class StopsWithin(pl.Callback):
    def on_train_batch_end(self, trainer: pl.Trainer, *args: object) -> None:
        trainer.should_stop = True


@pytest.mark.parametrize(("name", "took"), [("Accumulates", 2), ("StopsWithin", 1)])
def test_a_callback_of_ones_own_that_changes_the_steps_of_an_epoch_is_not_gone_on_with(
    name: str, took: int, data: DataModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SKINMTL_ALLOW", "test_allowlist")
    with pytest.raises(
        ConfigError, match=f"^callbacks: epoch 1 took {took} steps, but the schedule counts on {BATCHES}"
    ):
        fit(tmp_path, data, [f"+callbacks.x={{_target_:test_allowlist.{name}}}"])


class Logs(pl.Callback):
    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        pl_module.log("val/own", float(trainer.current_epoch))


@pytest.mark.parametrize(
    ("monitor", "says"), [("val/own", None), ("val/owm", "did you mean 'val/own'?"), ("x", "val/")]
)
def test_early_stopping_watches_what_a_callback_of_ones_own_logs(
    monitor: str,
    says: str | None,
    data: DataModule,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("SKINMTL_ALLOW", "test_allowlist")
    words = [f"callbacks.early_stopping.monitor={monitor}", "+callbacks.x={_target_:test_allowlist.Logs}"]
    words += ["callbacks.early_stopping.patience=1", "callbacks.early_stopping.mode=min"]
    if says is None:
        with caplog.at_level("INFO", "skinmtl"):
            assert fit(tmp_path, data, words).epochs == 2, "0, then 1, which is worse"
        assert f"stopped after epoch 2 of {EPOCHS}: early stopping on val/own" in caplog.messages
        return
    with pytest.raises(
        ConfigError, match=f"^callbacks.early_stopping.monitor: nothing logs '{monitor}'; fix: "
    ) as told:
        fit(tmp_path, data, words)
    assert says in told.value.fix and "step/" not in told.value.fix


def test_a_backward_pass_that_detect_anomaly_stops_is_told_as_a_run_that_diverged(
    data: DataModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: object, logits: Tensor, batch: object) -> Tensor:
        return torch.sqrt(logits.sum() * 0)  # whose gradient is none

    monkeypatch.setattr("skinmtl.losses.segmentation.DiceBCE.forward", broken)
    with pytest.raises(Diverged, match="^trainer.detect_anomaly: .* returned nan values"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch shows where the forward pass was
        fit(tmp_path, data, ["+trainer.detect_anomaly=true"])


def test_a_rate_of_zero_is_said(data: DataModule, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fitted = fit(tmp_path, data, ["optim.lr=0"])
    weight = "class_head.3.weight"
    assert torch.equal(fitted.weights[weight], fitted.began[weight])
    assert "optim.lr=0: no weight will change" in caplog.text


@pytest.mark.parametrize("schedule", ["cosine", "step"])
def test_a_share_of_the_batches_that_leaves_none_is_refused_before_training(
    schedule: str, data: DataModule, tmp_path: Path
) -> None:
    for key in ("limit_train_batches", "limit_val_batches"):
        with pytest.raises(ConfigError, match=f"^trainer.{key}: 0.01 of [0-9]+ batches leaves none; fix: "):
            fit(tmp_path / key, data, [f"schedule={schedule}", f"trainer.{key}=0.01"])
