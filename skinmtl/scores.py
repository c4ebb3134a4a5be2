"""Scores as functions of a predictions table, each with an interval from resampling lesions. NumPy and pandas only.

A lesion's photographs are alike, so the lesion is the unit that is resampled: intervals from resampling photographs
would be too narrow. Every score is written for weights per photograph, (draws, N), and 2,000 resamplings are one call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from skinmtl.errors import Faults, InputError

Floats = NDArray[np.float64]
Score = Callable[[Floats], Floats]  # (D, N) weights of photographs -> (D,) scores, not a number where undefined

DRAWS = 2000
AT_ONCE = 200  # resamplings: as many as fit a processor's cache for a test fold
INTERVAL = "95%, percentile bootstrap over lesions, {draws} draws, seed {seed}"
JACCARD_THRESHOLD = 0.65  # below it an outline counts as failed: ISIC 2018 Task 1, arXiv:1902.03368
ECE_BINS = 15
MALIGNANT = ("akiec", "bcc", "mel")
CELLS = ("tn", "fp", "fn", "tp")  # of the confusion matrix of two classes, row by row: true, then predicted


# --- one photograph ---------------------------------------------------------------------------------------------------


def mask_counts(predicted: NDArray[np.uint8], target: NDArray[np.uint8]) -> dict[str, int]:
    """Pixels by agreement, tp, fp, fn and tn, of two (H, W) masks that are lesion where not zero."""
    a, b = predicted > 0, target > 0
    both, only_a, only_b = int((a & b).sum()), int((a & ~b).sum()), int((~a & b).sum())
    return {"tp": both, "fp": only_a, "fn": only_b, "tn": a.size - both - only_a - only_b}


def dice(counts: Mapping[str, int]) -> float:
    """2 tp / (2 tp + fp + fn); one when both masks are empty."""
    total = 2 * counts["tp"] + counts["fp"] + counts["fn"]
    return 2 * counts["tp"] / total if total else 1.0


def iou(counts: Mapping[str, int]) -> float:
    """tp / (tp + fp + fn); one when both masks are empty."""
    union = counts["tp"] + counts["fp"] + counts["fn"]
    return counts["tp"] / union if union else 1.0


def pixel_confusion(predicted: NDArray[np.uint8], target: NDArray[np.uint8], classes: int) -> NDArray[np.int64]:
    """Pixels by true (rows) and predicted class, (M, M), of two (H, W) masks of indices into M classes."""
    places = target.astype(np.int64) * classes + predicted
    return np.bincount(places.reshape(-1), minlength=classes**2).reshape(classes, classes)


def overlap(predicted: NDArray[np.uint8], target: NDArray[np.uint8], classes: Sequence[str]) -> dict[str, float]:
    """The columns of a predictions table that say how two (H, W) masks of class indices agree.

    `tp_<class>`, `fp_`, `fn_` and `tn_` are pixels of each class but the background, which comes first in `classes`;
    `dice` and `iou` are means over these classes. Where there are several, `dice_<class>` and `iou_<class>` are those
    of each, and `pixels_<true>_as_<predicted>` the pixels of every pair of classes.
    """
    columns: dict[str, float] = {}
    each: dict[str, dict[str, float]] = {"dice": {}, "iou": {}}
    for index, name in enumerate(classes[1:], start=1):
        counts = mask_counts((predicted == index).astype(np.uint8), (target == index).astype(np.uint8))
        columns |= {f"{count}_{name}": pixels for count, pixels in counts.items()}
        each["dice"][name], each["iou"][name] = dice(counts), iou(counts)
    if len(classes) > 2:
        confusion = pixel_confusion(predicted, target, len(classes))
        columns |= {f"{score}_{name}": value for score, values in each.items() for name, value in values.items()}
        columns |= {
            name: int(pixels) for name, pixels in zip(_pixel_columns(classes), confusion.reshape(-1), strict=True)
        }
    return columns | {score: float(np.mean(list(values.values()))) for score, values in each.items()}


def boundary(predicted: NDArray[np.uint8], target: NDArray[np.uint8]) -> tuple[float, float]:
    """HD95 and ASSD in pixels between the edges of two (H, W) masks; all classes but the background count as lesion.

    (The edges of a band along an outline are that outline, moved: they would be told the same thing twice.)
    An edge is the lesion's pixels that touch its outside (4-neighbours; beyond the picture is outside). Distances of
    each edge's pixels to the other edge, both ways taken together: HD95 is their 95th percentile, ASSD their mean. Two
    empty masks: 0. One empty mask: both are the picture's diagonal.
    """
    a, b = (np.asarray(mask > 0, dtype=np.uint8) for mask in (predicted, target))
    if not a.any() or not b.any():
        far = 0.0 if a.any() == b.any() else float(np.hypot(*a.shape))
        return far, far
    rows, columns = np.nonzero(a | b)
    box = np.s_[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    edges = [_edge(mask[box]) for mask in (a, b)]
    apart = [cv2.distanceTransform(1 - edge, cv2.DIST_L2, cv2.DIST_MASK_PRECISE) for edge in edges]
    distances = np.concatenate([apart[1][edges[0] > 0], apart[0][edges[1] > 0]]).astype(np.float64)
    # OpenCV's last bits follow where the picture lies in memory; squares of distances between pixels are whole numbers.
    distances = np.sqrt(np.rint(np.square(distances)))
    return float(np.percentile(distances, 95)), float(distances.mean())


def _edge(mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    inner = cv2.erode(mask, cross, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    return mask - np.asarray(inner, dtype=np.uint8)


# --- a table ----------------------------------------------------------------------------------------------------------


def read_predictions(path: Path) -> pd.DataFrame:
    """A predictions table from a file, checked: one row per photograph, probabilities finite and summing to one.

    Raises:
        Faults: every fault found.
    """
    if not path.is_file():
        raise InputError(str(path), "no such file", "give a predictions.csv")
    table = pd.read_csv(path, dtype={"image_id": "str", "lesion_id": "str"})
    check(table, str(path))
    return table


def check(table: pd.DataFrame, where: str = "predictions") -> None:
    """Refuse a table whose scores would mean nothing; see `read_predictions`."""
    classes = dx_classes(table)
    needed = ["image_id", "lesion_id", "split", *(["dx"] if classes else []), *(["iou"] if "dice" in table else [])]
    missing = [name for name in needed if name not in table]
    if missing:
        raise Faults([InputError(where, f"columns missing: {', '.join(missing)}", "add them")])
    faults = []
    if not len(table):
        faults.append(InputError(where, "no rows", "give one row per photograph"))
    if table["image_id"].duplicated().any():
        twice = table.loc[table["image_id"].duplicated(), "image_id"].iloc[0]
        faults.append(InputError(where, f"{twice} stands there twice", "keep one row per photograph"))
    if classes:
        faults += _wrong_diagnoses(table, classes, where)
    if faults:
        raise Faults(faults)


def _wrong_diagnoses(table: pd.DataFrame, classes: Sequence[str], where: str) -> list[InputError]:
    faults = []
    p = table[[f"prob_{name}" for name in classes]].to_numpy(dtype=float)
    wrong = {
        "a probability is not a number": (~np.isfinite(p).all(1), "look at the model that made it"),
        "a probability is below 0 or above 1": (((p < 0) | (p > 1)).any(1), "give probabilities, not logits"),
        "probabilities do not sum to one": (np.abs(p.sum(1) - 1) > 1e-3, "normalise them"),
    }
    for what, (rows, fix) in wrong.items():
        if rows.any():
            first = table["image_id"].iloc[int(rows.argmax())]
            faults.append(InputError(where, f"{first}: {what} ({int(rows.sum())} rows)", fix))
    if strange := sorted(set(table["dx"].dropna()) - set(classes)):
        what = f"dx is {', '.join(map(str, strange))}, which has no column of probabilities"
        faults.append(InputError(where, what, f"the classes are {', '.join(classes)}"))
    return faults


def evaluate_file(path: Path) -> dict[str, Any]:
    """`evaluate` on a file; the classes are those of its columns, in their order."""
    table = read_predictions(path)
    return evaluate(table, dx_classes(table), mask_classes(table))


def dx_classes(table: pd.DataFrame) -> tuple[str, ...]:
    """The diagnoses that a table has probabilities of."""
    return tuple(name.removeprefix("prob_") for name in map(str, table) if name.startswith("prob_"))


def mask_classes(table: pd.DataFrame) -> tuple[str, ...]:
    """The mask classes that a table counts pixels of, background first; none where it has no such columns."""
    names = list(map(str, table))
    pairs = [name.removeprefix("pixels_").partition("_as_") for name in names if name.startswith("pixels_")]
    if pairs:
        return tuple(true for true, _, predicted in pairs if true == predicted)
    foreground = tuple(name.removeprefix("tp_") for name in names if name.startswith("tp_"))
    return ("skin", *foreground) if foreground else ()


def _pixel_columns(classes: Sequence[str]) -> list[str]:
    """Columns of a pixel confusion matrix, row by row."""
    return [f"pixels_{true}_as_{predicted}" for true in classes for predicted in classes]


def evaluate(
    predictions: pd.DataFrame,
    dx_classes: Sequence[str],
    mask_classes: Sequence[str],
    draws: int = DRAWS,
    seed: int = 0,
    malignant: Sequence[str] = MALIGNANT,
) -> dict[str, Any]:
    """Every score of each part of a predictions table: what scores.json holds.

    A score is {value, low, high}, low and high the 95% interval, or {value: null, reason}; without an interval, low and
    high are null and the reason says why.

    Args:
        predictions: one row per photograph; tasks without columns have no scores.
        dx_classes: the diagnoses, in the order of the probabilities.
        mask_classes: background first.
        draws: resamplings of lesions.
        seed: of the resampling.
        malignant: diagnoses told from the rest by `malignant_auroc`; no such score where one of them is no class.

    Raises:
        Faults: a row stands there twice, probabilities are none, or a diagnosis is no class.
    """
    check(predictions)
    parts = {}
    for part, rows in predictions.groupby("split", sort=False):
        sample = Sample.of(rows.reset_index(drop=True), dx_classes, draws, seed)
        parts[str(part)] = {
            "n_images": len(rows),
            "n_lesions": sample.lesions,
            "scores": {task: sample.all(scores) for task, scores in sample.scores(mask_classes, malignant).items()},
        }
        parts[str(part)] |= sample.per_class() | sample.per_mask_class(mask_classes)
    stamp = "LEAKY" if is_leaky(predictions) else None
    return {"stamp": stamp, "interval": INTERVAL.format(draws=draws, seed=seed), "parts": parts}


def is_leaky(predictions: pd.DataFrame) -> bool:
    """Whether a table says of itself that photographs of one lesion may have trained and been tested."""
    return "leaky" in predictions and bool(predictions["leaky"].isin([True, 1, "True", "true"]).any())


def paired(first: pd.DataFrame, second: pd.DataFrame, part: str = "test", seed: int = 0) -> dict[str, dict[str, float]]:
    """First minus second for each score that both tables have, on the same photographs and the same resampled lesions.

    Gives first, second, difference, low and high (95%) by score name.

    Raises:
        InputError: the tables are of different photographs, lesions, diagnoses or classes.
    """
    tables = [table[table["split"] == part].set_index("image_id").sort_index() for table in (first, second)]
    _comparable(tables[0], tables[1], part)
    classes = dx_classes(tables[0]) or dx_classes(tables[1])
    samples = [Sample.of(table.reset_index(), classes, DRAWS, seed) for table in tables]
    names = [mask_classes(table) for table in tables]
    scores = [
        {k: v for task in s.scores(of).values() for k, v in task.items()} for s, of in zip(samples, names, strict=True)
    ]
    result = {}
    for name in [name for name in scores[0] if name in scores[1]]:
        a, b = (float(score[name](s.once)[0]) for s, score in zip(samples, scores, strict=True))
        if not np.isfinite([a, b]).all():
            continue
        apart = np.subtract(*(s.drawn(score[name]) for s, score in zip(samples, scores, strict=True)))
        if np.isfinite(apart).any():
            low, high = np.nanpercentile(apart, [2.5, 97.5])
            result[name] = {"first": a, "second": b, "difference": a - b, "low": float(low), "high": float(high)}
    return result


def _comparable(first: pd.DataFrame, second: pd.DataFrame, part: str) -> None:
    """Refuse two tables, by image id, that do not speak of the same things."""
    fix = "compare tables of one split"
    if not first.index.equals(second.index):
        count = len(first.index.symmetric_difference(second.index))
        raise InputError("predictions", f"{count} photographs are in one table only", fix)
    if first.empty:
        raise InputError("predictions", f"no {part} rows", "evaluate the runs first")
    for name in ("lesion_id", "dx"):
        if name in first and name in second:
            a, b = (table[name].astype("object") for table in (first, second))
            differ = (a != b) & ~(a.isna() & b.isna())
            if differ.any():
                raise InputError("predictions", f"{name} of {int(differ.sum())} photographs differs", fix)
    classes = [dx_classes(table) for table in (first, second)]
    if all(classes) and set(classes[0]) != set(classes[1]):
        odd = ", ".join(sorted(set(classes[0]) ^ set(classes[1])))
        raise InputError("predictions", f"classes of one table only: {odd}", "compare runs of the same classes")
    masks = [mask_classes(table) for table in (first, second)]
    if all(masks) and masks[0] != masks[1]:
        what = f"mask classes {', '.join(masks[0])} and {', '.join(masks[1])}"
        raise InputError("predictions", what, "compare runs of the same classes")


@dataclass(frozen=True)
class Sample:
    """The rows of one part, N photographs of L lesions, and how often each photograph is counted in each resampling."""

    table: pd.DataFrame
    classes: Sequence[str]
    lesions: int
    weights: Floats  # (D, N)

    @classmethod
    def of(cls, table: pd.DataFrame, classes: Sequence[str], draws: int, seed: int) -> Sample:
        """A part of a table, its lesions resampled `draws` times."""
        # A photograph without a lesion id stands for itself.
        lesion = pd.factorize(table["lesion_id"].fillna(table["image_id"]))[0]
        count = int(lesion.max()) + 1
        drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=draws)
        return cls(table, tuple(classes), count, drawn[:, lesion].astype(np.float64))

    @property
    def once(self) -> Floats:
        """Every photograph once: (1, N)."""
        return np.ones((1, len(self.table)))

    def all(self, scores: Mapping[str, Score]) -> dict[str, dict[str, Any]]:
        """Each score's value and interval."""
        return {name: self.value(score) for name, score in scores.items()}

    def drawn(self, score: Score) -> Floats:
        """(D,) a score in each resampling."""
        starts = range(0, len(self.weights), AT_ONCE)
        return np.concatenate([score(self.weights[start : start + AT_ONCE]) for start in starts])

    def value(self, score: Score) -> dict[str, Any]:
        """A score's value and interval; null with a reason where it is undefined. Undefined draws are left out."""
        value = float(score(self.once)[0])
        if not np.isfinite(value):
            return {"value": None, "reason": "undefined here: a class or a mask that it needs does not occur"}
        drawn = self.drawn(score)
        if self.lesions < 2 or not np.isfinite(drawn).any():
            reason = "no interval: too few lesions to resample"
            return {"value": value, "low": None, "high": None, "reason": reason}
        low, high = np.nanpercentile(drawn, [2.5, 97.5])
        return {"value": value, "low": float(low), "high": float(high)}

    def scores(self, mask_classes: Sequence[str], malignant: Sequence[str] = MALIGNANT) -> dict[str, dict[str, Score]]:
        """Scores by task and name, for the tasks that the table has columns of; `mask_classes` background first."""
        found: dict[str, dict[str, Score]] = {}
        if "dice" in self.table:
            found["seg"] = _mask_scores(self.table, mask_classes)
        if self.classes and f"prob_{self.classes[0]}" in self.table:
            found["cls"] = _diagnosis_scores(*self._diagnoses(), self.classes, malignant)
        return found

    def _diagnoses(self) -> tuple[NDArray[np.int64], Floats]:
        """(N,) index of the true class, -1 where unknown, and (N, K) probabilities."""
        index = {name: i for i, name in enumerate(self.classes)}
        target = np.asarray(self.table["dx"].astype("object").map(index).fillna(-1), dtype=np.int64)
        p: Floats = self.table[[f"prob_{name}" for name in self.classes]].to_numpy(dtype=np.float64)
        return target, p

    def per_class(self) -> dict[str, Any]:
        """Scores of each diagnosis against the rest, and the confusion matrix, (true, predicted)."""
        if not self.classes or f"prob_{self.classes[0]}" not in self.table:
            return {}
        target, p = self._diagnoses()
        guess = p.argmax(1)
        k = len(self.classes)
        known = target >= 0
        counts = np.bincount(target[known] * k + guess[known], minlength=k * k).reshape(k, k)
        classes = {}
        for i, name in enumerate(self.classes):
            mine = self.table[target == i]
            classes[name] = {
                "n_images": len(mine),
                "n_lesions": int(mine["lesion_id"].fillna(mine["image_id"]).nunique()),
                **self.all(_one_against_rest(target, guess, p[:, i], i)),
            }
        return {"classes": classes, "confusion": counts.tolist()}

    def per_mask_class(self, names: Sequence[str]) -> dict[str, Any]:
        """Scores of each mask class, background too, and the confusion matrix of all pixels, (true, predicted)."""
        if "dice" not in self.table:
            return {}
        pixels = _pixels(self.table, names)
        seen = np.isfinite(pixels).all((1, 2))
        classes = {
            name: {
                "n_images": int((pixels[seen, i].sum(1) > 0).sum()),
                **self.all(_one_mask_class(*_agreement(pixels, i))),
            }
            for i, name in enumerate(names)
        }
        return {"mask_classes": classes, "pixels": pixels[seen].sum(0).astype(np.int64).tolist()}


