"""A run and a split: one row per image of validation and test; scores and figures are functions of the rows."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from skinmtl.config.build import build
from skinmtl.config.check import check_saved
from skinmtl.data import lesion_groups
from skinmtl.data.datamodule import DataModule
from skinmtl.data.images.reading import read_image
from skinmtl.errors import InputError
from skinmtl.evaluation import scores
from skinmtl.evaluation.predict import Prediction, Predictor, load_run
from skinmtl.figures.fonts import labels
from skinmtl.figures.style import save
from skinmtl.files import write_text
from skinmtl.runs import predictions
from skinmtl.runs.checkpoints import load as load_checkpoint
from skinmtl.runs.labels import stamps
from skinmtl.runs.run import Run
from skinmtl.tasks.curves import training_curves
from skinmtl.tasks.scoring import Scoring, Shown, ordered
from skinmtl.terminal import tracked

log = logging.getLogger(__name__)

Image = NDArray[np.uint8]
METADATA = ("image_id", "lesion_id", "source", "age", "sex", "localization", "dx_type")


def evaluate(run: Run, data_root: Path | None = None, device: str = "auto") -> dict[str, Any]:
    """Score a run's kept checkpoint on its own validation and test splits; gives what scores.json holds.

    Writes predictions.csv, scores.json and figures/ into the run folder.

    Args:
        run: a run that has kept a checkpoint.
        data_root: where the images are now; default: where they were when the run trained.
        device: as for `load_run`.

    Raises:
        InputError: the split file is not the one that the checkpoint was trained under, or the images differ.
    """
    data = run_data(run, data_root)
    predictor = load_run(run.path, device=device)
    table = predictions_table(predictor, data)
    split = {"hash": data.split_hash, "fold": data.fold}
    table = table.assign(**{name: bool(run.info().get(name)) for name in ("synthetic", "shuffled")})
    scorings = [task.scoring() for task in predictor.tasks.values()]
    result = scores.evaluate(table, scorings) | {"split": split}
    for note in result["notes"]:
        log.warning("%s", note)
    # Scored before the first write, so that a failure leaves the former table and scores as they were.
    write_text(run.predictions_file, table.to_csv(index=False))
    run.write_scores(result)
    draw(run, table, predictor, data)
    return result


def run_data(run: Run, data_root: Path | None = None) -> DataModule:
    """The images and the split that a run was trained under, checked against what its checkpoint says."""
    cfg = run.config()
    check_saved(cfg, "data", "augment", "sampler")
    # No cache and no auxiliary data: they are for training. What duplicates merged stands in the split's own groups.
    changes: dict[str, Any] = {"split": str(run.split_file), "workers": 0, "cache": "off"}
    changes |= {"duplicates": "none", "auxiliary": None, "shuffled": None}
    if data_root is not None:
        changes |= {"root": str(data_root), "synthetic": None}
    parts = {"augment": build(cfg.augment), "sampler": build(cfg.sampler), "seed": cfg.seed}
    data: DataModule = build({**cfg.data, **changes}, **parts)
    data.write_synthetic()
    data.setup("evaluate")
    data.leaky = data.leaky or bool(run.info().get("leaky"))  # weights that it started from may have been
    facts = load_checkpoint(run.checkpoint())["skinmtl"]
    for key, now, same in (
        ("split_hash", data.split_hash, facts["split_hash"] == data.split_hash),
        ("data_hash", data.data_hash, data.is_of(facts["data_hash"])),
    ):
        if not same:
            if key == "data_hash":
                data.check_files()  # a broken file is named, not the other data that it makes
            where = str(run.split_file) if key == "split_hash" else str(data.root)
            what = f"{key} is {now[:12]}, the checkpoint's is {facts[key][:12]}: it may have seen these lesions"
            raise InputError(where, what, "give the data and the split that the run was trained with")
    return data


def predictions_table(predictor: Predictor, data: DataModule) -> pd.DataFrame:
    """One row per image of validation, then test: ids and metadata, then the columns of each task.

    Columns are those of `Scoring.row`; what is measured of a mask is measured at the image's own size.
    """
    tables = []
    has_mask = data.table["mask"].notna()
    for split in ("val", "test"):
        rows = data.rows(split)
        shapes: list[tuple[int, int]] = []  # of the images that were read so far

        def images(rows: NDArray[np.int64] = rows, shapes: list[tuple[int, int]] = shapes) -> Iterator[Image]:
            for row in rows:
                image = read_image(Path(data.table.image[row]), bool(has_mask[row]))
                shapes.append((image.shape[0], image.shape[1]))
                yield image

        predicted = tracked(predictor.predict_each(images()), f"predicting {split}", len(rows))
        measured = [
            _row(data, int(row), predictor, prediction, shapes[place])
            for place, (row, prediction) in enumerate(zip(rows, predicted, strict=True))
        ]
        tables.append(pd.DataFrame(measured).assign(split=split, fold=data.fold, leaky=data.leaky))
    table = pd.concat(tables, ignore_index=True).assign(table_version=predictions.VERSION)
    table.insert(2, "group", table["image_id"].map(_groups(data)))
    return table


def _groups(data: DataModule) -> pd.Series:
    """What an image is resampled with: its lesion, and those that the split's own groups join with it."""
    together = data.split.groupby("group", sort=False)["image_id"]
    pairs = lesion_groups.apart((pair for _, ids in together for pair in pairwise(ids)), data.table)
    return lesion_groups.groups(data.table, pairs).set_axis(data.table["image_id"])


