"""The check of configs: what is shipped passes, every mistake is named, nothing evil is imported or built."""

from __future__ import annotations

import copy
import dataclasses
import functools
import itertools
import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf
from small_runs import CONF, compose

from skinmtl.config import allowlist
from skinmtl.config.build import build
from skinmtl.config.hardware import resolve_precision
from skinmtl.config.reference import default_keys
from skinmtl.config.run_config import RunConfig
from skinmtl.config.schema import ALLOW, arguments, find, outline
from skinmtl.config.signatures import ANY
from skinmtl.errors import ConfigError, Faults
from skinmtl.tasks.classification.learning import Classification
from skinmtl.tasks.regression.learning import Regression
from skinmtl.tasks.segmentation.learning import Segmentation
from skinmtl.training import build as training_build
from skinmtl.training.dry_run import checked
from skinmtl.training.quiet import calm

EXPERIMENTS = sorted(file.stem for file in (CONF / "experiment").glob("*.yaml"))
GROUPS = ("augment", "callbacks", "data", "logger", "loss/seg", "model", "optim", "sampler", "schedule", "trainer")
GROUPS += (
    "model/encoder",
    "model/head",
    "loss/cls",
    "weighting",
    "gradients",
    "diagnoses",
    "mask_classes",
    "mixing",
    "arm",
)
OPTIONS = [f"{g}={f.stem}" for g in GROUPS for f in sorted((CONF / g).glob("*.yaml"))]
OPTIONS = [
    option for option in OPTIONS if not option.endswith("=none") and option not in ("trainer=gpu", "trainer=ddp")
]
STUDIES = sorted(file.stem for file in (CONF / "study").glob("*.yaml"))


def faults(cfg: DictConfig) -> list[str]:
    """What the check says, a line per fault."""
    try:
        with calm():
            checked(cfg)
    except (Faults, ConfigError) as error:
        return str(error).splitlines()
    return []


def changed(key: str, value: object, experiment: str = "resnet18_unet") -> DictConfig:
    """A config as an experiment file with this line in it makes it: Hydra takes any key from there in silence."""
    cfg = copy.deepcopy(composed(experiment))
    OmegaConf.update(cfg, key, value, merge=False, force_add=True)
    return cfg


@functools.cache
def composed(experiment: str) -> DictConfig:
    cfg = compose([], experiment)
    OmegaConf.set_struct(cfg, False)
    return cfg


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_passes(experiment: str) -> None:
    assert faults(compose([], experiment)) == []


@pytest.mark.parametrize("option", OPTIONS)
def test_every_choice_passes(option: str) -> None:
    assert faults(compose([option])) == []


@pytest.mark.parametrize("study", STUDIES)
@pytest.mark.slow
def test_every_job_of_a_study_passes_on_the_synthetic_images(study: str) -> None:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra_compose("config", [f"study={study}"], return_hydra_config=True)
    params = {key: str(words).split(",") for key, words in (cfg.hydra.sweeper.params or {}).items()}
    assert (len(params) > 0) == (study != "sweep")
    experiments = params.pop("experiment", ["resnet18_unet"])
    firsts_and_lasts = itertools.product(*({values[0], values[-1]} for values in params.values()))
    for experiment, values in itertools.product(experiments, firsts_and_lasts):
        job = [f"{key}={value}" for key, value in zip(params, values, strict=True)]
        words = [f"study={study}", "data=synthetic", "trainer.max_epochs=5", *job]
        assert faults(compose(words, experiment)) == []


@pytest.mark.parametrize(("option", "tasks"), [("loss/seg=none", "[cls]"), ("loss/cls=none", "[seg]")])
def test_a_task_that_is_left_out_needs_no_loss(option: str, tasks: str) -> None:
    assert faults(compose([option, f"tasks={tasks}"])) == []
    assert faults(compose([option])) != []


@pytest.mark.parametrize("encoder", ["mit_b0", "efficientnet-b0", "mobilenet_v2", "tu-convnext_nano"])
def test_encoders_of_smp_and_timm_are_accepted_by_name(encoder: str) -> None:
    assert faults(compose([f"model.encoder={encoder}"])) == []


def test_what_an_experiment_says_comes_after_the_defaults_and_before_the_command() -> None:
    assert list(compose([], "resnet18_unet_seg").task) == ["seg"]
    assert list(compose(["tasks=[seg,cls]"], "resnet18_unet_seg").task) == ["seg", "cls"]
    assert compose(["optim.lr=0.5"], "efficientnet_lite0_unet").optim.lr == 0.5


def test_a_saved_config_passes_as_the_composed_one_does(tmp_path: Path) -> None:
    OmegaConf.save(compose([]), tmp_path / "config.yaml", resolve=True)
    saved = OmegaConf.load(tmp_path / "config.yaml")
    assert isinstance(saved, DictConfig) and faults(saved) == []