# --- scores of weights ------------------------------------------------------------------------------------------------


def _mean(values: Floats) -> Score:
    """Weighted mean of the values that there are."""
    has = np.isfinite(values)
    filled = np.where(has, values, 0)
    return lambda w: _ratio(w @ filled, w @ has.astype(float))


def _quantile(values: Floats, q: float) -> Score:
    """The smallest value with at least a share `q` of the weight at or below it."""
    order = np.argsort(values[np.isfinite(values)], kind="stable")
    places = np.flatnonzero(np.isfinite(values))[order]

    def score(w: Floats) -> Floats:
        cumulated = np.cumsum(w[:, places], axis=1)
        reached = cumulated >= q * cumulated[:, -1:] - 1e-9
        found = values[places[reached.argmax(1)]]
        return np.where(cumulated[:, -1] > 0, found, np.nan)

    return score if len(places) else _mean(values)


def _ratio(a: Floats, b: Floats) -> Floats:
    ratio: Floats = np.divide(a, b, out=np.full(np.broadcast(a, b).shape, np.nan), where=b != 0)
    return ratio


def _pixels(table: pd.DataFrame, classes: Sequence[str]) -> Floats:
    """(N, M, M) pixels by true and predicted class; not a number where a photograph has no mask."""
    names = _pixel_columns(classes) if len(classes) > 2 else [f"{count}_{classes[1]}" for count in CELLS]
    pixels: Floats = table[names].to_numpy(dtype=np.float64)
    return pixels.reshape(-1, len(classes), len(classes))


