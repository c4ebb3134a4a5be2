"""The house: which file stands on which floor, and that it imports only from floors below its own."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "skinmtl"

# From the ground up. `__init__` is the face of the house and may show what it likes; nobody looks in through it.
FLOORS = """
    types errors ranks rarity logs foreign signatures spelling
    losses.terms encoders decoders heads weights predictions facts lettering
    losses.seg losses.cls
    data network losses.__init__ weighting gradients metrics scores optim figures page constructors photographs
    tasks runs config checkpoints processes overrides
    module jobs
    predict callbacks tracking
    resumable
    evaluate baselines settings audit prediction_folder
    answer
    report
    train.record
    train.resume
    train.build
    train.__init__
    study
    cli door
    __init__
"""
DATA = """
    data.__init__
    data.lesions
    data.dermatoscopy
    data.synthetic data.sources.ham10000 data.sources.tables
    data.sources.folders
    data.sources.layouts
    data.sources.cases
    data.sources.__init__
    data.duplicates data.jpeg data.profiles data.masks data.diagnoses data.progress
    data.images data.contents
    data.splits data.lookalikes
    data.certificate
    data.prepare.__init__ data.prepare.names data.prepare.web
    data.prepare.manifest data.prepare.exif
    data.prepare.archives data.prepare.folders data.prepare.download
    data.prepare.intake data.prepare.arrange data.prepare.verify data.prepare.dataverse
    data.prepare.command
    data.records
    data.cache data.transforms data.also
    data.samplers data.mixing
    data.datamodule
"""
STRANGERS = {
    "tests",
    "experiments",
    "conf",
    "outputs",
}  # and train.py, whose name in an import is skinmtl.training.run's
TORCHLESS = (
    "cli",
    "config",
    "data.sources",
    "data.splits",
    "predictions",
    "scores",
    "figures",
    "runs",
    "settings",
    "answer",
    "report",
    "audit",
)


def floors(text: str) -> dict[str, int]:
    return {room: number for number, line in enumerate(text.strip().splitlines()) for room in line.split()}


def rooms(package: Path) -> dict[str, Path]:
    """Every file of the package by its dotted name in it, `data.images` say."""
    return {".".join(path.relative_to(package).with_suffix("").parts): path for path in package.rglob("*.py")}


def imported(path: Path, room: str, package: str = "skinmtl") -> Iterator[str]:
    """Absolute names that a file imports anywhere, in functions and for type hints too; `a.b` for `from a import b`."""
    parents = f"{package}.{room}".split(".")
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            base = parents[: -node.level] if node.level else []
            yield from (".".join([*base, *filter(None, [node.module]), alias.name]) for alias in node.names)


def graph(package: Path) -> dict[str, set[str]]:
    """The rooms that each room imports; a folder's `__init__` counts where a name is taken from it."""
    known = rooms(package)
    edges: dict[str, set[str]] = {room: set() for room in known}
    for room, path in known.items():
        for name in imported(path, room):
            head, _, rest = name.partition(".")
            if head != "skinmtl" or rest == "__version__":  # a constant, ready before anything else is imported
                continue
            parts = rest.split(".") if rest else []
            ways = [".".join(parts[:length]) for length in range(len(parts), 0, -1)] + [""]
            found = (room for way in ways for room in (way, f"{way}.__init__".lstrip(".")) if room in known)
            edges[room].add(next(found))
    return edges


