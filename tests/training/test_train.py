"""What a run promises: it repeats, it can learn, it learns nothing from noise, it goes on where it stopped."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from layouts import write_mirror, write_task1
from omegaconf import OmegaConf
from small_runs import SHORT, SMALL, compose, train, without_figures

import skinmtl
from skinmtl.cli import commands
from skinmtl.config.run_config import RunConfig
from skinmtl.config.tasks import settle
from skinmtl.data import sources, splits
from skinmtl.data.datamodule import DataModule
from skinmtl.errors import ConfigError, Faults, InputError, Interrupted
from skinmtl.evaluation.evaluate import evaluate
from skinmtl.files import digest
from skinmtl.models.multitask_net import MultiTaskNet
from skinmtl.runs import checkpoints
from skinmtl.runs.run import Run
from skinmtl.training import build as training_build
from skinmtl.training import dry_run
from skinmtl.training.build import build_data
from skinmtl.training.callbacks.best_checkpoint import Best
from skinmtl.training.init_from import start_from
from skinmtl.training.lightning_module import MultiTaskModule
from skinmtl.training.resume import Start, check_data
from skinmtl.training.tasks import build_tasks, give_losses, say

REAL = ["trainer.precision=32-true", "callbacks.early_stopping=null"]
TINY = [*REAL, *SMALL]
BARE = [*TINY, "evaluate=false"]  # for what is asked of training alone


def weights(run: Run, which: str = "last") -> str:
    """One hash of all tensors of a checkpoint."""
    state = checkpoints.load(run.checkpoint(which))["state_dict"]
    return hashlib.sha256(b"".join(state[name].numpy().tobytes() for name in sorted(state))).hexdigest()


def test_one_seed_gives_the_same_bits_and_another_seed_does_not(synthetic_root: Path, tmp_path: Path) -> None:
    runs = [
        train(tmp_path / name / "run", synthetic_root, [*TINY, *words])
        for name, words in (("a", []), ("b", ["data.workers=2"]), ("c", ["seed=1", "evaluate=false"]))
    ]
    assert weights(runs[0]) == weights(runs[1])
    assert weights(runs[0]) != weights(runs[2])
    tables = [run.predictions() for run in runs[:2]]
    pd.testing.assert_frame_equal(tables[0], tables[1])


def test_one_batch_can_be_learned_by_heart(synthetic_root: Path, tmp_path: Path) -> None:
    root, few = tmp_path / "few", 12
    copy_of_lesions(synthetic_root, root, few)
    split = pd.DataFrame({"image_id": ids(root), "group": ids(root), "fold_0": "train"})
    split.loc[: few // 3, "fold_0"] = "val"
    split.loc[few - 2 :, "fold_0"] = "test"
    split.to_csv(tmp_path / "split.csv", index=False)
    long = [
        *REAL,
        "evaluate=false",
        f"data.split={tmp_path / 'split.csv'}",
        "augment=none",
        "trainer.limit_train_batches=1.0",
    ]
    long += ["trainer.max_epochs=40", "model.dropout=0", "trainer.check_val_every_n_epoch=40"]
    run = train(tmp_path / "run", root, long, "shared_cnn")
    metrics = pd.read_csv(run.path / "metrics.csv")
    last = metrics.dropna(subset=["train/score"]).iloc[-1]
    assert last["train/cls/balanced_accuracy"] == 1.0
    assert last["train/seg/mean_image_dice"] > 0.9


def test_shuffled_diagnoses_are_scored_at_chance(synthetic_root: Path, tmp_path: Path) -> None:
    root = tmp_path / "shuffled"
    shutil.copytree(synthetic_root, root)
    (root / "synthetic.json").unlink(missing_ok=True)
    table = pd.read_csv(root / "HAM10000_metadata.csv")
    lesions = table.groupby("lesion_id")["dx"].first()
    mixed = dict(zip(lesions.index, np.random.default_rng(0).permutation(lesions.to_numpy()), strict=True))
    table.assign(dx=table["lesion_id"].map(mixed)).to_csv(root / "HAM10000_metadata.csv", index=False)
    long = [*REAL, "trainer.limit_train_batches=1.0", "trainer.max_epochs=16", "tasks=[cls]", "loss/seg=none"]
    run = train(tmp_path / "run", root, [*long, "data.folds=2"], "shared_cnn")
    test = run.predictions().query("split == 'test'")
    recall = (test["dx"] == test["predicted_dx"]).groupby(test["dx"]).mean().mean()
    chance = 1 / test["dx"].nunique()
    assert recall < chance + 0.2  # 4 standard errors of a mean of recalls over about 32 images


def test_an_unfinished_run_goes_on_to_the_same_bits(synthetic_root: Path, tmp_path: Path) -> None:
    long = [*BARE, "trainer.max_epochs=3", "callbacks=ema"]
    whole = train(tmp_path / "whole" / "run", synthetic_root, long)

    broken = tmp_path / "broken" / "run"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted, match="resume="):
        patch.setattr(MultiTaskModule, "on_train_batch_start", stop_at_epoch(2))
        train(broken, synthetic_root, long)
    assert Run.open(broken).info()["status"] == "interrupted"
    train(tmp_path / "broken" / "fresh", synthetic_root, [*long, f"resume={broken}"])
    done = Run.open(broken)
    assert done.info()["status"] == "finished"
    assert weights(done) == weights(whole)
    with pytest.raises(ConfigError, match="finished"):
        train(tmp_path / "broken" / "again", synthetic_root, [*long, f"resume={broken}"])
    with pytest.raises(ConfigError, match=r"optim\.lr"):
        train(tmp_path / "broken" / "other", synthetic_root, [*long, f"resume={broken}", "optim.lr=0.1"])


def test_an_encoder_that_was_frozen_and_learns_slowly_goes_on_to_the_same_bits(
    synthetic_root: Path, tmp_path: Path
) -> None:
    slow = [*REAL, "evaluate=false", "trainer.max_epochs=3", "model.encoder_rate=0.5", "model.rate_decay=0.5"]
    slow += ["callbacks.freeze.encoder_epochs=1", "callbacks.freeze.batch_norm=true"]
    whole = train(tmp_path / "whole" / "run", synthetic_root, slow, "shared_cnn")
    broken = tmp_path / "broken" / "run"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(MultiTaskModule, "on_train_batch_start", stop_at_epoch(1))
        train(broken, synthetic_root, slow, "shared_cnn")
    frozen = checkpoints.load(Run.open(broken).checkpoint("last"))["state_dict"]
    train(tmp_path / "broken" / "fresh", synthetic_root, [*slow, f"resume={broken}"], "shared_cnn")
    assert weights(Run.open(broken)) == weights(whole)
    # It was let go in between, but for its batch normalisation.
    last = checkpoints.load(whole.checkpoint("last"))["state_dict"]
    encoder = {name: torch.equal(frozen[name], last[name]) for name in last if name.startswith("network.encoder.")}
    assert encoder == {name: last[name].ndim != 4 for name in encoder}


def test_diagnoses_and_masks_may_come_from_two_lists(synthetic_root: Path, tmp_path: Path) -> None:
    table = sources.read(synthetic_root)
    lists = table[["image", "lesion_id", "dx", "mask"]].astype(object)
    odd = lists["lesion_id"].map({name: i % 2 for i, name in enumerate(lists["lesion_id"].unique())}) == 1
    lists.loc[odd, "dx"], lists.loc[~odd, "mask"] = None, None
    lists.to_csv(tmp_path / "lists.csv", index=False)
    run = train(tmp_path / "run", tmp_path / "lists.csv", ["data.layout=csv"], "shared_cnn")
    test = run.predictions().query("split == 'test'")
    assert (test["dx"].isna() != test["dice"].isna()).all()
    assert test["dx"].notna().any() and test["dice"].notna().any()


OUTSIDE = """
import torch
from torch import nn
from torch.nn import functional as F
from skinmtl.models.encoders import Encoder
from skinmtl.balancing.gradients import Gradients
from skinmtl.models.heads import Head
from skinmtl.losses.common import mean_over_labelled
from skinmtl.balancing.weighting import Weighting