def _agreement(pixels: Floats, one: int) -> tuple[Floats, Floats, Floats]:
    """tp, fp and fn, (...), of one class in confusion matrices (..., M, M)."""
    tp = pixels[..., one, one]
    return tp, pixels[..., :, one].sum(-1) - tp, pixels[..., one, :].sum(-1) - tp


def _one_mask_class(tp: Floats, fp: Floats, fn: Floats) -> dict[str, Score]:
    """Scores of one mask class from its pixels, (N,) each: of a photograph, and of all photographs' pixels pooled."""
    seen = np.isfinite(tp)
    agree = np.where(seen, 1.0, np.nan)  # where neither mask has the class
    either = tp + fp + fn > 0
    a, b, c = (np.nan_to_num(count) for count in (tp, fp, fn))
    return {
        "mean_image_dice": _mean(np.where(either, _ratio(2 * tp, 2 * tp + fp + fn), agree)),
        "mean_image_iou": _mean(np.where(either, _ratio(tp, tp + fp + fn), agree)),
        "mean_image_precision": _mean(_ratio(tp, tp + fp)),
        "mean_image_recall": _mean(_ratio(tp, tp + fn)),
        "pooled_dice": lambda w: _ratio(2 * (w @ a), w @ (2 * a + b + c)),
        "pooled_iou": lambda w: _ratio(w @ a, w @ (a + b + c)),
        "pooled_precision": lambda w: _ratio(w @ a, w @ (a + b)),
        "pooled_recall": lambda w: _ratio(w @ a, w @ (a + c)),
    }