def faults(package: Path) -> list[str]:
    """What is wrong with a package, a sentence each."""
    floor, order = floors(FLOORS), floors(DATA)
    edges = graph(package)

    def level(room: str) -> tuple[int, int]:
        return (floor["data"], order[room]) if room.startswith("data.") else (floor[room], 0)

    homeless = {room for room in edges if room not in order and room not in floor}
    found = [f"{room} has no floor: give it one in tests/test_layers.py" for room in sorted(homeless)]
    for room in sorted(set(edges) - homeless):
        for other in sorted(edges[room] - homeless):
            inside = room.startswith("data.") and other.startswith("data.")
            (high, high_in), (low, low_in) = level(room), level(other)
            if low > high or (low == high and not (inside and low_in < high_in)):
                found.append(f"{room} imports {other}, which is not below it")
    for room, path in sorted(rooms(package).items()):
        strange = {name.partition(".")[0] for name in imported(path, room)} & STRANGERS
        found += [f"{room} imports {name}, which is no part of the package" for name in sorted(strange)]
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as error:
        found.append(f"a circle of imports: {' -> '.join(error.args[1])}")
    return found


def test_every_file_imports_only_from_lower_floors() -> None:
    assert faults(PACKAGE) == []


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A house in order: report over scores over errors, datamodule over splits."""
    files = {
        "__init__.py": "def __getattr__(name):\n    from skinmtl.reports.run import write\n",
        "errors.py": "import os\n",
        "scores.py": "from skinmtl.errors import InputError\n",
        "report.py": "from skinmtl import __version__, scores\n",
        "data/__init__.py": "",
        "data/splits.py": "from skinmtl import errors\n",
        "data/datamodule.py": "from skinmtl.data import splits\nimport skinmtl.data.splits\n",
    }
    for name, text in files.items():
        path = tmp_path / "skinmtl" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "skinmtl"


def test_a_house_in_order_has_no_faults(small: Path) -> None:
    assert faults(small) == []


@pytest.mark.parametrize(
    ("name", "text", "fault"),
    [
        ("scores.py", "from skinmtl.reports.run import write", "scores imports report, which is not below it"),
        ("scores.py", "import skinmtl.reports.run as page", "scores imports report, which is not below it"),
        ("scores.py", "from skinmtl import report", "scores imports report, which is not below it"),
        ("scores.py", "from . import report", "scores imports report, which is not below it"),
        ("scores.py", "from .report import write", "scores imports report, which is not below it"),
        (
            "scores.py",
            "def late():\n    from skinmtl.reports.run import write",
            "scores imports report, which is not below it",
        ),
        ("scores.py", "from skinmtl.data import splits", "scores imports data.splits, which is not below it"),
        ("scores.py", "from skinmtl import load_run", "scores imports __init__, which is not below it"),
        (
            "data/splits.py",
            "from skinmtl.evaluation.scores import dice",
            "data.splits imports scores, which is not below it",
        ),
        ("data/splits.py", "from .datamodule import X", "data.splits imports data.datamodule, which is not below it"),
        ("data/splits.py", "from ..report import X", "data.splits imports report, which is not below it"),
        ("helpers.py", "", "helpers has no floor: give it one in tests/test_layers.py"),
        ("data/loose.py", "", "data.loose has no floor: give it one in tests/test_layers.py"),
        ("report.py", "import experiments.loss_weights", "report imports experiments, which is no part of the package"),
        ("report.py", "from tests import conftest", "report imports tests, which is no part of the package"),
        ("errors.py", "def late():\n    import skinmtl.evaluation.scores", "a circle of imports: "),
    ],
)
def test_a_planted_fault_is_found(small: Path, name: str, text: str, fault: str) -> None:
    (small / name).write_text(text)
    assert any(fault in found for found in faults(small)), faults(small)


def first_to_load_torch(*rooms: str) -> str:
    """The first of some rooms, imported in this order in a process of its own, that loads torch; empty if none."""
    code = f"""
import importlib, sys
for room in {rooms}:
    importlib.import_module(f"skinmtl.{{room}}")
    if "torch" in sys.modules:
        print(room)
        break
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    return done.stdout.strip()


def test_work_on_finished_tables_does_not_load_torch() -> None:
    assert first_to_load_torch(*TORCHLESS) == ""


def test_a_room_that_needs_torch_is_seen_to_load_it() -> None:
    assert first_to_load_torch("errors", "losses") == "losses"
