"""How a task is scored: its columns of the predictions table, its scores with their labels, its figures. Without torch.

A task has two halves: what is learned (`tasks.base.Task`, with torch) and what is scored (`Scoring`). A scoring knows
the predictions table alone, so that scores, pages and comparisons of finished tables need neither network nor GPU. It
is made of plain values, which scores.json keeps: whoever reads a run makes it anew from them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from skinmtl.errors import ConfigError, InputError, first_line
from skinmtl.runs.predictions import Fault
from skinmtl.tasks.resampling import Resampling, Score

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Cell = str | tuple[str, str]  # of a page's table; of two words the second stands small below the first


class Shown(NamedTuple):
    """An image of the test split and what is known of it, for figures that show images."""

    image: NDArray[np.uint8]  # (H, W, 3), RGB
    truth: Any  # the task's target, as `Task.truth` gives it
    prediction: Any  # the task's answer, as `Task.read` gives it
    title: str


@dataclass(frozen=True)
class Metric:
    """One score of a task: whoever adds one adds it here, and it is in scores, pages, study tables and on W&B.

    Attributes:
        label: its name for people.
        of: the score from what the scoring reads off a table (`Scoring.read`); None where the table does not have it.
        headline: its place among the scores that a page opens with, 0 first, of all tasks together; None elsewhere.
        compared: whether the tables of a study show it.
        lower_is_better: as of an error.
    """

    label: str
    of: Callable[[Any], Score | None]
    headline: int | None = None
    compared: bool = True
    lower_is_better: bool = False


class Chart(NamedTuple):
    """A figure's caption, in which {n} is the number of test images, and its place on the page, 0 first."""

    caption: str
    place: int


class Table(NamedTuple):
    """A table of a page: the names of its columns, its rows by name, what it shows."""

    head: Sequence[str]
    rows: Sequence[tuple[str, list[Cell]]]
    caption: str = ""


class Section(NamedTuple):
    """A section of a page."""

    title: str
    tables: Sequence[Table]
    note: str = ""


@dataclass(frozen=True)
class Description:
    """What scores.json says of a task, so that a page or a study needs no code of it.

    Attributes:
        name: the task's.
        title: its name for people.
        prefix: what its columns begin with; nothing for the tasks of a table that has no others of the kind.
        labels: names of its scores for people.
        headlines: places of the scores that a page opens with.
        compared: scores that the tables of a study show.
        lower_is_better: scores of which less is better.
    """

    name: str
    title: str
    prefix: str
    labels: Mapping[str, str]
    headlines: Mapping[str, int]
    compared: Sequence[str]
    lower_is_better: Sequence[str]

    def key(self, score: str) -> str:
        """The score's name where those of several tasks stand side by side."""
        return f"{self.prefix}{score}"

    def words(self, score: str) -> str:
        """The score's name for people; a score that nobody described has its own words."""
        label = self.labels.get(score, score.replace("_", " "))
        return f"{self.title}: {label}" if self.prefix else label


