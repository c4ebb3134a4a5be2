"""The page of a run: report.html, which stands alone, from the files of a run folder. Without torch."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from skinmtl.errors import InputError
from skinmtl.files import write_text
from skinmtl.reports import html
from skinmtl.runs.labels import NOT_RECORDED, said, score_words
from skinmtl.runs.record import dig, flat, is_ham10000, read_scores
from skinmtl.runs.redaction import PATH, shareable, without_paths_in
from skinmtl.runs.run import Run
from skinmtl.studies.results import study_report
from skinmtl.tasks import tables
from skinmtl.tasks.resampling import Resampling
from skinmtl.tasks.scoring import Chart, Description, Scoring, ordered

__all__ = ["study_report", "write_run_report"]

TOO_FEW = 20  # lesions; below, a subgroup's score is mostly chance
# Of HAM10000: what is hardly reached, and whether it is so of its seven diagnoses alone.
SUSPICIOUS = {"balanced_accuracy": (0.85, True), "mean_image_dice": (0.96, False)}
HAM_CLASSES = {"akiec", "bcc", "bkl", "df", "mel", "nv", "vasc"}
SUBGROUPS = {
    "sex": "sex",
    "age": "age",
    "dx_original": "diagnosis before grouping",
    "localization": "place on the body",
    "dx_type": "how the diagnosis was confirmed",
}
CURVES = Chart(
    "Losses and validation scores while training. The weights of the epoch at the dotted line are those that are "
    "scored here.",
    4,
)
CHOSEN = {
    "best": "Test images took no part in training, nor in the choice of the epoch. Validation images chose the epoch, "
    "so their scores are optimistic.",
    "last": "Test and validation images took no part in training. No epoch was chosen: these are the last one's "
    "weights.",
}
HOW_TO_READ = (
    "An interval says how far a score would move had other lesions been sampled. A lesion's images are alike, so whole "
    "lesions are resampled, never single images."
)
NOT_PROVIDED = (
    "External validation: no image from another clinic, camera or country was tested.",
    "A human reader: nobody looked at these test images for comparison.",
    "Decision thresholds and prevalence of any practice: classes are taken by the largest probability.",
    "Variation between trainings: the intervals speak of the lesions sampled, not of other seeds or folds.",
    "Images that show no lesion, or a lesion of a class that is not in the list.",
)
# What is known of HAM10000, and said of it alone; of synthetic images nothing of the kind has a meaning.
HAM_NOT_PROVIDED = (
    "Skin tone: HAM10000 does not record it; nearly all images show light skin.",
    "The official ISIC 2018 test scores: their masks and labels are another set, made in another way.",
)
SKIN_TONE = "Skin tone: no score is told by it."
HAM_MASKS = (
    "The lesion masks of HAM10000 were started by a network and corrected by one dermatologist. A network agrees with "
    "them more easily than with the masks of the official ISIC test sets: Dice here is not comparable with Dice there."
)
HAM_LICENCE = "HAM10000 is licensed CC BY-NC 4.0, and so are weights trained on it."


def write_run_report(folder: Path, ending: Mapping[str, Any] | None = None) -> Path:
    """Write report.html into a run's folder; what the folder lacks is "not recorded".

    Args:
        folder: the run's.
        ending: what run.json will say once the page is there.

    Returns:
        The page.

    Raises:
        InputError: the folder is no run.
    """
    run = Run.open(folder)
    info = run.info() | {"status": run.status or None} | dict(ending or {})
    scores = read_scores(run.path)
    table, scorings = tables.of_run(run) if run.predictions_file.is_file() else (pd.DataFrame(), [])
    tasks = tables.described(scores)
    known = [scoring for scoring in tables.scorings_in(scores).values() if scoring is not None]
    title = f"{info.get('name', NOT_RECORDED)} · {info.get('run_id', run.path.name)}"
    config, otherwise = _known_config(run)
    split_by = dig(config, "data", "split_by")
    parts = [
        *_head(info, scores, tasks, split_by),
        *_scores(info, scores, tasks),
        *_sections(info, scores, known),
        _pictures("Figures", _captions(known), "charts", run, scores),
        _pictures("Examples", _galleries(known), "galleries", run, scores),
        _subgroups(table, scorings),
        _split(info),
        _training(info),
        _config(config, otherwise),
        html.section("How to read this page", html.bullets(_how_to_read(info, known))),
        html.section("Not provided", html.bullets(_not_provided(info))),
    ]
    write_text(out := run.path / "report.html", html.page(title, parts))
    return out


def _head(
    info: Mapping[str, Any], scores: Mapping[str, Any], tasks: Mapping[str, Description], split_by: object
) -> Iterator[str]:
    yield html.heading(said(info.get("name")))
    started = said(info.get("started")).replace("T", " ").replace("+00:00", " UTC")
    words = (f"run {said(info.get('run_id'))}", f"started {started}", said(info.get("status")))
    yield html.paragraph(" · ".join(words), soft=True)
    licence = f" {HAM_LICENCE}" if is_ham10000(info) else ""
    yield html.paragraph(f"Research use only: not a medical device.{licence}")
    yield from _stamps(info, scores, tasks, split_by)
    test = dig(scores, "parts", "test")
    if test is None:
        reason = f" The run ended with: {info['error']}" if info.get("error") else ""
        yield html.stamp("NO TEST SCORES", f"scores.json holds none.{reason}")
        return
    headlines = [
        (place, task.words(score), *score_words(dig(test, "scores", name, score)))
        for name, task in tasks.items()
        for score, place in task.headlines.items()
        if score in dig(test, "scores", name, default={})
    ]
    yield html.cards(card[1:] for card in sorted(headlines, key=lambda card: card[0]))
    yield html.paragraph(f"{_size(test)} Interval: {said(scores.get('interval'))}.", soft=True)


def _not_provided(info: Mapping[str, Any]) -> Iterator[str]:
    yield from NOT_PROVIDED
    if is_ham10000(info):
        yield from HAM_NOT_PROVIDED
    elif not info.get("synthetic"):
        yield SKIN_TONE


def _why_leaky(info: Mapping[str, Any], split_by: object) -> str:
    """Why a split leaks: it was made so, or lesions are not known, of the data or of an auxiliary data set."""
    if split_by == "image":
        return "The split was made by image (data.split_by=image), not by lesion"
    if any(facts.get("leaky") for facts in (info.get("also") or {}).values()):
        return "An auxiliary data set names no lesions"
    if info.get("init_from") is not None:
        return "The weights that it started from may have seen its lesions, or the data name none"
    return "The data name no lesions"


def _stamps(
    info: Mapping[str, Any], scores: Mapping[str, Any], tasks: Mapping[str, Description], split_by: object
) -> Iterator[str]:
    if info.get("synthetic"):
        yield html.stamp("SYNTHETIC", "The images are synthetic. These scores say nothing about patients.", made=True)
    if info.get("leaky") or "LEAKY" in str(scores.get("stamp")):
        text = f"{_why_leaky(info, split_by)}: images of one lesion may be in training and test. "
        yield html.stamp("LEAKY", text + "These scores are too good, their intervals too narrow: compare with nothing.")
    if info.get("shuffled"):
        text = "A negative control: each training image came with the mask or the diagnosis of another."
        yield html.stamp("SHUFFLED", text, made=True)
    for name, task in tasks.items():
        for score in (score for score in SUSPICIOUS if score in task.labels and not task.prefix):
            limit, of_classes = SUSPICIOUS[score]
            value = dig(scores, "parts", "test", "scores", name, score, "value")
            known = is_ham10000(info) and (not of_classes or set(info.get("dx_classes") or ()) == HAM_CLASSES)
            if value is not None and value > limit and known:
                text = f"Check for leakage. {task.words(score)} is {value:.3f}; above {limit} is hardly plausible here."
                yield html.stamp("SUSPICIOUS", text)


def _scores(info: Mapping[str, Any], scores: Mapping[str, Any], tasks: Mapping[str, Description]) -> Iterator[str]:
    parts = {part: content for part in ("test", "val") if (content := dig(scores, "parts", part))}
    for name, task in tasks.items():
        values = {part: dig(content, "scores", name, default={}) for part, content in parts.items()}
        names = list(dict.fromkeys(score for each in values.values() for score in each))
        if not names:
            continue
        labels = {score: task.labels.get(score, score.replace("_", " ")) for score in names}
        rows = [(labels[score], [score_words(each.get(score)) for each in values.values()]) for score in names]
        below = _reasons(list(values.values()), labels)
        head = ["score", *(_part_name(part, content) for part, content in parts.items())]
        is_ham_masks = "mean_image_dice" in names and is_ham10000(info)
        masks = html.paragraph(HAM_MASKS, soft=True) if is_ham_masks else ""
        yield html.section(f"{task.title}: all scores", html.table(head, rows), below, masks)


def _reasons(tasks: Sequence[Mapping[str, Any]], labels: Mapping[str, str]) -> str:
    """Why scores are undefined, and why others have no interval."""
    reasons = [(name, v) for values in tasks for name, v in values.items() if v.get("reason")]
    undefined = dict.fromkeys(v["reason"] for _, v in reasons if v.get("value") is None)
    bare = dict.fromkeys(f"{labels[name]}: {v['reason']}" for name, v in reasons if v.get("value") is not None)
    said = [*(["Undefined: " + "; ".join(undefined)] if undefined else []), *bare]
    return html.paragraph(". ".join(said) + ".", soft=True) if said else ""


def _sections(info: Mapping[str, Any], scores: Mapping[str, Any], scorings: Sequence[Scoring]) -> Iterator[str]:
    """What the tasks say of the test split beside their scores, such as a table of their classes."""
    test = dig(scores, "parts", "test", default={})
    for scoring in ordered(scorings):
        trained = dig(info, "split", "train", "tasks", scoring.name, default={})
        if not (trained or scoring.prefix):  # a run of before, which counted diagnoses alone
            trained = dig(info, "split", "train", "classes", default={})
        values = dig(test, "scores", scoring.name, default={})
        for section in scoring.sections(tables.details_of(scoring, test), values, trained):
            drawn = [html.table(table.head, table.rows, table.caption) for table in section.tables]
            note = [html.paragraph(section.note, soft=True)] if section.note else []
            yield html.section(section.title, *drawn, *note)


def _captions(scorings: Sequence[Scoring]) -> dict[str, str]:
    """Captions of charts by their names, in the order of the page."""
    charts = {scoring.column(name): chart for scoring in scorings for name, chart in scoring.charts.items()}
    charts["curves"] = CURVES
    return {name: chart.caption for name, chart in sorted(charts.items(), key=lambda one: one[1].place)}


def _galleries(scorings: Sequence[Scoring]) -> dict[str, str]:
    return {scoring.column(name): caption for scoring in scorings for name, caption in scoring.galleries.items()}


def _how_to_read(info: Mapping[str, Any], scorings: Sequence[Scoring]) -> list[str]:
    of_tasks = dict.fromkeys(sentence for scoring in scorings for sentence in scoring.how_to_read)
    return [CHOSEN[info.get("keep", "best")], HOW_TO_READ, *of_tasks]


def _pictures(title: str, captions: Mapping[str, str], kind: str, run: Run, scores: Mapping[str, Any]) -> str:
    n = _size(dig(scores, "parts", "test"))
    pictures = []
    for name, caption in captions.items():
        files = [run.figures / f"{name}{suffix}" for suffix in html.MEDIA]
        if file := next((file for file in files if file.is_file()), None):
            pictures.append(html.picture(file, caption.format(n=n)))
    return html.section(title, html.pictures(kind, pictures) if pictures else html.paragraph(NOT_RECORDED, soft=True))


def _subgroups(table: pd.DataFrame, scorings: Sequence[Scoring]) -> str:
    if "split" not in table or not (table["split"] == "test").any():
        return html.section("Subgroups", html.paragraph(NOT_RECORDED, soft=True))
    test = table[table["split"] == "test"]
    wanted = {
        f"{scoring.title}: {head}" if scoring.prefix else head: (scoring, score)
        for scoring in scorings
        if scoring.is_in(test)
        for score, head in scoring.subgroups.items()
    }
    drawn = []
    for column, label in SUBGROUPS.items():
        if column in test:
            groups = (
                _age_bands(test[column])
                if column == "age"
                else test[column].astype("object").fillna("unknown").astype(str)
            )
            rows = [_subgroup(str(name), rows, wanted) for name, rows in test.groupby(groups, observed=True)]
            drawn.append(html.table([label, "images", *wanted], rows))
    note = (
        f"Test split. Fewer than {TOO_FEW} lesions: too few to say anything. Balanced accuracy is over the classes "
        "that occur in a group, so groups of other classes differ by that alone."
    )
    return html.section("Subgroups", html.paragraph(note, soft=True), *drawn)


def _subgroup(name: str, rows: pd.DataFrame, wanted: Mapping[str, tuple[Scoring, str]]) -> tuple[str, list[html.Cell]]:
    lesions = int(rows["lesion_id"].fillna(rows["image_id"]).nunique())
    size = (str(len(rows)), f"{lesions} lesions")
    if lesions < TOO_FEW:
        return name, [size, *["too few"] * len(wanted)]
    sample = Resampling.of(rows.reset_index(drop=True))
    known = {scoring: scoring.scores(sample) for scoring, _ in wanted.values()}
    values = [known[scoring].get(score) for scoring, score in wanted.values()]
    return name, [size, *(score_words(None if value is None else sample.value(value)) for value in values)]


def _age_bands(age: pd.Series) -> pd.Series:
    names = ["below 30", "30 to 44", "45 to 59", "60 to 74", "75 and above"]
    bands = pd.cut(pd.to_numeric(age, errors="coerce"), [-np.inf, 30, 45, 60, 75, np.inf], right=False, labels=names)
    return bands.cat.add_categories("unknown").fillna("unknown")


def _split(info: Mapping[str, Any]) -> str:
    split = info.get("split") or {}
    rows = [
        ("split, sha256", said(split.get("hash"))),
        ("fold", f"{said(split.get('fold'))} of {said(split.get('folds'))}, counted from 0"),
        ("pairs of duplicates merged", said(split.get("merged_pairs"))),
        ("images, sha256", said(dig(info, "data", "hash"))),
        ("layout", said(dig(info, "data", "layout"))),
        ("images in all", said(dig(info, "data", "images"))),
        *(
            (f"auxiliary data set {name}, in training alone", _auxiliary(facts))
            for name, facts in (info.get("also") or {}).items()
        ),
    ]
    classes = info.get("dx_classes") or list(dig(split, "train", "classes", default={}))
    keys = [("images",), ("lesions",), *(("classes", name) for name in classes)]
    parts = [(part, [said(dig(split, part, *key)) for key in keys]) for part in ("train", "val", "test")]
    note = html.paragraph("No lesion is in two splits.") if info.get("leaky") is False else ""
    counts = html.table(["split", "images", "lesions", *classes], parts, "Images by split and class")
    return html.section("Split certificate", html.facts(rows), counts, note)


def _auxiliary(facts: Mapping[str, Any]) -> str:
    if facts.get("lesion_ids") is not False:
        return f"{said(facts.get('images'))} images"
    vouched = facts.get("disjoint")
    ground = f"taken to share none with the split: {vouched}" if vouched else "so it may share some with the split"
    return f"{said(facts.get('images'))} images without lesion ids, {ground}"


def _training(info: Mapping[str, Any]) -> str:
    rate, seconds = info.get("images_per_second"), info.get("seconds") or {}
    rows = [
        *_command(info),
        ("commit", said(info.get("commit"))),
        ("tasks", said(info.get("tasks"))),
        ("seed", said(info.get("seed"))),
        ("size, height × width", " × ".join(map(str, info.get("size") or [NOT_RECORDED]))),
        ("parameters", f"{info['parameters']:,}" if info.get("parameters") else NOT_RECORDED),
        (f"{info.get('keep', 'best')} epoch, whose weights are kept", said(info.get("best_epoch"))),
        ("validation score", said(info.get("score"))),
        *((f"seconds, {key}", said(value)) for key, value in (seconds or {"total": None}).items()),
        ("training images per second", NOT_RECORDED if rate is None else f"{rate:.1f}"),
        ("device", said(info.get("device"))),
        ("processes × images a batch", _batch(info)),
        ("vector instructions", said(info.get("capability"))),
        ("precision", said(info.get("precision"))),
        ("test-time augmentation", "mean over four mirror images" if info.get("test_time_flips") else "none"),
        ("threads of cores", f"{said(info.get('threads'))} of {said(info.get('cores'))}"),
        ("exit code", said(info.get("exit_code"))),
        ("times resumed", str(len(info.get("resumed") or []))),
    ]
    versions = [(name, said(value)) for name, value in (info.get("versions") or {"versions": None}).items()]
    return html.section("Training", html.facts(rows)) + "\n" + html.section("Versions", html.facts(versions))


def _command(info: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The command, for a reader to type: paths are blanks to fill in, which no shell takes for a value."""
    known = without_paths_in(said(info.get("command")))
    filled = re.sub(r"""([\w./+~]+)=(['"]?)\[path\]\2""", r"\1=<\1>", known).replace(PATH, "<path>")
    yield "command", filled
    if filled != known:
        yield "in place of <...>", "a path of your own: none is shown here, for a name in it could be a person's"


def _batch(info: Mapping[str, Any]) -> str:
    processes, images = info.get("world_size"), info.get("global_batch")
    return f"{processes} × {images // processes}" if processes and images else NOT_RECORDED


def _known_config(run: Run) -> tuple[Mapping[Any, Any], str]:
    """The run's config, nothing where it cannot be read; and what stands in its place."""
    try:
        return run.config(), NOT_RECORDED
    except InputError as error:
        return {}, f"{NOT_RECORDED}: {error.what}"


def _config(config: Mapping[Any, Any], otherwise: str) -> str:
    rows = [(key, str(shareable(key, value))) for key, value in flat(config).items()]
    return html.section("Configuration", html.facts(rows or [("config", otherwise)]))


def _size(part: Mapping[str, Any] | None) -> str:
    if part is None:
        return ""
    return f"{said(part.get('n_images'))} test images of {said(part.get('n_lesions'))} lesions."


def _part_name(part: str, content: Mapping[str, Any]) -> html.Cell:
    name = {"val": "validation"}.get(part, part)
    return name, f"{said(content.get('n_images'))} images, {said(content.get('n_lesions'))} lesions"
