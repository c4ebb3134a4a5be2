"""A sweep's folder as jobs: what each was told, how it ended, and which of them repeat one setting."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from skinmtl.runs import aliases
from skinmtl.runs.record import dig
from skinmtl.runs.redaction import shareable
from skinmtl.runs.run import Run

REPEATS = ("seed", "data.fold")  # what repeats a setting and does not make another one


@dataclass(frozen=True)
class Job:
    """One run of a sweep: its number, what it was told, how it ended, and its folder, where run.json may lack."""

    number: int
    overrides: dict[str, str]
    ended: Mapping[str, Any]
    run: Run
    info: dict[str, Any]

    @property
    def seed(self) -> object:
        """Its seed, or None where nothing says."""
        return self.info.get("seed", self.overrides.get("seed"))

    @property
    def fold(self) -> object:
        """Its fold, or None where nothing says."""
        fold: object = dig(self.info, "split", "fold", default=self.overrides.get("data.fold"))
        return fold

    @property
    def status(self) -> str:
        """How it ended, such as "finished" or "failed"."""
        return str(self.ended.get("status") or (self.info and self.run.status) or "never started")


def read_jobs(folder: Path) -> list[Job]:
    """Read the jobs of a sweep's folder, in the order of their numbers, with those that failed."""
    file = folder / "sweep.csv"
    table = pd.read_csv(file, dtype=str, keep_default_na=False) if file.is_file() else pd.DataFrame()
    rows = table.to_dict("records")
    ended = {int(row["job"]): {str(k): v for k, v in row.items() if v} for row in rows}
    numbers = {int(path.name) for path in folder.iterdir() if path.is_dir() and path.name.isdigit()}
    jobs = []
    for number in sorted(numbers | ended.keys()):
        run = Run(folder / str(number))
        info = run.info() if run.info_file.is_file() else {}
        jobs.append(Job(number, _overrides(run.path, ended.get(number, {})), ended.get(number, {}), run, info))
    return jobs


def _overrides(folder: Path, ended: Mapping[str, Any]) -> dict[str, str]:
    path = folder / ".hydra" / "overrides.yaml"
    given = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else None
    texts = given or re.findall(r"[^\s=,]+=\S+", str(ended.get("overrides", "")))
    pairs = (str(text).lstrip("+").partition("=") for text in texts)
    named = ((aliases.key(key), value.rstrip(",;")) for key, _, value in pairs)
    return {key: aliases.value(key, value) for key, value in named}


def varied_keys(jobs: Sequence[Job]) -> list[str]:
    """List the overrides that differ between jobs, without those that only repeat a setting."""
    keys = dict.fromkeys(key for job in jobs for key in job.overrides)
    return [key for key in keys if key not in REPEATS and len({job.overrides.get(key) for job in jobs}) > 1]


def by_setting(jobs: Sequence[Job], keys: Sequence[str]) -> list[tuple[str, list[Job]]]:
    """Group jobs by setting.

    Args:
        jobs: of one sweep.
        keys: the overrides that make a setting.

    Returns:
        Each setting's name with its jobs; settings of one name are told apart by a number.
    """
    alike: dict[tuple[str | None, ...], list[Job]] = {}
    for job in jobs:
        alike.setdefault(tuple(job.overrides.get(key) for key in keys), []).append(job)
    names = [_setting(group[0], keys) for group in alike.values()]
    numbered = [
        f"{name} ({names[:i].count(name) + 1})" if names.count(name) > 1 else name for i, name in enumerate(names)
    ]
    return list(zip(numbered, alike.values(), strict=True))


def _setting(job: Job, keys: Sequence[str]) -> str:
    """Such as "weighting.seg=4", or the experiment's name where nothing else varies."""
    given = [(key, str(shareable(key, job.overrides[key]))) for key in keys if key in job.overrides]
    names = [value if key == "experiment" else f"{key}={value}" for key, value in given]
    return ", ".join(names) or str(job.info.get("name") or "as configured")
