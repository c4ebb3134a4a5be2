"""How a classification is scored: classes by the largest probability, and the probabilities themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from skinmtl.errors import InputError
from skinmtl.figures.palette import RED
from skinmtl.runs.labels import said, score_words
from skinmtl.runs.predictions import Fault
from skinmtl.tasks.classification.scores import (
    Classified,
    auroc,
    average,
    average_precision,
    balanced_accuracy,
    macro_f1,
    macro_precision,
)
from skinmtl.tasks.confusion import accuracy, matrices, mcc
from skinmtl.tasks.resampling import Floats, Resampling, Score, mean
from skinmtl.tasks.scoring import Cell, Chart, Metric, Scoring, Section, Shown, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from skinmtl.tasks.classification.prediction import ClassPrediction

MALIGNANT = ("akiec", "bcc", "mel")  # told from the rest by `malignant_auroc`, where all of them are classes
# What has a value where a single class occurs; of the rest nothing is left to be told apart.
OF_ONE_CLASS = ("accuracy", "nll", "brier", "ece", "ece_rank_bins")


def _of_cells(of: Callable[[Floats], Floats]) -> Callable[[Classified], Score]:
    """A score of the confusion matrix."""
    return lambda c: Score((c.confusion,), lambda s: of(matrices(s)))


def _over_present(of: Callable[[Floats, Sequence[int]], Floats]) -> Callable[[Classified], Score]:
    """A score of the confusion matrix that is a mean over the classes that occur."""
    return lambda c: Score((c.confusion,), lambda s: of(matrices(s), c.present))


def _of_ranks(of: Callable[[Floats], Floats]) -> Callable[[Classified], Score]:
    """The mean, over the classes that occur, of a score of one class against the rest."""
    return lambda c: Score(tuple(c.ranks[i] for i in c.present), average(of))


def _malignant(c: Classified) -> Score | None:
    if not c.risk:
        return None
    return Score((c.ranked(np.isin(c.target, c.risk), c.p[:, c.risk].sum(1)),), auroc)


class ClassificationScoring(Scoring):
    """Classes: the largest probability is the answer.

    Args:
        name: the task's.
        classes: in the order of the probabilities; none where a table has no probabilities.
        malignant: classes told from the rest by `malignant_auroc`; no such score where one of them is no class.
    """

    plain = "cls"
    nouns = ("diagnosis", "diagnoses")
    short = "balanced accuracy"
    curves = {"balanced_accuracy": "balanced accuracy", "accuracy": "accuracy"}
    colour = RED
    subgroups = {"accuracy": "accuracy", "balanced_accuracy": "balanced accuracy"}
    metrics: dict[str, Metric] = {
        "balanced_accuracy": Metric("Balanced accuracy", _over_present(balanced_accuracy), headline=0),
        "accuracy": Metric("Accuracy", _of_cells(accuracy)),
        "macro_auroc": Metric("AUROC, mean over classes", _of_ranks(auroc), headline=1),
        "macro_average_precision": Metric(
            "Average precision, mean over classes", _of_ranks(average_precision), compared=False
        ),
        "macro_precision": Metric("Precision, mean over classes", _over_present(macro_precision), compared=False),
        "macro_f1": Metric("F1, mean over classes", _over_present(macro_f1)),
        "mcc": Metric("MCC", _of_cells(mcc)),
        "nll": Metric(
            "Negative log likelihood",
            lambda c: mean(-np.log(np.clip(c.own, 1e-15, 1)) + c.missing),
            compared=False,
            lower_is_better=True,
        ),
        "brier": Metric(
            "Brier score",
            lambda c: mean(((c.p - c.truth) ** 2).sum(1) + c.missing),
            compared=False,
            lower_is_better=True,
        ),
        "ece": Metric(
            "Expected calibration error",
            lambda c: c.calibration_error(equal_masses=False),
            compared=False,
            lower_is_better=True,
        ),
        "ece_rank_bins": Metric(
            "Expected calibration error of bins of equal numbers, as before version 2",
            lambda c: c.calibration_error(equal_masses=True),
            compared=False,
            lower_is_better=True,
        ),
        "malignant_auroc": Metric("AUROC, malignant or precancerous against the rest", _malignant, compared=False),
    }
    charts = {
        "confusion": Chart(
            "Confusion matrix. {n} Rows are the true class with its number of images, columns the predicted class; "
            "darker is a larger share of the row.",
            0,
        ),
        "roc": Chart(
            "ROC curves, each class against all others. {n} The legend gives the area and the images of the class.", 1
        ),
        "reliability": Chart(
            "Reliability. {n} Images in ten steps of the predicted class's probability: how often it is right. "
            "On the dotted line a probability means what it says.",
            3,
        ),
    }
    how_to_read = (
        "Balanced accuracy is the mean sensitivity over the classes: each counts the same, however rare. Always "
        "guessing one class gives 1 divided by the number of classes; accuracy would give that class's share.",
        "Expected calibration error: over 15 bins of equal width of the largest probability. Brier score: squared "
        "errors summed over the classes, from 0 to 2.",
    )
    detail_keys = ("classes", "confusion")

    def __init__(
        self,
        name: str = plain,
        classes: Sequence[str] = (),
        malignant: Sequence[str] = MALIGNANT,
        title: str | None = None,
    ) -> None:
        super().__init__(name, title or ("Classification" if name == self.plain else None))
        self.classes, self.malignant = tuple(classes), tuple(malignant)

    def arguments(self) -> dict[str, Any]:
        """Give what the constructor was given, as plain values."""
        lists = {"classes": list(self.classes), "malignant": list(self.malignant)}
        return {"name": self.name, **lists, "title": self.title}

    @classmethod
    def found_in(cls, columns: Sequence[str]) -> list[Scoring]:
        """Find the classifications that columns of a table are of; the one without a prefix is always among them."""
        names = [name.removesuffix("_true") for name in columns if name.endswith("_true")]
        found = [cls(cls.plain, classes_in(columns))]
        for name in names:
            own = [column.removeprefix(f"{name}_") for column in columns if column.startswith(f"{name}_prob_")]
            found += [cls(name, classes_in(own))] if own else []
        return list[Scoring](found)

    # --- its rows

    @property
    def truth(self) -> str:
        """The column of the true class."""
        return "dx" if self.name == self.plain else self.column("true")

    @property
    def answer(self) -> str:
        """The column of the class of the largest probability."""
        return "predicted_dx" if self.name == self.plain else self.column("predicted")

    @property
    def probabilities(self) -> list[str]:
        """The columns of the probabilities."""
        return [self.column(f"prob_{name}") for name in self.classes]

    def row(self, prediction: ClassPrediction, truth: str | None) -> dict[str, Any]:
        """Give the true class, the class of the largest probability and every probability."""
        p = prediction.probabilities
        return {
            self.truth: truth,
            self.answer: prediction.label,
            **{self.column(f"prob_{name}"): value for name, value in p.items()},
        }

    def is_in(self, table: pd.DataFrame) -> bool:
        """Whether the table has probabilities of the classes."""
        return bool(self.classes) and self.probabilities[0] in table

    def needed(self, table: pd.DataFrame) -> list[str]:
        """The true class, where there are probabilities."""
        return [self.truth] if self.is_in(table) else []

    def numbers(self, table: pd.DataFrame) -> list[str]:
        """The probabilities."""
        return [name for name in self.probabilities if name in table]

    def faults(self, table: pd.DataFrame) -> Iterator[Fault]:
        """Probabilities that are none, and classes without one."""
        if not self.is_in(table):
            return
        p: Floats = table[self.probabilities].to_numpy(dtype=np.float64)
        total: Floats = p.sum(axis=1, keepdims=True)
        yield "a probability is not a number", _any(~np.isfinite(p)), "look at the model that made it"
        yield "a probability is below 0 or above 1", _any((p < 0) | (p > 1)), "give probabilities, not logits"
        yield "probabilities do not sum to one", _any(np.abs(total - 1) > 1e-3), "normalise them"
        true = table[self.truth]
        strange = true.notna() & ~true.isin(self.classes)
        names = ", ".join(sorted(map(str, set(true[strange]))))
        fix = f"the classes are {', '.join(self.classes)}"
        what = f"{self.truth} is {names}, which has no column of probabilities"
        yield what, strange.to_numpy(dtype=bool), fix

    def left_out(self, table: pd.DataFrame) -> Iterator[str]:
        """Images whose class is missing, and a class that is the only one."""
        if not self.is_in(table):
            return
        one, several = self.noun
        if blank := int(table[self.truth].isna().sum()):
            yield f"{blank} of {len(table)} images have no {one}, and count in no score of it"
        if table[self.truth].nunique() == 1:
            only = table[self.truth].dropna().iloc[0]
            yield f"{only} is the only {one}: how well {several} are told apart is undefined"

    def doubts(self, table: pd.DataFrame) -> Iterator[str]:
        """Guesses of another kind than the largest probability, which is what is scored."""
        if self.answer not in table or not self.is_in(table):
            return
        p = table[self.probabilities].to_numpy(dtype=np.float64)
        guess = table[self.answer].map({name: i for i, name in enumerate(self.classes)})
        given = guess.notna().to_numpy()
        own = p[np.arange(len(p)), guess.fillna(0).astype(int)]
        if count := int((table[self.answer].notna() & ~(given & (own >= p.max(axis=1)))).sum()):
            what = f"{self.answer} is not the {self.noun[0]} of the largest probability in {count} of {len(table)} rows"
            yield f"{what}; the latter is scored"

    @property
    def told_apart(self) -> tuple[str, ...]:
        """The classes."""
        return self.classes

    def check_comparable(self, first: pd.DataFrame, second: pd.DataFrame, other: Scoring) -> None:
        """Refuse other classes; their order may differ."""
        mine, theirs = set(self.told_apart), set(other.told_apart)
        if mine and theirs and mine != theirs:
            what = f"classes of one table only: {', '.join(sorted(mine ^ theirs))}"
            raise InputError("predictions", what, "compare runs of the same classes")

    # --- its scores

    def read(self, table: pd.DataFrame) -> Classified:
        """True classes and probabilities."""
        index = {name: i for i, name in enumerate(self.classes)}
        target = np.asarray(table[self.truth].astype("object").map(index).fillna(-1), dtype=np.int64)
        p: Floats = table[self.probabilities].to_numpy(dtype=np.float64)
        are_classes = bool(self.malignant) and set(self.malignant) <= set(self.classes)
        return Classified(target, p, [index[name] for name in self.malignant] if are_classes else [])

    def scores(self, rows: Resampling) -> dict[str, Score]:
        """The scores that these rows have, by name; undefined for what needs several classes where one occurs."""
        found, c = super().scores(rows), self.read_once(rows)
        if len(c.present) == 1:
            stay = OF_ONE_CLASS if c.k > 1 else ()
            alone = f"undefined: a single {self.noun[0]} occurs, so nothing is told apart"
            return {name: score if name in stay else Score((), None, alone) for name, score in found.items()}
        return found if c.present else {name: Score((), None) for name in found}

    def details(self, rows: Resampling) -> dict[str, Any]:
        """Scores of each class against the rest, and the confusion matrix, (true, predicted)."""
        c: Classified = self.read_once(rows)
        k = len(self.classes)
        counts = np.bincount(c.cell[c.known], minlength=k * k).reshape(k, k)
        scores = {(name, score): one for i, name in enumerate(self.classes) for score, one in c.against(i).items()}
        found = rows.all(scores)
        classes = {}
        for i, name in enumerate(self.classes):
            mine = rows.table[c.target == i]
            classes[name] = {
                "n_images": len(mine),
                "n_lesions": int(mine["lesion_id"].fillna(mine["image_id"]).nunique()),
                **{score: value for (which, score), value in found.items() if which == name},
            }
        return {"classes": classes, "confusion": counts.tolist()}

    # --- pages and figures

    def sections(
        self, details: Mapping[str, Any], scores: Mapping[str, Any], trained: Mapping[str, int]
    ) -> Iterator[Section]:
        """Scores of each class against the rest, as a classification report."""
        from skinmtl.figures.fonts import LONGEST

        classes = details.get("classes") or {}
        if not classes:
            return
        columns = ("ppv", "sensitivity", "f1", "specificity", "auroc")
        rows: list[tuple[str, list[Cell]]] = [
            (
                name,
                [
                    said(trained.get(name)),
                    (said(content.get("n_images")), f"{said(content.get('n_lesions'))} lesions"),
                    *(score_words(content.get(score)) for score in columns),
                ],
            )
            for name, content in classes.items()
        ]
        means = ("macro_precision", "balanced_accuracy", "macro_f1", "", "macro_auroc")
        support = str(sum(content.get("n_images", 0) for content in classes.values()))
        over = [score_words(scores.get(name)) if name else "" for name in means]
        rows.append(("mean over classes", ["", support, *over]))
        head = ["class", "training images", "test images", "precision (PPV)", "recall (sensitivity)", "F1"]
        note = (
            "Test split, each class against all others. Precision depends on how common the class is in this test "
            "split. Means are over the classes that occur."
        )
        if not all(name.isascii() and len(name) <= LONGEST for name in classes):
            note += (
                " A name that figures cannot draw or tell apart is its place in this list there: class 1, class 2, ..."
            )
        table = Table([*head, "specificity", "AUROC"], rows)
        yield Section(self.entitled("By class: classification report"), [table], note)

    def figures(self, test: pd.DataFrame, shown: Callable[[pd.DataFrame], Iterable[Shown]]) -> dict[str, Figure]:
        """Confusion matrix, ROC curves, reliability."""
        from skinmtl.tasks.classification import figures

        if not self.is_in(test):
            return {}
        c = self.read(test[self.known(test)])
        counts = np.bincount(c.cell, minlength=c.k * c.k).reshape(c.k, c.k)
        made = {
            "confusion": figures.confusion(counts, self.classes),
            "roc": figures.roc(c.target, c.p, self.classes),
            "reliability": figures.reliability(c.target, c.p),
        }
        return {self.column(name): figure for name, figure in made.items()}

    def words(self, row: Mapping[str, Any]) -> list[str]:
        """The true class, and the one that was taken for it."""
        from skinmtl.figures.fonts import labels

        shown = dict(zip(self.classes, labels(self.classes), strict=True))
        true, answer = row.get(self.truth), row.get(self.answer)
        before = f"{self.name} " if self.prefix else ""
        said = [f"{before}{shown[true]}"] if isinstance(true, str) else []
        return [*said, f"as {shown[answer]}"] if isinstance(answer, str) else said

    # --- what `skinmtl predict` writes

    def predicted(self) -> list[str]:
        """The class of the largest probability, and every probability."""
        return ["dx" if self.name == self.plain else self.answer, *self.probabilities]

    def write(self, prediction: ClassPrediction, image: NDArray[np.uint8], stem: str, out: Path) -> dict[str, object]:
        """Give the columns; nothing is written."""
        values = [prediction.label, *(prediction.probabilities[name] for name in self.classes)]
        return dict(zip(self.predicted(), values, strict=True))


def classes_in(columns: Iterable[object]) -> tuple[str, ...]:
    """The classes that a table has probabilities of."""
    return tuple(name.removeprefix("prob_") for name in map(str, columns) if name.startswith("prob_"))


def _any(cells: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Whether any cell of a row is, (N,)."""
    rows: NDArray[np.bool_] = np.any(cells, axis=1)
    return rows