def _row(
    data: DataModule, row: int, predictor: Predictor, prediction: Prediction, shape: tuple[int, int]
) -> dict[str, Any]:
    record = data.table.iloc[row]
    values: dict[str, Any] = {name: record[name] for name in (*METADATA, "dx_original", "dx") if name in record}
    for scoring in ordered(task.scoring() for task in predictor.tasks.values()):
        truth = predictor.tasks[scoring.name].truth(dict(record), shape, data)
        values |= scoring.row(prediction[scoring.name], truth)
    return values


def draw(run: Run, table: pd.DataFrame, predictor: Predictor, data: DataModule) -> None:
    """Draw the figures of a run, from its table of test rows and its metrics; images are predicted again for a few."""
    test = table[table["split"] == "test"].reset_index(drop=True)
    info = run.info()
    scorings = [task.scoring() for task in predictor.tasks.values()]
    made = {"curves": training_curves(pd.read_csv(run.path / "metrics.csv"), scorings, info.get("keep", "best"))}
    for scoring in scorings:
        made |= scoring.figures(test, partial(_shown, scoring, scorings, predictor, data))
    run.figures.mkdir(exist_ok=True)
    charts = {"curves", *(scoring.column(name) for scoring in scorings for name in scoring.charts)}
    declared = {scoring.column(name) for scoring in scorings for name in scoring.galleries}
    for name in sorted(made.keys() - charts - declared):
        fix = "name it in `charts`, or in `galleries` where it shows images"
        log.warning("figure %s is of no task's charts or galleries, so it is on no page; fix: %s", name, fix)
    for name, figure in made.items():
        # What may show images is a .jpg, which no logger uploads unasked.
        file = f"{name}.png" if name in charts else f"{name}.jpg"
        save(figure, run.figures / file, stamps(info | {"leaky": data.leaky, "synthetic": False}))


def _shown(
    scoring: Scoring, scorings: Sequence[Scoring], predictor: Predictor, data: DataModule, rows: pd.DataFrame
) -> Iterator[Shown]:
    """Image, target, prediction and title of a few rows of the predictions table, predicted again."""
    cases = data.table.set_index("image_id")
    for _, row in rows.iterrows():
        case = cases.loc[row["image_id"]]
        image = read_image(Path(case["image"]), has_mask=isinstance(case["mask"], str))
        truth = predictor.tasks[scoring.name].truth(dict(case), (image.shape[0], image.shape[1]), data)
        title = "  ".join(_words(row, scorings, data))
        yield Shown(image, truth, predictor.predict(image)[scoring.name], title)


def _words(row: pd.Series, scorings: Sequence[Scoring], data: DataModule) -> list[str]:
    """What every task says of an image, and its diagnosis where none of them does."""
    said = [word for scoring in scorings for word in scoring.words(dict(row))]
    if "dx" in {scoring.truth for scoring in scorings} or not isinstance(row["dx"], str):
        return said
    return [*said, dict(zip(data.dx_classes, labels(data.dx_classes), strict=True))[row["dx"]]]
