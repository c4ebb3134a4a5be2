"""A run and a split: one row per photograph of validation and test; scores and figures are functions of the rows."""

from __future__ import annotations

import logging
from collections.abc import Iterator
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
from skinmtl.data.images.reading import fit_mask, read_image, read_mask, read_pair
from skinmtl.errors import InputError
from skinmtl.evaluation import scores
from skinmtl.evaluation.predict import Prediction, Predictor, load_run
from skinmtl.figures import plots
from skinmtl.figures.fonts import labels
from skinmtl.files import write_text
from skinmtl.runs import predictions
from skinmtl.runs.checkpoints import load as load_checkpoint
from skinmtl.runs.labels import stamps
from skinmtl.runs.run import Run
from skinmtl.terminal import tracked

log = logging.getLogger(__name__)

SHOWN = 6  # photographs of each gallery
METADATA = ("image_id", "lesion_id", "source", "age", "sex", "localization", "dx_type")


def evaluate(run: Run, data_root: Path | None = None, device: str = "auto") -> dict[str, Any]:
    """Score a run's kept checkpoint on its own validation and test parts; gives what scores.json holds.

    Writes predictions.csv, scores.json and figures/ into the run folder.

    Args:
        run: a run that has kept a checkpoint.
        data_root: where the photographs are now; default: where they were when the run trained.
        device: as for `load_run`.

    Raises:
        InputError: the split file is not the one that the checkpoint was trained under, or the photographs differ.
    """
    data = run_data(run, data_root)
    predictor = load_run(run.path, device=device)
    table = predictions_table(predictor, data)
    split = {"hash": data.split_hash, "fold": data.fold}
    table = table.assign(**{name: bool(run.info().get(name)) for name in ("synthetic", "shuffled")})
    result = scores.evaluate(table, data.dx_classes, data.mask_classes) | {"split": split}
    for note in result["notes"]:
        log.warning("%s", note)
    # Scored before the first write, so that a failure leaves the former table and scores as they were.
    write_text(run.predictions_file, table.to_csv(index=False))
    run.write_scores(result)
    draw(run, table, predictor, data)
    return result


def run_data(run: Run, data_root: Path | None = None) -> DataModule:
    """The photographs and the split that a run was trained under, checked against what its checkpoint says."""
    cfg = run.config()
    check_saved(cfg, "data", "augment", "sampler")
    # No cache and no further sources: they are for training. What duplicates merged stands in the split's own groups.
    changes: dict[str, Any] = {"split": str(run.split_file), "workers": 0, "cache": "off"}
    changes |= {"duplicates": "none", "auxiliary": None, "shuffled": None}
    if data_root is not None:
        changes |= {"root": str(data_root), "synthetic": None}
    parts = {"augment": build(cfg.augment), "sampler": build(cfg.sampler), "seed": cfg.seed}
    data: DataModule = build({**cfg.data, **changes}, **parts)
    data.draw()
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
    """One row per image of validation, then test: ids, target, probabilities, pixel counts, overlap, boundary distance.

    Counts, Dice, IoU and distances are at the photograph's own size; `dice_input` is at the network's.
    """
    parts = []
    has_mask = data.table["mask"].notna()
    for part in ("val", "test"):
        rows = data.rows(part)
        photographs = (read_image(Path(data.table.image[row]), bool(has_mask[row])) for row in rows)
        predicted = tracked(predictor.predict_each(photographs), f"predicting {part}", len(rows))
        measured = [_row(data, int(row), prediction) for row, prediction in zip(rows, predicted, strict=True)]
        parts.append(pd.DataFrame(measured).assign(split=part, fold=data.fold, leaky=data.leaky))
    table = pd.concat(parts, ignore_index=True).assign(table_version=predictions.VERSION)
    table.insert(2, "group", table["image_id"].map(_groups(data)))
    return table


def _groups(data: DataModule) -> pd.Series:
    """What an image is resampled with: its lesion, and those that the split's own groups join with it."""
    together = data.split.groupby("group", sort=False)["image_id"]
    pairs = lesion_groups.apart((pair for _, ids in together for pair in pairwise(ids)), data.table)
    return lesion_groups.groups(data.table, pairs).set_axis(data.table["image_id"])


