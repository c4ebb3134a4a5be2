"""What every test stands on: one thread, no network, no account, a home of its own; and data, drawn or real."""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest_plugins = ["tally", "fast"]
HERE = Path(__file__).parent
FOREIGN = ("WANDB_", "SLURM_", "HYDRA_", "PL_", "TORCH_", "HF_", "NCCL_", "GLOO_")
FOREIGN_NAMES = {"SKINMTL_ALLOW", "SKINMTL_DEBUG", "MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "GROUP_RANK", "RANK"}
FOREIGN_NAMES |= {"LOCAL_RANK", "WORLD_SIZE", "FORCE_COLOR", "NO_COLOR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"}
FOREIGN_NAMES |= {"MAKEFLAGS", "MAKELEVEL", "MFLAGS"}


def isolate() -> None:
    """Make this process, and those that it starts, the same on every machine; before torch is imported."""
    for name in list(os.environ):
        if name in FOREIGN_NAMES or name.startswith(FOREIGN) or name.lower().endswith("_proxy"):
            del os.environ[name]
    # Fonts are listed once a machine, which takes seconds; everything else that is kept at home goes to a new one.
    os.environ.setdefault("MPLCONFIGDIR", str(Path.home() / ".cache" / "matplotlib"))
    os.environ["HOME"] = home = tempfile.mkdtemp(prefix="skinmtl-home-")
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    os.environ |= {"OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg", "COLUMNS": "120", "PYTHONPATH": str(HERE)}
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # it would ask the network when a test imports it before us
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs start without one
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")  # the same numbers everywhere; =0 gives the tests a GPU


assert "torch" not in sys.modules, "torch reads OMP_NUM_THREADS when it is imported, which must come later"
isolate()

import offline  # noqa: E402  (a process started by a test does this by sitecustomize)

offline.block()


@pytest.fixture(autouse=True)
def no_network(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that knocks at the network, even where the code took the refusal in its stride."""
    offline.attempts.clear()
    yield
    if offline.attempts and not request.node.get_closest_marker("network_tried"):
        pytest.fail(f"asked the network for {', '.join(offline.attempts)}; a test that means to: network_tried")


@pytest.fixture(scope="session")
def synthetic_root(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """64 images of 43 lesions, 48 x 64 px, in HAM10000's layout, drawn once; not to be changed."""
    from skinmtl.data.synthetic.generator import Synthetic

    base = tmp_path_factory.getbasetemp()
    root = (base.parent if hasattr(request.config, "workerinput") else base) / "synthetic"
    Synthetic(lesions=43, size=(48, 64), seed=0).write(root)
    return root


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that every user may enter; pytest's own are closed."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def real_data() -> Callable[[str], Path]:
    """Gives a folder of real images by its name under SKINMTL_DATA, or skips the test where it is not."""

    def find(name: str) -> Path:
        given = os.environ.get("SKINMTL_DATA")
        if not given:
            pytest.skip("real images: SKINMTL_DATA names no folder")
        folder = Path(given) / name
        if not folder.is_dir():
            pytest.skip(f"real images: {name} is not in SKINMTL_DATA")
        return folder

    return find
