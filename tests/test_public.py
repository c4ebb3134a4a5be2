"""What `import skinmtl` shows: the names a notebook uses, with their types, without waiting for torch."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import skinmtl

ROOT = Path(__file__).parents[1]


def test_tab_completion_shows_the_public_names_and_each_is_there() -> None:
    assert dir(skinmtl) == skinmtl.__all__ == sorted(skinmtl.__all__)
    assert {"fit", "load_run", "Run"} <= set(dir(skinmtl)) and "os" not in dir(skinmtl)
    assert all(getattr(skinmtl, name) is not None for name in dir(skinmtl))
    with pytest.raises(AttributeError, match="no attribute 'ftt'"):
        skinmtl.ftt  # noqa: B018


def test_importing_the_package_imports_neither_torch_nor_pandas() -> None:
    code = "import sys, skinmtl; dir(skinmtl); sys.exit(bool({'torch', 'pandas', 'hydra'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], timeout=600).returncode == 0


def test_types_are_for_whoever_imports_the_package_and_there_is_one_version(tmp_path: Path) -> None:
    assert (Path(skinmtl.__file__).parent / "py.typed").is_file()
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert skinmtl.__version__ == version and f"version: {version}" in (ROOT / "CITATION.cff").read_text()
    (tmp_path / "notebook.py").write_text(
        "import skinmtl\n\nreveal_type(skinmtl.fit('experiment=demo'))\nskinmtl.ftt\n"
    )
    command = "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), str(tmp_path / "notebook.py")
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, cwd=ROOT, timeout=600)
    assert 'Revealed type is "skinmtl.runs.run.Run"' in done.stdout, done.stdout + done.stderr
    assert 'has no attribute "ftt"' in done.stdout