MISTAKES: list[tuple[str, object, str]] = [
    # A misspelt key in an experiment file, which Hydra takes in silence.
    ("model.encodr", "resnet34", "model.encodr: MultiTaskNet has no such argument; fix: did you mean 'encoder'?"),
    ("optim.lrr", 0.1, "optim.lrr: AdamW has no such argument; fix: did you mean 'lr'?"),
    ("trainer.max_epoch", 3, "did you mean 'max_epochs'?"),
    ("callbacks.early_stopping.patiance", 3, "did you mean 'patience'?"),
    ("modl", {"encoder": "resnet34"}, "modl: the config has no such argument; fix: did you mean 'model'?"),
    ("lr", 0.1, "lr: the config has no such argument; fix: did you mean 'optim.lr'?"),
    # Wrong types.
    ("seed", "zero", "seed: 'zero' does not fit; fix: it should be a valid integer"),
    ("seed", True, "seed: True does not fit"),
    ("tasks", {"seg": 1}, "tasks: {'seg': 1} is no list of names; fix: write them as [name, name]"),
    ("data.batch_size", 2.5, "data.batch_size: 2.5 does not fit; fix: it should be a valid integer"),
    ("data.size", "big", "data.size: 'big' does not fit; fix: it should be a valid integer or a valid list"),
    ("data.size", [64, 64, 3], "a list of at most 2 items"),
    ("data.allow_leak", "perhaps", "it should be a valid boolean"),
    ("data.synthetic", 5, "data.synthetic: 5 does not fit"),
    ("optim.lr", "fast", "optim.lr: 'fast' does not fit; fix: it should be a valid number"),
    ("trainer.gradient_clip_val", "x", "trainer.gradient_clip_val: 'x' does not fit"),
    ("model", "unet", "model: 'unet' is no part of a run"),
    ("loss", None, "loss: None is no part of a run"),
    ("weighting", {"seg": 1.0}, "weighting: it has no _target_"),
    ("gradients", "pcgrad", "gradients: 'pcgrad' is no part of a run"),
    (
        "gradients",
        {"_target_": "skinmtl.balancing.weighting.Fixed"},
        "Fixed has no method combine, which a run asks of it",
    ),
    (
        "weighting",
        {"_target_": "skinmtl.balancing.gradients.PCGrad"},
        "PCGrad has no method terms, which a run asks of it",
    ),
    # Values out of range, or out of a choice.
    ("seed", -1, "seed: -1 does not fit; fix: it should be greater than or equal to 0"),
    ("model.arch", "unett", "'unetplusplus', 'fpn', 'resnet_unet_deeplab' or 'upsample'"),
    ("model.dropout", 1.0, "model.dropout: 1.0 does not fit; fix: it should be less than 1"),
    ("model.encoder", "resnet81", "model.encoder: no encoder is called 'resnet81'; fix: did you mean resnet18"),
    ("model.weights", "nowhere.pth", "model.weights: there is no file nowhere.pth"),
    ("data.batch_size", 0, "data.batch_size: 0 does not fit"),
    ("data.size", [0, 64], "data.size: [0, 64] does not fit"),
    ("data.fold", 5, "data.fold: 5 of 5 folds, which are counted from 0; fix: use 0 to 4"),
    ("optim.lr", -0.1, "optim.lr: -0.1 is refused: Invalid learning rate"),
    ("optim.weight_decay", -1, "optim.weight_decay: -1 is refused"),
    ("optim.lr", float("inf"), "optim.lr: inf does not fit; fix: it should be a finite number"),
    ("optim.lr", float("nan"), "it should be a finite number"),
    ("schedule.warmup", 2, "schedule.warmup: 2 does not fit"),
    ("weighting.seg", -1, "weighting.seg: -1 does not fit"),
    ("gradients.cosine_every", -1, "gradients.cosine_every: -1 does not fit"),
    ("gradients", {"_target_": "skinmtl.balancing.gradients.CAGrad", "c": 1}, "gradients.c: 1 does not fit"),
    ("gradients", {"_target_": "skinmtl.balancing.gradients.GradNorm", "rate": 0}, "gradients.rate: 0 does not fit"),
    (
        "weighting",
        {"_target_": "skinmtl.balancing.weighting.DWA", "temperature": 0},
        "weighting.temperature: 0 does not fit",
    ),
    ("augment.rotate", 999, "augment.rotate: 999 does not fit"),
    ("class_weights", "on", "class_weights: 'on' does not fit; fix: it should be 'auto', 'none', 'sqrt' or 'balanced'"),
    (
        "loss.cls.class_weights",
        "sqrt",
        "loss.cls.class_weights: CrossEntropy is given this by the run; fix: use class_weights=sqrt, a key of its own",
    ),
    ("callbacks.early_stopping.mode", "maxx", "callbacks.early_stopping.mode: 'maxx' is refused"),
    (
        "callbacks.early_stopping.monitor",
        "val/scor",
        "validation does not log 'val/scor'; fix: did you mean 'val/score'?",
    ),
    (
        "callbacks.early_stopping.monitor",
        "train/cls/accuracy",
        "validation does not log 'train/cls/accuracy'; fix: did you mean 'val/cls/accuracy'?",
    ),
    (
        "data.auxiliary.isic",
        {"_target_": "skinmtl.data.auxiliary.AuxiliaryData", "root": "x", "share": 1.0},
        "data.auxiliary.isic.share: 1.0",
    ),
    (
        "data.auxiliary.isic",
        {"_target_": "skinmtl.data.auxiliary.AuxiliaryData", "root": "x"},
        "data.auxiliary.isic.share: AuxiliaryData needs it",
    ),
    ("trainer.max_epochs", 0, "trainer.max_epochs: 0 epochs"),
    ("trainer.max_epochs", None, "trainer.max_epochs: None epochs"),
    ("trainer.check_val_every_n_epoch", 99, "trainer.check_val_every_n_epoch: 99 epochs between validations, but 30"),
    ("keep", "first", "keep: 'first' does not fit"),
    ("save_every", 0, "save_every: 0 does not fit"),
    ("data.shuffled", "mask", "data.shuffled: mask, but tasks are ['seg', 'cls']"),
    ("trainer.limit_val_batches", 0, "trainer.limit_val_batches: 0 leaves nothing"),
    ("trainer.accelerator", "gpuu", "trainer.accelerator: 'gpuu' is refused"),
    ("trainer.devices", 0, "trainer.devices: "),
    ("trainer.num_nodes", 2, "trainer.num_nodes: a run trains on one machine"),
    ("trainer.strategy", "fsdp", "trainer.strategy: 'fsdp' is not how"),
    ("trainer.gradient_clip_val", -1, "trainer.gradient_clip_val: -1 would turn gradients round"),
    ("trainer.enable_progress_bar", False, "trainer.enable_progress_bar: Trainer is given this by the run"),
    ("trainer.enable_checkpointing", False, "trainer.enable_checkpointing: Trainer is given this by the run"),
    # What of Lightning does not work in a run, with a reason.
    ("trainer.fast_dev_run", True, "trainer.fast_dev_run: it switches off checkpoints and loggers"),
    ("trainer.overfit_batches", 2, "trainer.overfit_batches: it validates on training images"),
    ("trainer.max_steps", 5, "trainer.max_steps: the learning rate's schedule ends with the last epoch"),
    ("trainer.val_check_interval", 0.5, "fix: use trainer.check_val_every_n_epoch"),
    ("trainer.limit_test_batches", 1, "trainer.limit_test_batches: evaluation reads every image"),
    ("trainer.profiler", "xla", "trainer.profiler: 'xla' is not known to work in a run; fix: use simple or advanced"),
    ("trainer.precision", "bf16-true", "trainer.precision: bf16-true would round losses and scores, too"),
    ("trainer.precision", "64-true", "trainer.precision: 64-true does not resume to the same weights"),
    ("trainer.precision", "transformer-engine", "transformer-engine is not known to work in a run"),
    ("trainer.min_epochs", 31, "trainer.min_epochs: 31 epochs at least, but 30 at most; fix: give 1 to 30"),
    ("trainer.min_epochs", -1, "trainer.min_epochs: -1 does not fit; fix: it should be greater than or equal to 1"),
    ("trainer.check_val_every_n_epoch", 0, "trainer.check_val_every_n_epoch: 0 does not fit"),
    ("trainer.gradient_clip_algorithm", "median", "trainer.gradient_clip_algorithm: 'median' is refused"),
    ("callbacks.early_stopping.patience", -1, "callbacks.early_stopping.patience: -1 does not fit"),
    ("callbacks.early_stopping.min_delta", -0.1, "callbacks.early_stopping.min_delta: -0.1 does not fit"),
    ("callbacks.early_stopping.verbose", True, "callbacks.early_stopping.verbose: a run does not show what it says"),
    ("callbacks.x", {"_target_": "pytorch_lightning.callbacks.Timer"}, "callbacks.x: Timer: the learning rate's"),
    (
        "callbacks.again",
        {"_target_": "pytorch_lightning.callbacks.EarlyStopping", "monitor": "val/score", "mode": "max"},
        "callbacks.again: it does what callbacks.early_stopping does already; fix: keep one of the two",
    ),
    ("optim.maximize", True, "optim.maximize: it would make the loss as large as can be"),
    ("optim._target_", "torch.optim.SparseAdam", "optim: SparseAdam: it takes sparse gradients alone"),
    ("callbacks.bar", {"_target_": "pytorch_lightning.callbacks.RichProgressBar"}, "a run has its own progress bar"),
    ("callbacks.early_stopping.monitor", "val/loss", "callbacks.early_stopping.mode: 'max', but of val/loss the min"),
    ("callbacks.early_stopping.mode", "min", "callbacks.early_stopping.mode: 'min', but of val/score the max"),
    ("logger", {"_target_": "pytorch_lightning.loggers.CSVLogger", "save_dir": "x"}, "fix: use logger=csv"),
    ("logger", {"_target_": "skinmtl.balancing.weighting.Fixed"}, "has no method log_run"),
    ("loss.seg", {"_target_": "skinmtl.losses.DiceBCE", "dice": 0, "bce": 0}, "dice and bce are both 0"),
    (
        "weighting",
        {"_target_": "skinmtl.balancing.weighting.Fixed", "seg": 0, "cls": 0},
        "weighting: every task weighs nothing",
    ),
    ("seed", 2**32, "seed: 4294967296 does not fit; fix: it should be less than 4294967296"),
    ("data.split_seed", 2**32, "data.split_seed: 4294967296 does not fit"),
    ("trainer.precision", "bf17", "trainer.precision: 'bf17' does not fit"),
    # What several parts have to agree on.
    ("tasks", ["cls"], "loss.seg: a loss, but tasks are ['cls']; fix: add seg to tasks, or loss/seg=none"),
    (
        "tasks",
        ["seg", "seg"],
        "tasks: ['seg', 'seg'] is not a choice of tasks; fix: use one or several of age, cls, seg, sex, site",
    ),
    ("tasks", [], "tasks: [] is not a choice of tasks"),
    ("tasks", ["clss"], "tasks: there is no task clss; fix: did you mean 'cls'?"),
    ("loss.cls", None, "loss.cls: the task has no loss"),
    # What is not the config's to say.
    ("trainer.callbacks", [], "trainer.callbacks: Trainer is given this by the run; fix: remove it"),
    ("model.size", 7, "model.size: MultiTaskNet is given this by the run; fix: remove it"),
    ("folder", "x", "folder: the config has no such argument; fix: it has allow_change, augment"),
    ("model._partial_", True, "model._partial_: only optim is built in two steps"),
    ("optim._partial_", False, "optim._partial_: the run gives the optimiser its parameters"),
    ("loss.seg._args_", [1], "loss.seg._args_: "),
    ("model._recursive_", False, "model._recursive_: "),
    ("data.root", "???", "data.root: it has no value"),
    ("data.root", "${nowhere}", "data.root: Interpolation key 'nowhere' not found"),
    ("trainer._target_", "torch.optim.AdamW", "AdamW has no method fit, which a run asks of it"),
    (
        "model._target_",
        "skinmtl.models.multitask_net.MultiTaskNett",
        "there is no 'skinmtl.models.multitask_net.MultiTaskNett'",
    ),
]