def _row(data: DataModule, row: int, prediction: Prediction) -> dict[str, Any]:
    record = data.table.iloc[row]
    values: dict[str, Any] = {name: record[name] for name in (*METADATA, "dx_original", "dx") if name in record}
    if prediction.probabilities is not None:
        values |= {"predicted_dx": prediction.dx}
        values |= {f"prob_{name}": p for name, p in prediction.probabilities.items()}
    if prediction.mask is not None:
        values |= {"height": prediction.mask.shape[0], "width": prediction.mask.shape[1]}
        if isinstance(record["mask"], str):
            target = data.mask_rule.of(read_mask(Path(record["mask"]), prediction.mask.shape))
            values |= _overlap(data, prediction, target)
    return values


def _overlap(data: DataModule, prediction: Prediction, target: NDArray[np.uint8]) -> dict[str, float]:
    assert prediction.mask is not None and prediction.input_mask is not None
    own = scores.overlap(prediction.mask, target, data.mask_classes)
    small = scores.overlap(prediction.input_mask, fit_mask(target, data.size), data.mask_classes)
    return own | scores.boundary(prediction.mask, target)._asdict() | {"dice_input": small["dice"]}


def draw(run: Run, table: pd.DataFrame, predictor: Predictor, data: DataModule) -> None:
    """The figures of a run, from its table of test rows and its metrics; overlays are predicted again for a few."""
    test = table[table["split"] == "test"].reset_index(drop=True)
    info = run.info()
    made = {"curves": plots.curves(pd.read_csv(run.path / "metrics.csv"), info.get("keep", "best"))}
    if "predicted_dx" in test:
        known = test[test["dx"].notna()]
        target = known["dx"].map(data.dx_classes.index).to_numpy(dtype=np.int64)
        p = known[[f"prob_{name}" for name in data.dx_classes]].to_numpy(dtype=np.float64)
        k = len(data.dx_classes)
        counts = np.bincount(target * k + p.argmax(1), minlength=k * k).reshape(k, k)
        made["confusion"] = plots.confusion(counts, data.dx_classes)
        made["roc"] = plots.roc(target, p, data.dx_classes)
        made["reliability"] = plots.reliability(target, p)
    if "dice" in test:
        scored = test[test["dice"].notna()].sort_values("dice", ignore_index=True)
        made["dice_histogram"] = plots.dice_histogram(scored["dice"].to_numpy())
        middle = max(0, len(scored) // 2 - SHOWN // 2)
        chosen = {"worst": scored[:SHOWN], "typical": scored[middle : middle + SHOWN], "best": scored[-SHOWN:][::-1]}
        for which, rows in chosen.items():
            made[f"gallery_{which}"] = plots.gallery(list(_pictures(rows, predictor, data)))
    run.figures.mkdir(exist_ok=True)
    for name, figure in made.items():
        file = f"{name}.jpg" if name.startswith("gallery") else f"{name}.png"
        plots.save(figure, run.figures / file, stamps(info | {"leaky": data.leaky, "synthetic": False}))


def _pictures(rows: pd.DataFrame, predictor: Predictor, data: DataModule) -> Iterator[plots.Example]:
    """Photograph, true mask, predicted mask and title of a few rows, predicted again."""
    files = data.table.set_index("image_id")[["image", "mask"]].to_dict("index")
    shown = dict(zip(data.dx_classes, labels(data.dx_classes), strict=True))
    for row in rows.itertuples():
        place = files[row.image_id]
        image, outline = read_pair(place["image"], place["mask"])
        assert outline is not None, "it has a Dice"
        target = data.mask_rule.of(outline)
        prediction = predictor.predict(image)
        assert prediction.mask is not None
        words = [f"Dice {row.dice:.2f}"] + ([shown[row.dx]] if isinstance(row.dx, str) else [])
        if prediction.dx is not None:
            words.append(f"as {shown[prediction.dx]}")
        yield plots.Example(image, target, prediction.mask, "  ".join(words))