class Thumbnail(Encoder):
    def __init__(self, filters: int = 8) -> None:
        super().__init__()
        self.out_channels = [3, filters]
        self.convolution = nn.Conv2d(3, filters, 3, padding=1)

    def forward(self, image):
        return [image, self.convolution(F.avg_pool2d(image, 2))]


class Brightest(Head):
    def connect(self, channels: int, classes: int) -> None:
        self.linear = nn.Linear(channels, classes)

    def forward(self, features, mask=None):
        return self.linear(features.amax((2, 3)))


class Pixels(nn.Module):
    def __init__(self, width: int = 8, weights: str = __file__, *, dx_classes: int) -> None:
        super().__init__()
        assert weights == __file__
        self.body = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.mask, self.name = nn.Conv2d(width, 1, 1), nn.Linear(width, dx_classes)

    def forward(self, image):
        x = self.body(image / 255)
        return {"seg": self.mask(x), "cls": self.name(x.mean((2, 3)))}


class Speechless(Pixels):
    def forward(self, image):
        return {"seg": super().forward(image)["seg"]}


class Hinge(nn.Module):
    def forward(self, logits, batch):
        own = logits.gather(1, batch["dx"].clamp(min=0)[:, None])
        return mean_over_labelled((1 + logits - own).clamp(min=0).sum(1), batch["dx"] >= 0)