@pytest.mark.parametrize("loss", ["class_balanced", "logit_adjusted", "ldam"])
def test_class_weights_are_refused_where_no_loss_takes_them(loss: str) -> None:
    (line,) = faults(compose([f"loss/cls={loss}", "class_weights=sqrt"]))
    assert re.fullmatch(
        r"class_weights: sqrt, but \w+, the loss of cls, takes no class weights; fix: use auto or .*", line
    )


@pytest.mark.slow
def test_weighting_pcgrad_is_what_its_name_says_or_refused() -> None:
    for words in ([], ["gradients=pcgrad"], ["study=weighting"]):
        cfg = compose(["weighting=pcgrad", *words])
        assert faults(cfg) == [] and cfg.gradients._target_.endswith(".PCGrad")
    for other in ("mgda", "none", "gradnorm"):
        (line,) = faults(compose(["weighting=pcgrad", f"gradients={other}"]))
        assert line.startswith("weighting: it goes with gradients=pcgrad, but gradients are those of ")
        assert line.endswith("fix: use weighting=fixed with other gradients, or leave gradients= out")
    assert faults(compose(["weighting=fixed", "gradients=mgda"])) == []


def test_class_weights_are_of_diagnoses_that_are_trained() -> None:
    (line,) = faults(compose(["tasks=[seg]", "loss/cls=none", "class_weights=sqrt"]))
    assert line == (
        "class_weights: sqrt, but tasks are ['seg'], without classes of images; "
        "fix: add a classification to tasks, or use auto"
    )
    assert faults(compose(["loss/cls=focal", "class_weights=sqrt"])) == []