def _mean_known(values: Sequence[Floats]) -> Floats:
    """The mean, place by place, of those of several arrays that are numbers there; not a number where none is."""
    stacked = np.stack(values)
    known = np.isfinite(stacked)
    return _ratio(np.where(known, stacked, 0).sum(0), known.sum(0).astype(float))


def _mask_scores(table: pd.DataFrame, classes: Sequence[str]) -> dict[str, Score]:
    column = {name: table[name].to_numpy(dtype=np.float64) for name in ("dice", "iou")}
    seen = np.isfinite(column["iou"])
    jaccard = np.where(seen, np.where(column["iou"] >= JACCARD_THRESHOLD, column["iou"], 0), np.nan)
    failed = np.where(seen, (column["iou"] < JACCARD_THRESHOLD).astype(float), np.nan)
    scores = {
        "mean_image_dice": _mean(column["dice"]),
        "median_image_dice": _quantile(column["dice"], 0.5),
        "p5_image_dice": _quantile(column["dice"], 0.05),
        "mean_image_iou": _mean(column["iou"]),
        "thresholded_jaccard": _mean(jaccard),
        "failure_rate": _mean(failed),
    }
    for name in ("dice_input", "hd95", "assd"):
        if name in table:
            scores[f"mean_image_{name}"] = _mean(table[name].to_numpy(dtype=np.float64))
    pixels = _pixels(table, classes)
    total = pixels.sum((1, 2))
    each = [_agreement(pixels, i) for i in range(1, len(classes))]  # all but the background
    scores["mean_image_sensitivity"] = _mean(_mean_known([_ratio(tp, tp + fn) for tp, _, fn in each]))
    scores["mean_image_specificity"] = _mean(
        _mean_known([_ratio(total - tp - fp - fn, total - tp - fn) for tp, fp, fn in each])
    )
    scores["mean_image_precision"] = _mean(_mean_known([_ratio(tp, tp + fp) for tp, fp, _ in each]))
    pooled = [_one_mask_class(*counts)["pooled_dice"] for counts in each]
    scores["pooled_dice"] = lambda w: _mean_known([score(w) for score in pooled])
    flat = np.nan_to_num(pixels.reshape(len(pixels), -1))

    def confusion(w: Floats) -> Floats:
        return (w @ flat).reshape(-1, len(classes), len(classes))

    def mean_iou(w: Floats) -> Floats:
        each = [_agreement(confusion(w), i) for i in range(len(classes))]
        return _mean_known([_ratio(tp, tp + fp + fn) for tp, fp, fn in each])

    scores["pooled_mean_iou"] = mean_iou
    scores["pooled_accuracy"] = lambda w: _accuracy(confusion(w))
    scores["pooled_mcc"] = lambda w: _mcc(confusion(w))
    return scores


