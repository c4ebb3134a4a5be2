"""What lies where, what the lock holds, and what make does on a machine that has nothing yet."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from hangs import HANGS
from packaging.markers import default_environment
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
TOP = {"conf", "skinmtl", "experiments", "tests", "outputs", "train.py"}
TOP |= {"pyproject.toml", "requirements.lock", "Makefile", "mkdocs.yml", "docs"}
TOP |= {"README.md", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md", "CITATION.cff"}
DATA_ENDINGS = ".jpg .jpeg .tif .ckpt .pt .pth .safetensors .onnx .npy .npz .pkl .zip .gz .tar .whl .log .wandb .db"
LARGEST = 1_000_000  # bytes
PYTHONS = ("3.11", "3.12", "3.13")


# What lies where


def tracked() -> list[str]:
    git = ["git", "-c", "safe.directory=*", "-C", str(ROOT), "ls-files", "-z"]
    done = subprocess.run(git, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"not a git checkout: {done.stderr.strip()}")
    return [name for name in done.stdout.split("\0") if name and (ROOT / name).exists()]


def misplaced(names: list[str]) -> set[str]:
    """Top-level names that are not the house's, and the house's that are missing; dot files are free."""
    tops = {name.partition("/")[0] for name in names}
    return {name for name in tops ^ TOP if not name.startswith(".")}


def heavy(names: list[str], root: Path) -> list[str]:
    endings = tuple(DATA_ENDINGS.split())
    return [name for name in names if name.lower().endswith(endings) or (root / name).stat().st_size > LARGEST]


def test_the_top_level_is_the_house_and_nothing_else() -> None:
    names = tracked()
    assert misplaced(names) == set()
    assert [name for name in names if name.startswith(".ci/")] == [".ci/run"]
    assert misplaced([*names, "utils/io.py"]) == {"utils"}
    assert misplaced([name for name in names if name != "LICENSE"]) == {"LICENSE"}


def test_no_images_weights_or_large_files_are_kept(tmp_path: Path) -> None:
    recorded = [name for name in tracked() if name.startswith("tests/recorded/")]  # of synthetic images, by older code
    assert sum((ROOT / name).stat().st_size for name in recorded) < 300_000
    assert heavy([name for name in tracked() if name not in recorded], ROOT) == []
    for name, size in {"a.JPG": 1, "best.ckpt": 1, "big.png": LARGEST + 1, "small.png": LARGEST}.items():
        (tmp_path / name).write_bytes(bytes(size))
    assert heavy(sorted(os.listdir(tmp_path)), tmp_path) == ["a.JPG", "best.ckpt", "big.png"]


# What the lock holds


def pins(text: str) -> dict[Requirement, int]:
    """Pins of a lock and how many hashes each has."""
    blocks = re.split(r"\n(?=\S)", text.strip())
    return {Requirement(block.split(" \\\n")[0]): block.count("--hash=sha256:") for block in blocks}


def wanted() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return [Requirement(line) for line in [*project["project"]["dependencies"], *project["dependency-groups"]["dev"]]]


def unmet(lock: str, wishes: list[Requirement], python: str) -> list[str]:
    """Wishes that a lock does not fulfil with exactly one pin on Linux under some Python."""
    environment = default_environment() | {"python_version": python, "python_full_version": f"{python}.0"}
    here = [pin for pin in pins(lock) if pin.marker is None or pin.marker.evaluate(environment)]  # type: ignore[arg-type]
    versions = {pin.name: [str(spec.version) for spec in pin.specifier] for pin in here}
    assert len(versions) == len(here), "two pins of one package"
    return [str(wish) for wish in wishes if not any(map(wish.specifier.contains, versions.get(wish.name.lower(), [])))]


@pytest.mark.parametrize("python", PYTHONS)
def test_the_lock_fulfils_pyproject_under_every_python(python: str) -> None:
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    assert unmet(lock, wanted(), python) == []
    assert unmet(lock, [Requirement("torch>=99"), Requirement("tensorflow")], python) == ["torch>=99", "tensorflow"]


def test_every_pin_is_exact_and_has_a_hash() -> None:
    lock = pins((ROOT / "requirements.lock").read_text(encoding="utf-8"))
    assert all(str(pin.specifier).startswith("==") and hashes for pin, hashes in lock.items())
    assert list(pins("a==1 \\\n    --hash=sha256:0\nb==2\n").values()) == [1, 0]


def test_the_lock_names_no_address() -> None:
    address = re.compile(r"://|^-|@", re.MULTILINE)  # a URL, an index option, a direct reference
    assert not address.search((ROOT / "requirements.lock").read_text(encoding="utf-8"))
    assert all(map(address.search, ("--index-url x", "a @ file", "# from https://mirror")))


# What make does


def make(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = ["make", "-C", str(folder), "--no-print-directory", *words]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | environment, timeout=HANGS
    )


def test_make_alone_lists_every_target_and_builds_nothing(bare: Path) -> None:
    targets = re.findall(r"^([a-z-]+): .venv/ready", (bare / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    done = make(bare)
    assert {"setup", "demo", "check", "test"} <= set(targets)
    assert [line.split()[1] for line in done.stdout.splitlines()[1:]] == targets
    assert not (bare / ".venv").exists()


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A fresh checkout in a folder with a space in its name, and a python that plays the real one and keeps a log."""
    folder = tmp_path / "a clone"
    folder.mkdir()
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, folder / name)
    return folder


