"""Two processes train as one would: the same gradients, every image once, one folder, the same bits again."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
from kinds import classification, segmentation
from pytorch_lightning.plugins.environments import LightningEnvironment
from sklearn.metrics import balanced_accuracy_score
from small_runs import SMALL as NETWORK
from small_runs import compose, forking, train
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import Dataset, DistributedSampler

from skinmtl import losses
from skinmtl.balancing.weighting import Fixed
from skinmtl.config.build import build
from skinmtl.data.dataset import Loader, collate
from skinmtl.data.samplers import SampleKey, SequentialSampler
from skinmtl.distributed import collectives
from skinmtl.distributed.launch import together
from skinmtl.errors import ConfigError, Diverged, Interrupted, ResourceError
from skinmtl.losses import BCE, CrossEntropy, Dice, DiceBCE
from skinmtl.runs import checkpoints
from skinmtl.runs.run import Run
from skinmtl.training.build import devices_of
from skinmtl.training.lightning_module import MultiTaskModule
from skinmtl.training.optim import Constant
from skinmtl.types import Batch, Logits, Sample

ROOT = Path(__file__).parents[2]
COUNTS = [50, 9, 3]
LABELS = {  # which of the eight images have a mask and which a diagnosis; the first four are the first process's
    "all": ([1, 1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1, 1]),
    "4 and 1": ([1, 1, 1, 1, 0, 0, 1, 0], [1, 1, 1, 1, 0, 1, 0, 0]),
    "masks only and diagnoses only": ([1, 1, 1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 1, 1, 1, 1]),
    "one and none": ([0, 0, 1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0, 1]),
    "none": ([0] * 8, [0] * 8),
}
SEG = {"bce": BCE(), "dice": Dice(), "dice_bce": DiceBCE()}
CLS = {
    f"{weights} {smoothing}": CrossEntropy(smoothing, class_counts=COUNTS, class_weights=weights)  # type: ignore[arg-type]
    for weights in ("none", "sqrt", "balanced")
    for smoothing in (0.0, 0.1)
}
SIZES = [(n, batch) for n in range(1, 18) for batch in (1, 2, 4)]


class Tiny(nn.Module):
    """Two heads on one convolution with batch norm."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.mask, self.name = nn.Conv2d(4, 1, 1), nn.Linear(4, 3)

    def forward(self, image: Tensor) -> Logits:
        features = self.encoder(image.float() / 64 - 2)
        return {"seg": self.mask(features), "cls": self.name(features.mean((2, 3)))}