def _diagnosis_scores(
    target: NDArray[np.int64], p: Floats, classes: Sequence[str], malignant: Sequence[str]
) -> dict[str, Score]:
    known, k = target >= 0, p.shape[1]
    guess = p.argmax(1)
    places = np.where(known, target * k + guess, 0)
    onehot = np.eye(k * k)[places] * known[:, None]  # (N, K*K)
    own = p[np.arange(len(p)), np.clip(target, 0, None)]
    truth = np.eye(k)[np.clip(target, 0, None)]
    missing = np.where(known, 0.0, np.nan)

    def confusion(w: Floats) -> Floats:
        return (w @ onehot).reshape(-1, k, k)

    present = sorted(set(target[known].tolist()))
    against = [_auroc(np.where(known, target == i, np.nan), p[:, i]) for i in present]
    precision = [_average_precision(np.where(known, target == i, np.nan), p[:, i]) for i in present]
    scores = {
        "balanced_accuracy": lambda w: _balanced_accuracy(confusion(w), present),
        "accuracy": lambda w: _accuracy(confusion(w)),
        "macro_auroc": _average(against),
        "macro_average_precision": _average(precision),
        "macro_precision": lambda w: _macro_precision(confusion(w), present),
        "macro_f1": lambda w: _macro_f1(confusion(w), present),
        "mcc": lambda w: _mcc(confusion(w)),
        "nll": _mean(-np.log(np.clip(own, 1e-15, 1)) + missing),
        "brier": _mean(((p - truth) ** 2).sum(1) + missing),
        "ece": _ece(p.max(1), (guess == target).astype(float), known),
    }
    if malignant and set(malignant) <= set(classes):
        risk = [classes.index(name) for name in malignant]
        ill = np.where(known, np.isin(target, risk), np.nan)
        scores["malignant_auroc"] = _auroc(ill, p[:, risk].sum(1))
    return scores


