"""The command line of training: help, refusals, exit codes, sweeps whose jobs fail, are killed or are stopped."""

from __future__ import annotations

import csv
import errno
import os
import shutil
import signal
import subprocess
import sys
import time
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
from hangs import HANGS

from skinmtl.cli import train
from skinmtl.errors import Diverged, InputError, Interrupted, ResourceError

ROOT = Path(__file__).parents[2]
CONF = ROOT / "conf"
# A door whose runs do not train: what a seed does stands here.
STUB = f"""
import json, os, signal, sys, time, types
from pathlib import Path
from skinmtl.errors import Diverged, InputError
from skinmtl.runs.run import Run

def run(given, folder, command):
    seed = given["seed"]
    print("world size", os.environ.get("WORLD_SIZE"), "full error", os.environ.get("HYDRA_FULL_ERROR"))
    if seed == 2:
        raise InputError("ISIC_0000002.jpg", "half an image", "fetch it again")
    if seed == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    if seed == 4:
        raise ValueError("a mistake of ours")
    if seed == 5:
        raise Diverged("loss", "not a number", "lower the rate")
    if seed == 6:
        Path("started").touch()
        time.sleep(10_000)
    (folder / "run.json").write_text(json.dumps({{"score": seed / 10, "status": "finished"}}))
    return Run(folder)

sys.modules["skinmtl.training.run"] = types.SimpleNamespace(run=run)
from skinmtl.cli.train import main
sys.exit(main(Path({str(CONF)!r}), sys.argv))
"""