class Drawn(Dataset[Sample]):
    """Images of noise; remembers who was asked for."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.images, self.masks = rng.integers(0, 256, (17, 8, 8, 3)), rng.integers(0, 2, (17, 8, 8))
        self.dx, self.asked = rng.integers(0, 3, 17), []

    def __getitem__(self, place: SampleKey) -> Sample:
        row = place[2]
        self.asked.append(row)
        image, mask = self.images[row].astype(np.uint8), self.masks[row].astype(np.uint8)
        return Sample(image=image, mask=mask, has_mask=True, dx=int(self.dx[row]), index=row)


def batch_of(labels: str, rows: range) -> Batch:
    drawn, (mask, dx) = Drawn(), LABELS[labels]
    batch = collate([drawn[(0, row, row)] for row in rows])
    assert isinstance(batch, dict)
    batch["has_mask"] = torch.tensor([bool(mask[row]) for row in rows])
    batch["dx"] = torch.where(torch.tensor([bool(dx[row]) for row in rows]), batch["dx"], -1)
    return batch


def gradient(network: nn.Module, seg: str, cls: str, batch: Batch) -> Tensor:
    network.zero_grad()
    logits = network(batch["image"])
    Fixed(seg=0.7)({"seg": SEG[seg](logits["seg"], batch), "cls": CLS[cls](logits["cls"], batch)}).backward()
    return torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])


def cases() -> Iterator[tuple[str, str, str]]:
    seg = list(SEG)
    return ((labels, seg[i % 3], cls) for labels in LABELS for i, cls in enumerate([*CLS, *list(CLS)[:3]]))


def own_mean(per_sample: Tensor, has: Tensor, weight: Tensor | None = None) -> Tensor:
    """The control: what a process would compute that does not ask the other."""
    total = (has.float() if weight is None else has.float() * weight).sum()
    return torch.where(has, per_sample, 0.0).sum() / total.clamp(min=1e-6)


def validated(n: int, batch_size: int, rank: int, cls: str = "none 0.0") -> tuple[dict[str, float], list[int]]:
    module = MultiTaskModule(
        Tiny(),
        [segmentation(BCE()), classification(CLS[cls])],
        Fixed(),
        partial(torch.optim.SGD, lr=0.1),
        Constant(),
        seed=0,
        total_steps=1,
        steps_per_epoch=1,
        facts={},
    )
    drawn = Drawn()
    loader = Loader(drawn, batch_size, sampler=SequentialSampler(range(n), rank, 2, batch_size), collate_fn=collate)
    quiet = {f"enable_{name}": False for name in ("checkpointing", "progress_bar", "model_summary")}
    trainer = pl.Trainer(
        accelerator="cpu", devices=2, strategy="ddp", logger=False, use_distributed_sampler=False,
        plugins=[LightningEnvironment()], **quiet,
    )  # fmt: skip
    trainer.validate(module, loader, verbose=False)
    return {key: float(value) for key, value in trainer.callback_metrics.items()}, drawn.asked


def look(folder: Path, meeting: Path, rank: int, world_size: int, device: str) -> None:
    """What one of two processes does; the answers go to a file."""
    warnings.simplefilter("default")  # a copy has those of the tests, a run has its own
    collectives.join(meeting, rank, world_size, device)
    network = DistributedDataParallel(Tiny().eval())
    mine = range(4 * rank, 4 * rank + 4)
    found: dict[str, Any] = {
        "gradients": {case: gradient(network, *case[1:], batch_of(case[0], mine)) for case in cases()}
    }
    exact, losses.segmentation.mean_over_labelled = losses.segmentation.mean_over_labelled, own_mean
    found["control"] = gradient(network, "bce", "none 0.0", batch_of("4 and 1", mine))
    losses.segmentation.mean_over_labelled = exact
    found["validated"] = {size: validated(*size, rank) for size in SIZES}
    found["weighed"] = {size: validated(17, size, rank, "balanced 0.1")[0] for size in (1, 4, 16)}
    torch.save(found, folder / f"{rank}.pt")
    collectives.leave()


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[Mapping[str, Any]]:
    """What each of two processes found, which ran once for all tests."""
    folder = tmp_path_factory.mktemp("two")
    with forking():
        together(partial(look, folder), ["cpu", "cpu"], folder)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


def test_gradients_of_unequal_labels_are_those_of_one_process(two: list[Mapping[str, Any]]) -> None:
    network = Tiny().eval()
    for case in cases():
        alone = gradient(network, *case[1:], batch_of(case[0], range(8)))
        for found in two:
            assert torch.isfinite(found["gradients"][case]).all(), case
            assert (found["gradients"][case] - alone).abs().max() <= 1e-5, case
        assert case[0] == "none" or alone.abs().max() > 1e-3, case
    alone = gradient(network, "bce", "none 0.0", batch_of("4 and 1", range(8)))
    assert (two[0]["control"] - alone).abs().max() > 1e-3, "means of each process's own would not do"


@pytest.mark.parametrize("n", range(1, 18))
def test_validation_counts_every_image_once_whoever_has_it(two: list[Mapping[str, Any]], n: int) -> None:
    drawn = Drawn()
    batch = collate([drawn[(0, row, row)] for row in range(n)])
    assert isinstance(batch, dict)
    with torch.no_grad():
        logits = Tiny().eval()(batch["image"])
    p, dx = logits["seg"][:, 0].sigmoid().double().numpy(), logits["cls"].double().log_softmax(1).numpy()
    mask, target = batch["mask"].numpy(), batch["dx"].numpy()
    bce = [-np.mean(np.where(t, np.log(q), np.log(1 - q))) for q, t in zip(p, mask, strict=True)]
    dice = [2 * np.sum((q > 0.5) & (t > 0)) / (np.sum(q > 0.5) + np.sum(t)) for q, t in zip(p, mask, strict=True)]
    recall = np.mean([np.mean(dx.argmax(1)[target == k] == k) for k in np.unique(target)])
    expected = {
        "val/seg/loss": np.mean(bce),
        "val/cls/loss": -np.mean(dx[np.arange(n), target]),
        "val/seg/mean_image_dice": np.mean(dice),
        "val/cls/balanced_accuracy": recall,
        "val/score": (np.mean(dice) + recall) / 2,
    }
    if n == 17:
        assert recall == pytest.approx(balanced_accuracy_score(target, dx.argmax(1)))
    for batch_size in (1, 2, 4):
        answers = [found["validated"][n, batch_size] for found in two]
        assert sorted(answers[0][1] + answers[1][1]) == list(range(n))
        assert answers[0][0] == answers[1][0], "both decide alike"
        for key, value in expected.items():
            assert answers[0][0][key] == pytest.approx(value, abs=2e-6), (key, batch_size)
    if n == 1:
        assert two[1]["validated"][1, 4][1] == [], "the second has nothing to do, and takes part"
    if n == 5:
        assert sum(len(DistributedSampler(range(5), 2, rank, shuffle=False)) for rank in (0, 1)) == 6
        means = [np.mean(np.array(bce)[found["validated"][5, 4][1]]) for found in two]
        assert abs(np.mean(means) - np.mean(bce)) > 1e-4, "a mean of means would be seen"


@pytest.mark.parametrize("size", [1, 4, 16])
def test_a_validation_of_two_processes_under_class_weights_has_the_loss_of_one_batch(
    two: list[Mapping[str, Any]], size: int
) -> None:
    drawn = Drawn()
    batch = collate([drawn[(0, row, row)] for row in range(17)])
    assert isinstance(batch, dict)
    with torch.no_grad():
        logits = Tiny().eval()(batch["image"])["cls"]
    weight = CLS["balanced 0.1"].weight
    expected = nn.functional.cross_entropy(logits, batch["dx"], weight, label_smoothing=0.1)
    assert abs(expected - nn.functional.cross_entropy(logits, batch["dx"], label_smoothing=0.1)) > 0.01
    for found in two:
        assert found["weighed"][size]["val/cls/loss"] == pytest.approx(float(expected), rel=2e-6)
        both = found["weighed"][size]["val/seg/loss"] + found["weighed"][size]["val/cls/loss"]
        assert found["weighed"][size]["val/loss"] == pytest.approx(both, rel=1e-6)


SMALL = ["trainer=ddp_cpu", "data.synthetic=null", "data.size=32", "data.batch_size=4", "data.workers=0"]
SMALL += ["trainer.max_epochs=2", "trainer.limit_train_batches=3", "trainer.precision=32-true", "model.weights=null"]
SMALL += ["sampler=class_balanced", "+callbacks.record._target_=recording.Record", *NETWORK]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory, synthetic_root: Path) -> Path:
    """A sweep of two jobs from the command line: the first of two processes, the second of one."""
    folder = tmp_path_factory.mktemp("sweep")
    words = [*SMALL, f"data.root={synthetic_root}", "+callbacks.record.folder=${hydra:runtime.output_dir}"]
    command = [sys.executable, str(ROOT / "train.py"), "-m", "experiment=demo", "trainer.devices=2,1", *words]
    env = os.environ | {"SKINMTL_ALLOW": "recording"}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    (job,) = folder.glob("outputs/sweep/*")
    assert done.returncode == 0, done.stderr + "".join(file.read_text() for file in job.glob("*/*.*g"))
    return job


@pytest.fixture(autouse=True)
def in_copies() -> Iterator[None]:
    """Runs of two processes begin as users' do in the sweep and in test_processes; here they are copies of this one."""
    with forking():
        yield