# In place of python, of the one in .venv, and of uv: writes what it is asked, and does what make waits for.
ACTOR = """#!/bin/sh
echo "$(basename "$0") $*" >> "$LOG"
[ -z "$PYTHONPATH$PYTHONHOME$VIRTUAL_ENV$PIP_USER$UV_SYSTEM_PYTHON" ] || echo "leak" >> "$LOG"
case "$*" in
  *"sys.version_info"*) exit ${UNFIT:-0} ;;
  *"import ensurepip"*) exit ${NO_VENV:-0} ;;
  -V) echo "Python ${VERSION:-3.12.9}" ;;
  "-m venv --clear .venv") rm -rf .venv; mkdir -p .venv/bin; cp "$0" .venv/bin/python; cp "$0" .venv/bin/uv ;;
  "-m pip install"*) cat >> "$LOG" ;;
  *requirements.lock) [ -z "$CUT" ] || kill -9 $PPID ;;
  *".venv/ready"*) cat .venv/ready ;;
esac
"""


class Machine:
    """A machine whose only python is an actor."""

    def __init__(self, folder: Path, clone: Path) -> None:
        self.clone, self.log = clone, folder / "log"
        self.python = folder / "python3"
        self.python.write_text(ACTOR)
        self.python.chmod(0o755)

    def make(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        self.log.write_text("")
        return make(self.clone, *words, f"PYTHON={self.python}", LOG=str(self.log), **environment)

    @property
    def steps(self) -> list[str]:
        """What was really built, in order."""
        names = {"-m venv": "venv", "-m pip install": "pip", "requirements.lock": "packages", "-e .": "project"}
        lines = [line for line in self.log.read_text().splitlines() if line.startswith(("python", "uv"))]
        return [name for line in lines for words, name in names.items() if words in line]


@pytest.fixture
def machine(tmp_path: Path, bare: Path) -> Machine:
    return Machine(tmp_path, bare)


EVERYTHING = ["venv", "pip", "packages", "project"]


@pytest.mark.parametrize(("target", "command"), [("demo", "train.py experiment=demo"), ("test", "-m pytest")])
def test_the_first_command_builds_everything_and_the_next_nothing(machine: Machine, target: str, command: str) -> None:
    first = machine.make(target)
    assert (first.returncode, machine.steps) == (0, EVERYTHING), first.stderr
    assert first.stdout.count("skinmtl: ") == 4
    assert command in machine.log.read_text().splitlines()[-1]
    second = machine.make(target)
    assert (second.returncode, machine.steps) == (0, [])
    assert "skinmtl:" not in second.stdout
    assert command in machine.log.read_text().splitlines()[-1]


def test_what_a_shell_has_set_for_another_project_does_not_reach_the_setup(machine: Machine) -> None:
    other = {"PYTHONPATH": "/other", "PYTHONHOME": "/other", "VIRTUAL_ENV": "/other", "PIP_USER": "1"}
    machine.make("setup", **other, UV_SYSTEM_PYTHON="1")
    assert machine.steps == EVERYTHING
    assert "leak" not in machine.log.read_text()
    subprocess.run([machine.python, "-V"], env={"PYTHONPATH": "/other", "LOG": str(machine.log)}, check=True)
    assert "leak" in machine.log.read_text()


def test_uv_itself_comes_with_its_hashes(machine: Machine) -> None:
    machine.make("setup")
    log = machine.log.read_text()
    assert re.search(r"^uv==\S+ \\\n +--hash=sha256:", log, re.MULTILINE)
    assert {line.partition("==")[0] for line in log.splitlines() if "==" in line[:30]} == {"uv", "setuptools"}


def test_a_setup_that_was_cut_off_is_repaired(machine: Machine) -> None:
    assert machine.make("setup", CUT="yes").returncode != 0
    assert "project" not in machine.steps
    assert machine.make("setup").returncode == 0
    assert machine.steps == EVERYTHING


def test_a_changed_lock_builds_anew_and_a_changed_pyproject_only_the_project(machine: Machine) -> None:
    machine.make("setup")
    late = (machine.clone / ".venv" / "ready").stat().st_mtime + 10
    os.utime(machine.clone / "pyproject.toml", (late, late))
    machine.make("setup")
    assert machine.steps == ["project"]
    os.utime(machine.clone / "requirements.lock", (late, late))
    machine.make("setup")
    assert machine.steps == EVERYTHING


def test_a_moved_checkout_and_a_python_that_went_build_anew(machine: Machine) -> None:
    machine.make("setup")
    machine.clone = machine.clone.rename(machine.clone.with_name("elsewhere"))
    machine.make("setup")
    assert machine.steps == EVERYTHING
    (machine.clone / ".venv" / "bin" / "python").unlink()
    machine.make("setup")
    assert machine.steps == EVERYTHING


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"UNFIT": "1", "VERSION": "3.9.18"}, [": no Python 3.11, 3.12 or 3.13 here", ": Python 3.9.18)", "; fix: "]),
        ({"NO_VENV": "1"}, ["lacks the modules venv and ensurepip; fix: ", "python3-venv"]),
    ],
)
def test_a_python_that_does_not_do_is_refused_in_a_sentence(
    machine: Machine, environment: dict[str, str], words: list[str]
) -> None:
    done = machine.make("demo", **environment)
    assert done.returncode == 2
    (line,) = (line for line in done.stderr.splitlines() if not line.startswith("make: "))
    assert line.startswith("skinmtl: error: environment: ")
    assert all(word in line for word in words)
    assert not (machine.clone / ".venv").exists()


