"""A run as the door makes one, small enough for a test."""

from __future__ import annotations

import multiprocessing
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import hydra
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from skinmtl.distributed import launch
from skinmtl.evaluation.evaluate import evaluate
from skinmtl.runs.run import Run
from skinmtl.training.run import run

CONF = Path(__file__).parent.parent / "conf"
SHORT = ["data.size=32", "data.batch_size=4", "data.workers=0", "trainer.max_epochs=1", "trainer.accelerator=cpu"]
SHORT += ["trainer.limit_train_batches=2", "trainer.limit_val_batches=1", "model.weights=null"]
SMALL = ["model/encoder=conv_pool", "model.encoder.layers=5", "model.encoder.filters=2", "model.encoder.growth=1.0"]


def compose(overrides: Sequence[str], experiment: str = "resnet18_unet") -> DictConfig:
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra.compose("config", [f"experiment={experiment}", *overrides])
    cfg.name = experiment
    OmegaConf.resolve(cfg)
    return cfg


def train(
    folder: Path,
    root: Path,
    overrides: Sequence[str],
    experiment: str = "resnet18_unet",
    figures: bool = False,
) -> Run:
    """Train as the door does; the caches go to the test's folder.

    Figures are for tests that look at them.
    """
    places = [f"data.root={root}", "data.synthetic=null"]
    places += [f"data.{key}={folder.parent / key}" for key in ("cache_dir", "split_dir")]
    cfg = compose([*SHORT, *places, *overrides], experiment)
    command = " ".join(["python train.py", f"experiment={experiment}", *places, *overrides])
    with nullcontext() if figures else without_figures():
        run(dict(cfg), folder, command)
    return Run(folder)


@contextmanager
def without_figures() -> Iterator[None]:
    """Evaluate without figures, which take longer than all the rest of a short run."""
    with patch.dict(evaluate.__globals__, {"draw": lambda *_: None}):
        yield


@contextmanager
def forking() -> Iterator[None]:
    """Begin the processes of a run as copies of this one, which spares each of them its imports."""
    fork = multiprocessing.get_context("fork")
    names = {"get_context": lambda method: fork, "parent_process": multiprocessing.parent_process}
    with patch.object(launch, "multiprocessing", SimpleNamespace(**names)), warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*use of fork.*", DeprecationWarning)
        yield