def recorded(run: Path) -> list[dict[str, Any]]:
    return [json.loads(file.read_text()) for file in sorted(run.glob("rank_*.json"))]


def test_jobs_of_a_sweep_are_of_as_many_processes_as_they_say_and_one_folder_each(sweep: Path) -> None:
    with (sweep / "sweep.csv").open(newline="") as file:
        assert [row["status"] for row in csv.DictReader(file)] == ["finished", "finished"]
    top = sweep.parents[2]
    assert sorted(path.parent for path in top.rglob("run.json")) == [sweep / "0", sweep / "1"]
    assert len(list(top.glob("outputs/splits/*_folds_*.csv"))) == len(list(top.glob("outputs/.cache/*.npy"))) == 1
    for run, count in ((Run(sweep / "0"), 2), (Run(sweep / "1"), 1)):
        info = run.info()
        assert (info["world_size"], info["global_batch"], info["threads"], info["exit_code"]) == (
            count,
            4 * count,
            1,
            0,
        )
        assert [found["threads"] for found in recorded(run.path)] == [1] * count
        assert not list(run.path.glob("rank_*.log"))
        metrics = pd.read_csv(run.path / "metrics.csv")
        for name in ("val/score", "train/score", "train/loss"):
            assert metrics[name].count() == 2, "one line an epoch, from one process"
        assert (run.path / "log.txt").read_text().count("epoch   1/2") == 1