def _average(scores: Sequence[Score]) -> Score:
    """The mean of scores; undefined where one is, or where there is none."""
    return lambda w: np.mean([score(w) for score in scores] or [np.full(len(w), np.nan)], axis=0)


def _accuracy(confusion: Floats) -> Floats:
    """(D,) share on the diagonal."""
    return _ratio(np.trace(confusion, axis1=1, axis2=2), confusion.sum((1, 2)))


def _balanced_accuracy(confusion: Floats, present: Sequence[int]) -> Floats:
    """(D,) mean recall over the classes that occur in the sample; undefined in a draw that lacks one."""
    recall = _ratio(np.diagonal(confusion, axis1=1, axis2=2), confusion.sum(2))
    return recall[:, list(present)].mean(1) if present else np.full(len(confusion), np.nan)


def _macro_precision(confusion: Floats, present: Sequence[int]) -> Floats:
    """(D,) mean precision over the classes that occur; a class that is never guessed has precision zero."""
    hits, guessed = np.diagonal(confusion, axis1=1, axis2=2), confusion.sum(1)
    precision = np.divide(hits, guessed, out=np.zeros(hits.shape), where=guessed > 0)
    return precision[:, list(present)].mean(1) if present else np.full(len(confusion), np.nan)


def _macro_f1(confusion: Floats, present: Sequence[int]) -> Floats:
    """(D,) mean F1 over the classes that occur; a class never guessed right has F1 zero."""
    hits = np.diagonal(confusion, axis1=1, axis2=2)
    f1 = _ratio(2 * hits, confusion.sum(1) + confusion.sum(2))
    return f1[:, list(present)].mean(1) if present else np.full(len(confusion), np.nan)


