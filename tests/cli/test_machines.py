"""Other machines than this one, as far as they can be played: a Mac, and Windows, which is told in a sentence."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hangs import HANGS
from lightning_fabric.accelerators.mps import MPSAccelerator
from small_runs import compose

from skinmtl.config.hardware import resolve_accelerator
from skinmtl.errors import ConfigError, Faults
from skinmtl.training.build import devices_of
from skinmtl.training.dry_run import checked
from skinmtl.training.quiet import calm

ROOT = Path(__file__).parents[2]
# What Python on Windows does not have, as far as this house uses it.
WINDOWS = """
import os, runpy, signal, sys
for name in ("fcntl", "resource"):
    sys.modules[name] = None
for module, names in ((signal, "SIGHUP SIGUSR1 SIGALRM alarm pthread_sigmask sigwaitinfo"), (os, "killpg setsid")):
    for name in names.split():
        delattr(module, name)
"""
DOORS = {
    "train.py": "sys.argv = ['train.py', '--help']; runpy.run_path({train!r}, run_name='__main__')",
    "a training": "sys.argv = ['train.py', 'experiment=demo']; runpy.run_path({train!r}, run_name='__main__')",
    "skinmtl": "from skinmtl.cli.commands import main; sys.exit(main(['runs']))",
    "fit": "import skinmtl; skinmtl.fit('experiment=demo')",
    "load_run": "import skinmtl; skinmtl.load_run('here')",
}


@pytest.mark.parametrize("door", DOORS)
def test_windows_is_told_which_systems_there_are(tmp_path: Path, door: str) -> None:
    code = WINDOWS + DOORS[door].format(train=str(ROOT / "train.py"))
    python = {"PYTHONPATH": f"{ROOT}:{os.environ['PYTHONPATH']}"}
    command, env = [sys.executable, "-c", code], os.environ | python
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=HANGS)
    (line,) = [line for line in done.stderr.splitlines() if "this system: " in line]
    assert "skinmtl runs on Linux and macOS; " in line and "on Windows take WSL 2" in line
    if door in ("fit", "load_run"):
        assert line.startswith("skinmtl.errors.ConfigError: ")
    else:
        assert line.startswith("skinmtl: error: ") and (done.returncode, done.stdout) == (2, "")
        assert done.stderr == f"{line}\n"
    assert list(tmp_path.iterdir()) == []


def test_the_readme_and_the_package_name_the_systems() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    systems = [word for word in project["classifiers"] if word.startswith("Operating System")]
    assert systems == ["Operating System :: POSIX :: Linux", "Operating System :: MacOS"]
    assert "Linux and macOS" in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture
def mac(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Apple silicon, whose GPU has no float64; Lightning looks for one once a process, and would remember it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr("platform.processor", lambda: "arm")
    MPSAccelerator.is_available.cache_clear()
    assert MPSAccelerator.is_available()
    yield
    MPSAccelerator.is_available.cache_clear()


def test_a_mac_trains_on_its_cpu(mac: None) -> None:
    for trainer in ("auto", "cpu"):
        cfg = compose([f"trainer={trainer}", "model.weights=null"])
        with calm():
            assert devices_of(cfg.trainer) == ["cpu"]
            checked(cfg)
    with calm():
        assert devices_of(compose(["trainer=ddp_cpu"]).trainer) == ["cpu", "cpu"]


@pytest.mark.parametrize("words", ["trainer.accelerator=mps", "trainer=gpu", "trainer=ddp"])
def test_the_gpu_of_a_mac_is_refused_in_one_sentence(mac: None, words: str) -> None:
    cfg = compose([words, "model.weights=null"])
    said = r"^trainer\.accelerator: (mps|gpu) is Apple's GPU \(MPS\), which has no float64, .*; fix: use cpu, or auto"
    with pytest.raises(Faults, match=said) as caught:
        checked(cfg)
    assert len(caught.value.faults) == 1
    with pytest.raises(ConfigError, match=said):
        devices_of(cfg.trainer)


def test_elsewhere_a_gpu_that_is_there_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [resolve_accelerator(word) for word in ("auto", "gpu", "cuda", "cpu")] == [
        "gpu",
        "gpu",
        "cuda",
        "cpu",
    ]


def test_what_is_written_is_utf_8_in_any_locale(tmp_path: Path) -> None:
    code = """if True:
    from pathlib import Path
    import pandas as pd
    from skinmtl.training.callbacks.metrics_csv import MetricsFile
    from skinmtl.data import splits
    here = Path.cwd()
    splits.save(pd.DataFrame({"image_id": ["a"], "group": ["病变"], "fold_0": ["test"]}), here / "split.csv")
    file = MetricsFile(here / "metrics.csv")
    file.log_metrics({"val/seg/dice_色素": 0.5}, 0)
    file.log_metrics({"val/seg/dice_边": 0.5}, 1)
    file.save()
    """
    bare = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}  # as the locale of a country, no UTF-8
    (tmp_path / "write.py").write_text(code, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "write.py"], cwd=tmp_path, env=os.environ | bare, capture_output=True, text=True, timeout=HANGS
    )
    assert done.returncode == 0, done.stderr
    assert "病变" in (tmp_path / "split.csv").read_text(encoding="utf-8")
    assert "色素" in (tmp_path / "metrics.csv").read_text(encoding="utf-8")


def test_a_backend_that_matplotlib_does_not_have_is_told_in_a_line(tmp_path: Path) -> None:
    code = "from skinmtl.cli import commands; import sys; sys.exit(commands.main(['report', 'x']))"
    for backend, says in {"Qt4Agg": "MPLBACKEND: 'Qt4Agg' is no backend of", "agg": "x: neither a run nor"}.items():
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=tmp_path,
            env=os.environ | {"MPLBACKEND": backend},
            capture_output=True,
            text=True,
            timeout=HANGS,
        )
        assert done.returncode == 2 and f"skinmtl: error: {says}" in done.stderr, done.stderr
