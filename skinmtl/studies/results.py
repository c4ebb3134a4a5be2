"""A study's answer from its finished runs: a row per run, a table per setting, figures. Without torch."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from skinmtl.errors import InputError
from skinmtl.figures import study as plots
from skinmtl.figures.style import save
from skinmtl.files import write_text
from skinmtl.runs.labels import stamps
from skinmtl.runs.record import dig, read_scores
from skinmtl.runs.redaction import shareable
from skinmtl.studies.compare import (
    UNTOLD,
    Compared,
    Difference,
    Setting,
    all_reached,
    compared,
    compared_in,
    difference,
)
from skinmtl.studies.jobs import REPEATS, Job, by_setting, read_jobs, varied_keys
from skinmtl.tasks import tables
from skinmtl.tasks.resampling import DRAWS

SHOWN = 1  # the last place of a headline that a study's figures show
SPLIT_BY = "data.split_by"
ARM = "arm"
COSINE = "gradients/cosine"
# What is asked of which arms of a study: the first minus the second, in the scores of the second.
COMPARED = (
    ("segmentation", "both", "mask"),
    ("classification", "both", "diagnosis"),
    ("segmentation, negative control", "both_diagnoses_shuffled", "mask"),
    ("classification, negative control", "both_masks_shuffled", "diagnosis"),
)
LEARNED = 0.95  # training accuracy below which a network has not learned its images by heart
MARKS = ("<!-- results -->", "<!-- /results -->")
FIGURES = {
    "scores": "Test scores of each setting: dots are means over replicates, bars their 95% intervals over lesions, "
    "rings the replicates.",
    "tradeoff": "The main score of one task against that of another on the test split: each setting's means with 95% "
    "intervals over lesions. Up and to the right is better at both.",
    "cosines": "Cosine between the tasks' gradients on the encoder while training, mean over a setting's runs: below "
    "zero what serves one task harms the other.",
}


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
    scores = [read_scores(job.run.path) for job in jobs]
    wanted = compared(task for each in scores for task in tables.described(each).values())
    results = pd.DataFrame([_row(job, each, out.name, wanted) for job, each in zip(jobs, scores, strict=True)])
    settings = all_reached(by_setting(jobs, varied))
    (out / "figures").mkdir(parents=True, exist_ok=True)
    stamp = stamps({key: any(job.info.get(key) for job in jobs) for key in ("leaky", "shuffled")})
    shown = [setting for setting in settings if setting.n]
    drawn = _draw(shown, _cosines(jobs, varied), varied, out / "figures", stamp)
    readme = _between_marks(out / "README.md", "\n".join(_answer(jobs, settings, drawn)))
    write_text(out / "results.csv", results.to_csv(index=False))
    write_text(out / "study.yaml", yaml.safe_dump(_frozen(jobs, folder, out.name), sort_keys=False, allow_unicode=True))
    write_text(out / "README.md", readme)
    return out


def _row(job: Job, scores: Mapping[str, Any], study: str, wanted: Sequence[Compared]) -> dict[str, Any]:
    test = dig(scores, "parts", "test", default={})
    row = {"study": study, "job": job.number, "experiment": job.info.get("name", job.overrides.get("experiment"))}
    row |= {"seed": job.seed, "fold": job.fold}
    rest = {key: value for key, value in job.overrides.items() if key not in (*REPEATS, "experiment")}
    row |= {key: shareable(key, value) for key, value in rest.items()}
    row |= {"status": job.status, "exit_code": job.ended.get("exit_code", job.info.get("exit_code"))}
    for one in wanted:
        score = dig(test, "scores", one.task, one.score)
        ends = (("", "value"), ("_low", "low"), ("_high", "high"))
        row |= {f"{one.key}{end}": dig(score, key) for end, key in ends}
    row |= {"stamp": stamps(job.info), "n_images": test.get("n_images"), "n_lesions": test.get("n_lesions")}
    row |= {"seconds": dig(job.info, "seconds", "total", default=job.ended.get("seconds"))}
    return row | {"images_per_second": job.info.get("images_per_second")}


def _cosines(jobs: Sequence[Job], varied: Sequence[str]) -> pd.DataFrame:
    """Setting, step and cosine of each look at the gradients that a finished run took."""
    looks = [pd.DataFrame(columns=["setting", "step", "cosine"])]
    for name, alike in by_setting(jobs, varied):
        for job in alike:
            table = pd.read_csv(job.run.path / "metrics.csv") if job.status == "finished" else pd.DataFrame()
            if COSINE in table:
                seen = table.dropna(subset=[COSINE])
                looks.append(pd.DataFrame({"setting": name, "step": seen["step"], "cosine": seen[COSINE]}))
    return pd.concat([look for look in looks if len(look)] or looks, ignore_index=True)


def _draw(
    settings: Sequence[Setting], cosines: pd.DataFrame, varied: Sequence[str], folder: Path, stamp: str
) -> list[str]:
    """Write the figures there is something for; gives their names."""
    there = [one for one in compared_in(settings) if any(one.key in s.scores for s in settings)]
    shown = [one for one in there if one.headline is not None and one.headline <= SHOWN]
    if not shown:
        return []
    rows = [
        {"setting": s.name, "score": one.words, **_mean(s, one.key)}
        for one in shown
        for s in settings
        if one.key in s.scores
    ]
    each = [
        {"setting": s.name, "score": one.words, "value": value}
        for one in shown
        for s in settings
        if s.n > 1 and one.key in s.scores
        for value in s.values(one.key)
    ]
    runs = pd.DataFrame(each, columns=["setting", "score", "value"])
    save(plots.scores_by_setting(pd.DataFrame(rows), runs), folder / "scores.png", stamp)
    both = [one.key for one in shown if one.headline == 0 and not one.lower_is_better][:2]  # two tasks'
    points = [s for s in settings if len(both) == 2 and all(score in s.scores for score in both)]
    drawn = ["scores"]
    if len(points) > 1 and any(key.startswith(("weighting", "gradients")) for key in varied):
        table = pd.DataFrame([{"setting": s.name, **_ends(s, both[0]), **_ends(s, both[1])} for s in points])
        ordered = len(varied) == 1 and varied[0].startswith("weighting.")
        save(plots.tradeoff(table, both[0], both[1], joined=ordered), folder / "tradeoff.png", stamp)
        drawn.append("tradeoff")
    if len(cosines):
        save(plots.cosines(cosines), folder / "cosines.png", stamp)
        drawn.append("cosines")
    return drawn


def _mean(setting: Setting, score: str) -> dict[str, float]:
    low, high = setting.interval(score)
    return {"value": float(setting.values(score).mean()), "low": low, "high": high}


def _ends(setting: Setting, score: str) -> dict[str, float]:
    low, high = setting.interval(score)
    return {score: float(setting.values(score).mean()), f"{score}_low": low, f"{score}_high": high}


def _answer(jobs: Sequence[Job], settings: Sequence[Setting], drawn: Sequence[str]) -> list[str]:
    """The lines between the marks of README.md."""
    lines = []
    if any(job.info.get("synthetic") for job in jobs):
        lines += ["**SYNTHETIC: the images are made up. These scores say nothing about patients.**", ""]
    if any(job.info.get("leaky") for job in jobs):
        lines += ["**LEAKY: images of one lesion may stand in training and test. Compare with nothing.**", ""]
    if any(job.info.get("shuffled") for job in jobs):
        lines += ["**SHUFFLED: some runs are negative controls, whose training targets were shuffled at random.**", ""]
    shown = [one for one in compared_in(settings) if any(one.key in s.scores for s in settings)]
    rows = [[s.name, str(s.n), s.unit, *_size(s), *(_cell(s, one.key) for one in shown)] for s in settings]
    lines += _table(["setting", "n", "unit of replication", "images", "lesions", *(one.words for one in shown)], rows)
    lines += [
        "",
        "Test split. Each cell: mean over the n replicates ± their standard deviation; in brackets the 95% interval of "
        f"that mean (percentile bootstrap over lesions, {DRAWS} draws, seed 0), which takes the trainings as given. "
        "Replicates share resamplings where they share test images. No interval where only some are shared.",
        *_differences(settings, shown),
    ]
    lines += _sharing_table(jobs)
    for line in leak_gap(jobs):
        lines += ["", line]
    failed = [job for job in jobs if job.status != "finished"]
    lines += ["", f"{len(jobs) - len(failed)} of {len(jobs)} runs finished."]
    lines += [f"- job {job.number} ({_told(job)}): {job.status}, exit code {_exit(job)}" for job in failed]
    for name in drawn:
        lines += ["", f"![{name}](figures/{name}.png)", "", FIGURES[name]]
    return lines


def _differences(settings: Sequence[Setting], shown: Sequence[Compared]) -> list[str]:
    """Tables of each setting minus the first: paired on the same images, else each resampled on its own."""
    first, *others = settings
    lines: list[str] = []
    for paired, note in (
        (
            True,
            f"Difference to {first.name}, each pair of replicates on the same images and the same resampled "
            "lesions, 95% interval. Of two pairs or more it is said whether it helps or hurts, for which the interval "
            f"and every pair have to be on one side of zero; else we {UNTOLD}:",
        ),
        (
            False,
            f"Difference to {first.name}, each on test images of its own and resampled by itself, 95% interval:",
        ),
    ):
        rows = []
        for other in others:
            found = [difference(other, first, one.key) for one in shown]
            if any(each is not None and bool(each.pairs) is paired for each in found):
                verdicts = [f", {each.verdict}" if each is not None and len(each.pairs) > 1 else "" for each in found]
                cells = zip(found, verdicts, strict=True)
                rows.append([other.name, *("none" if each is None else f"{each}{word}" for each, word in cells)])
        if rows:
            lines += ["", note, "", *_table(["setting", *(one.words for one in shown)], rows)]
    return lines


def sharing(jobs: Sequence[Job]) -> list[str]:
    """What the arms of a study say of learning both tasks at once, a sentence for each; none for other sweeps."""
    return [
        f"{name}: {question}, {arms}: {score.words} {gap}: {gap.verdict}"
        for name, question, arms, score, gap in _shared(jobs)
        if score.headline == 0
    ]


def _sharing_table(jobs: Sequence[Job]) -> list[str]:
    """All scores of `sharing` as a table with its note; nothing for other sweeps."""
    rows = [
        [question, arms, score.words, str(gap), f"{min(gap.pairs):+.3f} to {max(gap.pairs):+.3f}", gap.verdict]
        for _, question, arms, score, gap in _shared(jobs)
    ]
    if not rows:
        return []
    note = (
        "Each pair is one seed and one fold under both arms, on the same images and the same resampled lesions. "
        f"It helps or hurts where the interval and every pair are on one side of zero; else we {UNTOLD}. "
        "A negative control that helps would say that the test is wrong."
    )
    head = ["question", "arms", "score", "difference, 95% interval", "pairs, lowest to highest", "verdict"]
    return ["", "**Does sharing help?**", "", *_table(head, rows), "", note]


def _shared(jobs: Sequence[Job]) -> Iterator[tuple[str, str, str, Compared, Difference]]:
    """Setting, question, arms, score and difference of every comparison of arms that finished runs allow."""
    jobs = [job for job in jobs if job.status == "finished"]
    varied = varied_keys(jobs)
    if ARM not in varied:
        return
    for name, alike in by_setting(jobs, [key for key in varied if key != ARM]):
        arms = dict.fromkeys(job.overrides.get(ARM, "") for job in alike)
        named = [(arm, [job for job in alike if job.overrides.get(ARM) == arm]) for arm in arms]
        settings = {setting.name: setting for setting in all_reached(named)}
        for question, one, alone in COMPARED:
            for score in compared_in([settings[alone]]) if {one, alone} <= settings.keys() else ():
                gap = difference(settings[one], settings[alone], score.key)
                if gap is not None and gap.pairs:
                    yield name, question, f"{one} minus {alone}", score, gap


def leak_gap(jobs: Sequence[Job]) -> list[str]:
    """What finished runs under both values of data.split_by say about leaking, in sentences; none for other sweeps."""
    jobs = [job for job in jobs if job.status == "finished"]
    varied = varied_keys(jobs)
    if SPLIT_BY not in varied:
        return []
    lines = []
    for name, alike in by_setting(jobs, [key for key in varied if key != SPLIT_BY]):
        by_image, by_lesion = (
            [job for job in alike if job.overrides.get(SPLIT_BY, "lesion") == by] for by in ("image", "lesion")
        )
        if lacking := [by for by, those in (("image", by_image), ("lesion", by_lesion)) if not those]:
            lines.append(f"{name}: nothing to compare, for no run split by {lacking[0]} has finished.")
            continue
        if any(job.info.get("leaky") for job in by_lesion):
            lines.append(f"{name}: nothing to compare, for the split by lesion leaks, too: there are no lesion ids.")
            continue
        leaky, honest = all_reached([(name, by_image), (name, by_lesion)])
        headlines = [one for one in compared_in([leaky, honest]) if one.headline is not None]
        found = [(one.words, difference(leaky, honest, one.key)) for one in headlines]
        gaps = [f"{words} {gap}" for words, gap in found if gap is not None]
        said = f"95% interval: {', '.join(gaps)}" if gaps else "no score that both have with an interval"
        lines.append(f"{name}: split by image minus split by lesion, {said}.")
        learned = [_training_accuracy(job) for job in alike]
        short = min(learned) <= LEARNED
        lines.append(
            f"{name}: training accuracy at the end {', '.join(f'{value:.3f}' for value in learned)}: "
            + (f"not above {LEARNED}, so too short to show a leak." if short else f"above {LEARNED}, long enough.")
        )
    return lines


def _training_accuracy(job: Job) -> float:
    """Of the last epoch, as augmented, of the first task that has one; 0 where the run does not say."""
    table = pd.read_csv(job.run.path / "metrics.csv")
    values = [table[name].dropna() for name in table if re.fullmatch(r"train/[^/]+/accuracy", str(name))]
    return float(values[0].iloc[-1]) if values and len(values[0]) else 0.0


def _size(setting: Setting) -> tuple[str, str]:
    """Images and lesions that a setting's replicates tested together, or that they overlap in part."""
    tested = setting.tested()
    return ("differ", "differ") if tested is None else (str(tested[0]), str(tested[1]))


def _cell(setting: Setting, score: str) -> str:
    if score not in setting.scores:
        return "none"
    values, (low, high) = setting.values(score), setting.interval(score)
    spread = f" ± {values.std(ddof=1):.3f}" if len(values) > 1 else ""
    return f"{values.mean():.3f}{spread}" + (f" ({low:.3f} to {high:.3f})" if np.isfinite(low) else "")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]


def _told(job: Job) -> str:
    return " ".join(f"{key}={shareable(key, value)}" for key, value in job.overrides.items()) or "no overrides"


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
                "overrides": {key: shareable(key, value) for key, value in job.overrides.items()},
                "status": job.status,
            }
            for job in jobs
        ],
    }
