"""Scores as functions of a predictions table, each with an interval from resampling lesions. Without torch.

A lesion's photographs are alike, so the lesion is the unit that is resampled, or the lesions that duplicates join:
intervals from resampling photographs would be too narrow. Every score is a function of sums over photographs, so that
2,000 resamplings are a few products of matrices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, TypeVar

import cv2
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import csr_array

from skinmtl.errors import InputError
from skinmtl.runs import predictions
from skinmtl.runs.labels import stamps
from skinmtl.runs.predictions import check, dx_classes, mask_classes, pixel_columns

Floats = NDArray[np.float64]
Columns: TypeAlias = Floats | csr_array  # (C, N): of each photograph what is summed
Key = TypeVar("Key")

DRAWS = 2000
AT_ONCE = 4_000_000  # photographs times resamplings that are summed at a time: some 100 MB
INTERVAL = "95%, percentile bootstrap over {unit}, {draws} draws, seed {seed}"
JACCARD_THRESHOLD = 0.65  # below it an outline counts as failed: ISIC 2018 Task 1, arXiv:1902.03368
ECE_BINS = 15
MALIGNANT = ("akiec", "bcc", "mel")
CELLS = ("tn", "fp", "fn", "tp")  # of the confusion matrix of two classes, row by row: true, then predicted
TASKS = {"seg": "masks", "cls": "diagnoses"}
ABSENT = "undefined here: a class or a mask that it needs does not occur"
ALONE = "undefined: a single diagnosis occurs, so nothing is told apart"
BIASED = "no interval: resampling raises a calibration error, so that its percentiles would lie above its value"


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
            name: int(pixels) for name, pixels in zip(pixel_columns(classes), confusion.reshape(-1), strict=True)
        }
    return columns | {score: float(np.mean(list(values.values()))) for score, values in each.items()}


class Boundary(NamedTuple):
    """Distances in pixels between the edges of two masks: columns of a predictions table."""

    hd95: float
    hd95_pooled: float
    assd: float


def boundary(predicted: NDArray[np.uint8], target: NDArray[np.uint8]) -> Boundary:
    """How far the edges of two (H, W) masks are apart; all classes but the background count as lesion.

    (The edges of a band along an outline are that outline, moved: they would be told the same thing twice.)
    An edge is the lesion's pixels that touch its outside (4-neighbours; beyond the picture is outside). Of the
    distances of each edge's pixels to the other edge, `hd95` is the larger of the two directions' 95th percentiles, as
    MONAI has it; `assd` is the mean of both directions taken together, and `hd95_pooled` their 95th percentile, which
    was called HD95 here before and is lower: it goes with the next version. Two empty masks: 0. One empty mask: the
    picture's diagonal.
    """
    a, b = (np.asarray(mask > 0, dtype=np.uint8) for mask in (predicted, target))
    if not a.any() or not b.any():
        far = 0.0 if a.any() == b.any() else float(np.hypot(*a.shape))
        return Boundary(far, far, far)
    rows, columns = np.nonzero(a | b)
    box = np.s_[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    edges = [_edge(mask[box]) for mask in (a, b)]
    apart = [cv2.distanceTransform(1 - edge, cv2.DIST_L2, cv2.DIST_MASK_PRECISE) for edge in edges]
    # OpenCV's last bits follow where the picture lies in memory; squares of distances between pixels are whole numbers.
    there, back = (
        np.sqrt(np.rint(np.square(distances.astype(np.float64))))
        for distances in (apart[1][edges[0] > 0], apart[0][edges[1] > 0])
    )
    both = np.concatenate([there, back])
    directed = max(float(np.percentile(distances, 95)) for distances in (there, back))
    return Boundary(directed, float(np.percentile(both, 95)), float(both.mean()))


def _edge(mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    inner = cv2.erode(mask, cross, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    return mask - np.asarray(inner, dtype=np.uint8)


# --- a table ----------------------------------------------------------------------------------------------------------


def evaluate_file(path: Path) -> dict[str, Any]:
    """`evaluate` on a file; the classes are those of its columns, in their order."""
    table = read_predictions(path)
    return evaluate(table, dx_classes(table), mask_classes(table))


def read_predictions(path: Path) -> pd.DataFrame:
    """A predictions table from a file, fit to be scored; see `predictions.check`.

    Raises:
        Faults: every fault found.
    """
    table = predictions.read(path)
    check(table, str(path))
    return table


def evaluate(
    table: pd.DataFrame,
    dx_classes: Sequence[str],
    mask_classes: Sequence[str],
    draws: int = DRAWS,
    seed: int = 0,
    malignant: Sequence[str] = MALIGNANT,
) -> dict[str, Any]:
    """Every score of each part of a predictions table: what scores.json holds.

    A score is {value, low, high}, low and high the 95% interval, or {value: null, reason}; without an interval, low and
    high are null and the reason says why. `notes` are sentences on what was left out.

    Args:
        table: predictions, one row per photograph; tasks without columns have no scores.
        dx_classes: the diagnoses, in the order of the probabilities.
        mask_classes: background first.
        draws: resamplings of lesions.
        seed: of the resampling.
        malignant: diagnoses told from the rest by `malignant_auroc`; no such score where one of them is no class.

    Raises:
        Faults: what `predictions.check` refuses.
    """
    check(table)
    parts, notes = {}, []
    for part, rows in table.groupby("split", sort=False):
        sample = Sample.of(rows.reset_index(drop=True), dx_classes, draws, seed)
        parts[str(part)] = {
            "n_images": len(rows),
            "n_lesions": sample.lesions,
            "n_resampled": sample.units,
            "scores": {task: sample.all(scores) for task, scores in sample.scores(mask_classes, malignant).items()},
        }
        parts[str(part)] |= sample.per_class() | sample.per_mask_class(mask_classes)
        notes += predictions.left_out(rows, str(part))
    notes += _on_two_sides(table)
    said = {
        "stamp": stamps(predictions.marks(table)) or None,
        "version": predictions.VERSION,
        "interval": INTERVAL.format(unit=predictions.units(table)[1], draws=draws, seed=seed),
        "notes": notes,
    }
    return said | {"parts": parts}


def _on_two_sides(table: pd.DataFrame) -> list[str]:
    """A sentence where the parts of a table have lesions in common."""
    unit = predictions.units(table)[0]
    parts = table["split"].groupby(unit.to_numpy()).nunique()
    if count := int((parts > 1).sum()):
        return [f"{count} of {len(parts)} lesions are in several splits: what chose the model, or trained it, tests it"]
    return []


# --- two tables -------------------------------------------------------------------------------------------------------


def paired(first: pd.DataFrame, second: pd.DataFrame, part: str = "test", seed: int = 0) -> dict[str, dict[str, float]]:
    """First minus second for each score that both tables have, on the same photographs and the same resampled lesions.

    A photograph whose mask or diagnosis is missing in one table counts in neither; `uncompared` says how many.
    Gives first, second, difference, low and high (95%) by score name; low and high are not a number for a score that
    has no interval.

    Raises:
        InputError: the tables are of different photographs, lesions, diagnoses, classes or sizes, or have no task in
            common.
    """
    tables = _both(first, second, part)
    classes = dx_classes(tables[0]) or dx_classes(tables[1])
    samples = [Sample.of(table.reset_index(), classes, DRAWS, seed) for table in tables]
    scores = [
        {name: score for task in sample.scores(mask_classes(table)).values() for name, score in task.items()}
        for sample, table in zip(samples, tables, strict=True)
    ]
    names = [name for name in scores[0] if name in scores[1]]
    points = [sample.once(each) for sample, each in zip(samples, scores, strict=True)]
    names = [name for name in names if np.isfinite([point[name] for point in points]).all()]
    drawn = [sample.drawn({name: each[name] for name in names}) for sample, each in zip(samples, scores, strict=True)]
    result = {}
    for name in names:
        apart = drawn[0][name] - drawn[1][name]
        told = scores[0][name].no_interval is None and np.isfinite(apart).any()
        low, high = np.nanpercentile(apart, [2.5, 97.5]) if told else (np.nan, np.nan)
        a, b = (point[name] for point in points)
        result[name] = {"first": a, "second": b, "difference": a - b, "low": float(low), "high": float(high)}
    return result


def uncompared(first: pd.DataFrame, second: pd.DataFrame, part: str = "test") -> list[str]:
    """What `paired` leaves out of two tables, a sentence each."""
    tables = [table[table["split"] == part].set_index("image_id").sort_index() for table in (first, second)]
    said = []
    for task, name in TASKS.items():
        has = [task in tasks(table) for table in tables]
        if has[0] != has[1]:
            said.append(f"only the {'first' if has[0] else 'second'} table has {name}: they are not compared")
        elif all(has):
            column = {"seg": "dice", "cls": "dx"}[task]
            known = [table[column].notna() for table in tables]
            if count := int((known[0] & known[1]).eq(False).sum()):
                mine, theirs = (int((~each).sum()) for each in known)
                what = f"{count} of {len(tables[0])} photographs left out, whose {column} is missing"
                said.append(f"{name}: {what} ({mine} in the first table, {theirs} in the second)")
    doubts = [predictions.doubts(table.reset_index()) for table in tables]
    return said + list(dict.fromkeys(sentence for each in doubts for sentence in each))


def tasks(table: pd.DataFrame) -> set[str]:
    """The tasks that a table has columns of."""
    return {task for task, there in (("seg", "dice" in table), ("cls", bool(dx_classes(table)))) if there}


def _both(first: pd.DataFrame, second: pd.DataFrame, part: str) -> list[pd.DataFrame]:
    """Two tables by image id, each without what the other does not know of a photograph."""
    tables = [table[table["split"] == part].set_index("image_id").sort_index() for table in (first, second)]
    _comparable(tables[0], tables[1], part)
    measures = [name for name in tables[0] if predictions.is_number(str(name)) and not str(name).startswith("prob_")]
    for name in ("dx", *measures):
        if name in tables[0] and name in tables[1]:
            known = tables[0][name].notna() & tables[1][name].notna()
            tables = [table.assign(**{str(name): table[name].where(known)}) for table in tables]
    grouped = next((table["group"] for table in tables if "group" in table), None)
    return tables if grouped is None else [table.assign(group=grouped) for table in tables]


def _comparable(first: pd.DataFrame, second: pd.DataFrame, part: str) -> None:
    """Refuse two tables, by image id, that do not speak of the same things."""
    fix = "compare tables of one split"
    if not first.index.equals(second.index):
        count = len(first.index.symmetric_difference(second.index))
        raise InputError("predictions", f"{count} photographs are in one table only", fix)
    if first.empty:
        raise InputError("predictions", f"no {part} rows", "evaluate the runs first")
    _same_names(first, second, fix)
    if not tasks(first) & tasks(second):
        has = [" and ".join(TASKS[task] for task in TASKS if task in tasks(table)) for table in (first, second)]
        what = f"nothing to compare: the first table has {has[0]}, the second {has[1]}"
        raise InputError("predictions", what, "compare tables of the same task")
    classes = [dx_classes(table) for table in (first, second)]
    if all(classes) and set(classes[0]) != set(classes[1]):
        odd = ", ".join(sorted(set(classes[0]) ^ set(classes[1])))
        raise InputError("predictions", f"classes of one table only: {odd}", "compare runs of the same classes")
    masks = [mask_classes(table) for table in (first, second)]
    if all(masks) and masks[0] != masks[1]:
        what = f"mask classes {', '.join(masks[0])} and {', '.join(masks[1])}"
        raise InputError("predictions", what, "compare runs of the same classes")
    _same_sizes(first, second)


def _same_names(first: pd.DataFrame, second: pd.DataFrame, fix: str) -> None:
    for name in ("lesion_id", "group", "dx"):
        if name in first and name in second:
            a, b = (table[name].astype("object") for table in (first, second))
            differ = (a != b) & ~(a.isna() & b.isna())
            if name == "dx":  # where one does not know it, neither counts it
                differ &= a.notna() & b.notna()
            if differ.any():
                raise InputError("predictions", f"{name} of {int(differ.sum())} photographs differs", fix)


def _same_sizes(first: pd.DataFrame, second: pd.DataFrame) -> None:
    mine, theirs = _sizes(first), _sizes(second)
    differ = (mine != theirs) & mine.notna() & theirs.notna()
    if differ.any():
        place = int(differ.argmax())
        what = (
            f"{first.index[place]}: {mine.iloc[place]:.0f} pixels in one table, {theirs.iloc[place]:.0f} in the other"
        )
        what += f" ({int(differ.sum())} photographs)"
        raise InputError("predictions", what, "count the pixels of both at the photographs' own sizes")


def _sizes(table: pd.DataFrame) -> pd.Series:
    """Pixels of each photograph, as they were counted."""
    if names := mask_classes(table)[1:]:
        return table[[f"{count}_{names[0]}" for count in predictions.COUNTS]].sum(axis=1, skipna=False)
    return pd.Series(np.nan, index=table.index)


# --- resampling -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Score:
    """A score as a function of sums over photographs.

    Attributes:
        columns: what is summed; those that several scores share are summed once.
        of: the score in each of D samples, (D,), from the sums of each of the columns, (C, D); not a number where it is
            undefined. None where it is, whatever the sample.
        undefined: why, where it is undefined.
        no_interval: why its percentiles are no interval, where they are none.
    """

    columns: tuple[Columns, ...]
    of: Callable[..., Floats] | None
    undefined: str = ABSENT
    no_interval: str | None = None


@dataclass(frozen=True, eq=False)
class Sample:
    """The rows of one part, N photographs, and how often each of its U units is counted in each of D resamplings."""

    table: pd.DataFrame
    classes: Sequence[str]
    lesions: int
    unit_of: NDArray[np.int64]  # (N,)
    counts: NDArray[np.uint8]  # (U, D); of 256 or more units none is drawn 256 times in the age of the universe

    @classmethod
    def of(cls, table: pd.DataFrame, classes: Sequence[str], draws: int, seed: int) -> Sample:
        """A part of a table, its lesions, or the groups that hold several, resampled `draws` times."""
        unit_of, names = pd.factorize(predictions.units(table)[0])
        units = len(names)
        counts, rng = np.empty((units, draws), dtype=np.uint8), np.random.default_rng(seed)
        for place in _portions(draws, len(table)):
            size = place.stop - place.start
            counts[:, place] = rng.multinomial(units, np.full(units, 1 / units), size=size).T
        lesions = int(table["lesion_id"].fillna(table["image_id"]).nunique())
        return cls(table, tuple(classes), lesions, unit_of.astype(np.int64), counts)

    @property
    def units(self) -> int:
        """How many there are to be resampled."""
        return len(self.counts)

    def once(self, scores: Mapping[Key, Score]) -> dict[Key, float]:
        """Each score of the photographs themselves, every one counted once."""
        ones, sums = np.ones((1, len(self.table))), dict[int, Floats]()
        for columns in _distinct(scores):
            if isinstance(columns, csr_array):
                sums[id(columns)] = columns @ ones.T
            else:
                sums[id(columns)] = np.array([ones @ column for column in columns])
        return {key: float(_scored(score, sums, 1)[0]) for key, score in scores.items()}

    def drawn(self, scores: Mapping[Key, Score]) -> dict[Key, Floats]:
        """Each score in each resampling, (D,)."""
        unit = csr_array((np.ones(len(self.unit_of)), (np.arange(len(self.unit_of)), self.unit_of)))  # (N, U)
        by_unit: dict[int, Columns] = {id(columns): columns @ unit for columns in _distinct(scores)}
        dense = {name: columns for name, columns in by_unit.items() if not isinstance(columns, csr_array)}
        stacked = np.concatenate(list(dense.values())) if dense else np.empty((0, self.units))
        ends = np.cumsum([len(columns) for columns in dense.values()])[:-1]
        draws = self.counts.shape[1]
        found = {key: np.empty(draws) for key in scores}
        for place in _portions(draws, len(self.table)):
            weights = self.counts[:, place].astype(np.float64)  # (U, D)
            sums = dict(zip(dense, np.split(stacked @ weights, ends), strict=True)) if dense else {}
            sums |= {name: columns @ weights for name, columns in by_unit.items() if name not in dense}
            for key, score in scores.items():
                found[key][place] = _scored(score, sums, weights.shape[1])
        return found

    def all(self, scores: Mapping[Key, Score]) -> dict[Key, dict[str, Any]]:
        """Each score's value and interval; null with a reason where it is undefined. Undefined draws are left out."""
        values = self.once(scores)
        wanted = {key: score for key, score in scores.items() if np.isfinite(values[key]) and not score.no_interval}
        drawn = self.drawn(wanted) if self.units > 1 else {}
        found: dict[Key, dict[str, Any]] = {}
        for key, score in scores.items():
            value = values[key]
            if not np.isfinite(value):
                found[key] = {"value": None, "reason": score.undefined}
            elif key in drawn and np.isfinite(drawn[key]).any():
                low, high = np.nanpercentile(drawn[key], [2.5, 97.5])
                found[key] = {"value": value, "low": float(low), "high": float(high)}
            else:
                reason = score.no_interval or "no interval: too few lesions to resample"
                found[key] = {"value": value, "low": None, "high": None, "reason": reason}
        return found

    def value(self, score: Score) -> dict[str, Any]:
        """`all` of one score."""
        return self.all({"": score})[""]

    def scores(self, mask_classes: Sequence[str], malignant: Sequence[str] = MALIGNANT) -> dict[str, dict[str, Score]]:
        """Scores by task and name, for the tasks that the table has columns of; `mask_classes` background first."""
        found: dict[str, dict[str, Score]] = {}
        if "dice" in self.table:
            found["seg"] = _mask_scores(self.table, mask_classes)
        if self._has_diagnoses:
            found["cls"] = _diagnosis_scores(self._diagnoses, self.classes, malignant)
        return found

    @property
    def _has_diagnoses(self) -> bool:
        return bool(self.classes) and f"prob_{self.classes[0]}" in self.table

    @cached_property
    def _diagnoses(self) -> Diagnoses:
        index = {name: i for i, name in enumerate(self.classes)}
        target = np.asarray(self.table["dx"].astype("object").map(index).fillna(-1), dtype=np.int64)
        p: Floats = self.table[[f"prob_{name}" for name in self.classes]].to_numpy(dtype=np.float64)
        return Diagnoses(target, p)

    def per_class(self) -> dict[str, Any]:
        """Scores of each diagnosis against the rest, and the confusion matrix, (true, predicted)."""
        if not self._has_diagnoses:
            return {}
        of = self._diagnoses
        k = len(self.classes)
        counts = np.bincount(of.cell[of.known], minlength=k * k).reshape(k, k)
        scores = {(name, score): one for i, name in enumerate(self.classes) for score, one in of.against(i).items()}
        found = self.all(scores)
        classes = {}
        for i, name in enumerate(self.classes):
            mine = self.table[of.target == i]
            classes[name] = {
                "n_images": len(mine),
                "n_lesions": int(mine["lesion_id"].fillna(mine["image_id"]).nunique()),
                **{score: value for (which, score), value in found.items() if which == name},
            }
        return {"classes": classes, "confusion": counts.tolist()}

    def per_mask_class(self, names: Sequence[str]) -> dict[str, Any]:
        """Scores of each mask class, background too, and the confusion matrix of all pixels, (true, predicted)."""
        if "dice" not in self.table or not names:
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