@pytest.fixture
def call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    """Call the door in this process with a run of one's own; gives the exit code and what stderr says."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "")

    def called(words: Sequence[str], run: Callable[..., float] | None = None) -> tuple[int, str]:
        argv = ["train.py", *words]
        monkeypatch.setattr(sys, "argv", argv)

        def stubbed(given: Mapping[str, object], folder: Path, command: str) -> types.SimpleNamespace:
            score = run(**given, folder=folder, command=command) if run else 0.0
            return types.SimpleNamespace(info=lambda: {"score": score})

        stub = types.SimpleNamespace(run=stubbed)
        monkeypatch.setitem(sys.modules, "skinmtl.training.run", stub)
        return train.main(CONF, argv), capsys.readouterr().err

    return called


def sweep(folder: Path, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    script = folder / "train.py"
    script.write_text(STUB)
    command = [sys.executable, str(script), "-m", *words]
    return subprocess.run(command, cwd=folder, env=os.environ | env, capture_output=True, text=True, timeout=HANGS)


def rows(folder: Path) -> list[dict[str, str]]:
    (file,) = folder.glob("outputs/*/*/sweep.csv")
    with file.open(newline="") as lines:
        return list(csv.DictReader(lines))


def test_help_names_every_experiment_study_and_key_without_importing_torch() -> None:
    code = "import sys; from pathlib import Path; from skinmtl.cli import train; print(train.usage(Path(sys.argv[1])));"
    code += "assert 'torch' not in sys.modules and 'pandas' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code, str(CONF)], capture_output=True, text=True, check=True)
    for group in ("experiment", "study"):
        for file in (CONF / group).glob("*.yaml"):
            (line,) = [line for line in done.stdout.splitlines() if line.split()[:1] == [file.stem]]
            assert len(line.split()) > 3, f"{file} has no header that says what it is"
    keys = "data.root data.size data.batch_size data.workers data.fold data.folds data.allow_leak data.cache model.arch"
    keys += " model.encoder model.weights model.dropout loss/seg loss/cls weighting.seg weighting.cls optim.lr"
    keys += " optim.weight_decay sampler augment trainer.max_epochs trainer.devices trainer.precision logger seed tasks"
    for key in [*keys.split(), "resume", "init_from", "experiment", "study", "class_weights"]:
        assert f"{key}=" in done.stdout, key


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["experiment=resnet18_unett"],
            "experiment=resnet18_unett: there is none of this name; fix: did you mean 'resnet18_",
        ),
        (["experiment=xyz"], "demo, efficientnet_lite0_unet, "),
        (["study=backbone"], "did you mean 'backbones'?"),
        (["experimant=demo"], "did you mean 'experiment'?"),
        (["optm=adam"], "did you mean 'optim'?"),
        (["optim=adamm"], "there are adam, adamw, sgd"),
        (["loss/segg=dice"], "did you mean 'loss/seg'?"),
        (["model.encodr=resnet18"], "did you mean 'model.encoder'?"),
        (["lr=1"], "lr: there is no such key"),
        (["loss.cls.class_weights=none"], "there is no such key; fix: did you mean 'class_weights'?"),
        (
            ["callbacks.early_stopping=null", "callbacks.early_stopping.patience=3"],
            "callbacks.early_stopping.patience: there is no such key beside the other words of this command; ",
        ),
        (["loss/cls=focal", "loss.cls.label_smoothing=0.1"], "beside the other words of this command"),
        (["+optim.lr=1"], "An item is already at 'optim.lr'"),
        (["~optm"], "'optm' does not exist"),
        (["seed=[1,2"], "command line: "),
        (['data.diagnoses={"0":[a],b:rest}'], "fix: put words with other characters than a to z"),
        (
            ["data.diagnoses={böse:[a],b:rest}"],
            "keys within {} take no quotes: give plain ones, or write them in a YAML",
        ),
        (["demo"], "missing EQUAL"),
        (["--experiment", "demo"], "write experiment=<value>"),
        (["model=null"], "Config group override must be a string or a list"),
        (["-m", "experiment=demo,nosuch"], "experiment=nosuch: there is none of this name"),
    ],
    ids=lambda case: " ".join(case) if isinstance(case, list) else "",
)
def test_what_hydra_refuses_is_one_line_and_exit_code_2(
    call: Callable[..., tuple[int, str]], words: list[str], said: str
) -> None:
    code, err = call(words)
    assert code == 2
    (line,) = err.splitlines()
    assert line.startswith("skinmtl: error: ") and "; fix: " in line
    assert said in line


@pytest.fixture
def own_conf(tmp_path: Path) -> Path:
    """A copy of the configs, to be spoilt."""
    return Path(shutil.copytree(CONF, tmp_path / "conf"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            b"# @package _global_\noptim:\n  lr: 1\n  lr: 2\n",
            "conf/experiment/mine.yaml, line 4: the key 'lr' is there a second time; fix: keep one",
        ),
        (b"# @package _global_\nmodel: {encoder: [}\n", "conf/experiment/mine.yaml, line 2: no YAML that a config"),
        (b"# @package _global_\nmodel: !!python/name:os.system\n", "conf/experiment/mine.yaml, line 2: no YAML that"),
        (b"# @package _global_\nname: caf\xe9\n", "conf/experiment/mine.yaml: not written in UTF-8"),
        (b"model: {encoder: resnet34}\n", "experiment: the chosen file of this group lacks `# @package _global_`"),
        (b"defaults: [demo]\noptim: {lr: 1}\n", "lacks `# @package _global_`, so its keys would stand under `exp"),
        (b"defaults: [override /model: fpn]\n", "experiment: the chosen file of this group lacks `# @package _glob"),
        (b"", "experiment: the chosen file of this group lacks `# @package _global_`"),
    ],
)
def test_a_spoilt_experiment_file_is_one_line_that_names_what_to_mend(
    text: bytes, said: str, own_conf: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (own_conf / "experiment" / "mine.yaml").write_bytes(text)
    monkeypatch.chdir(own_conf.parent)
    monkeypatch.setattr(sys, "argv", argv := ["train.py", "experiment=mine"])
    assert train.main(own_conf, argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line and "; fix: " in line
    assert not list(own_conf.parent.glob("outputs/*/*"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["optim.lrr=1"], ["optim.lrr: there is no such key"]),
        (["optim=adamm"], ["optim=adamm: there is none of this name"]),
        (["-m", "seed=0", "optm=adam"], ["optm: there is no such key"]),
        (
            [
                *("+optim.lrr=1", "+trainer.max_epoch=1", "+model.size=3", "data.batch_size=8.5"),
                "+callbacks.x={_target_:pytorch_lightning.callbacks.Timer}",
                "schedule._target_=os.system",
            ],
            [
                "optim.lrr: AdamW has no such argument; fix: did you mean 'lr'?",
                "trainer.max_epoch: Trainer has no such argument",
                "model.size: MultiTaskNet is given this by the run",
                "data.batch_size: 8.5 does not fit; fix: it should be a valid integer",
                "callbacks.x: Timer: the learning rate's schedule ends with the last epoch",
                "schedule._target_: 'os.system' is not an admitted constructor",
            ],
        ),
    ],
)
def test_names_are_refused_all_at_once_before_torch_is_imported(
    words: list[str], said: list[str], tmp_path: Path
) -> None:
    code = "import sys; from pathlib import Path; from skinmtl.cli import train; sys.argv[0] = 'train.py'\n"
    code += "status = train.main(Path(sys.argv.pop()), sys.argv)\n"
    code += "assert 'torch' not in sys.modules; sys.exit(status)"
    command = [sys.executable, "-c", code, *words, str(CONF)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == len(said) and all(any(part in line for line in lines) for part in said), lines


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (
            InputError("a.jpg", "half an image", "fetch it again"),
            2,
            "a.jpg: half an image; fix: fetch it again",
        ),
        (ModuleNotFoundError("No module named 'x'", name="x"), 2, "environment: x is not installed"),
        (Diverged("loss", "not a number", "lower the rate"), 3, "loss: not a number"),
        (ResourceError("disk", "full", "free some"), 4, "disk: full"),
        (OSError(errno.ENOSPC, "No space left on device", "last.ckpt"), 4, "MB are free there; fix: free disk space"),
        (PermissionError(errno.EACCES, "Permission denied", "splits"), 4, "splits: cannot be written (Permission"),
        (FileNotFoundError(errno.ENOENT, "No such file", "splits"), 2, "splits: No such file; fix: check the path"),
        (
            OSError(errno.EROFS, "Read-only file system", b"splits"),
            4,
            "splits: cannot be written (Read-only file system)",
        ),
        (OSError(errno.EFBIG, "File too large"), 4, "ulimit -f unlimited"),
        (OSError(errno.EIO, "Input/output error"), 4, "Input/output error; fix: look at the disk"),
        (OSError(errno.EXDEV, "Invalid link"), 1, "our bug"),
        (MemoryError(), 4, "memory: "),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 9 bytes"), 4, "data.batch_size"),
        (Interrupted("a run", "stopped from outside", "resume=a"), 75, "resume=a"),
        (KeyboardInterrupt(), 75, "stopped"),
        (ValueError("a mistake of ours"), 1, "our bug: ValueError: a mistake of ours"),
        (ModuleNotFoundError("No module named 'skinmtl.x'", name="skinmtl.x"), 1, "our bug"),
    ],
    ids=lambda case: type(case).__name__ if isinstance(case, BaseException) else "",
)
def test_every_kind_of_error_has_its_exit_code(
    call: Callable[..., tuple[int, str]], error: BaseException, code: int, said: str
) -> None:
    def run(**nodes: object) -> float:
        raise error

    got, err = call([], run)
    assert got == code
    assert said in err
    assert ("Traceback" in err) == (code == 1), "a traceback is for our own mistakes"


def test_a_traceback_is_shown_on_demand(call: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    def run(**nodes: object) -> float:
        raise InputError("a.jpg", "half an image", "fetch it again")

    monkeypatch.setenv("SKINMTL_DEBUG", "1")
    code, err = call([], run)
    assert code == 2 and "Traceback" in err


def test_a_run_gets_the_config_its_own_folder_and_the_command(
    call: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    seen: dict[str, object] = {}

    def run(**nodes: object) -> float:
        seen.update(nodes)
        return 0.5

    assert call(["experiment=demo", "seed=3"], run) == (0, "")
    folder = seen["folder"]
    assert isinstance(folder, Path) and folder.parent == tmp_path / "outputs" / "demo"
    assert seen["seed"] == 3 and seen["name"] == "demo"
    assert seen["command"] == "python train.py experiment=demo seed=3"


def test_a_mistake_goes_through_the_real_door(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "train.py"), "model.arch=unett", "optim.lr=-1", "+model.encodr=resnet18"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=HANGS)
    assert done.returncode == 2, done.stderr
    first, second = sorted(done.stderr.splitlines())
    assert first.startswith("skinmtl: error: model.arch: 'unett' does not fit; fix: it should be 'unet'")
    assert second == "skinmtl: error: model.encodr: MultiTaskNet has no such argument; fix: did you mean 'encoder'?"
    assert not list(tmp_path.glob("outputs/*/*")), "nothing was begun"


def test_a_failing_job_stops_no_other_and_all_are_listed(tmp_path: Path) -> None:
    done = sweep(tmp_path, "seed=1,2,0", f"name={'n' * 300}", WORLD_SIZE="2")
    assert done.returncode == 2, done.stderr
    assert [(row["status"], row["exit_code"], row["score"]) for row in rows(tmp_path)] == [
        ("finished", "0", "0.1"),
        ("failed", "2", ""),
        ("finished", "0", "0.0"),
    ]
    assert "half an image; fix: fetch it again" in done.stderr
    assert "job 0  score 0.1000 after" in done.stderr
    table = done.stderr.partition("overrides")[2]
    assert all(f"seed={seed}" in table for seed in (0, 1, 2)), "a table of all jobs at the end"
    assert "Traceback" not in done.stderr
    logs = sorted(tmp_path.glob("outputs/sweep/*/*/log.txt"))
    assert len(logs) == 3
    assert logs[0].read_text().startswith("world size None"), "a job starts outside the parent's process group"


def test_a_killed_job_and_a_bug_are_told_apart_and_end_in_exit_code_1(tmp_path: Path) -> None:
    done = sweep(tmp_path, "seed=3,4,5,1")
    assert done.returncode == 1
    assert [row["exit_code"] for row in rows(tmp_path)] == ["137", "1", "3", "0"]
    assert "a mistake of ours" in done.stderr


def test_a_job_whose_config_points_nowhere_is_listed_as_failed(tmp_path: Path) -> None:
    done = sweep(tmp_path, "seed=1", "name=${nosuch.key},good")
    assert done.returncode == 2, done.stderr
    assert [row["exit_code"] for row in rows(tmp_path)] == ["2", "0"]
    assert "nosuch.key" in done.stderr and "Traceback" not in done.stderr


def test_ctrl_c_stops_the_job_and_the_sweep(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(STUB)
    command = [sys.executable, str(script), "-m", "seed=6,1"]
    parent = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + HANGS
    while not (tmp_path / "started").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    parent.send_signal(signal.SIGINT)
    _, err = parent.communicate(timeout=HANGS)
    assert parent.returncode == 75, err
    assert [(row["overrides"], row["status"]) for row in rows(tmp_path)] == [("seed=6", "interrupted")]
    assert "Traceback" not in err


def test_outputs_go_where_the_command_was_typed(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(STUB)
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        subprocess.run([sys.executable, "../train.py", "seed=1"], cwd=tmp_path / name, check=True, capture_output=True)
        assert len(list((tmp_path / name).glob("outputs/resnet18_unet/*/run.json"))) == 1
    assert not (tmp_path / "outputs").exists()