class Turns(Weighting):
    def __init__(self, high: float = 2.0) -> None:
        super().__init__()
        self.high = high
        self.register_buffer("epochs", torch.zeros(()))

    def weights(self):
        return {"seg": self.high if self.epochs % 2 else 1.0, "cls": 1.0}

    def end_epoch(self, losses):
        self.epochs += 1


class OneOnly(Gradients):
    def combine(self, inner, losses):
        return torch.tensor([1.0, 0.0], device=inner.device)
"""


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package of one's own with two lines of YAML for each of its classes; gives the word that finds them."""
    (tmp_path / "outside.py").write_text(OUTSIDE)
    groups = {"model/encoder": "Thumbnail", "model/head": "Brightest", "loss/cls": "Hinge"}
    groups |= {"weighting": "Turns", "gradients": "OneOnly", "model": "Pixels"}
    for group, name in groups.items():
        file = tmp_path / "conf" / group / f"{name.lower()}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"# One of mine.\n_target_: outside.{name}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "outside", raising=False)  # that of another test
    return f"hydra.searchpath=[file://{tmp_path / 'conf'}]"


def test_an_encoder_and_a_head_from_outside_are_a_class_and_two_lines_each(
    outside: str, synthetic_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = [outside, "model/encoder=thumbnail", "model/head=brightest", "evaluate=false"]
    with pytest.raises(Faults, match=r"model\.encoder\._target_: 'outside\.Thumbnail' is not an admitted"):
        train(tmp_path / "refused", synthetic_root, mine)
    monkeypatch.setenv("SKINMTL_ALLOW", "outside")
    run = train(tmp_path / "run", synthetic_root, mine)
    state = checkpoints.load(run.checkpoint())["state_dict"]
    assert state["network.encoder.convolution.weight"].shape == (8, 3, 3, 3)
    assert state["network.class_head.linear.weight"].shape[1] == 8
    assert skinmtl.load_run(run.path).predict(np.zeros((40, 50, 3), np.uint8)).dx is not None


def test_a_network_of_ones_own_trains_evaluates_and_predicts(
    outside: str, synthetic_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SKINMTL_ALLOW", "outside")
    (tmp_path / "conf" / "model" / "pixels.yaml").write_text("_target_: outside.Pixels\nweights: null\n")
    mine = [outside, "model=pixels", f"model.weights={tmp_path / 'outside.py'}"]
    with pytest.raises(Faults, match=r"model\._target_: Speechless gives no logits\['cls'\]"):
        train(tmp_path / "refused", synthetic_root, [*mine, "model._target_=outside.Speechless"])
    run = train(tmp_path / "run", synthetic_root, [*mine, "trainer.precision=bf16-mixed"])
    assert run.info()["status"] == "finished" and run.info()["encoder_weights"] is None
    assert set(json.loads((run.path / "scores.json").read_text())["parts"]["test"]["scores"]) == {"seg", "cls"}
    prediction = skinmtl.load_run(run.path).predict(np.zeros((40, 50, 3), np.uint8))
    assert prediction.dx is not None and prediction.mask.shape == (40, 50)


def test_a_loss_a_weighting_and_a_gradient_method_from_outside_train_as_they_say(
    outside: str, synthetic_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SKINMTL_ALLOW", "outside")
    mine = [*BARE, outside, "weighting=turns", "trainer.max_epochs=2", "trainer.gradient_clip_val=null", "keep=last"]

    def trained(name: str, *words: str) -> Run:
        return train(tmp_path / name / "run", synthetic_root, [*mine, *words])

    def encoder(run: Run) -> bytes:
        state = checkpoints.load(run.checkpoint())["state_dict"]
        return b"".join(state[name].numpy().tobytes() for name in sorted(state) if ".encoder." in name)

    run = trained("hinge", "loss/cls=hinge", "gradients=oneonly")
    metrics = pd.read_csv(run.path / "metrics.csv")
    assert metrics["weight/seg"].dropna().tolist() == [1.0, 2.0]
    # A hinge of seven classes that are all alike is seven, its own class counted; the network has hardly begun.
    assert 4 < metrics["train/cls/loss"].dropna().iloc[0] < 14
    # No gradient of the diagnosis reaches the encoder, so it does not matter there which loss it has; else it does.
    assert encoder(run) == encoder(trained("entropy", "gradients=oneonly"))
    assert encoder(run) != encoder(trained("both", "loss/cls=hinge"))


@pytest.mark.fault("two processes, one run folder", tries=2)
def test_a_run_in_other_hands_is_left_alone(
    synthetic_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = [*BARE, "trainer.max_epochs=2", "resume=auto"]
    stopped = tmp_path / "a"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(MultiTaskModule, "on_train_batch_start", stop_at_epoch(1))
        train(stopped, synthetic_root, long)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "run.json").write_text("half a fi")
    monkeypatch.setattr("skinmtl.runs.run.PATIENCE", 0)
    with Run(stopped).held():
        train(tmp_path / "c", synthetic_root, long)
        assert Run(tmp_path / "c").info()["status"] == "finished", "a run of its own"
        with pytest.raises(InputError, match="another process"):
            train(tmp_path / "d", synthetic_root, [*long[:-1], f"resume={stopped}"])
    assert Run(stopped).info()["status"] == "interrupted"
    train(tmp_path / "e", synthetic_root, long)
    assert Run(stopped).info()["status"] == "finished"
    assert not (tmp_path / "e" / "run.json").exists()


@pytest.fixture(scope="module")
def trained(synthetic_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that others begin from; not to be changed."""
    return train(tmp_path_factory.mktemp("trained") / "run", synthetic_root, BARE)


def test_a_folder_that_holds_a_run_is_not_trained_over(trained: Run, synthetic_root: Path) -> None:
    before = trained.info()
    with pytest.raises(ConfigError, match=r"hydra\.run\.dir: .* holds a run already"):
        train(trained.path, synthetic_root, [*BARE, "seed=7"])
    assert trained.info() == before


def test_a_run_that_goes_on_adds_up_its_seconds_and_forgets_its_error(synthetic_root: Path, tmp_path: Path) -> None:
    long = [*BARE, "trainer.max_epochs=2"]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(MultiTaskModule, "on_train_batch_start", stop_at_epoch(1))
        train(tmp_path / "a", synthetic_root, long)
    run = Run(tmp_path / "a")
    run.update({"seconds": {"fit": 1000.0}, "commit": "0123456789ab"})
    assert "stopped from outside" in run.info()["error"]
    train(tmp_path / "b", synthetic_root, [*long, f"resume={run.path}"])
    info = run.info()
    assert info["error"] is None and info["commit"] == "0123456789ab" and len(info["resumed"]) == 1
    assert 1000 < info["seconds"]["fit"] <= info["seconds"]["total"] < 2000, "what was before is added once"


def test_the_last_checkpoint_is_that_of_the_last_epoch_when_an_earlier_one_was_best(
    synthetic_root: Path, tmp_path: Path
) -> None:
    still = [*BARE, "trainer.max_epochs=3", "optim.lr=0.0", "optim.weight_decay=0.0", "trainer.limit_val_batches=1.0"]
    run = train(tmp_path / "run", synthetic_root, still)
    epochs = {name: checkpoints.load(run.checkpoint(name))["epoch"] for name in ("best", "last")}
    assert epochs["last"] == 3, "epochs are over"
    # Nothing is learned but statistics of batches, and of these seeds the first epoch's are the best.
    assert epochs["best"] == run.info()["best_epoch"] - 1 == 0


def test_the_last_epoch_is_kept_where_that_is_asked_for(synthetic_root: Path, tmp_path: Path) -> None:
    still = [*BARE, "trainer.max_epochs=3", "optim.lr=0.0", "optim.weight_decay=0.0", "trainer.limit_val_batches=1.0"]
    run = train(tmp_path / "run", synthetic_root, [*still, "keep=last"])
    assert weights(run, "best") == weights(run, "last")
    assert run.info()["best_epoch"] == 3
    validated = pd.read_csv(run.path / "metrics.csv")["val/score"].dropna()
    assert validated.iloc[-1] < validated.max(), "by validation another would have been kept"
    assert run.info()["score"] == pytest.approx(validated.iloc[-1])


def test_the_last_score_is_remembered_by_a_run_that_goes_on(tmp_path: Path) -> None:
    keep = Best(tmp_path, "last")
    keep._latest = 0.4
    again = Best(tmp_path, "last")
    assert again.score is None
    again.load_state_dict(keep.state_dict())
    assert again.score == 0.4


def test_of_a_moved_run_the_best_checkpoint_is_remembered(tmp_path: Path) -> None:
    keep = Best(tmp_path / "before")
    keep.best_model_path = str(tmp_path / "before" / "best.ckpt")
    keep.best_model_score, keep.best_k_models = torch.tensor(0.9), {keep.best_model_path: torch.tensor(0.9)}
    keep.kth_best_model_path = keep.best_model_path
    moved = Best(tmp_path / "after")
    moved.load_state_dict(keep.state_dict())
    assert moved.best_model_score == 0.9
    assert list(moved.best_k_models) == [moved.best_model_path] == [str(tmp_path / "after" / "best.ckpt")]


def test_images_without_any_mask_do_not_train_a_mask(synthetic_root: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    shutil.copytree(synthetic_root, root)
    (root / "synthetic.json").unlink()
    shutil.rmtree(next(root.glob("*segmentations*")))
    with pytest.raises(InputError, match="no train image has a mask"):
        train(tmp_path / "both", root, TINY)
    train(tmp_path / "cls", root, [*TINY, "tasks=[cls]", "loss/seg=none"])


def test_a_split_file_of_ones_own_is_carried_byte_by_byte_and_needs_every_part(
    trained: Run, synthetic_root: Path, tmp_path: Path
) -> None:
    drawn = trained.split_file.read_text()
    mine = tmp_path / "mine.csv"
    mine.write_bytes(drawn.replace("\n", "\r\n").encode())
    run = train(tmp_path / "b" / "run", synthetic_root, [*BARE, f"data.split={mine}"])
    assert run.split_file.read_bytes() == mine.read_bytes()
    mine.write_text(drawn.replace("val", "train"))
    with pytest.raises(ConfigError, match=r"data\.split: .*fold_0 has no val images"):
        train(tmp_path / "c" / "run", synthetic_root, [*BARE, f"data.split={mine}"])


def test_a_run_carries_its_splits_certificate_and_needs_the_list_of_duplicates_no_more(
    synthetic_root: Path, tmp_path: Path
) -> None:
    table = sources.read(synthetic_root)
    first, second = table.drop_duplicates("lesion_id")["image_id"].iloc[:2]
    pairs = tmp_path / "pairs.csv"
    pairs.write_text(f"first,second\n{first},{second}\n")
    run = train(tmp_path / "run", synthetic_root, [*BARE, f"data.duplicates={pairs}"])

    text = (run.path / "split.json").read_text()
    told, facts = json.loads(text), run.info()["split"]
    assert str(tmp_path) not in text
    assert told["split_sha256"] == facts["hash"] == digest(run.split_file)
    assert told["duplicates"]["from"] == "pairs.csv"
    assert told["duplicates"]["pairs"] == [[first, second]]
    assert told["groups"] == told["lesions"] - 1 == table["lesion_id"].nunique() - 1
    for part in splits.SPLITS:
        assert told["folds"]["fold_0"][part]["images"] == facts[part]["images"]
    assert "pairs of duplicates merged" in (run.path / "report.html").read_text()

    pairs.unlink()
    assert not run.predictions_file.exists()
    assert commands.main(["evaluate", str(run.path), f"data.root={synthetic_root}"]) == 0


def test_what_weights_have_seen_goes_along_from_run_to_run(synthetic_root: Path, tmp_path: Path) -> None:
    root = tmp_path / "mirror"
    mirror(synthetic_root, root)
    leaky = train(tmp_path / "a" / "run", root, [*BARE, "data.allow_leak=true"])
    with pytest.raises(ConfigError, match=r"init_from: run has learned from lesions of \d+ of the"):
        train(tmp_path / "b" / "run", synthetic_root, [*BARE, f"init_from={leaky.path}"])
    same = [*BARE, "data.allow_leak=true", f"data.split={leaky.split_file}"]
    child = train(tmp_path / "c" / "run", root, [*same, f"init_from={leaky.path}"])
    assert child.info()["init_from"]["run_id"] == "run"
    # The child's own split may hide what its parent has seen; seen.csv does not.
    split = pd.read_csv(child.split_file)
    split["fold_0"] = split["fold_0"].map({"train": "test", "val": "val", "test": "train"})
    split.to_csv(child.split_file, index=False)
    swapped = tmp_path / "swapped.csv"
    split.to_csv(swapped, index=False)
    with pytest.raises(ConfigError, match="init_from"):
        train(tmp_path / "d" / "run", root, [*same[:-1], f"data.split={swapped}", f"init_from={child.path}"])


def test_leaky_images_are_refused_and_then_stamped(
    synthetic_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "mirror"
    mirror(synthetic_root, root)
    with pytest.raises(Faults, match=r"data\.allow_leak"):
        train(tmp_path / "refused", root, TINY)
    run = train(tmp_path / "run", root, [*TINY, "data.allow_leak=true"])
    assert run.info()["leaky"]
    assert "LEAKY" in (run.path / "scores.json").read_text()
    assert "LEAKY" in (run.path / "report.html").read_text()
    for words in (["runs", str(tmp_path)], ["score", str(run.predictions_file)], ["compare", *[str(run.path)] * 2]):
        assert commands.main(words) == 0
        assert "LEAKY" in capsys.readouterr().out, words[0]


def test_weights_of_other_tasks_are_refused_by_the_tasks_names(
    trained: Run, synthetic_root: Path, tmp_path: Path
) -> None:
    words = [*BARE, "tasks=[cls,sex]", "loss/seg=none", f"init_from={trained.path}"]
    with pytest.raises(
        ConfigError, match="has weights of the tasks seg, cls, this run learns cls, sex; fix: use 'tasks="
    ):
        train(tmp_path / "run", synthetic_root, words)


def test_a_run_starts_from_the_weights_of_another(trained: Run, synthetic_root: Path, tmp_path: Path) -> None:
    still = [*BARE, "seed=1", "optim.lr=0.0", "optim.weight_decay=0.0"]
    runs = [trained]
    runs += [
        train(tmp_path / name / "run", synthetic_root, [*still, *words])
        for name, words in (("a", [f"init_from={trained.path}"]), ("b", []))
    ]
    first, second, alone = (checkpoints.load(run.checkpoint())["state_dict"] for run in runs)
    filters = [name for name in first if name.startswith("network.encoder.") and first[name].ndim == 4]
    assert filters and all(torch.equal(first[name], second[name]) for name in filters)
    assert not any(torch.equal(first[name], alone[name]) for name in filters), "another seed begins elsewhere"


def stop_at_epoch(epoch: int) -> Callable[..., None]:
    inner = MultiTaskModule.on_train_batch_start

    def hook(self: MultiTaskModule, *args: Any) -> None:  # noqa: ANN401
        if self.trainer.current_epoch == epoch:
            raise KeyboardInterrupt
        inner(self, *args)

    return hook


def ids(root: Path) -> list[str]:
    return sorted(pd.read_csv(root / "HAM10000_metadata.csv")["image_id"])


def copy_of_lesions(source: Path, root: Path, count: int) -> None:
    """A copy of a Dataverse folder with the first images of `count` lesions."""
    shutil.copytree(source, root)
    (root / "synthetic.json").unlink(missing_ok=True)
    table = pd.read_csv(root / "HAM10000_metadata.csv").drop_duplicates("lesion_id").head(count)
    table.assign(lesion_id=table["image_id"]).to_csv(root / "HAM10000_metadata.csv", index=False)


def test_masks_alone_train_the_task_that_they_are_for_and_no_other(tmp_path: Path) -> None:
    write_task1(tmp_path / "task1", images=40)
    leaky = [*TINY, "data.allow_leak=true"]
    with pytest.raises(InputError, match=r"no train image has a dx, which task cls needs.*leave cls out"):
        train(tmp_path / "both", tmp_path / "task1", leaky)
    run = train(tmp_path / "seg", tmp_path / "task1", leaky, experiment="resnet18_unet_seg")
    assert run.info()["data"]["layout"] == "isic2018_task1"
    table = run.predictions()
    assert table["dx"].isna().all()
    assert table["dice"].notna().all()
    assert table["leaky"].all()


def mirror(source: Path, root: Path) -> None:
    """The same images as images/ masks/ GroundTruth.csv."""
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True)
    for file in source.glob("HAM10000_images_part_*/*.jpg"):
        shutil.copy(file, root / "images" / file.name)
    for file in source.glob("*segmentations*/*.png"):
        shutil.copy(file, root / "masks" / file.name)
    table = pd.read_csv(source / "HAM10000_metadata.csv")
    onehot = pd.get_dummies(table["dx"].str.upper()).astype(float)
    pd.concat([table["image_id"].rename("image"), onehot], axis=1).to_csv(root / "GroundTruth.csv", index=False)


def test_a_network_that_names_no_shared_part_is_refused_by_what_looks_at_it(
    synthetic_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = training_build.build

    def bare(node: Any, **parts: Any) -> Any:  # noqa: ANN401
        built = build(node, **parts)
        return Bare(built) if isinstance(built, MultiTaskNet) else built

    for module in (dry_run, training_build):
        monkeypatch.setattr(module, "build", bare)
    for words in (["gradients=pcgrad"], ["gradients.cosine_every=1"]):
        with pytest.raises(ConfigError, match=r"gradients: Bare has no `encoder`.*; fix: name the shared part so"):
            train(tmp_path / words[0], synthetic_root, words)
    with pytest.raises(ConfigError, match=r"callbacks\.freeze: Bare has no `encoder` to hold still"):
        train(tmp_path / "frozen", synthetic_root, ["callbacks.freeze.encoder_epochs=1"])
    assert train(tmp_path / "fixed", synthetic_root, BARE).info()["status"] == "finished"


class Bare(torch.nn.Module):
    """A network whose parts have no name that anybody knows."""

    weights_file = None

    def __init__(self, inner: MultiTaskNet) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, image: torch.Tensor) -> Any:  # noqa: ANN401
        return self.inner(image)

    def rates(self) -> Any:  # noqa: ANN401
        return self.inner.rates()


@pytest.fixture(scope="module")
def config_of(synthetic_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., RunConfig]:
    """Gives the config of a command, composed once for each set of words that Hydra has to see."""
    folder = tmp_path_factory.mktemp("splits")
    places = [f"data.root={synthetic_root}", "data.synthetic=null", "data.cache=off", f"data.split_dir={folder}"]

    @functools.cache
    def config(*words: str) -> RunConfig:
        cfg = compose([*SHORT, *places, *words])
        settle(cfg)
        return RunConfig.of(cfg)

    return config


@pytest.fixture
def looked(config_of: Callable[..., RunConfig], caplog: pytest.LogCaptureFixture) -> Callable[..., tuple[str, Any]]:
    """Gives what a run says of its balance before it trains, and the loss of its diagnosis."""

    @functools.cache
    def data_of(*words: str) -> DataModule:
        return build_data(config_of(*words))

    def look(loss: str = "cross_entropy", class_weights: str = "auto", *words: str) -> tuple[str, Any]:
        config = dataclasses.replace(config_of(f"loss/cls={loss}", *words), class_weights=class_weights)
        data = data_of(*words)
        tasks = build_tasks(config.task)
        for task in tasks:
            task.learn(data)
        give_losses(tasks, config.loss, data, config.class_weights)
        caplog.clear()
        say(tasks, data, config.class_weights)
        return caplog.text, next(task.loss for task in tasks if task.name == "cls")

    caplog.set_level("INFO")
    return look


TAKE = ("cross_entropy", "label_smoothing", "focal")
SAMPLERS = ("class_balanced", "sqrt_balanced", "effective_number", "class_aware")


def test_class_weights_mean_the_same_to_every_loss_that_takes_them(looked: Callable[..., tuple[str, Any]]) -> None:
    weights = {}
    for loss in TAKE:
        for asked in ("auto", "none", "sqrt", "balanced"):
            said, built = looked(loss, asked)
            weights[loss, asked] = built.weight
            assert f"class weights: {asked if asked != 'auto' else 'sqrt (class_weights=auto)'}\n" in said
            assert ("the loss counts them as" in said) == (asked != "none") and "both bring up" not in said
    for asked, power in {"auto": -0.5, "none": 0.0, "sqrt": -0.5, "balanced": -1.0}.items():
        for loss in TAKE:
            assert torch.equal(weights[loss, asked], weights[TAKE[0], asked])
        assert (weights[TAKE[0], asked].std() > 0) == (power != 0)
    assert torch.equal(weights[TAKE[0], "none"], torch.ones(7))


def test_a_validation_of_one_diagnosis_says_that_its_score_does_not_measure_it(
    looked: Callable[..., tuple[str, Any]],
) -> None:
    said, _ = looked("cross_entropy", "auto", "data.diagnoses={skin:[akiec,bcc,bkl,df,mel,nv,vasc],other:rest}")
    assert "every validation image with a diagnosis is skin: none can be told from another" in said
    said, _ = looked("cross_entropy", "auto", "data.diagnoses={skin:[akiec,bcc,bkl,df,mel,nv],other:rest}")
    assert "every validation image" not in said


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_nothing_is_balanced_twice_unless_asked_for(looked: Callable[..., tuple[str, Any]], sampler: str) -> None:
    drawn = f"sampler={sampler}"
    said, loss = looked("cross_entropy", "auto", drawn)
    assert "class weights: none (class_weights=auto)" in said and torch.equal(loss.weight, torch.ones(7))
    assert "both bring up" not in said
    said, _ = looked("cross_entropy", "sqrt", drawn)
    assert "sampler and class weights both bring up rare diagnoses; fix: sampler=shuffle, or class_weights=none" in said
    assert "both bring up" not in looked("cross_entropy", "none", drawn)[0], "the advice does not warn"
    for loss in ("logit_adjusted", "class_balanced") if sampler == "class_balanced" else ():
        said, _ = looked(loss, "auto", drawn)
        assert "sampler and loss both bring up rare diagnoses; fix: sampler=shuffle, or loss/cls=cross_entropy" in said
        assert "both bring up" not in looked(loss)[0]


def test_study_samplers_compares_samplers_and_the_demo_weighs_as_ever() -> None:
    assert compose(["study=samplers"]).class_weights == "none"
    demo = compose([], "demo")
    assert demo.class_weights == "auto" and demo.sampler._target_.endswith("Shuffle"), "which is sqrt"


def test_a_run_of_before_opens_and_is_not_gone_on_with_by_another_count(
    synthetic_root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    run = train(tmp_path / "run", synthetic_root, TINY)
    assert run.info()["class_weights"] == "sqrt" and run.config().class_weights == "auto"
    assert caplog.text.count("class weights:") == 1 and caplog.text.count("fold 0 of") == 1, "nothing is said twice"
    assert "an epoch samples 40 of 43 training images, in whole batches" in caplog.text
    table = run.predictions()

    file = run.path / ".hydra" / "config.yaml"
    old = OmegaConf.load(file)
    del old["class_weights"]
    old.loss.cls.class_weights = "sqrt"
    OmegaConf.save(old, file)
    with without_figures():
        evaluate(run)
    pd.testing.assert_frame_equal(run.predictions(), table)
    with pytest.raises(ConfigError, match="is finished"):
        train(tmp_path / "finished", synthetic_root, [*TINY, f"resume={run.path}", "allow_change=true"])
    run.update({"status": "interrupted"})
    for words in ([], ["allow_change=true"]):
        with pytest.raises(
            ConfigError, match=r"resume: run was begun by an earlier version.*, or start from its weights"
        ):
            train(tmp_path / "again", synthetic_root, [*TINY, f"resume={run.path}", *words])


def test_a_second_source_trains_and_is_recorded(synthetic_root: Path, tmp_path: Path) -> None:
    write_mirror(tmp_path / "labels", lesions=9)
    shutil.rmtree(tmp_path / "labels" / "masks")
    table = pd.read_csv(tmp_path / "labels" / "GroundTruth.csv")
    for old in table["image"]:
        (tmp_path / "labels" / "images" / f"{old}.jpg").rename(tmp_path / "labels" / "images" / f"OWN_{old}.jpg")
    table.assign(image="OWN_" + table["image"]).to_csv(tmp_path / "labels" / "GroundTruth.csv", index=False)
    also = [
        *TINY,
        "auxiliary=labels",
        f"data.auxiliary.labels.root={tmp_path / 'labels'}",
        "data.auxiliary.labels.disjoint=other_patients",
    ]
    run = train(tmp_path / "run", synthetic_root, also)
    info, told = run.info(), json.loads((run.path / "split.json").read_text())
    vouched = {"lesion_ids": False, "disjoint": "other_patients", "leaky": False}
    assert info["also"] == {"labels": {"images": 13, "masks": 0, "diagnoses": 13, "share": 0.25, **vouched}}
    assert told["also"] == info["also"]
    assert "other_patients" in (run.path / "report.html").read_text()
    assert info["data"]["images"] == 64 and not info["leaky"]
    assert set(run.predictions()["image_id"]) <= set(sources.read(synthetic_root)["image_id"])

    # It goes on with these very images, not with others under their names.
    again, start = RunConfig.of(run.config()), Start(None, None, trained=False, resumed=True, allow_change=False)
    check_data(run, build_data(again), start)
    images = sorted((tmp_path / "labels" / "images").iterdir())
    shutil.copy(images[1], images[0])
    with pytest.raises(ConfigError, match=r"data\.auxiliary\.labels\.root: sha256 v2-.*, the run began with v2-"):
        check_data(run, build_data(again), start)
    check_data(run, build_data(again), dataclasses.replace(start, allow_change=True))

    # Whoever starts from it has seen those of the second source, too.
    seen = pd.read_csv(run.path / "seen.csv", keep_default_na=False)
    assert seen["image_id"].tolist() == sorted("OWN_" + table["image"]) and set(seen["group"]) == {""}
    module = SimpleNamespace(network=SimpleNamespace(load_state_dict=lambda state: None))
    pairs = tmp_path / "pairs.csv"
    pairs.write_text(f"first,second\nX,{seen['image_id'][0]}\n")
    for data in (data_that_tests(seen["image_id"][3]), data_that_tests("X", duplicates=str(pairs))):
        with pytest.raises(ConfigError, match="run has learned from lesions of 1 of the 1 test images"):
            start_from(run, module, data, Run(tmp_path))
    # It was vouched for beside those very images.
    for data in (data_that_tests("X"), data_that_tests("X", data_hash=info["data"]["hash"])):
        start_from(run, module, data, Run(tmp_path))
        assert data.leaky == (data.data_hash == "another")
    assert "F" in set(pd.read_csv(tmp_path / "seen.csv")["image_id"]) > set(seen["image_id"])


def data_that_tests(image_id: str, duplicates: str = "none", data_hash: str = "another") -> SimpleNamespace:
    """Three images at data.root, of which the last tests, and one of an auxiliary data set."""
    table = pd.DataFrame({"image_id": ["A", "B", image_id, "F"], "lesion_id": ["LA", "LB", "LX", "LF"]})
    first = table[:3]
    split = first.rename(columns={"lesion_id": "group"}).assign(fold_0=["train", "val", "test"])
    facts = {"table": table, "source": np.array([0, 0, 0, 1]), "groups": first["lesion_id"], "split": split, "fold": 0}
    facts |= {"data_hash": data_hash, "is_of": lambda kept: kept == data_hash}
    return SimpleNamespace(**facts, duplicates=duplicates, leaky=False, shuffled=None)