def _mcc(confusion: Floats) -> Floats:
    """(D,) multi-class correlation of Gorodkin 2004; zero, as scikit-learn has it, when all guesses are one class."""
    n, hits = confusion.sum((1, 2)), np.trace(confusion, axis1=1, axis2=2)
    true, guessed = confusion.sum(2), confusion.sum(1)
    cover = hits * n - (true * guessed).sum(1)
    spread = np.sqrt((n**2 - (guessed**2).sum(1)) * (n**2 - (true**2).sum(1)))
    return np.where(n > 0, np.divide(cover, spread, out=np.zeros_like(cover), where=spread > 0), np.nan)


def _ranked(positive: Floats, score: Floats) -> tuple[NDArray[np.int64], NDArray[np.int64], Floats]:
    """Rows with a target by falling score, where each run of equal scores ends, and which rows are positive."""
    rows = np.flatnonzero(np.isfinite(positive))
    rows = rows[np.argsort(-score[rows], kind="stable")]
    ends = np.flatnonzero(np.append(np.diff(score[rows]) != 0, True)) if len(rows) else rows
    return rows, ends, positive[rows]


def _auroc(positive: Floats, score: Floats) -> Score:
    """Area under the ROC curve, ties counted half; `positive` is 1, 0 or not a number where unknown."""
    rows, ends, is_positive = _ranked(positive, score)

    def area(w: Floats) -> Floats:
        tp = np.cumsum(w[:, rows] * is_positive, axis=1)[:, ends]
        fp = np.cumsum(w[:, rows] * (1 - is_positive), axis=1)[:, ends]
        zero = np.zeros((len(w), 1))
        steps, heights = np.diff(fp, prepend=zero), np.concatenate([zero, tp], axis=1)
        return _ratio((steps * (heights[:, 1:] + heights[:, :-1]) / 2).sum(1), tp[:, -1] * fp[:, -1])

    return area if len(rows) else lambda w: np.full(len(w), np.nan)


