"""A study's answer from its finished runs: a row per run, a table per setting, figures. Without torch.

The unit of replication is one training: its seed and its fold. Where all folds of a seed are there, their test parts
are pooled into one, so that every photograph is tested once, and the unit is the seed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from skinmtl import figures
from skinmtl.errors import InputError
from skinmtl.facts import HEADLINES, dig, read_scores, stamps, without_folders, words
from skinmtl.runs import Run, write_text
from skinmtl.scores import DRAWS, Floats, Sample, dx_classes

SCORES = (*HEADLINES, "accuracy", "macro_f1", "mcc")
REPEATS = ("seed", "data.fold")  # what repeats a setting and does not make another one
MARKS = ("<!-- results -->", "<!-- /results -->")
FIGURES = {
    "scores": "Test scores of each setting: dots are means over replicates, bars their 95% intervals over lesions, "
    "rings the replicates.",
    "tradeoff": "Outlines against diagnoses on the test part: each setting's mean Dice and balanced accuracy with 95% "
    "intervals over lesions. Up and to the right is better at both.",
}


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
        return str(self.ended.get("status") or self.info.get("status") or "never started")


@dataclass(frozen=True)
class Setting:
    """What one setting reaches: by score, one value per replicate and their mean in each resampling of lesions."""

    name: str
    unit: str
    n: int
    images: list[str]  # empty when replicates were tested on different photographs
    lesions: int
    values: dict[str, Floats]  # (n,)
    draws: dict[str, Floats]  # (DRAWS,); without those of different photographs

    def interval(self, score: str) -> tuple[float, float]:
        """95% over lesions of the mean over replicates; not a number where replicates saw different photographs."""
        if score not in self.draws:
            return float("nan"), float("nan")
        low, high = np.nanpercentile(self.draws[score], [2.5, 97.5])
        return float(low), float(high)


def study_report(folder: Path, out: Path) -> Path:
    """Write results.csv, README.md (between its marks), study.yaml and figures/ of a sweep into `out`; gives `out`.

    Args:
        folder: a sweep's folder, runs in its subfolders 0, 1, 2, ..., with or without its sweep.csv.
        out: where the answer lives; its name is the study's. What else its README.md says stays.

    Raises:
        InputError: the folder holds no job, or README.md has one mark without the other.
    """
    jobs = read_jobs(folder)
    if not jobs:
        raise InputError(
            str(folder), "no job in this folder", "give a sweep's folder, such as outputs/<study>/<run_id>"
        )
    varied = _varied(jobs)
    results = pd.DataFrame([_row(job, out.name, varied) for job in jobs])
    settings = [_reached(name, alike) for name, alike in _settings(jobs, varied)]
    (out / "figures").mkdir(parents=True, exist_ok=True)
    stamp = "LEAKY" if any(job.info.get("leaky") for job in jobs) else ""
    drawn = _draw([setting for setting in settings if setting.n], varied, out / "figures", stamp)
    readme = _between_marks(out / "README.md", "\n".join(_answer(jobs, settings, drawn)))
    write_text(out / "results.csv", results.to_csv(index=False))
    write_text(out / "study.yaml", yaml.safe_dump(_frozen(jobs, folder, out.name), sort_keys=False, allow_unicode=True))
    write_text(out / "README.md", readme)
    return out


def read_jobs(folder: Path) -> list[Job]:
    """The jobs of a sweep in the order of their numbers, those that failed too."""
    table = pd.read_csv(folder / "sweep.csv", dtype=str) if (folder / "sweep.csv").is_file() else pd.DataFrame()
    rows = table.to_dict("records")
    ended = {int(row["job"]): {str(k): v for k, v in row.items() if pd.notna(v)} for row in rows}
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
    return {key: value.rstrip(",;") for key, _, value in pairs}


def _varied(jobs: Sequence[Job]) -> list[str]:
    """Overrides that differ between the jobs, without those that only repeat a setting."""
    keys = dict.fromkeys(key for job in jobs for key in job.overrides)
    return [key for key in keys if key not in REPEATS and len({job.overrides.get(key) for job in jobs}) > 1]


def _settings(jobs: Sequence[Job], varied: Sequence[str]) -> list[tuple[str, list[Job]]]:
    """Each setting's name with its jobs; folders that end alike are told apart by a number."""
    alike: dict[tuple[str | None, ...], list[Job]] = {}
    for job in jobs:
        alike.setdefault(tuple(job.overrides.get(key) for key in varied), []).append(job)
    names = [_setting(group[0], varied) for group in alike.values()]
    numbered = [
        f"{name} ({names[:i].count(name) + 1})" if names.count(name) > 1 else name for i, name in enumerate(names)
    ]
    return list(zip(numbered, alike.values(), strict=True))


def _setting(job: Job, varied: Sequence[str]) -> str:
    """Such as "weighting.seg=4", or the experiment's name where nothing else varies."""
    given = [(key, without_folders(job.overrides[key])) for key in varied if key in job.overrides]
    names = [value if key == "experiment" else f"{key}={value}" for key, value in given]
    return ", ".join(names) or str(job.info.get("name") or "as configured")