@pytest.mark.parametrize("python", PYTHONS)
def test_a_real_python_of_each_version_fits_and_others_do_not(python: str) -> None:
    condition = re.search(r"fits='(.*?)'", (ROOT / "Makefile").read_text(encoding="utf-8"))
    assert condition
    code = "class sys: version_info = {}; exit = print\n" + condition[1].removeprefix("import sys; ")
    major, minor = map(int, python.split("."))
    for version, fits in {(major, minor, 0): True, (2, 7): False, (3, 10, 13): False, (3, 14, 0): False}.items():
        done = subprocess.run([sys.executable, "-c", code.format(version)], capture_output=True, text=True, check=True)
        assert done.stdout == f"{not fits}\n"


# The door, without the environment


def test_train_outside_the_environment_says_so_in_one_line() -> None:
    bare_python = [getattr(sys, "_base_executable", sys.executable), "-S", "-E", "-s"]  # standard library only
    done = subprocess.run(
        [*bare_python, str(ROOT / "train.py"), "experiment=demo"],
        capture_output=True,
        text=True,
        check=False,
        env={},
        cwd="/",
        timeout=HANGS,
    )
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("skinmtl: error: environment: ")
    assert "; fix: " in line
    assert "make setup" in line


def test_an_old_python_can_read_the_door_and_so_print_that_line() -> None:
    ast.parse((ROOT / "train.py").read_text(encoding="utf-8"), feature_version=(3, 7))
    with pytest.raises(SyntaxError):
        ast.parse("match 1:\n    case 1:\n        pass\n", feature_version=(3, 7))


# The network, of these tests themselves


@pytest.mark.network_tried
@pytest.mark.parametrize("address", ["https://example.org", "http://192.0.2.1"])
def test_the_network_is_out_of_reach_here_and_in_child_processes(address: str) -> None:
    code = f"import urllib.request; urllib.request.urlopen({address!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=HANGS)
    assert "tests have no network, and something asked for" in done.stderr
    with pytest.raises(OSError, match="tests have no network"):
        exec(code)


def test_a_test_that_knocks_at_the_network_fails_though_the_code_did_not_mind(tmp_path: Path) -> None:
    for name in ("conftest.py", "offline.py", "sitecustomize.py"):
        shutil.copy(ROOT / "tests" / name, tmp_path)
    (tmp_path / "test_it.py").write_text(
        "import contextlib, socket\n"
        "def test_asks():\n"
        "    with contextlib.suppress(OSError):\n"
        "        socket.create_connection(('example.org', 443))\n"
        "def test_stays():\n"
        "    socket.create_server(('127.0.0.1', 0)).close()\n"
    )
    command = [sys.executable, "-m", "pytest", "-c", str(ROOT / "pyproject.toml"), "--rootdir", ".", "test_it.py"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, timeout=HANGS)
    assert "asked the network for example.org" in done.stdout
    assert "2 passed, 1 error" in done.stdout