class Scoring(ABC):
    """One task of a predictions table: what its rows hold, which of them are wrong, what its scores are.

    Columns, details and figures of the task named `plain` have no prefix; those of any other begin with the task's
    name and an underscore (`site_true`, `site_prob_back`), so that a table holds several tasks of one kind. A
    column of another task that holds numbers has `_prob_` in its name or ends with `_value`: by that
    `runs.predictions.read` knows it.

    A kind of one's own gives `metrics`, `read`, `is_in`, `truth`, `needed` and `row`; of the rest the answers here say
    nothing.
    """

    plain: ClassVar[str] = ""  # name of the one task whose columns have no prefix
    nouns: ClassVar[tuple[str, str]] = ("target", "targets")  # what that one predicts, one of them and several
    place: ClassVar[int] = 0  # of its columns in a row; of equal places in the order of the tasks
    is_measured: ClassVar[bool] = False  # whether `truth` is no target, but a measure that is blank without one
    metrics: Mapping[str, Metric] = {}
    detail_keys: ClassVar[tuple[str, ...]] = ()  # what `details` gives
    short: ClassVar[str] = ""  # the score that selects a checkpoint, for the line of an epoch
    curves: Mapping[str, str] = {}  # scores while training that the training curves show, with their labels
    colour: ClassVar[str | None] = None  # of its curves
    subgroups: Mapping[str, str] = {}  # scores of each subgroup, with the heads of their columns
    charts: Mapping[str, Chart] = {}  # what `figures` draws
    galleries: Mapping[str, str] = {}  # captions of those that show images: no tracker uploads these unasked
    how_to_read: ClassVar[tuple[str, ...]] = ()  # sentences at the end of a page

    def __init__(self, name: str, title: str | None = None) -> None:
        self.name = name
        self.title = title or (self.nouns[1] if name == self.plain else name.replace("_", " ")).capitalize()

    def arguments(self) -> dict[str, Any]:
        """Give what the constructor was given, as plain values."""
        return {"name": self.name}

    @property
    def prefix(self) -> str:
        """What the task's columns begin with."""
        return "" if self.name == self.plain else f"{self.name}_"

    def column(self, name: str) -> str:
        """A column of the task by the name that it has without a prefix."""
        return f"{self.prefix}{name}"

    @property
    def noun(self) -> tuple[str, str]:
        """What it predicts, one of them and several."""
        return self.nouns if self.name == self.plain else (self.name, self.name)

    def without_prefix(self, table: pd.DataFrame) -> pd.DataFrame:
        """The table with the task's columns by the names that they have without a prefix, and no others that begin so.

        What every table has (`image_id`, say) stays.
        """
        if not self.prefix:
            return table
        own = {name: str(name).removeprefix(self.prefix) for name in table if str(name).startswith(self.prefix)}
        rest = [name for name in table if name not in own and name not in own.values()]
        return table[[*rest, *own]].rename(columns=own)

    def entitled(self, title: str) -> str:
        """The title of a section, or with the task's before it."""
        return f"{self.title}: {title[0].lower()}{title[1:]}" if self.prefix else title

    @classmethod
    def found_in(cls, columns: Sequence[str]) -> list[Scoring]:
        """Find the tasks of this kind that the columns of a table are of, by their names alone."""
        return []

    def describe(self) -> Description:
        """What scores.json says of the task."""
        each = self.metrics.items()
        return Description(
            name=self.name,
            title=self.title,
            prefix=self.prefix,
            labels={score: metric.label for score, metric in each},
            headlines={score: metric.headline for score, metric in each if metric.headline is not None},
            compared=[score for score, metric in each if metric.compared],
            lower_is_better=[score for score, metric in each if metric.lower_is_better],
        )

    def record(self) -> dict[str, Any]:
        """Give the description and what the scoring is made from, for scores.json."""
        target = f"{type(self).__module__}.{type(self).__qualname__}"
        said = asdict(self.describe())
        return {**said, "scoring": {"_target_": target, **self.arguments()}}

    # --- its rows

    @abstractmethod
    def row(self, prediction: Any, truth: Any) -> dict[str, Any]:  # noqa: ANN401 -- each kind has its own
        """Give the task's columns of one image, by their whole names.

        Args:
            prediction: what the task reads off the network's output for this image (`Task.read`): a `MaskPrediction`,
                `ClassPrediction` or `ValuePrediction`, or what a kind of one's own has.
            truth: the target of this image (`Task.truth`): a mask of class indices at the image's own size, the name of
                a class, a number; None where it is missing.
        """

    @abstractmethod
    def is_in(self, table: pd.DataFrame) -> bool:
        """Whether a table has the columns that the scores come from."""

    @property
    @abstractmethod
    def truth(self) -> str:
        """The column that is blank where an image's target is missing."""

    def known(self, table: pd.DataFrame) -> NDArray[np.bool_]:
        """Which rows have the target, (N,); the others count in no score."""
        known: NDArray[np.bool_] = table[self.truth].notna().to_numpy()
        return known

    @abstractmethod
    def needed(self, table: pd.DataFrame) -> list[str]:
        """Columns without which a table that has some of the task's cannot be scored."""

    def measures(self, table: pd.DataFrame) -> list[str]:
        """Columns that a comparison of two tables leaves blank where either table has a blank."""
        return [self.truth]

    def numbers(self, table: pd.DataFrame) -> list[str]:
        """Columns of the table that the scores read as numbers."""
        return []

    def faults(self, table: pd.DataFrame) -> Iterator[Fault]:
        """What the table says that cannot be."""
        return iter(())

    def left_out(self, table: pd.DataFrame) -> Iterator[str]:
        """What the scores of one split do not count, and what they cannot tell, a sentence each."""
        return iter(())

    def doubts(self, table: pd.DataFrame) -> Iterator[str]:
        """What is read as it stands and may have been meant otherwise, a sentence each."""
        return iter(())

    def check_comparable(self, first: pd.DataFrame, second: pd.DataFrame, other: Scoring) -> None:
        """Refuse two tables, by image id, that have the task in common but not what it tells apart.

        Args:
            first: a table of this scoring.
            second: one of the `other` scoring, of the same name.
            other: the second table's.

        Raises:
            InputError: they differ.
        """
        if self.told_apart != other.told_apart:
            what = f"{self.name}: {', '.join(self.told_apart)} and {', '.join(other.told_apart)}"
            raise InputError("predictions", what, "compare runs of the same classes")

    # --- its scores

    @abstractmethod
    def read(self, table: pd.DataFrame) -> Any:  # noqa: ANN401 -- each kind has its own
        """What the metrics are functions of, from the rows of one split."""

    def scores(self, rows: Resampling) -> dict[str, Score]:
        """The scores that these rows have, by name."""
        read = self.read_once(rows)
        found = {name: self._score(name, metric, read) for name, metric in self.metrics.items()}
        return {name: score for name, score in found.items() if score is not None}

    def _score(self, name: str, metric: Metric, read: Any) -> Score | None:  # noqa: ANN401 -- each kind has its own
        """Give one metric's score; what is wrong in one of the user's own is said by its name."""
        if str(getattr(metric.of, "__module__", "")).startswith("skinmtl."):
            return metric.of(read)
        where, fix = (
            f"metric {name} of task {self.name}",
            "mend its function, then `skinmtl evaluate <run>` scores the run",
        )
        try:
            score = metric.of(read)
        except Exception as error:  # whatever its author's code raises
            raise ConfigError(where, first_line(error), fix) from error
        if score is not None and not isinstance(score, Score):
            raise ConfigError(where, f"it gives a {type(score).__name__}, no Score and not None", fix)
        return score

    def read_once(self, rows: Resampling) -> Any:  # noqa: ANN401 -- each kind has its own
        """`read`, once for the rows of a split."""
        if self.name not in rows.read:
            rows.read[self.name] = self.read(rows.table)
        return rows.read[self.name]

    def details(self, rows: Resampling) -> dict[str, Any]:
        """What scores.json says beside the scores, such as those of each class."""
        return {}

    @property
    def told_apart(self) -> tuple[str, ...]:
        """What two runs have in common whose scores may be compared, such as the classes."""
        return ()

    # --- pages and figures

    def sections(
        self, details: Mapping[str, Any], scores: Mapping[str, Any], trained: Mapping[str, int]
    ) -> Iterator[Section]:
        """Sections of a run's page beside the table of all scores.

        Args:
            details: what `details` gave for the test split.
            scores: the task's scores there.
            trained: how many images of each of its classes the run was trained on; empty where nobody counted.
        """
        return iter(())

    def figures(self, test: pd.DataFrame, shown: Callable[[pd.DataFrame], Iterable[Shown]]) -> dict[str, Figure]:
        """The figures of a run by name, prefix and all.

        Args:
            test: the rows of the test split.
            shown: looks at the images of some of these rows once more.
        """
        return {}

    def words(self, row: Mapping[str, Any]) -> list[str]:
        """What the line above an image says of the task, from the image's row of the table."""
        return []

    # --- what `skinmtl predict` writes

    @property
    def folders(self) -> tuple[str, ...]:
        """What `write` puts pictures in."""
        return ()

    def predicted(self) -> list[str]:
        """Columns that `write` gives."""
        return []

    def write(self, prediction: Any, image: NDArray[np.uint8], stem: str, out: Path) -> dict[str, object]:  # noqa: ANN401
        """Write an image's prediction into `folders` of `out`, under its stem; gives its columns of predictions.csv."""
        return {}


def ordered(scorings: Iterable[Scoring]) -> list[Scoring]:
    """Scorings by the places of their columns in a row."""
    return sorted(scorings, key=lambda scoring: scoring.place)