def _row(job: Job, study: str, varied: Sequence[str]) -> dict[str, Any]:
    test = dig(read_scores(job.run.path), "parts", "test", default={})
    row = {"study": study, "job": job.number, "experiment": job.info.get("name", job.overrides.get("experiment"))}
    row |= {"seed": job.seed, "fold": job.fold}
    rest = {key: value for key, value in job.overrides.items() if key not in (*REPEATS, "experiment")}
    row |= {key: without_folders(value) for key, value in rest.items()}
    row |= {"status": job.status, "exit_code": job.ended.get("exit_code", job.info.get("exit_code"))}
    known = {name: score for task in dig(test, "scores", default={}).values() for name, score in task.items()}
    for name in SCORES:
        row |= {
            f"{name}{end}": dig(known, name, key) for end, key in (("", "value"), ("_low", "low"), ("_high", "high"))
        }
    row |= {"stamp": stamps(job.info), "n_images": test.get("n_images"), "n_lesions": test.get("n_lesions")}
    row |= {"seconds": dig(job.info, "seconds", "total", default=job.ended.get("seconds"))}
    return row | {"images_per_second": job.info.get("images_per_second")}


def _reached(name: str, jobs: Sequence[Job]) -> Setting:
    """Score a setting's replicates on the same resampled lesions."""
    tables, unit = _replicates([job for job in jobs if job.status == "finished" and job.run.predictions_file.is_file()])
    scored = [_scored(table) for table in tables]
    common = [score for score in SCORES if scored and all(score in each for each in scored)]
    images = [table["image_id"].tolist() for table in tables]
    same = bool(images) and all(each == images[0] for each in images)
    return Setting(
        name,
        unit,
        n=len(tables),
        images=images[0] if same else [],
        lesions=int(tables[0]["lesion_id"].fillna(tables[0]["image_id"]).nunique()) if same else 0,
        values={score: np.array([each[score][0] for each in scored]) for score in common},
        draws={score: np.mean([each[score][1] for each in scored], axis=0) for score in common} if same else {},
    )


def _replicates(jobs: Sequence[Job]) -> tuple[list[pd.DataFrame], str]:
    """One table of test photographs per replicate, in the order of image ids, and what a replicate is."""
    if not jobs:
        return [], "none finished"
    tables = [(job, _test(job)) for job in jobs]
    pooled = []
    for seed in dict.fromkeys(job.seed for job in jobs):
        mine = [(job, table) for job, table in tables if job.seed == seed]
        folds, together = sorted(str(job.fold) for job, _ in mine), pd.concat([table for _, table in mine])
        whole = sorted(map(str, range(dig(mine[0][0].info, "split", "folds", default=0))))
        if folds != whole or len(folds) < 2 or together["image_id"].duplicated().any():
            return [table for _, table in tables], "run (seed and fold)"
        pooled.append(together.sort_values("image_id", ignore_index=True))
    return pooled, f"seed, {len(tables) // len(pooled)} folds pooled"


def _test(job: Job) -> pd.DataFrame:
    table = job.run.predictions()
    return table[table["split"] == "test"].sort_values("image_id", ignore_index=True)


def _scored(table: pd.DataFrame) -> dict[str, tuple[float, Floats]]:
    """By score that is defined: its value and its (DRAWS,) values under resampled lesions."""
    sample = Sample.of(table, dx_classes(table), DRAWS, seed=0)
    scores = {name: score for task in sample.scores(("lesion",)).values() for name, score in task.items()}
    found = {
        name: (float(scores[name](sample.once)[0]), sample.drawn(scores[name])) for name in SCORES if name in scores
    }
    return {name: (value, draws) for name, (value, draws) in found.items() if np.isfinite(value)}


def _draw(settings: Sequence[Setting], varied: Sequence[str], folder: Path, stamp: str) -> list[str]:
    """Write the figures there is something for; gives their names."""
    shown = [
        name
        for name in ("mean_image_dice", "balanced_accuracy", "macro_auroc")
        if any(name in s.values for s in settings)
    ]
    if not shown:
        return []
    rows = [
        {"setting": s.name, "score": words(score), **_mean(s, score)}
        for score in shown
        for s in settings
        if score in s.values
    ]
    each = [
        {"setting": s.name, "score": words(score), "value": value}
        for score in shown
        for s in settings
        if s.n > 1
        for value in s.values.get(score, ())
    ]
    runs = pd.DataFrame(each, columns=["setting", "score", "value"])
    figures.save(figures.scores_by_setting(pd.DataFrame(rows), runs), folder / "scores.png", stamp)
    both = ("mean_image_dice", "balanced_accuracy")
    points = [s for s in settings if all(score in s.values for score in both)]
    if len(points) < 2 or not any(key.startswith("weighting") for key in varied):
        return ["scores"]
    table = pd.DataFrame([{"setting": s.name, **_ends(s, both[0]), **_ends(s, both[1])} for s in points])
    figures.save(figures.tradeoff(table), folder / "tradeoff.png", stamp)
    return ["scores", "tradeoff"]


