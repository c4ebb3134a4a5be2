"""A run's page: report.html, which stands alone, from the files of a run folder. Without torch."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from skinmtl.errors import InputError
from skinmtl.evaluation.scores import DRAWS, Sample
from skinmtl.figures.fonts import LONGEST
from skinmtl.files import write_text
from skinmtl.reports import html
from skinmtl.runs.labels import HEADLINES, NOT_RECORDED, said, score_words, words
from skinmtl.runs.predictions import dx_classes, mask_classes
from skinmtl.runs.record import dig, flat, is_ham10000, read_scores
from skinmtl.runs.redaction import PATH, shareable, without_paths_in
from skinmtl.runs.run import Run
from skinmtl.studies.results import study_report

__all__ = ["study_report", "write_run_report"]

TOO_FEW = 20  # lesions; below, a subgroup's score is mostly chance
SUSPICIOUS = {"balanced_accuracy": 0.85, "mean_image_dice": 0.96}  # of HAM10000, its seven diagnoses apart
HAM_CLASSES = {"akiec", "bcc", "bkl", "df", "mel", "nv", "vasc"}
SUBGROUPS = {
    "sex": "sex",
    "age": "age",
    "dx_original": "diagnosis before grouping",
    "localization": "place on the body",
    "dx_type": "how the diagnosis was confirmed",
}
CAPTIONS = {
    "confusion": "Confusion matrix. {n} Rows are the true class with its number of images, columns the "
    "predicted class; darker is a larger share of the row.",
    "roc": "ROC curves, each class against all others. {n} The legend gives the area and the images of the class.",
    "dice_histogram": "Dice per image at the photograph's own size. {n} The mean hides the tail on the left: "
    "outlines that failed.",
    "reliability": "Reliability. {n} Images in ten steps of the predicted class's probability: how often it is right. "
    "On the dotted line a probability means what it says.",
    "curves": "Losses and validation scores while training. The weights of the epoch at the dotted line are those "
    "that are scored here.",
}
GALLERIES = {
    "gallery_worst": "Lowest Dice. {n} Failures, and sometimes doubtful true masks.",
    "gallery_typical": "Dice nearest the median. {n} What an ordinary outline looks like.",
    "gallery_best": "Highest Dice. {n} Chosen by the score, so they show nothing but the best case.",
}
CHOSEN = {
    "best": "Test photographs took no part in training, nor in the choice of the epoch. Validation photographs chose "
    "the epoch, so their scores lean to the bright side.",
    "last": "Test and validation photographs took no part in training. No epoch was chosen: these are the last one's "
    "weights.",
}
HOW_TO_READ = (
    "An interval says how far a score would move had other lesions been sampled. A lesion's photographs are alike, so "
    "whole lesions are resampled, never single photographs.",
    "Balanced accuracy is the mean sensitivity over the classes: each counts the same, however rare. Always guessing "
    "one class gives 1 divided by the number of classes; accuracy would give that class's share.",
    "Dice and IoU are taken for each photograph at its own size, then averaged. An empty outline where there is a "
    "lesion counts 0, and its boundary distance is the photograph's diagonal.",
    "HD95: 95% of the pixels of either edge lie within this distance of the other edge, the larger of the two "
    "directions. ASSD: the mean distance of both edges' pixels.",
    "Expected calibration error: over 15 bins of equal width of the largest probability. Brier score: squared errors "
    "summed over the classes, from 0 to 2.",
)
NOT_PROVIDED = (
    "External validation: no photograph of another clinic, camera or country was tested.",
    "A human reader: nobody looked at these test photographs for comparison.",
    "Decision thresholds and prevalence of any practice: classes are taken by the largest probability.",
    "Variation between trainings: the intervals speak of the lesions sampled, not of other seeds or folds.",
    "Photographs that show no lesion, or a lesion of a class that is not in the list.",
)
# What is known of HAM10000, and said of it alone; of drawn photographs nothing of the kind has a meaning.
HAM_NOT_PROVIDED = (
    "Skin tone: HAM10000 does not record it; nearly all photographs show light skin.",
    "The official ISIC 2018 test scores: their masks and labels are another set, drawn in another way.",
)
SKIN_TONE = "Skin tone: no score is told by it."
HAM_MASKS = (
    "The lesion masks of HAM10000 were started by a network and corrected by one dermatologist. A network agrees with "
    "them more easily than with the masks of the official ISIC test sets: Dice here is not comparable with Dice there."
)
HAM_LICENCE = "HAM10000 is licensed CC BY-NC 4.0, and so are weights trained on it."


def write_run_report(folder: Path, ending: Mapping[str, Any] | None = None) -> Path:
    """Write report.html into a run's folder and give its path; what the folder lacks is "not recorded".

    `ending` is what run.json will say once the page is there.

    Raises:
        InputError: the folder is no run.
    """
    run = Run.open(folder)
    info = run.info() | {"status": run.status or None} | dict(ending or {})
    scores = read_scores(run.path)
    table = run.predictions() if run.predictions_file.is_file() else pd.DataFrame()
    title = f"{info.get('name', NOT_RECORDED)} · {info.get('run_id', run.path.name)}"
    config, otherwise = _known_config(run)
    split_by = dig(config, "data", "split_by")
    parts = [
        *_head(info, scores, split_by),
        *_scores(info, scores),
        _classes(info, scores),
        _mask_classes(scores),
        _pictures("Figures", CAPTIONS, "charts", run, scores),
        _pictures("Examples", GALLERIES, "galleries", run, scores),
        _subgroups(table),
        _split(info),
        _training(info),
        _config(config, otherwise),
        html.section("How to read this page", html.bullets((CHOSEN[info.get("keep", "best")], *HOW_TO_READ))),
        html.section("Not provided", html.bullets(_not_provided(info))),
    ]
    write_text(out := run.path / "report.html", html.page(title, parts))
    return out


def _head(info: Mapping[str, Any], scores: Mapping[str, Any], split_by: object) -> Iterator[str]:
    yield html.heading(said(info.get("name")))
    started = said(info.get("started")).replace("T", " ").replace("+00:00", " UTC")
    words = (f"run {said(info.get('run_id'))}", f"started {started}", said(info.get("status")))
    yield html.paragraph(" · ".join(words), soft=True)
    licence = f" {HAM_LICENCE}" if is_ham10000(info) else ""
    yield html.paragraph(f"Research use only: not a medical device.{licence}")
    yield from _stamps(info, scores, split_by)
    test = dig(scores, "parts", "test")
    if test is None:
        reason = f" The run ended with: {info['error']}" if info.get("error") else ""
        yield html.stamp("NO TEST SCORES", f"scores.json holds none.{reason}")
        return
    values = {name: value for task in dig(test, "scores", default={}).values() for name, value in task.items()}
    headlines = ((label, *score_words(values[name])) for name, label in HEADLINES.items() if name in values)
    yield html.cards((label, value, interval) for label, value, interval in headlines)
    yield html.paragraph(f"{_size(test)} Interval: {said(scores.get('interval'))}.", soft=True)


def _not_provided(info: Mapping[str, Any]) -> Iterator[str]:
    yield from NOT_PROVIDED
    if is_ham10000(info):
        yield from HAM_NOT_PROVIDED
    elif not info.get("synthetic"):
        yield SKIN_TONE


def _why_leaky(info: Mapping[str, Any], split_by: object) -> str:
    """What made a split leak: it was drawn so, or lesions are not known, of the data, of a further source."""
    if split_by == "photograph":
        return "The split was drawn by photograph (data.split_by=photograph), not by lesion"
    if any(facts.get("leaky") for facts in (info.get("also") or {}).values()):
        return "A further source names no lesions"
    if info.get("init_from") is not None:
        return "The weights that it started from may have seen its lesions, or the data name none"
    return "The data name no lesions"


def _stamps(info: Mapping[str, Any], scores: Mapping[str, Any], split_by: object) -> Iterator[str]:
    if info.get("synthetic"):
        yield html.stamp(
            "SYNTHETIC", "The photographs are made up. These scores say nothing about patients.", made=True
        )
    if info.get("leaky") or "LEAKY" in str(scores.get("stamp")):
        text = f"{_why_leaky(info, split_by)}: photographs of one lesion may stand in training and test. "
        yield html.stamp("LEAKY", text + "These scores are too good, their intervals too narrow: compare with nothing.")
    if info.get("shuffled"):
        text = "A negative control: each training photograph came with the mask or the diagnosis of another."
        yield html.stamp("SHUFFLED", text, made=True)
    for name, limit in SUSPICIOUS.items():
        task = "cls" if name == "balanced_accuracy" else "seg"
        value = dig(scores, "parts", "test", "scores", task, name, "value")
        known = is_ham10000(info) and (task == "seg" or set(info.get("dx_classes") or ()) == HAM_CLASSES)
        if value is not None and value > limit and known:
            text = f"Check for leakage. {HEADLINES[name]} is {value:.3f}; above {limit} is hardly plausible here."
            yield html.stamp("SUSPICIOUS", text)


def _scores(info: Mapping[str, Any], scores: Mapping[str, Any]) -> Iterator[str]:
    parts = {part: content for part in ("test", "val") if (content := dig(scores, "parts", part))}
    for task, title in {"seg": "Outlines: all scores", "cls": "Diagnoses: all scores"}.items():
        tasks = {part: dig(content, "scores", task, default={}) for part, content in parts.items()}
        names = list(dict.fromkeys(name for values in tasks.values() for name in values))
        if not names:
            continue
        rows = [(words(name), [score_words(tasks[part].get(name)) for part in tasks]) for name in names]
        below = _reasons(list(tasks.values()))
        head = ["score", *(_part_name(part, content) for part, content in parts.items())]
        masks = html.paragraph(HAM_MASKS, soft=True) if task == "seg" and is_ham10000(info) else ""
        yield html.section(title, html.table(head, rows), below, masks)


def _reasons(tasks: Sequence[Mapping[str, Any]]) -> str:
    """Why scores are undefined, and why others have no interval."""
    reasons = [(name, v) for values in tasks for name, v in values.items() if v.get("reason")]
    undefined = dict.fromkeys(v["reason"] for _, v in reasons if v.get("value") is None)
    bare = dict.fromkeys(f"{words(name)}: {v['reason']}" for name, v in reasons if v.get("value") is not None)
    said = [*(["Undefined: " + "; ".join(undefined)] if undefined else []), *bare]
    return html.paragraph(". ".join(said) + ".", soft=True) if said else ""


def _classes(info: Mapping[str, Any], scores: Mapping[str, Any]) -> str:
    classes = dig(scores, "parts", "test", "classes", default={})
    if not classes:
        return ""
    rows: list[tuple[str, list[html.Cell]]] = [
        (
            name,
            [
                said(dig(info, "split", "train", "classes", name)),
                (said(content.get("n_images")), f"{said(content.get('n_lesions'))} lesions"),
                *(score_words(content.get(score)) for score in ("ppv", "sensitivity", "f1", "specificity", "auroc")),
            ],
        )
        for name, content in classes.items()
    ]
    known = dig(scores, "parts", "test", "scores", "cls", default={})
    means = ("macro_precision", "balanced_accuracy", "macro_f1", "", "macro_auroc")
    support = str(sum(content.get("n_images", 0) for content in classes.values()))
    rows.append(("mean over classes", ["", support, *(score_words(known.get(name)) if name else "" for name in means)]))
    head = ["class", "training images", "test images", "precision (PPV)", "recall (sensitivity)", "F1"]
    note = (
        "Test part, each class against all others. Precision depends on how common the class is in this test part. "
        "Means are over the classes that occur."
    )
    if not all(name.isascii() and len(name) <= LONGEST for name in classes):
        note += " A name that figures cannot draw or tell apart is its place in this list there: class 1, class 2, ..."
    table = html.table([*head, "specificity", "AUROC"], rows)
    return html.section("By class: classification report", table, html.paragraph(note, soft=True))


def _mask_classes(scores: Mapping[str, Any]) -> str:
    classes = dig(scores, "parts", "test", "mask_classes", default={})
    if not classes:
        return ""
    columns = {
        "mean_image_dice": "Dice",
        "mean_image_iou": "IoU",
        "mean_image_precision": "precision",
        "mean_image_recall": "recall",
        "pooled_dice": "F1, pooled",
        "pooled_precision": "precision, pooled",
        "pooled_recall": "recall, pooled",
    }
    rows: list[tuple[str, list[html.Cell]]] = [
        (name, [said(content.get("n_images")), *(score_words(content.get(score)) for score in columns)])
        for name, content in classes.items()
    ]
    counts = dig(scores, "parts", "test", "pixels", default=[])
    shares: list[tuple[str, list[html.Cell]]] = [
        (f"{name}, true", [f"{sum(row):,}", *((f"{n / max(1, sum(row)):.3f}", f"{n:,}") for n in row)])
        for name, row in zip(classes, counts, strict=False)
    ]
    note = (
        "Test part, pixels at the photographs' own sizes. Means are over images; where neither outline has a class, "
        "Dice and IoU count one, precision and recall nothing. Pooled: pixels of all images counted together."
    )
    return html.section(
        "By mask class",
        html.table(["class", "test images", *columns.values()], rows),
        html.table(["pixels", "all", *classes], shares, "Share of each true class's pixels by predicted class"),
        html.paragraph(note, soft=True),
    )


def _pictures(title: str, captions: Mapping[str, str], kind: str, run: Run, scores: Mapping[str, Any]) -> str:
    n = _size(dig(scores, "parts", "test"))
    pictures = []
    for name, caption in captions.items():
        files = [run.figures / f"{name}{suffix}" for suffix in html.MEDIA]
        if file := next((file for file in files if file.is_file()), None):
            pictures.append(html.picture(file, caption.format(n=n)))
    return html.section(title, html.pictures(kind, pictures) if pictures else html.paragraph(NOT_RECORDED, soft=True))


def _subgroups(table: pd.DataFrame) -> str:
    if "split" not in table or not (table["split"] == "test").any():
        return html.section("Subgroups", html.paragraph(NOT_RECORDED, soft=True))
    test = table[table["split"] == "test"]
    tables = []
    for column, label in SUBGROUPS.items():
        if column in test:
            groups = (
                _age_bands(test[column])
                if column == "age"
                else test[column].astype("object").fillna("unknown").astype(str)
            )
            rows = [_subgroup(str(name), rows) for name, rows in test.groupby(groups, observed=True)]
            tables.append(html.table([label, "images", "Dice", "accuracy", "balanced accuracy"], rows))
    note = (
        f"Test part. Fewer than {TOO_FEW} lesions: too few to say anything. Balanced accuracy is over the classes that "
        "occur in a group, so groups of other classes differ by that alone."
    )
    return html.section("Subgroups", html.paragraph(note, soft=True), *tables)


def _subgroup(name: str, rows: pd.DataFrame) -> tuple[str, list[html.Cell]]:
    lesions = int(rows["lesion_id"].fillna(rows["image_id"]).nunique())
    size = (str(len(rows)), f"{lesions} lesions")
    if lesions < TOO_FEW:
        return name, [size, "too few", "too few", "too few"]
    sample = Sample.of(rows.reset_index(drop=True), dx_classes(rows), DRAWS, seed=0)
    known = {name: score for task in sample.scores(mask_classes(rows)).values() for name, score in task.items()}
    wanted = ("mean_image_dice", "accuracy", "balanced_accuracy")
    return name, [size, *(score_words(sample.value(known[name]) if name in known else None) for name in wanted)]


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
        ("photographs, sha256", said(dig(info, "data", "hash"))),
        ("layout", said(dig(info, "data", "layout"))),
        ("images in all", said(dig(info, "data", "images"))),
        *((f"{name} trains, too", _also(facts)) for name, facts in (info.get("also") or {}).items()),
    ]
    classes = info.get("dx_classes") or list(dig(split, "train", "classes", default={}))
    keys = [("images",), ("lesions",), *(("classes", name) for name in classes)]
    parts = [(part, [said(dig(split, part, *key)) for key in keys]) for part in ("train", "val", "test")]
    note = html.paragraph("No lesion stands in two parts.") if info.get("leaky") is False else ""
    counts = html.table(["part", "images", "lesions", *classes], parts, "Images by part and class")
    return html.section("Split certificate", html.facts(rows), counts, note)


def _also(facts: Mapping[str, Any]) -> str:
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
        ("processes × photographs a batch", _batch(info)),
        ("vector instructions", said(info.get("capability"))),
        ("precision", said(info.get("precision"))),
        ("evaluated by", "the mean over four mirror images" if info.get("test_time_flips") else "one look at each"),
        ("threads of cores", f"{said(info.get('threads'))} of {said(info.get('cores'))}"),
        ("exit code", said(info.get("exit_code"))),
        ("times that it went on after a stop", str(len(info.get("resumed") or []))),
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
    processes, photographs = info.get("world_size"), info.get("global_batch")
    return f"{processes} × {photographs // processes}" if processes and photographs else NOT_RECORDED


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
