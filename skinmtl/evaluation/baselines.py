"""What simple methods reach on a run's own split: colours alone for the diagnosis, one threshold for the mask.

Every setting of theirs is chosen on the validation images, so that a network that beats them beats them at their
best. They are scored as the network is: by `scores`, on the test images.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import recall_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from skinmtl.config.build import build
from skinmtl.config.check import check_saved
from skinmtl.config.diagnosis_groups import REST
from skinmtl.data import cache, sources, splits
from skinmtl.data.diagnosis_groups import group_diagnoses, named_diagnoses
from skinmtl.data.images.reading import Size, fit_image, read_image, read_pair
from skinmtl.data.mask_classes import BINARY, MaskClasses
from skinmtl.errors import InputError
from skinmtl.evaluation import scores
from skinmtl.files import digest
from skinmtl.runs.run import Run
from skinmtl.tasks import tables
from skinmtl.tasks.segmentation.agreement import overlap
from skinmtl.terminal import tracked

SHOWN = ("balanced_accuracy", "accuracy", "macro_auroc", "mean_image_dice", "mean_image_iou")

SPACES: dict[str, int | None] = {"RGB": None, "HSV": cv2.COLOR_RGB2HSV_FULL, "Lab": cv2.COLOR_RGB2LAB}
BINS = 8  # of each channel, all three together: 512 colours
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # scikit-learn's C: small regularises much

CHANNELS = ("grey", "blue", "saturation")
BLUR = 1 / 60  # of the image's height: fine hair and grain go, the contour stays

Item = TypeVar("Item")
Features = NDArray[np.float64]


def compare_run(run: Run, data_root: Path | None = None) -> pd.DataFrame:
    """The test scores of a run and of the simple methods on the same split; see `compare`.

    Raises:
        InputError: the images or the split file are not those that the run was trained under.
    """
    cfg, facts = run.config().data, run.info()
    check_saved(run.config(), "data")
    root = Path(cfg.root).expanduser() if data_root is None else data_root
    if data_root is None and cfg.synthetic is not None:
        build(cfg.synthetic).write(root)
    masks, lesions = (Path(cfg[key]).expanduser() if cfg.get(key) else None for key in ("masks", "lesions"))
    groups = {str(name): list(of) if of != REST else of for name, of in (cfg.get("diagnoses") or {}).items()}
    table = sources.read(root, cfg.layout, cfg.allow_leak, masks, lesions, named_diagnoses(groups))
    split = splits.load(run.split_file)
    splits.check(split, table, run.split_file, given=True)
    kept = Path(cfg.cache_dir).expanduser() if cfg.get("cache_dir") else None
    same = {
        "data": (root, cache.is_of(facts["data"]["hash"], table, kept)),
        "split": (run.split_file, facts["split"]["hash"] == digest(run.split_file)),
    }
    for key, (where, is_same) in same.items():
        if not is_same:
            raise InputError(str(where), f"not the {key} that the run was trained under", "give what it was")

    stages = split.set_index("image_id")[f"fold_{cfg.fold}"].reindex(table["image_id"])
    height, width = facts["size"]
    table = table.assign(split=stages.to_numpy())
    if groups:
        table = group_diagnoses(table, groups)
    mask_classes = build(cfg.mask_classes) if cfg.get("mask_classes") is not None else BINARY
    return compare(table, (height, width), run.predictions(), mask_classes)


def compare(
    table: pd.DataFrame, size: Size, network: pd.DataFrame | None = None, mask_classes: MaskClasses = BINARY
) -> pd.DataFrame:
    """Test scores: a row per `method`, `task` and `score` with its `value` and 95% interval over lesions `low`, `high`.

    Args:
        table: a case table with a column `split`: train, val or test.
        size: (height, width) in pixels at which colours are counted: the network's.
        network: its predictions table. Its rows come first, and `ahead`, `ahead_low` and `ahead_high` of the others
            say how far it is ahead of them, paired by lesion.
        mask_classes: those that the network was scored by; a threshold's lesion is scored by them, too.
    """
    methods = {} if network is None else {"network": network}
    if table["dx"].notna().any():
        setting, predictions = colours(table, size)
        methods[f"logistic regression on colours: {setting}"] = predictions
    if table["mask"].notna().any():
        setting, predictions = otsu(table, mask_classes)
        methods[f"Otsu's threshold: {setting}"] = predictions

    rows: list[dict[str, Any]] = []
    for method, predictions in methods.items():
        test = predictions[predictions["split"] == "test"]
        ahead = {}
        if network is not None and predictions is not network and _tasks(network) & _tasks(predictions):
            ahead = scores.paired(network, predictions)
        for task, values in scores.evaluate(test)["parts"]["test"]["scores"].items():
            for score in (name for name in SHOWN if name in values):
                row = {"method": method, "task": task, "score": score} | values[score]
                if score in ahead:
                    row |= {"ahead": ahead[score]["difference"]}
                    row |= {f"ahead_{end}": ahead[score][end] for end in ("low", "high")}
                rows.append(row)
    columns = ["method", "task", "score", "value", "low", "high", "ahead", "ahead_low", "ahead_high"]
    return pd.DataFrame(rows).reindex(columns=columns)


def _tasks(predictions: pd.DataFrame) -> set[str]:
    """The tasks that a table has columns of."""
    return {scoring.name for scoring in tables.recognised(predictions) if scoring.is_in(predictions)}


# --- colours ----------------------------------------------------------------------------------------------------------


def colours(table: pd.DataFrame, size: Size) -> tuple[str, pd.DataFrame]:
    """Multinomial logistic regression on a colour histogram of the whole image; setting and predictions table.

    Fitted on the training rows with balanced class weights. Colour space and regularisation are those of the best
    balanced accuracy on the validation rows. The table has the validation and test rows.
    """
    counted: dict[str, list[Features]] = {space: [] for space in SPACES}
    for path, mask in tracked(list(zip(table["image"], table["mask"], strict=True)), "counting colours"):
        image = fit_image(read_image(Path(path), has_mask=isinstance(mask, str)), size)
        for space in SPACES:
            counted[space].append(histogram(image, space))
    features = {space: np.stack(histograms) for space, histograms in counted.items()}  # (N, BINS ** 3) each

    train = (table["split"].eq("train") & table["dx"].notna()).to_numpy()
    val = (table["split"].eq("val") & table["dx"].notna()).to_numpy()
    dx = table["dx"].astype("str").to_numpy()

    settings = [(space, strength) for space in SPACES for strength in STRENGTHS]
    fits: dict[tuple[str, float], Pipeline] = {}
    for space, strength in tracked(settings, "fitting colours"):
        fits[space, strength] = _fit(features[space][train], dx[train], strength)

    def recall(setting: tuple[str, float]) -> float:
        guess = fits[setting].predict(features[setting[0]][val])
        # The mean over the diagnoses that occur: balanced_accuracy_score, without its warning about the others.
        return float(recall_score(dx[val], guess, labels=np.unique(dx[val]), average="macro"))

    space, strength = max(settings, key=recall)  # the first of equals regularises more
    model = fits[space, strength]
    rest = table["split"].ne("train").to_numpy()
    p = pd.DataFrame(model.predict_proba(features[space][rest]), columns=model.classes_)
    p = p.reindex(columns=table["dx"].cat.categories, fill_value=0.0).add_prefix("prob_")
    return f"{space}, {BINS} x {BINS} x {BINS} bins, C {strength:g}", pd.concat([_known(table[rest]), p], axis=1)


def histogram(image: NDArray[np.uint8], space: str) -> Features:
    """Square roots of the shares of BINS ** 3 colours among the pixels of an RGB image: (BINS ** 3,), of length one."""
    code = SPACES[space]
    pixels = image if code is None else cv2.cvtColor(image, code)
    cells = (pixels.reshape(-1, 3) // (256 // BINS)).astype(np.int64) @ [BINS * BINS, BINS, 1]
    shares: Features = np.bincount(cells, minlength=BINS**3) / len(cells)
    return np.sqrt(shares)


def _fit(features: Features, dx: NDArray[np.object_], strength: float) -> Pipeline:
    model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, class_weight="balanced", max_iter=300))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # stopping early regularises; validation judges it too
        return model.fit(features, dx)


# --- one threshold ----------------------------------------------------------------------------------------------------


def otsu(table: pd.DataFrame, mask_classes: MaskClasses = BINARY) -> tuple[str, pd.DataFrame]:
    """Otsu's threshold on each image at its own size; setting and predictions table.

    Channel, blur, and whether only the largest piece counts, are those of the best mean Dice on the validation rows.
    The table has the validation and test rows; what has no mask has no Dice.
    """
    settings = [(channel, blur, only) for channel in CHANNELS for blur in (False, True) for only in (False, True)]
    rest = table[table["split"].ne("train")].reset_index(drop=True)
    counts: dict[tuple[str, bool, bool], list[dict[str, float]]] = {setting: [] for setting in settings}
    pairs = list(zip(rest["image"], rest["mask"], strict=True))
    for image_path, mask_path in tracked(pairs, "thresholding"):
        image, outline = read_pair(image_path, mask_path)
        if outline is None:
            for setting in settings:
                counts[setting].append({})
            continue
        target = mask_classes.of(outline)
        for setting in settings:
            predicted = mask_classes.of(dark_side(image, *setting))
            counts[setting].append(overlap(predicted, target, mask_classes.names))

    tables = {setting: pd.DataFrame(rows, index=rest.index) for setting, rows in counts.items()}
    val = rest["split"].eq("val")
    best = max(settings, key=lambda setting: float(tables[setting].loc[val, "dice"].mean()))
    channel, blur, only = best
    words = f"{channel}{', blurred' if blur else ''}{', largest piece' if only else ''}"
    return words, pd.concat([_known(rest), tables[best]], axis=1)


def dark_side(image: NDArray[np.uint8], channel: str, blur: bool, largest: bool) -> NDArray[np.uint8]:
    """Where an RGB image is darker, or more saturated, than Otsu's threshold: (H, W) uint8 in {0, 1}."""
    if blur:
        image = cv2.GaussianBlur(image, (0, 0), BLUR * image.shape[0]).astype(np.uint8)
    if channel == "grey":
        values = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    elif channel == "blue":
        values = np.ascontiguousarray(image[..., 2])
    else:
        values = 255 - cv2.cvtColor(image, cv2.COLOR_RGB2HSV)[..., 1]
    mask = cv2.threshold(values, 0, 1, cv2.THRESH_BINARY_INV + cv2.THRESH_OTSU)[1].astype(np.uint8)
    return _largest(mask) if largest else mask


def _largest(mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The largest connected piece, its holes filled."""
    outlines, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    alone = np.zeros_like(mask)
    if outlines:
        cv2.drawContours(alone, [max(outlines, key=cv2.contourArea)], -1, 1, cv2.FILLED)
    return alone


def _known(table: pd.DataFrame) -> pd.DataFrame:
    """What a predictions table says of its images, `dx` as it stands in a file."""
    columns = table[["image_id", "lesion_id", "split", "dx"]]
    return columns.astype({"dx": "object"}).reset_index(drop=True)
