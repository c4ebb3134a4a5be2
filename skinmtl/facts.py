"""Facts of runs as words: find them in nested files, name scores, say values. Never fails on what is missing."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

NOT_RECORDED = "not recorded"
PATH = "[path]"
SECRET = re.compile(r"key|token|secret|password", re.IGNORECASE)
PLACES = {"root", "masks", "lesions", "split", "cache_dir", "split_dir", "resume", "init_from"}  # keys that name paths
FILE = re.compile(r"\.(csv|tsv|json|ya?ml|npy|npz|pt|pth|ckpt|safetensors|zip|tar|gz|jpe?g|png)$", re.IGNORECASE)
RENAMED = {"mean_image_hd95": "mean_image_hd95_pooled", "ece": "ece_rank_bins"}  # by version 2 of a predictions table
HAM10000 = {"dataverse", "kaggle", "mirror", "isic2018_task3"}  # layouts in which its photographs are published
SCORE = re.compile(r"(train|val|step|weight|gradients)/\w+(/\w+)?")  # columns of metrics.csv
HEADLINES = {
    "mean_image_dice": "Dice, mean over images",
    "balanced_accuracy": "Balanced accuracy",
    "macro_auroc": "AUROC, mean over classes",
    "mean_image_iou": "IoU, mean over images",
}
WORDS = {
    "mean_image_dice_input": "Dice at the network's size",
    "mean_image_hd95": "HD95, pixels of the photograph",
    "mean_image_hd95_pooled": "HD95 of both directions pooled, as before version 2",
    "mean_image_assd": "ASSD, pixels of the photograph",
    "median_image_dice": "Dice, median",
    "p5_image_dice": "Dice, 5th percentile",
    "thresholded_jaccard": "IoU, zero below 0.65",
    "failure_rate": "Share of images with IoU below 0.65",
    "mean_image_sensitivity": "Sensitivity of pixels, mean over images",
    "mean_image_specificity": "Specificity of pixels, mean over images",
    "mean_image_precision": "Precision of pixels, mean over images",
    "pooled_dice": "Dice, pixels of all images pooled",
    "pooled_mean_iou": "IoU, mean over mask classes with the background, pixels pooled",
    "pooled_accuracy": "Accuracy of pixels, pooled",
    "pooled_mcc": "MCC of pixels, pooled",
    "macro_precision": "Precision, mean over classes",
    "accuracy": "Accuracy",
    "brier": "Brier score",
    "macro_f1": "F1, mean over classes",
    "macro_average_precision": "Average precision, mean over classes",
    "mcc": "MCC",
    "nll": "Negative log likelihood",
    "ece": "Expected calibration error",
    "ece_rank_bins": "Expected calibration error of bins of equal numbers, as before version 2",
    "malignant_auroc": "AUROC, malignant or precancerous against the rest",
}


def read_scores(folder: Path) -> dict[str, Any]:
    """What scores.json in a run's folder holds; empty when there is none.

    In one from before version 2 the scores whose definition has changed since go by the names that they have today.
    """
    path = folder / "scores.json"
    scores: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if "version" not in scores:
        for part in dig(scores, "parts", default={}).values():
            for task, values in dig(part, "scores", default={}).items():
                part["scores"][task] = {RENAMED.get(name, name): value for name, value in values.items()}
    return scores


def dig(tree: object, *keys: str, default: Any = None) -> Any:  # noqa: ANN401 -- JSON
    """The value under nested keys; the default where one is missing or holds None."""
    for key in keys:
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return default if tree is None else tree


def flat(tree: Mapping[Any, Any], above: str = "") -> dict[str, object]:
    """Dotted keys of a nested mapping, in its order."""
    leaves: dict[str, object] = {}
    for key, value in tree.items():
        inner = isinstance(value, Mapping) and value
        leaves |= flat(value, f"{above}{key}.") if inner else {f"{above}{key}": value}
    return leaves


def shareable(key: str, value: object) -> object:
    """A value of the config as strangers may see it: no path, for a name in it could be a person's; no secret."""
    last = key.rpartition(".")[2]
    if SECRET.search(last) and value is not None:
        return "..."
    if isinstance(value, list | tuple):
        return [shareable(key, part) for part in value]
    if not isinstance(value, str):
        return value
    return PATH if last in PLACES and value not in ("auto", "null") else _without_path(value)


