"""A study's answer from its finished runs: a row per run, a table per setting, figures. Without torch.

The unit of replication is one training: its seed and its fold. Where all folds of a seed are there, their test parts
are pooled into one, so that every photograph is tested once, and the unit is the seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from skinmtl import figures
from skinmtl.errors import InputError
from skinmtl.facts import HEADLINES, dig, read_scores, stamps, without_folders, words
from skinmtl.jobs import REPEATS, Job, by_setting, read_jobs, varied_keys
from skinmtl.runs import write_text
from skinmtl.scores import DRAWS, Floats, Sample, dx_classes, mask_classes

SCORES = (*HEADLINES, "accuracy", "macro_f1", "mcc")
SPLIT_BY = "data.split_by"
LEARNED = 0.95  # training accuracy below which a network has not learned its photographs by heart
MARKS = ("<!-- results -->", "<!-- /results -->")
FIGURES = {
    "scores": "Test scores of each setting: dots are means over replicates, bars their 95% intervals over lesions, "
    "rings the replicates.",
    "tradeoff": "Outlines against diagnoses on the test part: each setting's mean Dice and balanced accuracy with 95% "
    "intervals over lesions. Up and to the right is better at both.",
}


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
    varied = varied_keys(jobs)
    results = pd.DataFrame([_row(job, out.name, varied) for job in jobs])
    settings = [_reached(name, alike) for name, alike in by_setting(jobs, varied)]
    (out / "figures").mkdir(parents=True, exist_ok=True)
    stamp = "LEAKY" if any(job.info.get("leaky") for job in jobs) else ""
    drawn = _draw([setting for setting in settings if setting.n], varied, out / "figures", stamp)
    readme = _between_marks(out / "README.md", "\n".join(_answer(jobs, settings, drawn)))
    write_text(out / "results.csv", results.to_csv(index=False))
    write_text(out / "study.yaml", yaml.safe_dump(_frozen(jobs, folder, out.name), sort_keys=False, allow_unicode=True))
    write_text(out / "README.md", readme)
    return out


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
    scores = {name: score for task in sample.scores(mask_classes(table)).values() for name, score in task.items()}
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
    for line in leak_gap(jobs):
        lines += ["", line]
    failed = [job for job in jobs if job.status != "finished"]
    lines += ["", f"{len(jobs) - len(failed)} of {len(jobs)} runs finished."]
    lines += [f"- job {job.number} ({_told(job)}): {job.status}, exit code {_exit(job)}" for job in failed]
    for name in drawn:
        lines += ["", f"![{name}](figures/{name}.png)", "", FIGURES[name]]
    return lines


def _differences(settings: Sequence[Setting], shown: Sequence[str]) -> list[str]:
    """Tables of each setting minus the first: paired on the same photographs, else each resampled on its own."""
    first, *others = settings
    if not first.draws:
        return []
    lines: list[str] = []
    for paired, note in (
        (True, f"Difference to {first.name}, on the same photographs and the same resampled lesions, 95% interval:"),
        (
            False,
            f"Difference to {first.name}, each on test photographs of its own and resampled by itself, 95% interval:",
        ),
    ):
        rows = [
            [other.name, *(_difference(other, first, score, paired) for score in shown)]
            for other in others
            if other.draws and _same_test(other, first) is paired
        ]
        if rows:
            lines += ["", note, "", *_table(["setting", *map(words, shown)], rows)]
    return lines


def _same_test(one: Setting, other: Setting) -> bool:
    return one.images == other.images and one.lesions == other.lesions


def _difference(one: Setting, other: Setting, score: str, paired: bool) -> str:
    if score not in one.draws or score not in other.draws:
        return "none"
    theirs = other.draws[score]
    if not paired:  # both were drawn from one seed; in another order they have nothing to do with each other
        theirs = np.random.default_rng(0).permutation(theirs)
    low, high = np.nanpercentile(one.draws[score] - theirs, [2.5, 97.5])
    return f"{one.values[score].mean() - other.values[score].mean():+.3f} ({low:+.3f} to {high:+.3f})"


def leak_gap(jobs: Sequence[Job]) -> list[str]:
    """What finished runs under both values of data.split_by say about leaking, in sentences; none for other sweeps."""
    jobs = [job for job in jobs if job.status == "finished"]
    varied = varied_keys(jobs)
    if SPLIT_BY not in varied:
        return []
    lines = []
    for name, alike in by_setting(jobs, [key for key in varied if key != SPLIT_BY]):
        by_photograph, by_lesion = (
            [job for job in alike if job.overrides.get(SPLIT_BY, "lesion") == by] for by in ("photograph", "lesion")
        )
        if any(job.info.get("leaky") for job in by_lesion):
            lines.append(f"{name}: nothing to compare, for the split by lesion leaks, too: there are no lesion ids.")
            continue
        leaky, honest = _reached(name, by_photograph), _reached(name, by_lesion)
        shown = [score for score in HEADLINES if score in leaky.draws and score in honest.draws]
        gaps = [f"{words(score)} {_difference(leaky, honest, score, paired=False)}" for score in shown]
        lines.append(f"{name}: split by photograph minus split by lesion, 95% interval: {', '.join(gaps)}.")
        learned = [_training_accuracy(job) for job in alike]
        short = min(learned) <= LEARNED
        lines.append(
            f"{name}: training accuracy at the end {', '.join(f'{value:.3f}' for value in learned)}: "
            + (f"not above {LEARNED}, so too short to show a leak." if short else f"above {LEARNED}, long enough.")
        )
    return lines


def _training_accuracy(job: Job) -> float:
    """Of the last epoch, as augmented; 0 where the run does not say, for one without a diagnosis."""
    table = pd.read_csv(job.run.path / "metrics.csv")
    values = table.get("train/cls/accuracy", pd.Series(dtype=float)).dropna()
    return float(values.iloc[-1]) if len(values) else 0.0


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