def _average_precision(positive: Floats, score: Floats) -> Score:
    """sum_n (R_n - R_{n-1}) P_n over the distinct scores, without interpolation."""
    rows, ends, is_positive = _ranked(positive, score)

    def area(w: Floats) -> Floats:
        tp = np.cumsum(w[:, rows] * is_positive, axis=1)[:, ends]
        n = np.cumsum(w[:, rows], axis=1)[:, ends]
        precision = np.divide(tp, n, out=np.zeros_like(tp), where=n > 0)
        return _ratio((np.diff(tp, prepend=np.zeros((len(w), 1))) * precision).sum(1), tp[:, -1])

    return area if len(rows) else lambda w: np.full(len(w), np.nan)


def _ece(confidence: Floats, right: Floats, known: NDArray[np.bool_]) -> Score:
    """Expected calibration error of the largest probability, over bins of equal mass fixed on the sample."""
    rank = np.zeros(len(confidence), dtype=np.int64)
    rank[np.flatnonzero(known)[np.argsort(confidence[known], kind="stable")]] = np.arange(known.sum())
    bins = rank * ECE_BINS // max(1, int(known.sum()))
    gap = np.eye(ECE_BINS)[bins] * ((confidence - right) * known)[:, None]  # (N, bins)
    return lambda w: _ratio(np.abs(w @ gap).sum(1), w @ known.astype(float))


def _one_against_rest(target: NDArray[np.int64], guess: NDArray[np.int64], score: Floats, one: int) -> dict[str, Score]:
    known = target >= 0
    true, guessed = (target == one).astype(float), ((guess == one) & known).astype(float)
    rest, other = known - true, known - guessed
    return {
        "sensitivity": lambda w: _ratio(w @ (true * guessed), w @ true),
        "specificity": lambda w: _ratio(w @ (rest * other), w @ rest),
        "ppv": lambda w: _ratio(w @ (true * guessed), w @ guessed),
        "npv": lambda w: _ratio(w @ (rest * other), w @ other),
        "f1": lambda w: _ratio(2 * (w @ (true * guessed)), w @ (true + guessed)),
        "auroc": _auroc(np.where(known, true, np.nan), score),
    }
