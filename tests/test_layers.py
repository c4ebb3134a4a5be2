"""The layers: which folder may import which (pyproject.toml, `tool.importlinter`), and what does not load torch."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hangs import HANGS

ROOT = Path(__file__).parents[1]
# Imported in turn, each in the knowledge that those before it have loaded no torch.
TORCHLESS = (
    "cli.commands",
    "cli.train",
    "config.check",
    "data.sources",
    "data.splits",
    "runs.predictions",
    "runs.run",
    "figures.training",
    "tasks.scoring",
    "tasks.tables",
    "tasks.curves",
    "tasks.classification.figures",
    "tasks.regression.figures",
    "tasks.segmentation.figures",
    "evaluation.scores",
    "studies.compare",
    "studies.results",
    "reports.run",
    "audit.leaks",
)


def linted(folder: Path) -> tuple[bool, str]:
    """Whether the contracts hold for the package in a folder, and what import-linter says."""
    code = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True, no_logo=True))"
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=HANGS)
    return done.returncode == 0, " ".join((done.stdout + done.stderr).split())


def test_every_folder_imports_from_below_alone() -> None:
    holds, said = linted(ROOT)
    assert holds, said


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The package and its contracts, in a folder where faults may be planted."""
    shutil.copytree(ROOT / "skinmtl", tmp_path / "skinmtl", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("file", "text", "fault"),
    [
        ("errors.py", "def late():\n    from skinmtl.evaluation import scores", "errors is not allowed to import"),
        ("data/splits.py", "from . import datamodule", "data.splits is not allowed to import skinmtl.data.datamodule"),
        ("runs/cells.py", "from skinmtl.runs import predictions", "No circle of imports, however deep BROKEN"),
        ("reports/html.py", "import torch", "Work on finished tables does not load torch BROKEN"),
        ("files.py", "import tests.fakes", "skinmtl is not allowed to import tests"),
        ("helpers/__init__.py", "", "skinmtl.helpers (Since this contract is marked as 'exhaustive'"),
    ],
)
def test_a_planted_fault_is_found(copy: Path, file: str, text: str, fault: str) -> None:
    (copy / "skinmtl" / file).parent.mkdir(exist_ok=True)
    with (copy / "skinmtl" / file).open("a", encoding="utf-8") as end:
        end.write(f"\n{text}\n")
    holds, said = linted(copy)
    assert not holds
    assert fault in said


def first_to_load_torch(*modules: str) -> str:
    """The first of some modules, imported in this order in a process of its own, that loads torch; empty if none."""
    code = f"""
import importlib, sys
for module in {modules}:
    importlib.import_module(f"skinmtl.{{module}}")
    if "torch" in sys.modules:
        print(module)
        break
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=HANGS, check=True)
    return done.stdout.strip()


def test_work_on_finished_tables_does_not_load_torch() -> None:
    assert first_to_load_torch(*TORCHLESS) == ""


def test_a_module_that_needs_torch_is_seen_to_load_it() -> None:
    assert first_to_load_torch("errors", "losses") == "losses"
