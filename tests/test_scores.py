"""Every score against scikit-learn, SciPy or NumPy; every interval against a plain loop over lesions."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import ndimage
from sklearn import metrics as sk

from skinmtl import scores
from skinmtl.errors import Faults, InputError
from skinmtl.metrics import Confusion, ImageDice

CLASSES = ("akiec", "bcc", "mel", "nv")


def table(count: int = 120, seed: int = 0, lesions: int = 80, ties: bool = False) -> pd.DataFrame:
    draw = np.random.default_rng(seed)
    lesion = draw.integers(0, lesions, count)
    true = draw.permutation(np.arange(lesions) % len(CLASSES))[lesion]
    p = np.exp(draw.normal(size=(count, len(CLASSES))) + 1.5 * np.eye(len(CLASSES))[true])
    p = np.round(p / p.sum(1, keepdims=True), 1) if ties else p
    p = (p + 1e-9) / (p + 1e-9).sum(1, keepdims=True)
    counts = draw.integers(1, 500, (count, 4))
    rows = {"image_id": [f"i{i}" for i in range(count)], "lesion_id": [f"l{i}" for i in lesion], "split": "test"}
    rows |= {"dx": [CLASSES[i] for i in true]} | {f"prob_{name}": p[:, i] for i, name in enumerate(CLASSES)}
    rows |= {f"{name}_lesion": counts[:, i] for i, name in enumerate(("tp", "fp", "fn", "tn"))}
    overlap = [scores.dice(row) for row in _counts(counts)], [scores.iou(row) for row in _counts(counts)]
    return pd.DataFrame(rows | {"dice": overlap[0], "iou": overlap[1], "hd95": draw.uniform(0, 9, count)})


def _counts(counts: np.ndarray) -> list[dict[str, int]]:
    return [dict(zip(("tp", "fp", "fn", "tn"), row, strict=True)) for row in counts.tolist()]


def values(of: pd.DataFrame, task: str) -> dict[str, float]:
    found = scores.evaluate(of, CLASSES, ("skin", "lesion"), draws=20)["parts"]["test"]["scores"][task]
    return {name: score["value"] for name, score in found.items()}


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", [0, 1])
def test_diagnosis_scores_equal_scikit_learns(seed: int, ties: bool) -> None:
    of = table(seed=seed, ties=ties)
    y = of["dx"].map(CLASSES.index).to_numpy()
    p = of[[f"prob_{name}" for name in CLASSES]].to_numpy()
    guess, ill = p.argmax(1), p[:, [0, 1, 2]].sum(1)
    reference = {
        "balanced_accuracy": sk.balanced_accuracy_score(y, guess),
        "accuracy": sk.accuracy_score(y, guess),
        "macro_auroc": np.mean([sk.roc_auc_score(y == i, p[:, i]) for i in range(4)]),
        "macro_average_precision": np.mean([sk.average_precision_score(y == i, p[:, i]) for i in range(4)]),
        "macro_f1": sk.f1_score(y, guess, average="macro"),
        "mcc": sk.matthews_corrcoef(y, guess),
        "nll": sk.log_loss(y, p),
        "brier": np.mean(((p - np.eye(4)[y]) ** 2).sum(1)),
        "malignant_auroc": sk.roc_auc_score(y != 3, ill),
    }
    found = values(of, "cls")
    for name, value in reference.items():
        assert found[name] == pytest.approx(value, abs=1e-6), name


def test_mask_scores_equal_numpys() -> None:
    of = table()
    found = values(of, "seg")
    tp, fp, fn = (of[f"{name}_lesion"].to_numpy() for name in ("tp", "fp", "fn"))
    each = 2 * tp / (2 * tp + fp + fn)
    assert found["mean_image_dice"] == pytest.approx(each.mean())
    assert found["pooled_dice"] == pytest.approx(2 * tp.sum() / (2 * tp + fp + fn).sum())
    jaccard = tp / (tp + fp + fn)
    assert found["thresholded_jaccard"] == pytest.approx(np.where(jaccard >= 0.65, jaccard, 0).mean())
    assert found["failure_rate"] == pytest.approx((jaccard < 0.65).mean())


def test_an_absent_class_is_left_out_and_said() -> None:
    of = table()
    of = of[of["dx"] != "bcc"].reset_index(drop=True)
    part = scores.evaluate(of, CLASSES, ("skin", "lesion"), draws=20)["parts"]["test"]
    y, guess = of["dx"], of[[f"prob_{name}" for name in CLASSES]].to_numpy().argmax(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn warns of guesses that are never true
        reference = sk.balanced_accuracy_score(y.map(CLASSES.index), guess)
    assert part["scores"]["cls"]["balanced_accuracy"]["value"] == pytest.approx(reference)
    assert part["classes"]["bcc"]["sensitivity"]["value"] is None
    assert part["classes"]["bcc"]["sensitivity"]["reason"]
    json.dumps(part, allow_nan=False)


def test_one_class_alone_and_unknown_targets_have_null_and_no_nan() -> None:
    of = table(30).assign(dx="nv")
    found = scores.evaluate(of, CLASSES, ("skin", "lesion"), draws=20)
    assert found["parts"]["test"]["scores"]["cls"]["macro_auroc"]["value"] is None
    json.dumps(found, allow_nan=False)
    unknown = table(30).assign(dx=None)
    found = scores.evaluate(unknown, CLASSES, ("skin", "lesion"), draws=20)
    assert found["parts"]["test"]["scores"]["cls"]["accuracy"]["value"] is None
    json.dumps(found, allow_nan=False)


def test_the_interval_is_that_of_a_plain_loop_over_lesions() -> None:
    of = table()
    sample = scores.Sample.of(of, CLASSES, 2000, 0)
    found = sample.value(sample.scores(("lesion",))["cls"]["balanced_accuracy"])
    draw = np.random.default_rng(1)
    groups = [rows.index.to_numpy() for _, rows in of.groupby("lesion_id")]
    y = of["dx"].map(CLASSES.index).to_numpy()
    guess = of[[f"prob_{name}" for name in CLASSES]].to_numpy().argmax(1)
    loop = []
    for _ in range(1000):
        rows = np.concatenate([groups[i] for i in draw.integers(0, len(groups), len(groups))])
        loop.append(sk.balanced_accuracy_score(y[rows], guess[rows]))
    low, high = np.percentile(loop, [2.5, 97.5])
    assert found["low"] == pytest.approx(low, abs=0.02)
    assert found["high"] == pytest.approx(high, abs=0.02)


def test_resampling_photographs_instead_of_lesions_would_be_too_narrow() -> None:
    draw = np.random.default_rng(0)
    each = np.repeat(draw.uniform(0, 1, 40), 6)  # six photographs of a lesion are all alike
    of = pd.DataFrame({"image_id": range(240), "lesion_id": np.repeat(range(40), 6), "split": "test", "dice": each})
    of = of.assign(iou=each, tp_lesion=1, fp_lesion=1, fn_lesion=1, tn_lesion=1)
    widths = []
    for lesion in (of["lesion_id"], of["image_id"]):
        sample = scores.Sample.of(of.assign(lesion_id=lesion), (), 2000, 0)
        interval = sample.value(sample.scores(("lesion",))["seg"]["mean_image_dice"])
        widths.append(interval["high"] - interval["low"])
    assert widths[0] > 2 * widths[1]


def test_paired_differences_are_zero_for_one_table_and_found_for_another() -> None:
    of = table()
    same = scores.paired(of, of)
    assert all(row["difference"] == row["low"] == row["high"] == 0 for row in same.values())
    better = scores.paired(of.assign(dice=of["dice"] + 0.1), of)["mean_image_dice"]
    assert better["low"] == pytest.approx(0.1) and better["high"] == pytest.approx(0.1)
    with pytest.raises(InputError, match="one table only"):
        scores.paired(of, of.head(10))


@pytest.mark.parametrize("seed", range(6))
def test_boundary_distances_equal_scipys(seed: int) -> None:
    draw = np.random.default_rng(seed)
    a, b = (ndimage.gaussian_filter(draw.normal(size=(60, 80)), 6) > 0.02 for _ in range(2))
    edges = [mask & ~ndimage.binary_erosion(mask) for mask in (a, b)]
    apart = [ndimage.distance_transform_edt(~edge) for edge in edges]
    both = np.concatenate([apart[1][edges[0]], apart[0][edges[1]]])
    hd95, assd = scores.boundary(a.astype(np.uint8), b.astype(np.uint8))
    assert hd95 == pytest.approx(np.percentile(both, 95), abs=1e-3)
    assert assd == pytest.approx(both.mean(), abs=1e-3)


def test_empty_masks_have_stated_values() -> None:
    empty, full = np.zeros((30, 40), np.uint8), np.ones((30, 40), np.uint8)
    for pair, overlap, far in (((empty, empty), 1.0, 0.0), ((empty, full), 0.0, 50.0), ((full, full), 1.0, 0.0)):
        counts = scores.mask_counts(*pair)
        assert scores.dice(counts) == scores.iou(counts) == overlap
        assert scores.boundary(*pair) == (far, far)


def test_a_table_that_means_nothing_is_refused() -> None:
    of = table(10)
    for bad, words in (
        (of.assign(prob_nv=np.nan), "not a number"),
        (of.assign(prob_nv=of["prob_nv"] + 0.5), "sum to one"),
        (pd.concat([of, of.head(1)]), "twice"),
        (of.drop(columns="lesion_id"), "lesion_id"),
    ):
        with pytest.raises(Faults, match=words):
            scores.check(bad)
    scores.check(of)


@pytest.mark.parametrize("size", [1, 3, 4, 17])
def test_scores_while_training_do_not_depend_on_the_batch_size(size: int) -> None:
    draw = torch.Generator().manual_seed(0)
    predicted, target = (torch.randint(0, 2, (17, 9, 9), generator=draw, dtype=torch.uint8) for _ in range(2))
    guess, true = (torch.randint(0, 4, (17,), generator=draw) for _ in range(2))
    masks, classes = ImageDice(), Confusion(5)
    for start in range(0, 17, size):
        masks.update(predicted[start : start + size], target[start : start + size])
        classes.update(guess[start : start + size], true[start : start + size])
    each = [scores.dice(scores.mask_counts(a.numpy(), b.numpy())) for a, b in zip(predicted, target, strict=True)]
    assert float(masks.compute()["mean_image_dice"]) == pytest.approx(np.mean(each), abs=1e-6)
    found = classes.compute()
    assert float(found["balanced_accuracy"]) == pytest.approx(sk.balanced_accuracy_score(true, guess), abs=1e-6)
    assert float(found["accuracy"]) == pytest.approx(sk.accuracy_score(true, guess), abs=1e-6)