@pytest.mark.parametrize(("key", "value", "said"), MISTAKES, ids=[f"{key}={value}" for key, value, _ in MISTAKES])
def test_a_mistake_is_one_clear_line_before_any_data_is_read(key: str, value: object, said: str) -> None:
    # data.root of every case is a folder that does not exist.
    lines = faults(changed(key, value))
    assert any(said in line for line in lines), lines
    assert all("; fix: " in line for line in lines)
    assert len(lines) == 1 or key.endswith("_target_")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("trainer.fast_dev_run", False),
        ("trainer.min_steps", None),
        ("callbacks.early_stopping.verbose", False),
        ("optim.maximize", False),
        ("optim.betas", [0.9, 0.95]),
        ("optim.eps", 1),
        ("callbacks.early_stopping.patience", 0),
        ("trainer.min_epochs", 30),
        ("trainer.gradient_clip_algorithm", "value"),
        (
            "callbacks.again",
            {"_target_": "pytorch_lightning.callbacks.EarlyStopping", "monitor": "val/loss", "mode": "min"},
        ),
    ],
)
def test_their_like_that_are_sound_pass(key: str, value: object) -> None:
    assert faults(changed(key, value)) == []


@pytest.mark.parametrize("value", [[0.9], [0.9, 0.9, 0.9], ["a", 0.9], 0.9])
def test_betas_that_are_not_two_numbers_are_refused(value: object) -> None:
    (line,) = faults(changed("optim.betas", value))
    assert line.startswith("optim.betas: ")