def _without_path(value: object) -> str:
    """A value as text; `[path]` for a path."""
    text = str(value)
    return PATH if is_path(text) else text


def is_path(text: str) -> bool:
    """Whether a word of a config or of a command names a file or a folder; 1/2 does not."""
    if SCORE.fullmatch(text):
        return False
    named = re.search(r"[^\W\d_]", text) is not None
    return text.startswith(("/", "~", "./", "../")) or FILE.search(text) is not None or ("/" in text and named)


def command_without_paths(program: str, words: Iterable[str]) -> str:
    """A command as one line, whose paths are `[path]`, told from its words: a path may have spaces, as names have."""
    return " ".join([program, *map(_word_without_path, words)])


def _word_without_path(word: str) -> str:
    if not re.search(r"\s", word):
        return without_paths_in(word)
    key, equals, value = word.partition("=")
    if not equals:
        return _without_path(word)
    # A list or dict with a path in it: what of it is whose name cannot be told.
    inside = any(re.search(rf"\b{place}['\"]?\s*:", value) for place in PLACES)
    return f"{key}={PATH if inside else shareable(key, value)}"


def without_paths_in(text: str, known: Iterable[str] = ()) -> str:
    """A command, or what a run ended with, whose paths are `[path]`; `known` are further words that are to go."""
    for path in sorted(known, key=len, reverse=True):
        text = re.sub(rf"""(?<![\w./]){re.escape(path)}(/[^\s'",;:)]*)?(?![\w/]|\.\w)""", PATH, text)
    # Where an error is stands first in its line, spaces and all.
    text = re.sub(r"^[~/][^:\n]*?(?=(, line \d+)?: )", PATH, text, flags=re.MULTILINE)
    text = re.sub(r"""(['"])([^'"]*/[^'"]*)\1""", lambda found: found[1] + _without_path(found[2]) + found[1], text)
    text = re.sub(r"""([\w.]+)=([^\s'",=;]+)""", lambda found: f"{found[1]}={shareable(found[1], found[2])}", text)
    return re.sub(r"""(?<![\w./])[/~][^\s'",=;:)]*""", PATH, text)


def stamps(info: Mapping[str, Any]) -> str:
    """What every score of a run has to be shown with, from its run.json: such as "LEAKY SYNTHETIC", or nothing."""
    return " ".join(name.upper() for name in ("leaky", "synthetic", "shuffled") if info.get(name))


def is_ham10000(info: Mapping[str, Any]) -> bool:
    """Whether a run's photographs are HAM10000's, by the layout that run.json names; drawn ones borrow it."""
    return not info.get("synthetic") and dig(info, "data", "layout") in HAM10000


def words(name: str) -> str:
    """A score's name for people."""
    return HEADLINES.get(name, WORDS.get(name, name.replace("_", " ")))


def score_words(score: Mapping[str, Any] | None) -> tuple[str, str]:
    """A score as "0.812" and its interval as "(0.790 to 0.834)"; said in words where there is none."""
    if score is None:
        return NOT_RECORDED, ""
    if score.get("value") is None:
        return "undefined", ""
    places = 1 if abs(score["value"]) >= 10 else 3
    if score.get("low") is None:
        return f"{score['value']:.{places}f}", ""
    return f"{score['value']:.{places}f}", f"({score['low']:.{places}f} to {score['high']:.{places}f})"


def said(value: object) -> str:
    """A value as text; "not recorded" for None, words joined by commas for a list."""
    if value is None:
        return NOT_RECORDED
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(str, value)) or "none"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
