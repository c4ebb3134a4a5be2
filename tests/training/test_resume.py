"""Which run may be gone on with, by which values: judged before anything is built, on folders that nobody trained."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from fakes import write_run

from skinmtl.cli import commands
from skinmtl.errors import ConfigError
from skinmtl.reports.run import write_run_report
from skinmtl.runs.run import Run
from skinmtl.studies.jobs import read_jobs
from skinmtl.training.resume import Start, check_data, choose_run

CONFIG = {
    "name": "resnet18_unet",
    "seed": 0,
    "tasks": ["seg", "cls"],
    "class_weights": "auto",
    "data": {"_target_": "skinmtl.data.datamodule.DataModule", "root": "d", "batch_size": 4, "fold": 0, "workers": 2},
    "optim": {"_target_": "torch.optim.AdamW", "lr": 0.1},
    "trainer": {
        "_target_": "pytorch_lightning.Trainer", "precision": "auto", "accelerator": "cpu", "max_epochs": 3,
        "limit_train_batches": None,
    },
    "callbacks": {
        "early_stopping": {"_target_": "pytorch_lightning.callbacks.EarlyStopping", "monitor": "val/score"}
    },
    "init_from": None,
}  # fmt: skip


def with_values(words: str, tree: Mapping[str, Any] = CONFIG) -> dict[str, Any]:
    """A config with other values, written as on the command line."""
    changed = json.loads(json.dumps(tree))
    for word in words.split():
        path, _, value = word.partition("=")
        *above, last = path.split(".")
        node = changed
        for key in above:
            node = node[key]
        node[last] = yaml.safe_load(value)
    return changed


def stopped(folder: Path, words: str = "", **facts: object) -> Run:
    """The folder of a run that was begun with some values and stopped."""
    write_run(folder, status="interrupted", **{"world_size": 1, "precision": "32-true"} | facts)
    (folder / ".hydra" / "config.yaml").write_text(yaml.safe_dump(with_values(words)))
    return Run(folder)


@pytest.fixture(autouse=True)
def no_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Auto is 32-true, whatever this machine has."""
    monkeypatch.setattr("skinmtl.config.hardware._cpu_has_bf16", lambda: False)


def test_a_run_from_other_weights_is_not_gone_on_with(tmp_path: Path) -> None:
    run = stopped(tmp_path / "runs" / "1", "init_from=a")
    fresh = Run(tmp_path / "runs" / "2")
    assert choose_run(fresh, "auto", with_values("init_from=b"), 1) == fresh, "another config, so another run"
    assert choose_run(fresh, "auto", with_values(""), 1) == fresh
    assert choose_run(fresh, "auto", with_values("init_from=a"), 1) == run
    for words, now in (("init_from=b", "'b'"), ("", "None")):
        for allow_change in (False, True):
            with pytest.raises(ConfigError, match=f"init_from 'a', now {now}; fix: give the same again, or start"):
                choose_run(fresh, str(run.path), with_values(words), 1, allow_change)


def test_a_folder_is_the_same_however_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    run, fresh = stopped(tmp_path / "runs" / "1", "init_from=a data.root=d"), Run(tmp_path / "runs" / "2")
    assert choose_run(fresh, str(run.path), with_values(f"init_from=~/a data.root={tmp_path}/x/../d"), 1) == run
    with pytest.raises(ConfigError, match="data.root"):
        choose_run(fresh, str(run.path), with_values("init_from=a data.root=x"), 1)


@pytest.mark.parametrize(("before", "now"), [(1, 2), (2, 1)])
@pytest.mark.parametrize("resume", ["auto", "runs/1"])
def test_the_number_of_processes_stays_whatever_is_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: int, now: int, resume: str
) -> None:
    monkeypatch.chdir(tmp_path)
    run = stopped(tmp_path / "runs" / "1", world_size=before)
    for allow_change in (False, True):
        said = re.escape(f"world size {before} (devices), this command has {now}")
        with pytest.raises(ConfigError, match=said):
            choose_run(Run(tmp_path / "runs" / "2"), resume, CONFIG, now, allow_change)
    assert choose_run(Run(tmp_path / "runs" / "2"), resume, CONFIG, before, True).path == run.path