def constructors() -> list[Callable[..., object]]:
    """Everything that is let in, as far as it comes with the package."""
    names = [f"torch.optim.{name}" for name in allowlist.OPTIMISERS]
    names += [f"pytorch_lightning.callbacks.{name}" for name in allowlist.CALLBACKS] + ["pytorch_lightning.Trainer"]
    for file in CONF.rglob("*.yaml"):
        names += re.findall(r"_target_: ([\w.]+)", file.read_text())
    return [find(name) for name in sorted({*names, "torch.optim.SGD"})]


@pytest.mark.parametrize("constructor", [*constructors(), RunConfig], ids=lambda found: found.__name__)
def test_every_argument_takes_its_own_default(constructor: Callable[..., object]) -> None:
    for argument in arguments(constructor).values():
        if argument.name != ANY and argument.is_key and not argument.is_needed and not callable(argument.default):
            value = argument.default
            value = list(value) if isinstance(value, tuple) else value
            assert argument.misfit(value) is None, argument.name


@pytest.mark.parametrize("constructor", constructors(), ids=lambda found: found.__name__)
def test_source_texts_tell_the_same_of_a_constructor_as_the_thing_itself(constructor: Callable[..., object]) -> None:
    told = outline(f"{constructor.__module__}.{constructor.__name__}")
    assert told is not None
    itself = arguments(constructor)
    assert {(a.name, a.is_key, a.is_needed, a.refusal) for a in told[1].values()} == {
        (a.name, a.is_key, a.is_needed, a.refusal) for a in itself.values()
    }
    values: list[object] = [0, 1, -1, 2.5, 8.0, True, "x", "auto", None, [], [1], [0.5, 0.5], [1, 2, 3], ["a"]]
    for argument in itself.values():
        for value in values if argument.is_key else ():
            text = told[1][argument.name].misfit(value)
            assert text in (None, argument.misfit(value)), "it may know less, but nothing else"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("class Thing:\n    def __init__(self, a, b=1, *, c): ...\n", ["a", "b"]),
        ("class Base:\n    def __init__(self, a): ...\nclass Thing(Base):\n    pass\n", ["a"]),
        (
            "class Base:\n    def __init__(self, a): ...\nclass Thing(Base):\n    def __init__(self, b, **k): ...\n",
            ["b", "a"],
        ),
        ("import torch\nclass Thing(torch.nn.Module):\n    def __init__(self, a): ...\n", ["a"]),
        ("def Thing(a, *, b): ...\n", ["a"]),
        # What a text does not tell is left to the import.
        ("from dataclasses import dataclass\n@dataclass\nclass Thing:\n    a: int\n", None),
        ("from torch.optim import Adam as Thing\nclass Thing(Thing):\n    pass\n", None),
        ("Thing = type('Thing', (), {})\n", None),
        ("class Thing(\n", None),
        ("name = 'caf\xe9'\nclass Thing:\n    def __init__(self, a): ...\n", None),
    ],
)
def test_source_texts_tell_what_they_can_and_import_nothing(
    text: str, told: list[str] | None, canary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ALLOW, "canary")
    (canary.parent / "canary.py").write_text(text, encoding="latin-1")
    found = outline("canary.Thing")
    assert (found and [argument.name for argument in found[1].values() if argument.is_key]) == told
    assert "canary" not in sys.modules


@pytest.mark.parametrize(
    ("target", "name", "value"),
    [
        ("torch.optim.AdamW", "betas", [0.9]),
        ("pytorch_lightning.Trainer", "precision", "bf17"),
        ("pytorch_lightning.callbacks.EarlyStopping", "patience", -1),
        ("skinmtl.models.multitask_net.MultiTaskNet", "dropout", 1.5),
    ],
)
def test_source_texts_tell_types_too(target: str, name: str, value: object) -> None:
    told = outline(target)
    assert told is not None and told[1][name].misfit(value) is not None


@pytest.mark.parametrize(("key", "whole"), [("data.batch_size", 8.0), ("seed", 3.0), ("trainer.max_epochs", 7.0)])
def test_a_whole_number_is_an_integer_however_it_is_written(key: str, whole: float) -> None:
    value = OmegaConf.select(OmegaConf.create(checked(changed(key, whole)).as_dict()), key)
    assert value == whole and type(value) is int
    assert faults(changed(key, whole + 0.5)) == [
        f"{key}: {whole + 0.5} does not fit; fix: it should be a valid integer"
    ]


