"""How a segmentation is scored: Dice, IoU and distances of each image, and the pixels of all images together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from skinmtl.data.images.reading import fit_mask
from skinmtl.errors import InputError
from skinmtl.figures.palette import BLUE
from skinmtl.runs import predictions
from skinmtl.runs.labels import said, score_words
from skinmtl.runs.predictions import COUNTS, LENGTHS, ROUNDING, SHARES, Fault, measure
from skinmtl.tasks.confusion import accuracy, agreement, matrices, mcc
from skinmtl.tasks.resampling import Floats, Resampling, Score, mean, mean_known, quantiles, ratio
from skinmtl.tasks.scoring import Cell, Chart, Metric, Scoring, Section, Shown, Table
from skinmtl.tasks.segmentation.agreement import boundary, overlap, pixel_columns

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from skinmtl.tasks.segmentation.prediction import MaskPrediction

JACCARD_THRESHOLD = 0.65  # below it a mask counts as failed: ISIC 2018 Task 1, arXiv:1902.03368
CELLS = ("tn", "fp", "fn", "tp")  # of the confusion matrix of two classes, row by row: true, then predicted
EXAMPLES = 6  # images of each gallery
DISTANCES = ("dice_input", "hd95", "hd95_pooled", "assd")
BACKGROUND = "skin"  # the first mask class, where a table names only the others


class Masks:
    """How masks agree in N images, as the columns of a table have it.

    Args:
        table: columns dice and iou, others where they are.
        classes: mask classes, background first; none where the table counts no pixels.
    """

    def __init__(self, table: pd.DataFrame, classes: Sequence[str]) -> None:
        self.table = table
        self.dice, self.iou = (table[name].to_numpy(dtype=np.float64) for name in ("dice", "iou"))
        self.pixels = pixels(table, classes) if classes else None

    def mean_of(self, name: str) -> Score | None:
        """The mean of a column that the table may have."""
        return mean(self.table[name].to_numpy(dtype=np.float64)) if name in self.table else None

    @cached_property
    def low_dice(self) -> list[Score]:
        """Median and 5th percentile of Dice."""
        return quantiles(self.dice, (0.5, 0.05))

    def where_iou(self, values: Floats) -> Score:
        """The mean of values over the images that have an IoU."""
        return mean(np.where(np.isfinite(self.iou), values, np.nan))

    @cached_property
    def each(self) -> list[tuple[Floats, Floats, Floats]]:
        """tp, fp and fn, (N,), of each class but the background."""
        assert self.pixels is not None
        return [agreement(self.pixels, i) for i in range(1, self.pixels.shape[1])]

    @cached_property
    def cells(self) -> tuple[Floats]:
        """The confusion matrix of each image's pixels, (M * M, N)."""
        assert self.pixels is not None
        return (np.nan_to_num(self.pixels.reshape(len(self.pixels), -1)).T.copy(),)


def _of_pixels(of: Callable[[Masks], Score]) -> Callable[[Masks], Score | None]:
    """A score of a table that counts pixels."""
    return lambda masks: None if masks.pixels is None else of(masks)


def _sensitivity(masks: Masks) -> Score:
    return mean(mean_known([ratio(tp, tp + fn) for tp, _, fn in masks.each]))


def _specificity(masks: Masks) -> Score:
    assert masks.pixels is not None
    total = masks.pixels.sum((1, 2))
    return mean(mean_known([ratio(total - tp - fp - fn, total - tp - fn) for tp, fp, fn in masks.each]))


def _pooled_dice(masks: Masks) -> Score:
    counts = tuple(np.nan_to_num(np.stack(one)) for one in masks.each)
    return Score(counts, lambda *sums: mean_known([_dice(s) for s in sums]))


def _mean_iou(s: Floats) -> Floats:
    """Of all classes, the background too, from the sums of a confusion matrix's cells."""
    cells = matrices(s)
    each = [agreement(cells, i) for i in range(cells.shape[1])]
    return mean_known([ratio(tp, tp + fp + fn) for tp, fp, fn in each])


