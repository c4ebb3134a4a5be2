"""Every config is checked whole before anything is built: mistakes named, evil refused, what is shipped accepted."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from training import CONF, compose

from skinmtl import config, constructors
from skinmtl.errors import ConfigError, Faults
from skinmtl.train import run

GROUPS = ["data", "augment", "sampler", "model", "loss/seg", "loss/cls", "weighting", "optim", "schedule"]
GROUPS += ["trainer", "callbacks", "logger"]
NEED = {"loss/seg=none": "tasks=[cls]", "loss/cls=none": "tasks=[seg]"}
OPTIONS = [f"{group}={file.stem}" for group in GROUPS for file in sorted((CONF / group).glob("*.yaml"))]

MISTAKES = {
    "+model.encodr=resnet34": ("model.encodr", "encoder"),
    "+data.bacth_size=8": ("data.bacth_size", "batch_size"),
    "+tsaks=[seg]": ("tsaks", "tasks"),
    "+optim.learning_rate=0.1": ("optim.learning_rate", "no such argument"),
    "+trainer.max_epoch=3": ("trainer.max_epoch", "max_epochs"),
    "+callbacks.early_stopping.patince=3": ("callbacks.early_stopping.patince", "patience"),
    "model.arch=unett": ("model.arch", "unet"),
    "model.dropout=1.5": ("model.dropout", "less than 1"),
    "model.encoder=18": ("model.encoder", "string"),
    "model.encoder=resnet81": ("model.encoder", "resnet18"),
    "data.batch_size=0": ("data.batch_size", "greater than or equal to 1"),
    "data.batch_size=many": ("data.batch_size", "integer"),
    "data.size=[96,128,3]": ("data.size", ""),
    "data.fold=5": ("data.fold", "5 folds"),
    "data.workers=-1": ("data.workers", "greater"),
    "seed=-1": ("seed", "greater"),
    "seed=zero": ("seed", "integer"),
    "tasks=[seg,dx]": ("tasks", "choice of tasks"),
    "tasks=[]": ("tasks", "choice of tasks"),
    "tasks=[cls]": ("loss.seg", "loss/seg=none"),
    "weighting.seg=-1": ("weighting.seg", "greater"),
    "optim.lr=-0.1": ("optim", "learning rate"),
    "optim.lr=fast": ("optim", ""),
    "schedule.warmup=2": ("schedule.warmup", "less than 1"),
    "trainer.precision=16-mixed": ("trainer.precision", "GPU"),
    "trainer.accelerator=quantum": ("trainer", "quantum"),
    "loss.cls.class_weights=cubed": ("loss.cls.class_weights", "balanced"),
    "loss.cls.label_smoothing=1": ("loss.cls.label_smoothing", "less than 1"),
    "trainer.devices=2": ("trainer.devices", "one device"),
    "augment.rotate=720": ("augment.rotate", "less than or equal to 180"),
    "data.allow_leak=perhaps": ("data.allow_leak", "boolean"),
    "+trainer.logger=false": ("trainer.logger", "run"),
    "model._target_=skinmtl.network.MultiTaskNett": ("model._target_", "MultiTaskNett"),
}

EVIL = [
    "os.system",
    "builtins.eval",
    "builtins.exec",
    "subprocess.Popen",
    "subprocess.run",
    "pickle.loads",
    "torch.load",
]
EVIL += ["torch.hub.load", "numpy.load", "joblib.load", "pandas.read_pickle", "pathlib.Path.unlink", "shutil.rmtree"]
EVIL += ["runpy.run_path", "timeit.timeit", "cProfile.run", "sklearn.datasets.fetch_openml", "importlib.import_module"]
EVIL += ["skinmtl.data.cache.os.system", "skinmtl.data.cache.shutil.rmtree", "skinmtl.runs.write_text"]
EVIL += ["torch.optim.adamw.torch.load", "pytorch_lightning.callbacks.early_stopping.os.system", "skinmtl.config.build"]
EVIL += ["skinmtl.checkpoints.load", "skinmtl.data.sources.Path", "hydra.utils.instantiate"]


def checked(*overrides: str) -> None:
    config.check(compose(["trainer.accelerator=cpu", *overrides]), run)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named_by_its_key_with_what_to_do(mistake: str) -> None:
    key, hint = MISTAKES[mistake]
    with pytest.raises((Faults, ConfigError)) as caught:
        checked(mistake)
    lines = str(caught.value).splitlines()
    (line,) = [line for line in lines if line.startswith(key)]
    assert "; fix: " in line
    assert hint.lower() in line.lower()


@pytest.mark.parametrize("encoder", ["mit_b0", "efficientnet-b0", "mobilenet_v2", "tu-convnext_nano"])
def test_encoders_of_smp_and_timm_are_accepted_by_name(encoder: str) -> None:
    checked(f"model.encoder={encoder}")


def test_all_faults_are_said_at_once() -> None:
    with pytest.raises(Faults) as caught:
        checked("+model.encodr=resnet34", "data.batch_size=0", "seed=-1")
    assert len(str(caught.value).splitlines()) == 3


@pytest.mark.parametrize("option", OPTIONS)
def test_every_shipped_option_is_accepted(option: str) -> None:
    if option == "trainer=gpu":
        pytest.skip("says rightly that there is no GPU")
    config.check(compose([option, *([NEED[option]] if option in NEED else [])]), run)


@pytest.mark.parametrize("study", sorted(file.stem for file in (CONF / "study").glob("*.yaml")))
def test_every_job_of_a_study_is_accepted(study: str) -> None:
    params = OmegaConf.load(CONF / "study" / f"{study}.yaml").get("hydra", {}).get("sweeper", {}).get("params", {})
    choices = [[f"{key}={value}" for value in str(values).split(",")] for key, values in params.items()]
    for job in itertools.islice(itertools.product(*choices), 12):
        experiment = next((word.split("=")[1] for word in job if word.startswith("experiment=")), "resnet18_unet")
        rest = [word for word in job if not word.startswith("experiment=")]
        config.check(compose([f"study={study}", "data=synthetic", "trainer.max_epochs=1", *rest], experiment), run)


@pytest.mark.parametrize("target", EVIL)
@pytest.mark.parametrize("place", ["model", "callbacks.early_stopping", "data.synthetic"])
def test_an_evil_target_is_refused_and_not_run(target: str, place: str, tmp_path: Path) -> None:
    cfg = compose([])
    canary = tmp_path / "canary"
    OmegaConf.update(cfg, place, {"_target_": target, "_args_": [f"touch {canary}"]}, merge=False, force_add=True)
    with pytest.raises(Faults, match="_target_"):
        config.check(cfg, run)
    assert not canary.exists()


def test_an_evil_module_is_refused_before_it_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "evilmodule.py").write_text("raise RuntimeError('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    cfg = compose([])
    cfg.model._target_ = "${name}"
    cfg.name = "evilmodule.Thing"
    with pytest.raises(Faults, match="not an admitted constructor"):
        config.check(cfg, run)
    assert "evilmodule" not in sys.modules


def test_an_argument_added_to_a_constructor_is_checked_by_its_hint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = "from typing import Annotated\nfrom annotated_types import Le\nfrom skinmtl.optim import Constant\n"
    before = (
        head
        + "class Mine(Constant):\n    def __init__(self, warmup: float = 0.0) -> None:\n        super().__init__()\n"
    )
    after = before.replace("warmup: float = 0.0", "warmup: float = 0.0, cycles: Annotated[int, Le(4)] = 1")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv(constructors.ALLOW, "mine_before,mine_after")
    for name, source in (("mine_before", before), ("mine_after", after)):
        (tmp_path / f"{name}.py").write_text(source)

    def check(module: str, **values: object) -> None:
        cfg = compose([])
        OmegaConf.update(cfg, "schedule", {"_target_": f"{module}.Mine", **values}, merge=False, force_add=True)
        config.check(cfg, run)

    with pytest.raises(Faults, match=r"schedule\.cycles.*no such argument"):
        check("mine_before", cycles=3)
    check("mine_after", cycles=3)
    with pytest.raises(Faults, match=r"schedule\.cycles.*less than or equal to 4"):
        check("mine_after", cycles=9)
    monkeypatch.delenv(constructors.ALLOW)
    with pytest.raises(Faults, match="not an admitted"):
        check("mine_after", cycles=3)


def test_values_of_an_experiment_come_after_the_defaults() -> None:
    assert compose([], "resnet18_unet_seg").tasks == ["seg"]
    assert compose(["optim.lr=0.5"], "demo").optim.lr == 0.5