def test_both_processes_agree_and_score_what_one_would(sweep: Path) -> None:
    run = Run(sweep / "0")
    first, second = recorded(run.path)
    assert first["weights"] == second["weights"] and first["val"] == second["val"]
    table = run.predictions().query("split == 'val'")
    best = first["val"][run.info()["best_epoch"] - 1]
    assert best["val/seg/mean_image_dice"] == pytest.approx(table["dice_input"].mean(), abs=1e-6)
    right = table["predicted_dx"] == table["dx"]
    assert best["val/cls/accuracy"] == pytest.approx(right.mean(), abs=1e-6)


def drawn_alone(run: Run, epoch: int) -> tuple[list[int], pd.Series[str]]:
    """The rows of an epoch as one process would draw them, and the image ids of all rows."""
    cfg = run.config()
    parts = {"augment": build(cfg.augment), "sampler": build(cfg.sampler), "seed": cfg.seed}
    places = {"split": str(run.split_file), "cache": "off", "batch_size": 8}
    data = build({**cfg.data, **places}, **parts)
    data.setup()
    rows = data.rows("train")
    return rows[data.sampler.order(*data._labels(rows), cfg.seed, epoch)].tolist(), data.table["image_id"]


def test_the_images_of_a_step_are_those_that_one_process_would_draw(sweep: Path) -> None:
    run = Run(sweep / "0")
    first, second = (found["rows"] for found in recorded(run.path))
    for epoch in range(2):
        alone, _ = drawn_alone(run, epoch)
        steps = zip(first[epoch], second[epoch], strict=True)
        shared = [row for step in steps for turn in zip(*step, strict=True) for row in turn]
        assert shared == alone[: 3 * 8]
        assert first[epoch] != second[epoch]


