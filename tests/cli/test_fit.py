"""Training from Python, as in a notebook: the bits and the folder of the command, and nothing left behind."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import hydra
import pytest
from hydra.core.global_hydra import GlobalHydra
from small_runs import CONF, compose
from survivors import forked, left, nothing

import skinmtl
from skinmtl.cli import commands, train
from skinmtl.distributed.signals import STOPS
from skinmtl.errors import ConfigError, Faults, Interrupted, SkinmtlError
from skinmtl.runs.run import Run
from skinmtl.training.lightning_module import MultiTaskModule

SMALL = ["experiment=resnet18_unet", "model/encoder=conv_pool", "model.encoder.layers=3", "model.encoder.filters=2"]
SMALL += ["data.size=32", "data.batch_size=4", "data.workers=0", "trainer=cpu", "trainer.max_epochs=2"]
SMALL += ["trainer.limit_train_batches=3", "trainer.precision=32-true", "evaluate=false"]

Fit = Callable[..., Run]


@pytest.fixture
def fit(synthetic_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fit:
    """Train from a working directory of the test's own."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    GlobalHydra.instance().clear()
    return lambda *words: skinmtl.fit(*SMALL, f"data.root={synthetic_root}", "data.synthetic=null", *words)


def state_of_the_process() -> list[object]:
    """What a run could leave behind in the process that it was in."""
    loggers = [logging.getLogger(name) for name in (None, "skinmtl", "pytorch_lightning")]
    handlers = [(list(logger.handlers), logger.level) for logger in loggers]
    signals = [signal.getsignal(number) for number in STOPS]
    return [handlers, signals, list(sys.argv), os.getcwd(), GlobalHydra.instance().hydra]


def test_three_lines_do_what_the_command_does_and_leave_the_process_as_it_was(
    fit: Fit, synthetic_root: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):  # somebody's own, in the same notebook
        before = state_of_the_process()
        run = fit()
        assert state_of_the_process() == before
    assert run.path.parent == tmp_path / "work" / "outputs" / "resnet18_unet"
    info = run.info()
    assert (info["status"], info["exit_code"]) == ("finished", 0)
    assert info["command"].startswith("skinmtl.fit experiment=resnet18_unet ")
    assert "${" not in (run.path / ".hydra" / "config.yaml").read_text(encoding="utf-8")
    assert run.config().name == "resnet18_unet" and (run.path / "report.html").is_file() and not run.is_held()

    # A second one in this process, after one that was interrupted and goes on, has the bits of a fresh process.
    inner, steps = MultiTaskModule.training_step, [0]

    def step(self: MultiTaskModule, *args: object) -> object:
        steps[0] += 1
        if steps[0] == 2:
            os.kill(os.getpid(), signal.SIGINT)  # what a notebook's stop button sends
        return inner(self, *args)  # type: ignore[arg-type]

    capfd.readouterr()
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted, match="resume=again resumes"):
        patch.setattr(MultiTaskModule, "training_step", step)
        fit("hydra.run.dir=again")
    assert Run(Path("again")).info()["status"] == "interrupted"
    again = fit("resume=again")
    assert capfd.readouterr().err.count("epoch   2/2") == 1, "nothing is said twice"
    words = [word for word in SMALL if not word.startswith("experiment")]
    assert forked(tmp_path / "fresh", synthetic_root, [*words, "trainer.limit_val_batches=null"], nothing) == 0
    same = [left(each) for each in (run, again, Run(tmp_path / "fresh"))]
    assert same[0][:2] == same[1][:2] == same[2][:2]


def test_in_a_thread_it_trains_and_says_that_no_signal_is_heard(fit: Fit, caplog: pytest.LogCaptureFixture) -> None:
    ended: list[Run | BaseException] = []

    def work() -> None:
        try:
            ended.append(fit("trainer.max_epochs=1"))
        except BaseException as error:
            ended.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    (run,) = ended
    assert isinstance(run, Run) and run.info()["status"] == "finished", run
    assert "Ctrl-C, SIGTERM and SIGUSR1 do not stop and save this run" in caplog.text


def test_what_run_is_called_with_by_hand_is_checked_and_kept(fit: Fit, synthetic_root: Path) -> None:
    from skinmtl.training.run import run

    words = [*SMALL[1:], f"data.root={synthetic_root}", "data.synthetic=null", "trainer.max_epochs=1"]
    cfg = compose(words)
    run(dict(cfg), Path("here"))
    assert Run(Path("here")).config().trainer.max_epochs == 1
    cfg.optim.lr = "fast"
    with pytest.raises(Faults, match=r"optim\.lr: 'fast' does not fit"):
        run(dict(cfg), Path("there"))
    assert not Path("there").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-m"], "-m is an option of the command line; fix: several runs are started by python train.py -m"),
        (["--help"], "--help is an option of the command line; fix: python train.py --help"),
        (
            ["experiment=demo", "--cfg", "job"],
            "--cfg is an option of the command line; fix: python train.py experiment=demo --cfg job",
        ),
        (["experiment=demoo"], "did you mean 'demo'?"),
        (["study=loss_weights"], "these words are several runs; fix: start them by python train.py"),
        (["optm.lr=1"], "did you mean 'optim.lr'?"),
        (["seed=1,2"], "Ambiguous value for argument 'seed=1,2'"),
        (["hydra.job.chdir=true"], "hydra.job.chdir: true would look for data"),
        (["name=ü"], """put it in quotes: 'name="ü"'"""),
    ],
)
def test_what_is_refused_is_an_answer_and_begins_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SkinmtlError) as caught:
        skinmtl.fit(*words)
    assert said in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_is_not_evaluated_says_so_and_is_evaluated_later_in_full(
    fit: Fit, capsys: pytest.CaptureFixture[str]
) -> None:
    run = fit("trainer.max_epochs=1")
    assert not run.predictions_file.exists() and not (run.path / "scores.json").exists() and not run.figures.exists()
    assert "NO TEST SCORES" in (run.path / "report.html").read_text(encoding="utf-8")
    assert commands.main(["evaluate", str(run.path)]) == 0
    scores = json.loads((run.path / "scores.json").read_text(encoding="utf-8"))
    split = run.info()["split"]
    assert {part: scores["parts"][part]["n_images"] for part in ("val", "test")} == {
        part: split[part]["images"] for part in ("val", "test")
    }


def test_chdir_is_refused_by_name_in_a_run_and_in_a_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for words in (["hydra.job.chdir=true"], ["-m", "hydra.job.chdir=true", "seed=0,1", "hydra.sweep.dir=s"]):
        with pytest.MonkeyPatch.context() as patch:
            said: list[BaseException] = []
            patch.setattr(train, "_answer", lambda failed, said=said: said.extend(failed) or 2)
            assert train.main(CONF, ["train.py", *words]) == 2
        assert said and all(isinstance(error, ConfigError) and error.where == "hydra.job.chdir" for error in said)
    assert list(tmp_path.glob("*/*/run.json")) == []