def _mean(setting: Setting, score: str) -> dict[str, float]:
    low, high = setting.interval(score)
    return {"value": float(setting.values[score].mean()), "low": low, "high": high}


def _ends(setting: Setting, score: str) -> dict[str, float]:
    low, high = setting.interval(score)
    return {score: float(setting.values[score].mean()), f"{score}_low": low, f"{score}_high": high}


def _answer(jobs: Sequence[Job], settings: Sequence[Setting], drawn: Sequence[str]) -> list[str]:
    """The lines between the marks of README.md."""
    lines = []
    if any(job.info.get("synthetic") for job in jobs):
        lines += ["**SYNTHETIC: the photographs are made up. These scores say nothing about patients.**", ""]
    if any(job.info.get("leaky") for job in jobs):
        lines += ["**LEAKY: photographs of one lesion may stand in training and test. Compare with nothing.**", ""]
    shown = [score for score in SCORES if any(score in s.values for s in settings)]
    rows = [[s.name, str(s.n), s.unit, *_size(s), *(_cell(s, score) for score in shown)] for s in settings]
    lines += _table(["setting", "n", "unit of replication", "images", "lesions", *map(words, shown)], rows)
    lines += [
        "",
        "Test part. Each cell: mean over the n replicates ± their standard deviation; in brackets the 95% interval of "
        f"that mean (percentile bootstrap over lesions, {DRAWS} draws, seed 0), which takes the trainings as given. "
        "No interval where replicates were tested on different photographs.",
        *_differences(settings, shown),
    ]
    failed = [job for job in jobs if job.status != "finished"]
    lines += ["", f"{len(jobs) - len(failed)} of {len(jobs)} runs finished."]
    lines += [f"- job {job.number} ({_told(job)}): {job.status}, exit code {_exit(job)}" for job in failed]
    for name in drawn:
        lines += ["", f"![{name}](figures/{name}.png)", "", FIGURES[name]]
    return lines


def _differences(settings: Sequence[Setting], shown: Sequence[str]) -> list[str]:
    """A table of each setting minus the first, where both were tested on the same photographs."""
    first, *others = settings
    others = [s for s in others if s.draws and s.images == first.images and s.lesions == first.lesions]
    if not others:
        return []
    rows = []
    for other in others:
        cells = []
        for score in shown:
            if score not in other.draws or score not in first.draws:
                cells.append("none")
                continue
            low, high = np.nanpercentile(other.draws[score] - first.draws[score], [2.5, 97.5])
            cells.append(f"{other.values[score].mean() - first.values[score].mean():+.3f} ({low:+.3f} to {high:+.3f})")
        rows.append([other.name, *cells])
    note = f"Difference to {first.name}, on the same photographs and the same resampled lesions, 95% interval:"
    return ["", note, "", *_table(["setting", *map(words, shown)], rows)]


def _size(setting: Setting) -> tuple[str, str]:
    """Images and lesions of a replicate, or that replicates differ in them."""
    same = setting.images or not setting.n
    return (str(len(setting.images)), str(setting.lesions)) if same else ("differ", "differ")


def _cell(setting: Setting, score: str) -> str:
    if score not in setting.values:
        return "none"
    values, (low, high) = setting.values[score], setting.interval(score)
    spread = f" ± {values.std(ddof=1):.3f}" if len(values) > 1 else ""
    return f"{values.mean():.3f}{spread}" + (f" ({low:.3f} to {high:.3f})" if np.isfinite(low) else "")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]


def _told(job: Job) -> str:
    return " ".join(f"{key}={without_folders(value)}" for key, value in job.overrides.items()) or "no overrides"


def _exit(job: Job) -> object:
    return job.ended.get("exit_code", job.info.get("exit_code", "not recorded"))


def _between_marks(path: Path, answer: str) -> str:
    """What README.md is to say: as before, with the answer between its marks, which are added where they lack."""
    start, end = MARKS
    before = path.read_text(encoding="utf-8") if path.is_file() else f"# {path.parent.name}\n\n{start}\n{end}\n"
    if start not in before and end not in before:
        before = f"{before.rstrip()}\n\n{start}\n{end}\n"
    if before.count(start) != 1 or before.count(end) != 1 or before.index(start) > before.index(end):
        raise InputError(str(path), f"not one {start} before one {end}", "mend these two lines")
    return f"{before[: before.index(start)]}{start}\n{answer}\n{before[before.index(end) :]}"


def _frozen(jobs: Sequence[Job], folder: Path, study: str) -> dict[str, Any]:
    """What study.yaml holds: enough to run the study again and to see that it is the same."""

    def each(*keys: str) -> list[Any]:
        values = (dig(job.info, *keys) for job in jobs)
        return list({str(value): value for value in values if value is not None}.values())

    return {
        "study": study,
        "sweep": folder.resolve().name,
        "commit": each("commit"),
        "versions": each("versions"),
        "device": each("device"),
        "data_sha256": each("data", "hash"),
        "split_sha256": each("split", "hash"),
        "jobs": [
            {
                "job": job.number,
                "overrides": {key: without_folders(value) for key, value in job.overrides.items()},
                "status": job.status,
            }
            for job in jobs
        ],
    }