def test_a_stopped_run_goes_on_to_the_same_bits_with_as_many_processes_only(
    sweep: Path, synthetic_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SKINMTL_ALLOW", "recording")
    monkeypatch.setenv("TEST_STOP_AT", "1")
    small = [
        *SMALL[2:],
        "evaluate=false",
        "trainer.limit_val_batches=null",
        "+callbacks.record.folder=" + str(tmp_path),
    ]
    two = [SMALL[0], "trainer.accelerator=cpu", *small]
    with pytest.raises(Interrupted, match="resume="):
        train(tmp_path / "a", synthetic_root, two, "demo")
    assert Run(tmp_path / "a").info()["exit_code"] == 75
    monkeypatch.delenv("TEST_STOP_AT")
    with pytest.raises(ConfigError, match=r"trainer\.devices: a was started with world size 2"):
        train(tmp_path / "b", synthetic_root, ["trainer=cpu", *small, f"resume={tmp_path / 'a'}"], "demo")
    train(tmp_path / "c", synthetic_root, [*two, f"resume={tmp_path / 'a'}"], "demo")
    assert Run(tmp_path / "a").info()["status"] == "finished"
    assert state(Run(tmp_path / "a")) == state(Run(sweep / "0")) != state(Run(sweep / "1"))


def of_two(ends: Sequence[str], name: str, quick: Sequence[str]) -> list[Any]:
    """Cases counted under a name, most of them long."""
    counted = pytest.mark.fault(name)
    return [pytest.param(end, marks=counted if end in quick else [counted, pytest.mark.long]) for end in ends]


KILLS = [f"train:{rank}:{step}:kill" for rank in (0, 1) for step in range(1, 6)]
WHERE = ("setup:0:0", "train:0:4", "validation:1:1", "save:0:3")
SIGNALS = [f"{where}:{name}" for where in WHERE for name in ("SIGTERM", "SIGINT", "SIGUSR1")]
ENDS = of_two(KILLS, "kill -9 of one of two processes", ["train:1:2:kill"])
ENDS += of_two(SIGNALS, "SIGTERM, SIGINT, SIGUSR1, two processes", [])


@pytest.mark.parametrize("end", ENDS)
def test_a_run_of_two_processes_that_is_killed_or_asked_to_stop_goes_on_to_the_same_bits(
    sweep: Path,
    synthetic_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    record_property: Callable[[str, object], None],
    end: str,
) -> None:
    monkeypatch.setenv("SKINMTL_ALLOW", "recording")
    monkeypatch.setenv("TEST_END", end)
    often = [
        "save_every=1e-9",
        "evaluate=false",
        *SMALL,
        "trainer.limit_val_batches=null",
        f"+callbacks.record.folder={tmp_path}",
    ]
    with pytest.raises(Interrupted, match="resume="):
        train(tmp_path / "a", synthetic_root, often, "demo")
    seconds = time.monotonic() - float((tmp_path / "moment").read_text())
    record_property("seconds to end", seconds)
    run = Run(tmp_path / "a")
    assert run.info()["exit_code"] == 75 and run.info()["status"] == "interrupted"
    monkeypatch.delenv("TEST_END")
    train(tmp_path / "b", synthetic_root, [*often, f"resume={run.path}"], "demo")
    assert run.info()["status"] == "finished"
    assert state(run) == state(Run(sweep / "0"))
    rows, whole = (pd.read_csv(folder / "metrics.csv").drop(columns="time") for folder in (run.path, sweep / "0"))
    pd.testing.assert_frame_equal(rows, whole)


@pytest.mark.fault("not finite from step 3 on")
def test_what_is_not_finite_in_one_process_ends_both_and_is_named(
    synthetic_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SKINMTL_ALLOW", "recording")
    monkeypatch.setenv("TEST_END", "train:1:2:lose")
    words = ["save_every=1e-9", *SMALL, "trainer.limit_train_batches=null", f"+callbacks.record.folder={tmp_path}"]
    with pytest.raises(Diverged, match="3 steps in a row were skipped before") as caught:
        train(tmp_path / "a", synthetic_root, words, "demo")
    run = Run(tmp_path / "a")
    assert run.info()["exit_code"] == 3 and caught.value.where == "epoch 2, step 6"
    alone, ids = drawn_alone(run, epoch=1)
    ids = ids.iloc[alone[:8][1::2]]
    assert f"of the images {', '.join(ids)};" in caught.value.what, "the second one's, and only those"
    for path in (run.path / "checkpoints").glob("*.ckpt"):
        tensors = checkpoints.load(path)["state_dict"]
        assert all(torch.isfinite(value).all() for value in tensors.values() if value.is_floating_point())
    assert (run.path / "checkpoints" / "last.ckpt").exists()


@pytest.mark.long
def test_a_killed_process_without_a_checkpoint_ends_the_run_with_4(
    synthetic_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SKINMTL_ALLOW", "recording")
    monkeypatch.setenv("TEST_END", "train:1:0:kill")
    with pytest.raises(ResourceError, match="killed by SIGKILL"):
        train(tmp_path / "a", synthetic_root, [*SMALL, f"+callbacks.record.folder={tmp_path}"], "demo")
    assert Run(tmp_path / "a").info()["exit_code"] == 4


def state(run: Run) -> str:
    tensors = checkpoints.load(run.checkpoint("last"))["state_dict"]
    return hashlib.sha256(b"".join(tensors[name].numpy().tobytes() for name in sorted(tensors))).hexdigest()


@pytest.mark.parametrize(
    ("overrides", "devices"),
    [
        (["trainer=cpu"], ["cpu"]),
        (["trainer=ddp_cpu"], ["cpu", "cpu"]),
        (["trainer=cpu", "trainer.devices=3"], ["cpu"] * 3),
        (["trainer=auto", "trainer.accelerator=cpu", "trainer.devices=auto"], ["cpu"]),
    ],
)
def test_devices_alone_say_how_many_processes(overrides: list[str], devices: list[str]) -> None:
    cfg = compose(overrides)
    assert devices_of(cfg.trainer) == devices