@pytest.mark.parametrize(
    ("words", "allowed"),
    [
        ("data.batch_size=2", False),  # what an epoch is counted in
        ("trainer.limit_train_batches=5", False),
        ("data.fold=1", False),  # it would be tested on what it has learned from
        ("data.split=other.csv", False),
        ("data.shuffled=cls", False),  # its stamp
        ("optim.lr=0.2", False),  # the optimiser's state has the old one, and goes on with it
        ("callbacks.early_stopping.patience=9", False),
        ("tasks=[seg]", False),
        ("seed=1", True),
        ("data.root=e", True),
        ("trainer.max_epochs=9", True),
        ("trainer.precision=bf16-mixed", True),
    ],
)
def test_what_may_be_another_value_where_that_is_allowed(tmp_path: Path, words: str, allowed: bool) -> None:
    run, fresh = stopped(tmp_path / "runs" / "1"), Run(tmp_path / "runs" / "2")
    with pytest.raises(ConfigError, match=re.escape(words.partition("=")[0])):
        choose_run(fresh, str(run.path), with_values(words), 1)
    if allowed:
        assert choose_run(fresh, str(run.path), with_values(words), 1, allow_change=True) == run
        return
    with pytest.raises(ConfigError, match="cannot be resumed with other values: .*init_from=<run>"):
        choose_run(fresh, str(run.path), with_values(words), 1, allow_change=True)


@pytest.mark.parametrize("words", ["data.workers=0", "data.cache_dir=/elsewhere", "save_every=1", "resume=auto"])
def test_what_changes_no_bit_may_be_another_value(tmp_path: Path, words: str) -> None:
    run = stopped(tmp_path / "runs" / "1")
    assert choose_run(Run(tmp_path / "runs" / "2"), str(run.path), with_values(words), 1) == run


def test_a_key_that_is_younger_than_the_run_is_no_difference_at_its_default(tmp_path: Path) -> None:
    run, fresh = stopped(tmp_path / "runs" / "1"), Run(tmp_path / "runs" / "2")
    young = with_values("data.split_seed=0 trainer.deterministic=null optim.amsgrad=false")
    assert choose_run(fresh, str(run.path), young, 1) == run
    assert choose_run(fresh, "auto", young, 1) == run
    with pytest.raises(ConfigError, match="data.split_seed 'not there', now 1"):
        choose_run(fresh, str(run.path), with_values("data.split_seed=1"), 1)


def test_where_auto_is_another_precision_the_run_is_not_gone_on_with_in_silence(tmp_path: Path) -> None:
    run, fresh = stopped(tmp_path / "runs" / "1", precision="bf16-mixed"), Run(tmp_path / "runs" / "2")
    for resume in ("auto", str(run.path)):
        with pytest.raises(ConfigError, match="auto is 32-true on this machine, 1 was started with bf16-mixed"):
            choose_run(fresh, resume, CONFIG, 1)
    assert choose_run(fresh, str(run.path), CONFIG, 1, allow_change=True) == run


def test_other_images_may_be_allowed_and_another_split_may_not(tmp_path: Path) -> None:
    run = stopped(tmp_path / "1", split={"hash": "a" * 64}, data={"hash": "b" * 64})
    allowed = Start(None, None, trained=False, resumed=True, allow_change=True)

    class Data:
        split_hash, data_hash = "a" * 64, "c" * 64

        def is_of(self, data_hash: str) -> bool:
            return data_hash == self.data_hash

    check_data(run, Data(), allowed)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"data\.root: sha256 cccccccccccc, the run began with bbbbbbbbbbbb"):
        check_data(run, Data(), Start(None, None, trained=False, resumed=True, allow_change=False))  # type: ignore[arg-type]
    Data.split_hash = "d" * 64
    with pytest.raises(ConfigError, match=r"data\.split: .* start another run with init_from"):
        check_data(run, Data(), allowed)  # type: ignore[arg-type]


def test_a_run_that_was_killed_is_not_said_to_be_running(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run says itself that it is running, and cannot take that back when it is killed; its lock goes with it."""
    run = Run(write_run(tmp_path / "s" / "0", status="running"))
    other = Run(write_run(tmp_path / "s" / "1", status="finished"))

    def said() -> list[str]:
        assert commands.main(["runs", str(tmp_path)]) == 0
        return [line.split("│")[3].strip() for line in capsys.readouterr().out.splitlines() if "/s/" in line]

    with run.held():
        assert (run.status, other.status) == ("running", "finished")
        assert [job.status for job in read_jobs(tmp_path / "s")] == ["running", "finished"] == said()
    assert (run.status, other.status) == ("killed", "finished")
    assert [job.status for job in read_jobs(tmp_path / "s")] == ["killed", "finished"] == said()
    assert " · killed" in write_run_report(run.path).read_text(encoding="utf-8")
    run.update({"status": "finished"})
    assert run.status == "finished"