class SegmentationScoring(Scoring):
    """Masks: their scores are means over images at each image's own size, or of all images' pixels pooled.

    Args:
        name: the task's.
        classes: mask classes, background first; none where a table counts no pixels.
    """

    plain = "seg"
    nouns = ("mask", "masks")
    place = 1
    is_measured = True
    short = "Dice"
    curves = {"mean_image_dice": "Dice per image"}
    colour = BLUE
    subgroups = {"mean_image_dice": "Dice"}
    metrics: dict[str, Metric] = {
        "mean_image_dice": Metric("Dice, mean over images", lambda m: mean(m.dice), headline=0),
        "median_image_dice": Metric("Dice, median", lambda m: m.low_dice[0], compared=False),
        "p5_image_dice": Metric("Dice, 5th percentile", lambda m: m.low_dice[1], compared=False),
        "mean_image_iou": Metric("IoU, mean over images", lambda m: mean(m.iou), headline=2),
        "thresholded_jaccard": Metric(
            "IoU, zero below 0.65",
            lambda m: m.where_iou(np.where(m.iou >= JACCARD_THRESHOLD, m.iou, 0)),
            compared=False,
        ),
        "failure_rate": Metric(
            "Share of images with IoU below 0.65",
            lambda m: m.where_iou((m.iou < JACCARD_THRESHOLD).astype(float)),
            compared=False,
            lower_is_better=True,
        ),
        "mean_image_dice_input": Metric(
            "Dice at the network's size", lambda m: m.mean_of("dice_input"), compared=False
        ),
        "mean_image_hd95": Metric(
            "HD95, pixels of the image", lambda m: m.mean_of("hd95"), compared=False, lower_is_better=True
        ),
        "mean_image_hd95_pooled": Metric(
            "HD95 of both directions pooled, as before version 2",
            lambda m: m.mean_of("hd95_pooled"),
            compared=False,
            lower_is_better=True,
        ),
        "mean_image_assd": Metric(
            "ASSD, pixels of the image", lambda m: m.mean_of("assd"), compared=False, lower_is_better=True
        ),
        "mean_image_sensitivity": Metric(
            "Sensitivity of pixels, mean over images", _of_pixels(_sensitivity), compared=False
        ),
        "mean_image_specificity": Metric(
            "Specificity of pixels, mean over images", _of_pixels(_specificity), compared=False
        ),
        "mean_image_precision": Metric(
            "Precision of pixels, mean over images",
            _of_pixels(lambda m: mean(mean_known([ratio(tp, tp + fp) for tp, fp, _ in m.each]))),
            compared=False,
        ),
        "pooled_dice": Metric("Dice, pixels of all images pooled", _of_pixels(_pooled_dice), compared=False),
        "pooled_mean_iou": Metric(
            "IoU, mean over mask classes with the background, pixels pooled",
            _of_pixels(lambda m: Score(m.cells, _mean_iou)),
            compared=False,
        ),
        "pooled_accuracy": Metric(
            "Accuracy of pixels, pooled",
            _of_pixels(lambda m: Score(m.cells, lambda s: accuracy(matrices(s)))),
            compared=False,
        ),
        "pooled_mcc": Metric(
            "MCC of pixels, pooled",
            _of_pixels(lambda m: Score(m.cells, lambda s: mcc(matrices(s)))),
            compared=False,
        ),
    }
    charts = {
        "dice_histogram": Chart(
            "Dice per image at the image's own size. {n} The mean hides the tail on the left: "
            "images whose mask failed.",
            2,
        )
    }
    galleries = {
        "gallery_worst": "Lowest Dice. {n} Failures, and sometimes doubtful true masks.",
        "gallery_typical": "Dice nearest the median. {n} What an ordinary prediction looks like.",
        "gallery_best": "Highest Dice. {n} Chosen by the score, so they show nothing but the best case.",
    }
    how_to_read = (
        "Dice and IoU are taken for each image at its own size, then averaged. An empty mask where there is a "
        "lesion counts 0, and its boundary distance is the image's diagonal.",
        "HD95: 95% of the pixels of either edge lie within this distance of the other edge, the larger of the two "
        "directions. ASSD: the mean distance of both edges' pixels.",
    )
    detail_keys = ("mask_classes", "pixels")

    def __init__(self, name: str = plain, classes: Sequence[str] = (), title: str | None = None) -> None:
        super().__init__(name, title or ("Segmentation" if name == self.plain else None))
        self.classes = tuple(classes)

    def arguments(self) -> dict[str, Any]:
        """Give what the constructor was given, as plain values."""
        return {"name": self.name, "classes": list(self.classes), "title": self.title}

    @classmethod
    def found_in(cls, columns: Sequence[str]) -> list[Scoring]:
        """Find the segmentations that columns of a table are of; the one without a prefix is always among them."""
        others = [name.removesuffix("_dice") for name in columns if name.endswith("_dice")]
        names = [name for name in others if f"{name}_iou" in columns]
        found = [cls(cls.plain, mask_classes(columns))]
        for name in names:
            own = [column.removeprefix(f"{name}_") for column in columns if column.startswith(f"{name}_")]
            found.append(cls(name, mask_classes(own)))
        return list[Scoring](found)

    # --- its rows

    def row(self, prediction: MaskPrediction, truth: NDArray[np.uint8] | None) -> dict[str, Any]:
        """Give height and width; pixels, Dice, IoU and distances where there is a true mask."""
        values: dict[str, Any] = {"height": prediction.mask.shape[0], "width": prediction.mask.shape[1]}
        if truth is not None:
            small = prediction.input_mask.shape
            fitted = fit_mask(truth, (small[0], small[1]))
            values |= overlap(prediction.mask, truth, self.classes) | boundary(prediction.mask, truth)._asdict()
            values |= {"dice_input": overlap(prediction.input_mask, fitted, self.classes)["dice"]}
        return {self.column(name): value for name, value in values.items()}

    def is_in(self, table: pd.DataFrame) -> bool:
        """Whether the table has Dice."""
        return self.column("dice") in table

    @property
    def truth(self) -> str:
        """The column that is blank where the mask is missing."""
        return self.column("dice")

    def needed(self, table: pd.DataFrame) -> list[str]:
        """IoU and every count of pixels beside Dice."""
        if not self.is_in(table):
            return []
        names = ["iou", *(f"{count}_{name}" for name in self.classes[1:] for count in COUNTS)]
        names += pixel_columns(self.classes) if len(self.classes) > 2 else []
        return [self.column(name) for name in names]

    def measures(self, table: pd.DataFrame) -> list[str]:
        """Every number of the masks."""
        names = [str(name) for name in table if str(name).startswith(self.prefix)]
        own = {name: name.removeprefix(self.prefix) for name in names}
        return [name for name, bare in own.items() if predictions.is_number(bare) and not bare.startswith("prob_")]

    def numbers(self, table: pd.DataFrame) -> list[str]:
        """Dice, IoU and the counts of pixels."""
        return [name for name in (self.column("dice"), *self.needed(table)) if name in table]

    def faults(self, table: pd.DataFrame) -> Iterator[Fault]:
        """Values that no masks have, and scores that are not those of the pixels beside them; a blank cell is none."""
        own, classes = self.without_prefix(table), self.classes
        each = [f"{score}_{name}" for name in classes[1:] for score in ("dice", "iou")]
        counts = [f"{count}_{name}" for name in classes[1:] for count in COUNTS]
        counts += pixel_columns(classes) if len(classes) > 2 else []
        tests: Mapping[str, tuple[Sequence[str], Callable[[Floats], NDArray[np.bool_]]]] = {
            "is below 0 or above 1": ((*SHARES, *each), lambda v: (v < 0) | (v > 1)),
            "is below 0 or infinite": (LENGTHS, lambda v: (v < 0) | np.isinf(v)),
            "is no number of pixels": (
                (*counts, "height", "width"),
                lambda v: (v < 0) | np.isinf(v) | (~np.isnan(v) & (v != np.rint(v))),
            ),
        }
        possible = True
        for what, (names, is_wrong) in tests.items():
            for name in (name for name in names if name in own):
                rows = is_wrong(measure(own, name))
                possible &= not rows.any()
                yield f"{self.column(name)} {what}", rows, "look at what made the table"
        if {"height", "width"} <= set(own) and possible:
            diagonal = np.hypot(measure(own, "height"), measure(own, "width"))
            for name in (name for name in LENGTHS if name in own):
                what, fix = "is above the image's diagonal", "give distances in pixels of the image"
                yield f"{self.column(name)} {what}", measure(own, name) > diagonal + ROUNDING, fix
        if "dice" in own and possible:
            rows = measure(own, "iou") > measure(own, "dice") + ROUNDING
            yield f"{self.column('iou')} is above dice", rows, "IoU is never above Dice: look at both"
            if classes:
                yield from self._contradicted(own)

    def _contradicted(self, own: pd.DataFrame) -> Iterator[Fault]:
        """Scores that are not those of the pixels beside them, and pixels that do not add up."""
        fix = "give the counts and the scores of the same masks"
        each = [[measure(own, f"{count}_{name}") for count in COUNTS] for name in self.classes[1:]]
        both = [tp for tp, *_ in each], [tp + fp + fn for tp, fp, fn, _ in each]
        dice = [_share(2 * tp, union + tp) for tp, union in zip(*both, strict=True)]
        iou = [_share(tp, union) for tp, union in zip(*both, strict=True)]
        for score, values in (("dice", dice), ("iou", iou)):
            rows = np.abs(np.mean(values, axis=0) - measure(own, score)) > ROUNDING
            yield f"{self.column(score)} is not that of the pixels beside it", rows, fix
        totals = [np.sum(counts, axis=0) for counts in each]
        if {"height", "width"} <= set(own):
            totals.append(measure(own, "height") * measure(own, "width"))
        if len(self.classes) > 2:
            totals.append(np.sum([measure(own, name) for name in pixel_columns(self.classes)], axis=0))
        for total in totals[1:]:
            rows = np.isfinite(totals[0]) & np.isfinite(total) & (total != totals[0])
            yield "its pixels do not add up to one size of image", rows, fix

    def left_out(self, table: pd.DataFrame) -> Iterator[str]:
        """Images without a mask, and pixels that are counted for nothing."""
        blanks: dict[int, list[str]] = {}  # what as many images lack, most often all for want of a mask
        for name in (self.column(name) for name in ("dice", "iou", *LENGTHS, "dice_input")):
            if name in table and (blank := int(table[name].isna().sum())):
                blanks.setdefault(blank, []).append(name)
        for blank, names in blanks.items():
            yield f"{blank} of {len(table)} images have no {', '.join(names)}, and count in no score of it"
        if self.classes and not self.is_in(table):
            yield "pixels are counted and there is no dice: masks are not scored"

    def doubts(self, table: pd.DataFrame) -> Iterator[str]:
        """True masks without a lesion, and those that are nothing else."""
        names = self.classes[1:]
        if not self.is_in(table) or not names:
            return
        own = self.without_prefix(table)
        tp, fp, fn, tn = (np.stack([measure(own, f"{count}_{name}") for name in names]) for count in COUNTS)
        known = np.isfinite(tp).all(axis=0)
        lesion, whole = (tp + fn).sum(axis=0)[known], (tp + fp + fn + tn)[0][known]
        if empty := int((lesion == 0).sum()):
            yield f"{empty} of {known.sum()} masks are empty: their Dice is 1 where nothing is predicted, else 0"
        if full := int((lesion == whole).sum()):
            yield f"{full} of {known.sum()} masks are lesion throughout"

    @property
    def told_apart(self) -> tuple[str, ...]:
        """The mask classes."""
        return self.classes

    def check_comparable(self, first: pd.DataFrame, second: pd.DataFrame, other: Scoring) -> None:
        """Refuse other mask classes, and pixels that were counted at another size of the image."""
        mine, theirs = self.told_apart, other.told_apart
        if mine and theirs and mine != theirs:
            what = f"mask classes {', '.join(mine)} and {', '.join(theirs)}"
            raise InputError("predictions", what, "compare runs of the same classes")
        if not (mine and theirs):
            return
        a, b = (self._sizes(table) for table in (first, second))
        differ = (a != b) & a.notna() & b.notna()
        if differ.any():
            place = int(differ.argmax())
            what = f"{first.index[place]}: {a.iloc[place]:.0f} pixels in one table, {b.iloc[place]:.0f} in the other"
            what += f" ({int(differ.sum())} images)"
            raise InputError("predictions", what, "count the pixels of both at the images' own sizes")

    def _sizes(self, table: pd.DataFrame) -> pd.Series:
        """Pixels of each image, as they were counted."""
        names = [self.column(f"{count}_{self.classes[1]}") for count in COUNTS]
        return table[names].sum(axis=1, skipna=False)

    # --- its scores

    def read(self, table: pd.DataFrame) -> Masks:
        """The columns that scores come from."""
        return Masks(self.without_prefix(table), self.classes)

    def details(self, rows: Resampling) -> dict[str, Any]:
        """Scores of each mask class, background too, and the confusion matrix of all pixels, (true, predicted)."""
        masks: Masks = self.read_once(rows)
        if masks.pixels is None:
            return {}
        seen = np.isfinite(masks.pixels).all((1, 2))
        classes = {
            name: {
                "n_images": int((masks.pixels[seen, i].sum(1) > 0).sum()),
                **rows.all(_one_class(*agreement(masks.pixels, i))),
            }
            for i, name in enumerate(self.classes)
        }
        return {"mask_classes": classes, "pixels": masks.pixels[seen].sum(0).astype(np.int64).tolist()}

    # --- pages and figures

    def sections(
        self, details: Mapping[str, Any], scores: Mapping[str, Any], trained: Mapping[str, int]
    ) -> Iterator[Section]:
        """Scores of each mask class, and where its pixels went."""
        classes = details.get("mask_classes") or {}
        if not classes:
            return
        columns = {
            "mean_image_dice": "Dice",
            "mean_image_iou": "IoU",
            "mean_image_precision": "precision",
            "mean_image_recall": "recall",
            "pooled_dice": "F1, pooled",
            "pooled_precision": "precision, pooled",
            "pooled_recall": "recall, pooled",
        }
        rows: list[tuple[str, list[Cell]]] = [
            (name, [said(content.get("n_images")), *(score_words(content.get(score)) for score in columns)])
            for name, content in classes.items()
        ]
        shares: list[tuple[str, list[Cell]]] = [
            (f"{name}, true", [f"{sum(row):,}", *((f"{n / max(1, sum(row)):.3f}", f"{n:,}") for n in row)])
            for name, row in zip(classes, details.get("pixels") or [], strict=False)
        ]
        note = (
            "Test split, pixels at the images' own sizes. Means are over images; where neither mask has a "
            "class, Dice and IoU count one, precision and recall nothing. Pooled: pixels of all images counted "
            "together."
        )
        where = "Share of each true class's pixels by predicted class"
        tables = [
            Table(["class", "test images", *columns.values()], rows),
            Table(["pixels", "all", *classes], shares, where),
        ]
        yield Section(self.entitled("By mask class"), tables, note)

    def figures(self, test: pd.DataFrame, shown: Callable[[pd.DataFrame], Iterable[Shown]]) -> dict[str, Figure]:
        """How Dice is spread; the images of the lowest, the middle and the highest Dice with both contours."""
        from skinmtl.tasks.segmentation.figures import Example, dice_histogram, gallery

        if not self.is_in(test):
            return {}
        name = self.column("dice")
        scored = test[test[name].notna()].sort_values(name, ignore_index=True)
        middle = max(0, len(scored) // 2 - EXAMPLES // 2)
        chosen = {
            "worst": scored[:EXAMPLES],
            "typical": scored[middle : middle + EXAMPLES],
            "best": scored[-EXAMPLES:][::-1],
        }
        made = {"dice_histogram": dice_histogram(scored[name].to_numpy())}
        for which, rows in chosen.items():
            examples = [Example(one.image, one.truth, one.prediction.mask, one.title) for one in shown(rows)]
            made[f"gallery_{which}"] = gallery(examples)
        return {self.column(name): figure for name, figure in made.items()}

    def words(self, row: Mapping[str, Any]) -> list[str]:
        """The image's Dice."""
        return [f"Dice {row[self.column('dice')]:.2f}"] if self.column("dice") in row else []

    # --- what `skinmtl predict` writes

    @property
    def folders(self) -> tuple[str, ...]:
        """Of masks, and of images with the mask's contour."""
        return self.column("masks"), self.column("overlays")

    def predicted(self) -> list[str]:
        """The share of the image that each class but the background has."""
        return [self.column(f"{name}_share") for name in self.classes[1:]]

    def write(self, prediction: MaskPrediction, image: NDArray[np.uint8], stem: str, out: Path) -> dict[str, object]:
        """Write mask and overlay as PNG.

        The mask has 0 and 255, or a palette picture's indices where there are more than two classes.
        """
        from PIL import Image

        from skinmtl.tasks.segmentation.figures import mask_palette, overlay

        index, classes = prediction.mask, len(self.classes)
        masks, overlays = self.folders
        mask = Image.fromarray(index * 255 if classes == 2 else index)
        if classes > 2:
            mask.putpalette(mask_palette(classes))
        mask.save(out / masks / f"{stem}.png")
        Image.fromarray(overlay(image, index)).save(out / overlays / f"{stem}.png")
        return {name: float((index == place).mean()) for place, name in enumerate(self.predicted(), start=1)}


def mask_classes(columns: Iterable[object]) -> tuple[str, ...]:
    """The mask classes that a table counts pixels of, background first; none where it has no such columns."""
    names = list(map(str, columns))
    pairs = [name.removeprefix("pixels_") for name in names if name.startswith("pixels_")]
    if pairs:
        halves = [(pair[: (len(pair) - 4) // 2], pair) for pair in pairs]
        return tuple(name for name, pair in halves if pair == f"{name}_as_{name}")
    foreground = tuple(name.removeprefix("tp_") for name in names if name.startswith("tp_"))
    return (BACKGROUND, *foreground) if foreground else ()


def pixels(table: pd.DataFrame, classes: Sequence[str]) -> Floats:
    """(N, M, M) pixels by true and predicted class; not a number where an image has no mask."""
    names = pixel_columns(classes) if len(classes) > 2 else [f"{count}_{classes[1]}" for count in CELLS]
    pixels: Floats = table[names].to_numpy(dtype=np.float64)
    return pixels.reshape(-1, len(classes), len(classes))


def _one_class(tp: Floats, fp: Floats, fn: Floats) -> dict[str, Score]:
    """Scores of one mask class from its pixels, (N,) each: of an image, and of all images' pixels pooled."""
    agree = np.where(np.isfinite(tp), 1.0, np.nan)  # where neither mask has the class
    either = tp + fp + fn > 0
    columns = (np.nan_to_num(np.stack([tp, fp, fn])),)
    return {
        "mean_image_dice": mean(np.where(either, ratio(2 * tp, 2 * tp + fp + fn), agree)),
        "mean_image_iou": mean(np.where(either, ratio(tp, tp + fp + fn), agree)),
        "mean_image_precision": mean(ratio(tp, tp + fp)),
        "mean_image_recall": mean(ratio(tp, tp + fn)),
        "pooled_dice": Score(columns, _dice),
        "pooled_iou": Score(columns, lambda s: ratio(s[0], s[0] + s[1] + s[2])),
        "pooled_precision": Score(columns, lambda s: ratio(s[0], s[0] + s[1])),
        "pooled_recall": Score(columns, lambda s: ratio(s[0], s[0] + s[2])),
    }


def _dice(s: Floats) -> Floats:
    """Of sums of tp, fp and fn."""
    return ratio(2 * s[0], 2 * s[0] + s[1] + s[2])


def _share(part: Floats, whole: Floats) -> Floats:
    """One where there is nothing to share, as of two empty masks."""
    return np.divide(part, whole, out=np.ones(len(part)), where=whole != 0)