def test_so_is_one_in_a_list_and_a_number_that_may_be_a_share_stays_one() -> None:
    cfg = changed("data.size", [64.0, 96.0])
    cfg.trainer.limit_train_batches = 1.0  # all of them, where 1 is one
    config = checked(cfg)
    assert [type(side) for side in config.data["size"]] == [int, int] and config.data["size"] == [64, 96]
    assert type(config.trainer["limit_train_batches"]) is float


def test_a_key_that_is_taken_out_is_what_the_constructor_has_by_itself() -> None:
    cfg = compose(["~data.folds", "data.fold=7"])
    assert faults(cfg) == ["data.fold: 7 of 5 folds, which are counted from 0; fix: use 0 to 4"]
    assert faults(compose(["~data.folds", "data.fold=4"])) == []
    keys = ["accelerator", "devices", "precision", "gradient_clip_val", "limit_train_batches"]
    keys += ["log_every_n_steps", "limit_val_batches", "check_val_every_n_epoch"]
    cfg = changed("seed", 0)
    for key in keys:
        del cfg.trainer[key]
    assert faults(cfg) == []
    assert training_build.devices_of(cfg.trainer)
    assert faults(compose(["~trainer.max_epochs"])) != []


@pytest.mark.parametrize("node", ["data", "trainer", "optim", "schedule", "model"])
@pytest.mark.slow
def test_every_key_can_be_taken_out_or_is_asked_for(node: str) -> None:
    whole = compose(["data=synthetic"])
    for key in set(whole[node]) - {"_target_", "_partial_"}:
        cfg = copy.deepcopy(whole)
        OmegaConf.set_struct(cfg, False)
        del cfg[node][key]
        assert all(line.startswith(f"{node}.{key}: ") for line in faults(cfg)), key


def test_early_stopping_may_watch_what_a_callback_of_ones_own_logs_but_no_misspelt_score(
    canary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ALLOW, "canary")
    own = {"_target_": "canary.Thing"}
    (canary.parent / "canary.py").write_text(
        "from pytorch_lightning import Callback\nclass Thing(Callback):\n    pass\n"
    )
    cfg = changed("callbacks.early_stopping.monitor", "val/sensitivity")
    assert "validation does not log 'val/sensitivity'" in faults(cfg)[0]
    OmegaConf.update(cfg, "callbacks.own", own, force_add=True)
    assert faults(cfg) == []
    cfg.callbacks.early_stopping.monitor = "val/scor"
    assert "did you mean 'val/score'?" in faults(cfg)[0]


def test_an_image_size_that_the_decoder_refuses_is_refused_with_the_nearest_that_it_takes() -> None:
    (line,) = faults(compose(["model=deeplabv3plus", "data.size=[100,120]"]))
    assert line.startswith("data.size: [100, 120] does not suit deeplabv3plus")
    assert "use [112, 128] or [96, 112]" in line
    assert faults(compose(["model=deeplabv3plus", "data.size=[112,128]"])) == []


def test_a_weight_of_a_task_that_is_not_trained_is_refused_but_not_its_default() -> None:
    assert faults(compose([], "resnet18_unet_cls")) == []
    (line,) = faults(compose(["weighting.seg=2"], "resnet18_unet_cls"))
    assert line.startswith("weighting.seg: a weight, but tasks are ['cls']")


def test_all_faults_are_reported_at_once() -> None:
    cfg = changed("model.encodr", "x")
    for key, value in (("optim.lrr", 1), ("data.batch_size", 0), ("lr", 1), ("data.root", "???"), ("seed", "a")):
        OmegaConf.update(cfg, key, value, force_add=True)
    heads = [line.partition(":")[0] for line in faults(cfg)]
    assert sorted(heads) == ["data.batch_size", "data.root", "lr", "model.encodr", "optim.lrr", "seed"]


def test_without_the_check_a_misspelt_key_would_pass_in_silence(tmp_path: Path) -> None:
    """The negative control: Hydra alone composes what the check refuses."""
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\nmodel: {encodr: resnet34}\n")
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra_compose("config", [f"hydra.searchpath=[file://{tmp_path}]", "experiment=mine"])
    cfg.name = "mine"
    assert cfg.model.encodr == "resnet34"
    assert len(faults(cfg)) == 1