def _portions(draws: int, photographs: int) -> Iterator[slice]:
    size = min(200, max(16, AT_ONCE // max(1, photographs)))
    return (slice(start, min(start + size, draws)) for start in range(0, draws, size))


def _distinct(scores: Mapping[Key, Score]) -> list[Columns]:
    """The columns of scores, each once."""
    return list({id(columns): columns for score in scores.values() for columns in score.columns}.values())


def _scored(score: Score, sums: Mapping[int, Floats], draws: int) -> Floats:
    return np.full(draws, np.nan) if score.of is None else score.of(*(sums[id(columns)] for columns in score.columns))


# --- scores of sums ---------------------------------------------------------------------------------------------------


def _mean(values: Floats) -> Score:
    """Weighted mean of the values that there are."""
    has = np.isfinite(values)
    return Score((np.stack([np.where(has, values, 0), has]),), lambda s: _ratio(s[0], s[1]))


def _quantiles(values: Floats, shares: Sequence[float]) -> list[Score]:
    """For each share the smallest value with at least that share of the weight at or below it."""
    places = np.flatnonzero(np.isfinite(values))
    distinct, rank = np.unique(values[places], return_inverse=True)
    columns = csr_array((np.ones(len(places)), (rank, places)), shape=(len(distinct), len(values)))

    def of(q: float) -> Callable[[Floats], Floats]:
        def score(s: Floats) -> Floats:
            cumulated = np.cumsum(s, axis=0)
            below = (cumulated < q * cumulated[-1] - 1e-9).sum(0)
            return np.where(cumulated[-1] > 0, distinct[below], np.nan)

        return score

    return [Score((columns,), of(q)) if len(places) else Score((), None) for q in shares]


def _ratio(a: Floats, b: Floats) -> Floats:
    ratio: Floats = np.divide(a, b, out=np.full(np.broadcast(a, b).shape, np.nan), where=b != 0)
    return ratio


def _pixels(table: pd.DataFrame, classes: Sequence[str]) -> Floats:
    """(N, M, M) pixels by true and predicted class; not a number where a photograph has no mask."""
    names = pixel_columns(classes) if len(classes) > 2 else [f"{count}_{classes[1]}" for count in CELLS]
    pixels: Floats = table[names].to_numpy(dtype=np.float64)
    return pixels.reshape(-1, len(classes), len(classes))


def _agreement(pixels: Floats, one: int) -> tuple[Floats, Floats, Floats]:
    """tp, fp and fn, (...), of one class in confusion matrices (..., M, M)."""
    tp = pixels[..., one, one]
    return tp, pixels[..., :, one].sum(-1) - tp, pixels[..., one, :].sum(-1) - tp


def _one_mask_class(tp: Floats, fp: Floats, fn: Floats) -> dict[str, Score]:
    """Scores of one mask class from its pixels, (N,) each: of a photograph, and of all photographs' pixels pooled."""
    agree = np.where(np.isfinite(tp), 1.0, np.nan)  # where neither mask has the class
    either = tp + fp + fn > 0
    return {
        "mean_image_dice": _mean(np.where(either, _ratio(2 * tp, 2 * tp + fp + fn), agree)),
        "mean_image_iou": _mean(np.where(either, _ratio(tp, tp + fp + fn), agree)),
        "mean_image_precision": _mean(_ratio(tp, tp + fp)),
        "mean_image_recall": _mean(_ratio(tp, tp + fn)),
    } | _pooled(np.nan_to_num(np.stack([tp, fp, fn])))


def _pooled(columns: Floats) -> dict[str, Score]:
    """Scores of one mask class from the pixels of all photographs together; `columns` tp, fp and fn, (3, N)."""
    return {
        "pooled_dice": Score((columns,), _pooled_dice),
        "pooled_iou": Score((columns,), lambda s: _ratio(s[0], s[0] + s[1] + s[2])),
        "pooled_precision": Score((columns,), lambda s: _ratio(s[0], s[0] + s[1])),
        "pooled_recall": Score((columns,), lambda s: _ratio(s[0], s[0] + s[2])),
    }


def _pooled_dice(s: Floats) -> Floats:
    return _ratio(2 * s[0], 2 * s[0] + s[1] + s[2])


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
    median, low = _quantiles(column["dice"], (0.5, 0.05))
    scores = {
        "mean_image_dice": _mean(column["dice"]),
        "median_image_dice": median,
        "p5_image_dice": low,
        "mean_image_iou": _mean(column["iou"]),
        "thresholded_jaccard": _mean(jaccard),
        "failure_rate": _mean(failed),
    }
    for name in ("dice_input", "hd95", "hd95_pooled", "assd"):
        if name in table:
            scores[f"mean_image_{name}"] = _mean(table[name].to_numpy(dtype=np.float64))
    return scores | (_pixel_scores(_pixels(table, classes)) if classes else {})


def _pixel_scores(pixels: Floats) -> dict[str, Score]:
    """Scores of all mask classes together from their pixels, (N, M, M)."""
    classes = pixels.shape[1]
    total = pixels.sum((1, 2))
    each = [_agreement(pixels, i) for i in range(1, classes)]  # all but the background
    scores = {
        "mean_image_sensitivity": _mean(_mean_known([_ratio(tp, tp + fn) for tp, _, fn in each])),
        "mean_image_specificity": _mean(
            _mean_known([_ratio(total - tp - fp - fn, total - tp - fn) for tp, fp, fn in each])
        ),
        "mean_image_precision": _mean(_mean_known([_ratio(tp, tp + fp) for tp, fp, _ in each])),
    }
    counts = tuple(np.nan_to_num(np.stack(each_class)) for each_class in each)
    scores["pooled_dice"] = Score(counts, lambda *sums: _mean_known([_pooled_dice(s) for s in sums]))
    flat = (np.nan_to_num(pixels.reshape(len(pixels), -1)).T.copy(),)

    def mean_iou(s: Floats) -> Floats:
        each = [_agreement(_square(s), i) for i in range(classes)]
        return _mean_known([_ratio(tp, tp + fp + fn) for tp, fp, fn in each])

    scores["pooled_mean_iou"] = Score(flat, mean_iou)
    scores["pooled_accuracy"] = Score(flat, lambda s: _accuracy(_square(s)))
    scores["pooled_mcc"] = Score(flat, lambda s: _mcc(_square(s)))
    return scores


def _square(s: Floats) -> Floats:
    """Sums of the cells of a confusion matrix, (K * K, D), as matrices, (D, K, K)."""
    k = round(np.sqrt(len(s)))
    return s.T.reshape(-1, k, k)


class Diagnoses:
    """True and predicted diagnoses of N photographs, and the columns that their scores share.

    Args:
        target: (N,) index of the true class, -1 where unknown.
        p: (N, K) probabilities.
    """

    def __init__(self, target: NDArray[np.int64], p: Floats) -> None:
        self.target, self.p = target, p
        self.known, self.k = target >= 0, p.shape[1]
        self.guess = p.argmax(1)
        self.cell = np.where(self.known, target * self.k + self.guess, 0)  # of the confusion matrix
        self.present = sorted(set(target[self.known].tolist()))
        self.confusion: Floats = (np.eye(self.k**2)[self.cell] * self.known[:, None]).T.copy()  # (K*K, N)
        self.ranks = [self.ranked(target == i, p[:, i]) for i in range(self.k)]

    def ranked(self, positive: NDArray[np.bool_], score: Floats) -> csr_array:
        """`_ranks` of the photographs whose diagnosis is known."""
        return _ranks(np.where(self.known, positive, np.nan), score)

    def against(self, one: int) -> dict[str, Score]:
        """Scores of one diagnosis against the rest."""

        def of(ratio: Callable[[Floats, Floats, Floats, Floats], Floats]) -> Score:
            def score(s: Floats) -> Floats:
                matrix = _square(s)
                tp, fp, fn = _agreement(matrix, one)
                return ratio(tp, fp, fn, matrix.sum((1, 2)) - tp - fp - fn)

            return Score((self.confusion,), score)

        return {
            "sensitivity": of(lambda tp, fp, fn, tn: _ratio(tp, tp + fn)),
            "specificity": of(lambda tp, fp, fn, tn: _ratio(tn, tn + fp)),
            "ppv": of(lambda tp, fp, fn, tn: _ratio(tp, tp + fp)),
            "npv": of(lambda tp, fp, fn, tn: _ratio(tn, tn + fn)),
            "f1": of(lambda tp, fp, fn, tn: _ratio(2 * tp, 2 * tp + fp + fn)),
            "auroc": Score((self.ranks[one],), _auroc),
        }


def _diagnosis_scores(of: Diagnoses, classes: Sequence[str], malignant: Sequence[str]) -> dict[str, Score]:
    known, present, p = of.known, of.present, of.p
    own = p[np.arange(len(p)), np.clip(of.target, 0, None)]
    truth = np.eye(of.k)[np.clip(of.target, 0, None)]
    missing = np.where(known, 0.0, np.nan)
    confidence, right = p.max(1), (of.guess == of.target).astype(float)
    counts, ranks = (of.confusion,), tuple(of.ranks[i] for i in present)
    scores = {
        "balanced_accuracy": Score(counts, lambda s: _balanced_accuracy(_square(s), present)),
        "accuracy": Score(counts, lambda s: _accuracy(_square(s))),
        "macro_auroc": Score(ranks, _average(_auroc)),
        "macro_average_precision": Score(ranks, _average(_average_precision)),
        "macro_precision": Score(counts, lambda s: _macro_precision(_square(s), present)),
        "macro_f1": Score(counts, lambda s: _macro_f1(_square(s), present)),
        "mcc": Score(counts, lambda s: _mcc(_square(s))),
        "nll": _mean(-np.log(np.clip(own, 1e-15, 1)) + missing),
        "brier": _mean(((p - truth) ** 2).sum(1) + missing),
        "ece": _calibration_error(_equal_widths(confidence), confidence, right, known),
        "ece_rank_bins": _calibration_error(_equal_masses(confidence, known), confidence, right, known),
    }
    if malignant and set(malignant) <= set(classes):
        risk = [classes.index(name) for name in malignant]
        scores["malignant_auroc"] = Score((of.ranked(np.isin(of.target, risk), p[:, risk].sum(1)),), _auroc)
    if len(present) == 1:
        stay = ("accuracy", "nll", "brier", "ece", "ece_rank_bins") if of.k > 1 else ()
        scores = {name: score if name in stay else Score((), None, ALONE) for name, score in scores.items()}
    elif not present:
        scores = {name: Score((), None) for name in scores}
    return scores


def _average(of: Callable[[Floats], Floats]) -> Callable[..., Floats]:
    """The mean of a score over several; undefined where one is."""
    return lambda *sums: np.mean([of(s) for s in sums], axis=0)


def _accuracy(confusion: Floats) -> Floats:
    """(D,) share on the diagonal."""
    return _ratio(np.trace(confusion, axis1=1, axis2=2), confusion.sum((1, 2)))


def _balanced_accuracy(confusion: Floats, present: Sequence[int]) -> Floats:
    """(D,) mean recall over the classes that occur in the sample; undefined in a draw that lacks one."""
    recall = _ratio(np.diagonal(confusion, axis1=1, axis2=2), confusion.sum(2))
    mean: Floats = recall[:, list(present)].mean(1)
    return mean


def _macro_precision(confusion: Floats, present: Sequence[int]) -> Floats:
    """(D,) mean precision over the classes that occur; a class that is never guessed has precision zero."""
    hits, guessed = np.diagonal(confusion, axis1=1, axis2=2), confusion.sum(1)
    precision = np.divide(hits, guessed, out=np.zeros(hits.shape), where=guessed > 0)
    mean: Floats = precision[:, list(present)].mean(1)
    return mean


def _macro_f1(confusion: Floats, present: Sequence[int]) -> Floats:
    """(D,) mean F1 over the classes that occur; a class never guessed right has F1 zero."""
    hits = np.diagonal(confusion, axis1=1, axis2=2)
    f1 = _ratio(2 * hits, confusion.sum(1) + confusion.sum(2))
    mean: Floats = f1[:, list(present)].mean(1)
    return mean


def _mcc(confusion: Floats) -> Floats:
    """(D,) multi-class correlation of Gorodkin 2004; zero, as scikit-learn has it, when all guesses are one class."""
    n, hits = confusion.sum((1, 2)), np.trace(confusion, axis1=1, axis2=2)
    true, guessed = confusion.sum(2), confusion.sum(1)
    cover = hits * n - (true * guessed).sum(1)
    spread = np.sqrt((n**2 - (guessed**2).sum(1)) * (n**2 - (true**2).sum(1)))
    return np.where(n > 0, np.divide(cover, spread, out=np.zeros_like(cover), where=spread > 0), np.nan)


def _ranks(positive: Floats, score: Floats) -> csr_array:
    """Columns of the curves of one class: where the others stand among the G distinct scores that its rows have.

    Args:
        positive: (N,) 1, 0 or not a number where unknown.
        score: (N,) the higher, the more likely positive.

    Returns:
        (3G + 1, N): by falling score the positive rows of each, the others of that very score, the others between it
        and the score above it; last the others below all.
    """
    rows = np.flatnonzero(np.isfinite(positive))
    is_positive = positive[rows] == 1
    levels = np.unique(-score[rows][is_positive])
    place = np.searchsorted(levels, -score[rows])
    tied = np.append(levels, np.nan)[place] == -score[rows]
    g = len(levels)
    column = np.where(is_positive, place, np.where(tied, g + place, 2 * g + place))
    return csr_array((np.ones(len(rows)), (column, rows)), shape=(3 * g + 1, len(positive)))


def _curve(s: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """From sums of `_ranks`: at each score of the class its own, (G, D), the others' and those above; all others."""
    g = (len(s) - 1) // 3
    own, tied, between = s[:g], s[g : 2 * g], s[2 * g : 3 * g]
    above = np.cumsum(between, axis=0) + np.cumsum(tied, axis=0) - tied
    return own, tied, above, s[g:].sum(0)


def _auroc(s: Floats) -> Floats:
    """Area under the ROC curve, ties counted half."""
    own, tied, above, others = _curve(s)
    return _ratio((own * (others - above - tied / 2)).sum(0), own.sum(0) * others)


def _average_precision(s: Floats) -> Floats:
    """sum_n (R_n - R_{n-1}) P_n over the distinct scores, without interpolation."""
    own, tied, above, _ = _curve(s)
    hits = np.cumsum(own, axis=0)
    n = hits + above + tied
    precision = np.divide(hits, n, out=np.zeros_like(hits), where=n > 0)
    return _ratio((own * precision).sum(0), own.sum(0))


def _equal_widths(confidence: Floats) -> NDArray[np.int64]:
    """The bin of each confidence among ECE_BINS of equal width, lower edges in; 1 itself is one more."""
    # With the step of torch.linspace and from both ends, as it does, so that what lies on an edge falls as there.
    step, place = float(np.float32(1) / np.float32(ECE_BINS)), np.arange(ECE_BINS + 1)
    edges = np.where(place < (ECE_BINS + 1) // 2, step * place, 1 - step * (ECE_BINS - place))
    return np.searchsorted(edges.astype(np.float32), confidence.astype(np.float32), side="right") - 1


def _equal_masses(confidence: Floats, known: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The bin of each confidence among ECE_BINS of equal numbers; equal ones are parted by the order of the rows."""
    rank = np.zeros(len(confidence), dtype=np.int64)
    rank[np.flatnonzero(known)[np.argsort(confidence[known], kind="stable")]] = np.arange(known.sum())
    return rank * ECE_BINS // max(1, int(known.sum()))


def _calibration_error(bins: NDArray[np.int64], confidence: Floats, right: Floats, known: NDArray[np.bool_]) -> Score:
    """Expected calibration error of the largest probability: gaps of bins, weighted by their photographs.

    `ece` is that of Guo et al. 2017, arXiv:1706.04599, as torchmetrics has it (multiclass_calibration_error, l1): bins
    of equal width. `ece_rank_bins`, which was called ECE here before, has bins of equal numbers: where confidences are
    equal it depends on the order of the rows. It goes with the next version.
    """
    gaps = np.eye(ECE_BINS + 1)[bins].T * ((confidence - right) * known)
    columns = np.concatenate([gaps, known[None].astype(float)])
    return Score((columns,), lambda s: _ratio(np.abs(s[:-1]).sum(0), s[-1]), no_interval=BIASED)
