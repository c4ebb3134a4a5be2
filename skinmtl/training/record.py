"""What a run says of itself in run.json and its checkpoints: how it was started, on what, in how long."""

from __future__ import annotations

import logging
import os
import platform
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from skinmtl.config.run_config import RunConfig
from skinmtl.data.datamodule import DataModule
from skinmtl.data.splits import SPLITS
from skinmtl.distributed.launch import threads
from skinmtl.runs.redaction import without_paths_in
from skinmtl.runs.run import Run
from skinmtl.tasks.base import Task
from skinmtl.training import slurm

log = logging.getLogger(__name__)

# With seed, batch, processes and precision, which are checked.
SAME_BITS = ("versions", "device", "capability", "threads")
PACKAGES = (
    "torch",
    "torchvision",
    "pytorch-lightning",
    "hydra-core",
    "segmentation-models-pytorch",
    "timm",
    "albumentations",
    "torchmetrics",
    "numpy",
    "pandas",
    "scikit-learn",
    "opencv-python-headless",
    "pillow",
)


def origin(config: RunConfig, here: Run, world_size: int, command: str | None = None) -> dict[str, Any]:
    """Give what is known before anything is built, for run.json; warn where a resumed run will not have the same bits.

    Args:
        config: a checked config.
        here: the run; where it has a run.json already, it is resumed, and only what changes is given.
        world_size: how many processes train.
        command: how it was started; None from Python.
    """
    now = _attempt(config, here.path, world_size, command or "skinmtl.training.run.run, from Python")
    if not here.info_file.exists():
        return now
    before = here.info()
    for key in SAME_BITS:
        if (then := before.get(key)) not in (None, now[key]):
            what = ", ".join(_changes(then, now[key]))
            log.warning("%s: %s: the run is resumed, but not to the same bits as an unbroken one", key, what)
    again = {key: now[key] for key in ("started", "command", "commit", *SAME_BITS)}
    return {"status": "running", "exit_code": None, "error": None, "resumed": [*before.get("resumed", []), again]}


def _changes(then: object, now: object) -> list[str]:
    """Say what was and what is; of a dict only what differs."""
    if isinstance(then, dict) and isinstance(now, dict):
        return [f"{key} {then.get(key)}, now {now.get(key)}" for key in now if then.get(key) != now.get(key)]
    return [f"{then}, now {now}"]


def _attempt(config: RunConfig, folder: Path, world_size: int, command: str) -> dict[str, Any]:
    """Give what run.json says of how, where and on what a run is started."""
    return {
        "run_id": folder.name,
        "name": config.name,
        "status": "running",
        "exit_code": None,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": without_paths_in(command),
        "commit": _commit(),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU ({platform.machine()})",
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads() if world_size == 1 else threads(world_size),
        "cores": os.cpu_count(),
        "world_size": world_size,
        "global_batch": config.data["batch_size"] * world_size,
        "seed": config.seed,
        "tasks": list(config.tasks),
        "test_time_flips": config.test_time_flips,
        "keep": config.keep,
        "slurm_job": slurm.job(),
    }


def data_facts(data: DataModule, tasks: Sequence[Task]) -> dict[str, Any]:
    """Give what the images and the split are, without a folder's name, which could name a person or a place.

    Args:
        data: the data module, whose auxiliary data are not counted.
        tasks: prepared ones, each of which counts the images of its own classes.
    """
    splits = {}
    for split in SPLITS:
        rows = data.table.iloc[data.rows(split, source=0)]
        counts = rows["dx"].value_counts().reindex(data.dx_classes, fill_value=0)
        splits[split] = {
            "images": len(rows),
            "lesions": int(rows["lesion_id"].nunique()),
            "classes": {name: int(counts[name]) for name in data.dx_classes},
            "tasks": {task.name: found for task in tasks if (found := task.class_counts(rows))},
        }
    return {
        "dx_classes": list(data.dx_classes),
        "mask_classes": list(data.mask_classes),
        "leaky": data.leaky,
        "synthetic": data.synthetic is not None,
        "shuffled": data.shuffled is not None,
        "size": list(data.size),
        "split": {
            "hash": data.split_hash,
            "fold": data.fold,
            "folds": data.folds,
            "merged_pairs": len(data.pairs),
            **splits,
        },
        "data": {"hash": data.data_hash, "layout": data.layout, "images": int((data.source == 0).sum())},
        "also": data.auxiliary_facts,
        "also_hashes": data.auxiliary_hashes,
    }


def seconds_with_former(here: Run, **seconds: float) -> dict[str, float]:
    """Add the seconds of this attempt to those of the attempts before it.

    Args:
        here: the run, whose run.json has the former ones.
        seconds: by what they were spent on: `fit`, `evaluate`.

    Returns:
        `fit`, `evaluate` and their `total`, rounded to a tenth.
    """
    former = here.info().get("seconds") or {}
    parts = {key: round(former.get(key, 0.0) + seconds.get(key, 0.0), 1) for key in ("fit", "evaluate")}
    return parts | {"total": round(sum(parts.values()), 1)}


def _commit() -> str | None:
    """Give the commit of skinmtl's own repository, `-dirty` where it was changed; None outside of one."""
    here = Path(__file__).parent
    command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