EVIL = [
    *(
        "os.system",
        "os.remove",
        "subprocess.Popen",
        "subprocess.run",
        "builtins.eval",
        "builtins.exec",
        "shutil.rmtree",
    ),
    *(
        "pickle.loads",
        "runpy.run_path",
        "torch.load",
        "torch.hub.load",
        "torch.jit.load",
        "torch.nn.functional.torch.load",
    ),
    *("torch.optim.adamw.torch.load", "numpy.load", "joblib.load", "pandas.read_pickle", "pathlib.Path.unlink"),
    *("pathlib.Path", "sklearn.datasets.fetch_openml", "hydra.utils.instantiate", "hydra.utils.get_method"),
    *("skinmtl.training.run.os.system", "skinmtl.files.write_text", "skinmtl.data.images.reading.Image.open"),
    *("pytorch_lightning.trainer.trainer.os.system", "skinmtl.config.build.build", "skinmtl.runs.checkpoints.load"),
    *("timeit.timeit", "cProfile.run", "importlib.import_module", "canary.Thing", "canary"),
]


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that appears when the package `canary` is imported, and what it holds is admitted for nobody."""
    sung = tmp_path / "sung"
    (tmp_path / "canary.py").write_text(
        "from __future__ import annotations\n"
        "from pathlib import Path\n"
        f"Path({str(sung)!r}).touch()\n"
        "class Thing:\n"
        "    by = 'step'\n"
        "    def __init__(self, size: int = 1): ...\n"
        "    def on(self, optimizer, total_steps, steps_per_epoch): ...\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "canary", raising=False)
    return sung


@pytest.mark.fault("a config that names code to run")
@pytest.mark.parametrize("target", EVIL)
def test_an_evil_target_is_refused_before_it_is_imported_wherever_it_stands(target: str, canary: Path) -> None:
    node = {"_target_": target, "_args_": [f"touch {canary}"]}
    inner = {"_target_": "pytorch_lightning.callbacks.Timer", "duration": node}
    places: dict[str, object] = {
        "model": node,
        "callbacks.spy": node,
        "data.synthetic": node,
        "trainer.profiler": inner,
        "augment.list": [[node]],
    }
    cfg = changed("name", target)
    for key, value in places.items():
        OmegaConf.update(cfg, key, value, merge=False, force_add=True)
    cfg.sampler._target_ = "${name}"  # an interpolated name
    refused = [line.partition("._target_: ")[0] for line in faults(cfg) if "._target_: " in line]
    inside = ["trainer.profiler.duration", "augment.list[0][0]", "sampler"]
    assert set(refused) >= {"model", "callbacks.spy", "data.synthetic", *inside}
    assert not canary.exists() and "canary" not in sys.modules


@pytest.mark.parametrize(
    ("target", "line"),
    [
        (
            "lightning.pytorch.callbacks.LearningRateMonitor",
            "fix: write pytorch_lightning.callbacks.LearningRateMonitor",
        ),
        ("LearningRateMonitor", "fix: write pytorch_lightning.callbacks.LearningRateMonitor"),
        (
            "lightning.pytorch.callbacks.Timer",
            "Timer: the learning rate's schedule ends with the last epoch, not before",
        ),
        ("lightning.pytorch.callbacks.Nothing", "is not an admitted constructor"),
        ("other.Timer", "is not an admitted constructor"),
    ],
)
def test_a_callback_by_lightnings_other_name_is_told_the_name_that_works_or_why_it_does_not(
    target: str, line: str
) -> None:
    (fault,) = faults(changed("callbacks.x", {"_target_": target}))
    assert fault.startswith("callbacks.x._target_: ") and line in fault


def test_a_package_of_ones_own_is_admitted_by_the_environment_and_by_nothing_else(
    canary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = changed("schedule", {"_target_": "canary.Thing", "size": 2})
    assert "schedule._target_: 'canary.Thing' is not an admitted constructor" in faults(cfg)[0]
    assert not canary.exists()
    monkeypatch.setenv(ALLOW, "other,canary")
    assert faults(cfg) == []
    assert canary.exists()


def test_what_a_run_hands_in_is_taken_as_it_is_written(canary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ALLOW, "canary")
    (canary.parent / "canary.py").write_text(
        "class Thing:\n    def __init__(self, kept: str = '', *, names: list[str]):\n        self.names = names\n"
    )
    names = ["${oc.env:PATH}", "${nowhere}", "a: b"]
    assert build({"_target_": "canary.Thing"}, names=names).names == names


def test_a_schedule_of_ones_own_says_by_what_it_is_stepped(canary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ALLOW, "canary")
    (canary.parent / "canary.py").write_text("class Thing:\n    def on(self, *args): ...\n")
    (line,) = faults(changed("schedule", {"_target_": "canary.Thing"}))
    assert line.startswith("schedule._target_: Thing does not say by what it is stepped")


def test_an_argument_added_to_a_constructor_is_checked_with_no_edit_to_the_check(
    canary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ALLOW, "canary")
    cfg = changed("schedule", {"_target_": "canary.Thing", "slope": 2.0})
    assert "schedule.slope: Thing has no such argument" in faults(cfg)[0]

    source = Path(canary.parent / "canary.py")
    text = source.read_text().replace(
        "size: int = 1", "slope: Annotated[float, Ge(0)], size: int = 1, *, seed: int = 0"
    )
    text = text.replace("from pathlib", "from typing import Annotated\nfrom annotated_types import Ge\nfrom pathlib")
    source.write_text(text)
    del sys.modules["canary"]
    assert faults(cfg) == []
    assert faults(changed("schedule", {"_target_": "canary.Thing"})) == [
        "schedule.slope: Thing needs it; fix: give it a value"
    ]
    cfg.schedule.slope = -1.0
    assert faults(cfg) == ["schedule.slope: -1.0 does not fit; fix: it should be greater than or equal to 0"]
    cfg.schedule = {"_target_": "canary.Thing", "slope": 1.0, "seed": 3}
    assert faults(cfg) == ["schedule.seed: Thing is given this by the run; fix: remove it"]


@dataclasses.dataclass
class Longer:
    """A run of another day, with a key of its own."""

    name: str
    patience: int


def test_a_key_added_to_the_run_is_known_with_no_edit_to_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "patience: the config has no such argument" in faults(changed("patience", "x"))[0]
    monkeypatch.setattr("skinmtl.config.check.RunConfig", Longer)
    lines = faults(changed("patience", "x"))
    assert "patience: 'x' does not fit; fix: it should be a valid integer" in lines
    assert len(lines) > 1, "a run that takes no other keys knows none"


def test_float16_is_refused_on_a_cpu_and_auto_follows_the_hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for precision in (16, "16", "16-mixed", "16-true"):
        for accelerator in ("cpu", "auto"):
            with pytest.raises(ConfigError, match="needs a GPU"):
                resolve_precision(precision, accelerator)
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: "flags : sse avx512_bf16 amx\n")
    assert resolve_precision("auto", "auto") == "bf16-mixed"
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: "flags : sse avx512_bf161 amx\n")
    assert resolve_precision("auto", "cpu") == "32-true"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    assert resolve_precision("auto", "gpu") == "bf16-mixed"
    assert resolve_precision("16-mixed", "auto") == "16-mixed"
    assert resolve_precision("auto", "cpu") == "32-true"


def test_the_scores_that_may_be_watched_are_those_that_tasks_compute() -> None:
    for task in (Segmentation(name="a"), Classification(name="b"), Regression("age", name="c")):
        task.assume()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The ``compute`` method", UserWarning)  # of nothing yet: only the names
            computed = task.metric().compute()
        assert set(computed) == set(task.logged) and task.score in computed


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["data.shuffled=cls", "arm=mask"], "data.shuffled: cls, but tasks are ['seg']"),
        (["mixing=mixup", "data.mixing.p=1"], "data.mixing.p: 1 leaves next to no image with a mask"),
        (["gradients=gradnorm", "weighting=uncertainty"], "weighting: the method of gradients learns the weights"),
        (
            ["keep=last", "trainer.max_epochs=5", "trainer.check_val_every_n_epoch=3"],
            "3 epochs between validations, so",
        ),
    ],
)
def test_parts_that_do_not_go_together_are_refused(words: list[str], says: str) -> None:
    with pytest.raises(Faults, match=re.escape(says)):
        checked(compose(["data=synthetic", *words]))


@pytest.mark.parametrize(
    "words",
    [
        ["data.shuffled=cls", "arm=diagnosis"],
        ["mixing=mixup", "data.mixing.p=1", "arm=diagnosis"],
        ["mixing=cutmix", "data.mixing.p=1"],
        ["gradients=gradnorm", "weighting=uncertainty", "arm=mask"],
        ["keep=last", "trainer.max_epochs=6", "trainer.check_val_every_n_epoch=3"],
    ],
)
def test_their_like_that_do_are_not(words: list[str]) -> None:
    checked(compose(["data=synthetic", *words]))


@pytest.mark.parametrize(
    "study", [study for study in STUDIES if "keep: last" in (CONF / "study" / f"{study}.yaml").read_text()]
)
def test_runs_of_as_many_steps_are_not_stopped_early_by_a_score(study: str) -> None:
    stopping = compose([f"study={study}"]).callbacks.early_stopping
    # leak_gap trains each of its runs until it knows its images by heart.
    assert stopping is None or (study == "leak_gap" and stopping.monitor == "train/cls/accuracy")


def test_every_key_that_help_names_can_be_set() -> None:
    keys = [key.name for key in default_keys(CONF)]
    assert len(keys) > 50
    cfg = compose([])
    for key in keys:
        assert OmegaConf.select(cfg, key, default="missing") != "missing", key


@pytest.mark.parametrize(
    "experiment", ["resnet18_unet", "demo", "trimap_malignancy", "resnet18_fpn", "resnet18_unetplusplus"]
)
@pytest.mark.parametrize(("model", "encoder"), [("shared_cnn", "ConvPool"), ("resnet_unet_deeplab", "resnet34")])
def test_a_network_by_its_name_is_that_network(experiment: str, model: str, encoder: str) -> None:
    assert encoder in str(compose([f"model={model}"], experiment).model.encoder)
