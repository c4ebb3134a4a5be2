"""Every score against scikit-learn, SciPy or NumPy; every interval against a plain loop over lesions."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import ndimage
from sklearn import metrics as sk
from torchmetrics.functional.classification import multiclass_calibration_error

from skinmtl.errors import Faults, InputError
from skinmtl.evaluation import scores
from skinmtl.tasks import resampling, tables
from skinmtl.tasks.classification.scoring import ClassificationScoring
from skinmtl.tasks.metrics import Confusion, ImageDice
from skinmtl.tasks.resampling import Resampling, Score
from skinmtl.tasks.segmentation import agreement
from skinmtl.tasks.segmentation.scoring import mask_classes

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
    overlap = [agreement.dice(row) for row in _counts(counts)], [agreement.iou(row) for row in _counts(counts)]
    return pd.DataFrame(rows | {"dice": overlap[0], "iou": overlap[1], "hd95": draw.uniform(0, 9, count)})


def _counts(counts: np.ndarray) -> list[dict[str, int]]:
    return [dict(zip(("tp", "fp", "fn", "tn"), row, strict=True)) for row in counts.tolist()]


def values(of: pd.DataFrame, task: str) -> dict[str, float]:
    found = scores.evaluate(of, draws=20)["parts"]["test"]["scores"][task]
    return {name: score["value"] for name, score in found.items()}


def scores_of(sample: Resampling) -> dict[str, dict[str, Score]]:
    """Scores by task and name."""
    tasks = [scoring for scoring in tables.recognised(sample.table) if scoring.is_in(sample.table)]
    return {scoring.name: scoring.scores(sample) for scoring in tasks}


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
    part = scores.evaluate(of, draws=20)["parts"]["test"]
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
    found = scores.evaluate(of, draws=20)
    assert found["parts"]["test"]["scores"]["cls"]["macro_auroc"]["value"] is None
    json.dumps(found, allow_nan=False)
    unknown = table(30).assign(dx=None)
    found = scores.evaluate(unknown, draws=20)
    assert found["parts"]["test"]["scores"]["cls"]["accuracy"]["value"] is None
    json.dumps(found, allow_nan=False)


def test_the_interval_is_that_of_a_plain_loop_over_lesions() -> None:
    of = table()
    sample = Resampling.of(of, 2000, 0)
    found = sample.value(scores_of(sample)["cls"]["balanced_accuracy"])
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


def test_resampling_images_instead_of_lesions_would_be_too_narrow() -> None:
    draw = np.random.default_rng(0)
    each = np.repeat(draw.uniform(0, 1, 40), 6)  # six images of a lesion are all alike
    of = pd.DataFrame({"image_id": range(240), "lesion_id": np.repeat(range(40), 6), "split": "test", "dice": each})
    of = of.assign(iou=each, tp_lesion=1, fp_lesion=1, fn_lesion=1, tn_lesion=1)
    widths = []
    for lesion in (of["lesion_id"], of["image_id"]):
        sample = Resampling.of(of.assign(lesion_id=lesion), 2000, 0)
        interval = sample.value(scores_of(sample)["seg"]["mean_image_dice"])
        widths.append(interval["high"] - interval["low"])
    assert widths[0] > 2 * widths[1]


def test_paired_differences_are_zero_for_one_table_and_found_for_another() -> None:
    of = table()
    same = scores.paired(of, of)
    for name, row in same.items():
        assert row["difference"] == 0
        if name in ("ece", "ece_rank_bins"):
            assert np.isnan(row["low"]) and np.isnan(row["high"]), "a calibration error has no interval"
        else:
            assert row["low"] == row["high"] == 0, name
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
    found = agreement.boundary(a.astype(np.uint8), b.astype(np.uint8))
    directed = [np.percentile(apart[1 - i][edges[i]], 95) for i in (0, 1)]
    assert found.hd95 == pytest.approx(max(directed), abs=1e-12)
    assert found.hd95_pooled == pytest.approx(np.percentile(both, 95), abs=1e-12)
    assert found.hd95_pooled <= found.hd95
    assert found.assd == pytest.approx(both.mean(), abs=1e-3)


def test_empty_masks_have_stated_values() -> None:
    empty, full = np.zeros((30, 40), np.uint8), np.ones((30, 40), np.uint8)
    for pair, overlap, far in (((empty, empty), 1.0, 0.0), ((empty, full), 0.0, 50.0), ((full, full), 1.0, 0.0)):
        counts = agreement.mask_counts(*pair)
        assert agreement.dice(counts) == agreement.iou(counts) == overlap
        assert agreement.boundary(*pair) == (far, far, far)


def test_a_table_that_means_nothing_is_refused() -> None:
    of = table(10)
    for bad, words in (
        (of.assign(prob_nv=np.nan), "not a number"),
        (of.assign(prob_nv=of["prob_nv"] + 0.5), "sum to one"),
        (pd.concat([of, of.head(1)]), "twice"),
        (of.drop(columns="lesion_id"), "lesion_id"),
    ):
        with pytest.raises(Faults, match=words):
            tables.check(bad)
    tables.check(of)


@pytest.mark.parametrize("size", [1, 3, 4, 17])
def test_scores_while_training_do_not_depend_on_the_batch_size(size: int) -> None:
    draw = torch.Generator().manual_seed(0)
    predicted, target = (torch.randint(0, 2, (17, 9, 9), generator=draw, dtype=torch.uint8) for _ in range(2))
    guess, true = (torch.randint(0, 4, (17,), generator=draw) for _ in range(2))
    masks, classes = ImageDice(), Confusion(5)
    for start in range(0, 17, size):
        masks.update(predicted[start : start + size], target[start : start + size])
        classes.update(guess[start : start + size], true[start : start + size])
    each = [agreement.dice(agreement.mask_counts(a.numpy(), b.numpy())) for a, b in zip(predicted, target, strict=True)]
    assert float(masks.compute()["mean_image_dice"]) == pytest.approx(np.mean(each), abs=1e-6)
    found = classes.compute()
    assert float(found["balanced_accuracy"]) == pytest.approx(sk.balanced_accuracy_score(true, guess), abs=1e-6)
    assert float(found["accuracy"]) == pytest.approx(sk.accuracy_score(true, guess), abs=1e-6)


def test_rows_whose_diagnosis_or_probabilities_mean_nothing_are_named() -> None:
    of = table(10)
    with pytest.raises(Faults, match="dx is scc, which has no column of probabilities"):
        scores.evaluate(of.assign(dx=["scc", *of["dx"][1:]]), draws=5)
    negative = of.assign(prob_nv=-0.1, prob_mel=1.1, prob_bcc=0.0, prob_akiec=0.0)
    with pytest.raises(Faults, match=r"i0: a probability is below 0 or above 1 \(10 rows\)"):
        tables.check(negative)
    with pytest.raises(Faults, match="no rows"):
        tables.check(of.head(0))


def test_the_diagnoses_counted_as_malignant_are_those_given() -> None:
    of = table()
    p, y = of[["prob_akiec", "prob_nv"]].sum(axis=1), of["dx"].isin(["akiec", "nv"])
    given = scores.evaluate(of, [ClassificationScoring(classes=CLASSES, malignant=("akiec", "nv"))], draws=5)
    found = given["parts"]["test"]["scores"]["cls"]["malignant_auroc"]["value"]
    assert found == pytest.approx(sk.roc_auc_score(y, p))
    other = scores.evaluate(of, [ClassificationScoring(classes=CLASSES, malignant=("scc",))], draws=5)
    assert "malignant_auroc" not in other["parts"]["test"]["scores"]["cls"]


def test_one_lesion_has_a_value_and_no_interval() -> None:
    found = scores.evaluate(table(5).assign(lesion_id="one"), draws=20)
    score = found["parts"]["test"]["scores"]["seg"]["mean_image_dice"]
    assert score["value"] is not None
    assert (score["low"], score["high"]) == (None, None)
    assert "too few lesions" in score["reason"]


def test_the_older_calibration_error_is_that_of_fifteen_groups_of_equal_size_among_known_targets() -> None:
    of = table(150)
    unknown = pd.concat([of, table(40, seed=1).assign(dx=None, image_id=[f"u{i}" for i in range(40)])])
    p = of[[f"prob_{name}" for name in CLASSES]].to_numpy()
    order = np.argsort(p.max(1), kind="stable")
    right = p.argmax(1) == of["dx"].map(CLASSES.index).to_numpy()
    groups = np.split(order, 15)
    reference = np.mean([abs(right[rows].mean() - p.max(1)[rows].mean()) for rows in groups])
    assert values(of, "cls")["ece_rank_bins"] == pytest.approx(reference)
    assert values(unknown.reset_index(drop=True), "cls")["ece_rank_bins"] == pytest.approx(reference)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda of: of.assign(lesion_id="one"), "lesion_id of"),
        (lambda of: of.assign(dx="nv"), "dx of"),
        (lambda of: of.rename(columns={"prob_nv": "prob_nevus"}), "nevus, nv"),
        (lambda of: of.assign(split="val"), "in one table only"),
    ],
)
def test_tables_that_speak_of_different_things_are_not_compared(
    change: Callable[[pd.DataFrame], pd.DataFrame], words: str
) -> None:
    of = table()
    with pytest.raises(InputError, match=words):
        scores.paired(of, change(of))
    with pytest.raises(InputError, match="no val rows"):
        scores.paired(of, of, split="val")


@pytest.mark.slow
def test_the_interval_holds_the_truth_about_as_often_as_it_says_and_one_over_images_does_not() -> None:
    draw = np.random.default_rng(0)
    held = {"lesion": 0, "image": 0}
    trials, lesions = 200, 60
    for _ in range(trials):
        lesion = np.repeat(np.arange(lesions), draw.integers(1, 7, lesions))
        each = draw.normal(0.8, 0.1, lesions)[lesion] + draw.normal(0, 0.02, len(lesion))
        rows = pd.DataFrame({"image_id": np.arange(len(lesion)), "lesion_id": lesion, "dice": each, "iou": each})
        rows = rows.assign(tp_lesion=1, fp_lesion=1, fn_lesion=1, tn_lesion=1)
        for unit, resampled in (("lesion", rows), ("image", rows.assign(lesion_id=rows["image_id"]))):
            sample = Resampling.of(resampled, 300, 0)
            found = sample.value(scores_of(sample)["seg"]["mean_image_dice"])
            held[unit] += found["low"] <= 0.8 <= found["high"]
    assert held["lesion"] > 0.9 * trials
    assert held["image"] < 0.8 * trials


def test_draws_in_portions_are_the_draws_at_once() -> None:
    of = table()
    sample = Resampling.of(of, 450, 0)
    units = pd.factorize(of["lesion_id"])[0]
    count = units.max() + 1
    drawn = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), size=450)
    for task in scores_of(sample).values():
        found = sample.drawn(task)
        for draw in (0, 199, 200, 449):
            rows = np.repeat(np.arange(len(of)), drawn[draw][units])
            again = Resampling.of(of.iloc[rows].reset_index(drop=True), 0, 0)
            value = again.once(scores_of(again)["cls" if "accuracy" in task else "seg"])
            for name in set(task) - {"ece_rank_bins"}:  # whose bins are drawn on the sample
                assert found[name][draw] == pytest.approx(value[name], rel=1e-9), name


# --- several mask classes ---------------------------------------------------------------------------------------------

TRIMAP = ("skin", "border", "lesion")


def pairs(count: int = 24, seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    """Predicted and true masks of three classes; the first pair has no border, the second true one neither class."""
    draw = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        true = draw.choice(3, (13, 17), p=[0.5, 0.2, 0.3]).astype(np.uint8)
        predicted = np.where(draw.random((13, 17)) < 0.7, true, draw.integers(0, 3, (13, 17))).astype(np.uint8)
        found.append((predicted, true))
    found[0] = tuple(np.where(mask == 1, 2, mask).astype(np.uint8) for mask in found[0])
    found[1] = found[1][0], np.zeros((13, 17), np.uint8)
    return found


def trimap_table(masks: list[tuple[np.ndarray, np.ndarray]]) -> pd.DataFrame:
    rows = [agreement.overlap(predicted, true, TRIMAP) for predicted, true in masks]
    ids = {"image_id": [f"i{i}" for i in range(len(rows))], "lesion_id": [f"l{i // 2}" for i in range(len(rows))]}
    return pd.DataFrame(rows).assign(**ids, split="test")


def test_scores_of_every_mask_class_equal_scikit_learns() -> None:
    masks = pairs()
    of = trimap_table(masks)
    part = scores.evaluate(of, draws=20)["parts"]["test"]
    guess, true = (np.concatenate([pair[i].reshape(-1) for pair in masks]) for i in (0, 1))
    assert part["pixels"] == sk.confusion_matrix(true, guess).tolist()
    pooled = {
        "pooled_dice": sk.f1_score(true, guess, average=None),
        "pooled_iou": sk.jaccard_score(true, guess, average=None),
        "pooled_precision": sk.precision_score(true, guess, average=None),
        "pooled_recall": sk.recall_score(true, guess, average=None),
    }
    for name, reference in pooled.items():
        found = [part["mask_classes"][of_class][name]["value"] for of_class in TRIMAP]
        np.testing.assert_allclose(found, reference, err_msg=name)
    overall = {name: score["value"] for name, score in part["scores"]["seg"].items()}
    assert overall["pooled_dice"] == pytest.approx(pooled["pooled_dice"][1:].mean())
    assert overall["pooled_mean_iou"] == pytest.approx(sk.jaccard_score(true, guess, average="macro"))
    assert overall["pooled_accuracy"] == pytest.approx(sk.accuracy_score(true, guess))
    assert overall["pooled_mcc"] == pytest.approx(sk.matthews_corrcoef(true, guess))
    json.dumps(part, allow_nan=False)


def test_scores_of_each_image_equal_scikit_learns_and_absent_classes_have_stated_values() -> None:
    masks = pairs()
    of = trimap_table(masks)
    flat = [(true.reshape(-1), predicted.reshape(-1)) for predicted, true in masks]
    dice = np.array([sk.f1_score(*pair, labels=[1, 2], average=None, zero_division=1.0) for pair in flat])
    iou = np.array([sk.jaccard_score(*pair, labels=[1, 2], average=None, zero_division=1.0) for pair in flat])
    assert dice[0, 0] == 1, "no border in either mask"
    assert dice[1].tolist() == [0, 0], "both predicted, neither there"
    np.testing.assert_allclose(of[["dice_border", "dice_lesion"]], dice)
    np.testing.assert_allclose(of[["iou_border", "iou_lesion"]], iou)
    np.testing.assert_allclose(of["dice"], dice.mean(1))
    np.testing.assert_allclose(of["iou"], iou.mean(1))

    part = scores.evaluate(of, draws=20)["parts"]["test"]
    assert part["scores"]["seg"]["mean_image_dice"]["value"] == pytest.approx(dice.mean())
    border = part["mask_classes"]["border"]
    assert border["n_images"] == len(masks) - 2
    assert border["mean_image_dice"]["value"] == pytest.approx(dice[:, 0].mean())
    recall = [sk.recall_score(*pair, labels=[1], average="macro") for pair in flat[2:]]
    assert border["mean_image_recall"]["value"] == pytest.approx(np.mean(recall))
    both = [sk.recall_score(*pair, labels=[1, 2], average="macro") for pair in flat[2:]]
    first = sk.recall_score(*flat[0], labels=[2], average="macro")  # of an image the classes that it has
    assert part["scores"]["seg"]["mean_image_sensitivity"]["value"] == pytest.approx(np.mean([first, *both]))


def test_two_classes_have_the_columns_that_they_always_had() -> None:
    predicted, true = (np.random.default_rng(i).integers(0, 2, (13, 17)).astype(np.uint8) for i in (0, 1))
    columns = agreement.overlap(predicted, true, ("skin", "lesion"))
    counts = agreement.mask_counts(predicted, true)
    assert columns == {f"{name}_lesion": count for name, count in counts.items()} | {
        "dice": agreement.dice(counts),
        "iou": agreement.iou(counts),
    }
    of = table()
    part = scores.evaluate(of, draws=20)["parts"]["test"]
    for name in ("mean_image_dice", "pooled_dice"):
        assert part["mask_classes"]["lesion"][name]["value"] == pytest.approx(part["scores"]["seg"][name]["value"])
    tn, fp, fn, tp = (int(of[f"{name}_lesion"].sum()) for name in ("tn", "fp", "fn", "tp"))
    assert part["pixels"] == [[tn, fp], [fn, tp]]


def test_a_table_says_itself_which_mask_classes_it_has() -> None:
    assert mask_classes(trimap_table(pairs())) == TRIMAP
    assert mask_classes(table()) == ("skin", "lesion")
    assert mask_classes(table()[["image_id", "dx"]]) == ()


def test_tables_of_other_mask_classes_are_not_compared() -> None:
    of = trimap_table(pairs())
    binary = pd.DataFrame([agreement.overlap(a > 0, b > 0, ("skin", "lesion")) for a, b in pairs()])
    other = binary.assign(image_id=of["image_id"], lesion_id=of["lesion_id"], split="test")
    assert scores.paired(of, of)["pooled_mean_iou"]["difference"] == 0
    with pytest.raises(InputError, match="mask classes skin, border, lesion and skin, lesion"):
        scores.paired(of, other)


def test_images_without_masks_count_in_no_mask_score() -> None:
    of = trimap_table(pairs())
    seen = scores.evaluate(of, draws=5)["parts"]["test"]
    blank = of.head(5).assign(image_id=[f"b{i}" for i in range(5)])
    blank[[name for name in of if name not in ("image_id", "lesion_id", "split")]] = np.nan
    also = scores.evaluate(pd.concat([of, blank], ignore_index=True), draws=5)["parts"]["test"]
    for task, other in ((seen["scores"]["seg"], also["scores"]["seg"]), *_each_class(seen, also)):
        assert {name: score["value"] for name, score in task.items() if name != "n_images"} == pytest.approx(
            {name: score["value"] for name, score in other.items() if name != "n_images"}
        )
    assert seen["pixels"] == also["pixels"]
    json.dumps(also, allow_nan=False)


def _each_class(one: dict, other: dict) -> list[tuple[dict, dict]]:
    return [(one["mask_classes"][name], other["mask_classes"][name]) for name in TRIMAP]


@pytest.mark.parametrize("seed", [0, 1])
def test_the_classification_report_is_scikit_learns(seed: int) -> None:
    of = table(seed=seed)
    y, guess = of["dx"], np.array(CLASSES)[of[[f"prob_{name}" for name in CLASSES]].to_numpy().argmax(1)]
    reference = sk.classification_report(y, guess, output_dict=True)
    part = scores.evaluate(of, draws=20)["parts"]["test"]
    for name in CLASSES:
        found = part["classes"][name]
        for ours, theirs in (("ppv", "precision"), ("sensitivity", "recall"), ("f1", "f1-score")):
            assert found[ours]["value"] == pytest.approx(reference[name][theirs]), (name, ours)
        assert found["n_images"] == reference[name]["support"]
    means = {"macro_precision": "precision", "balanced_accuracy": "recall", "macro_f1": "f1-score"}
    for ours, theirs in means.items():
        assert part["scores"]["cls"][ours]["value"] == pytest.approx(reference["macro avg"][theirs]), ours


def test_a_class_that_is_never_guessed_has_no_precision_and_counts_zero_in_the_mean() -> None:
    of = table()
    p = of[[f"prob_{name}" for name in CLASSES]].to_numpy().copy()
    p[:, 1] = 0
    of = of.assign(**{f"prob_{name}": p[:, i] / p.sum(1) for i, name in enumerate(CLASSES)})
    guess = np.array(CLASSES)[p.argmax(1)]
    part = scores.evaluate(of, draws=20)["parts"]["test"]
    assert part["classes"]["bcc"]["ppv"]["value"] is None
    assert part["classes"]["bcc"]["f1"]["value"] == 0
    reference = sk.precision_score(of["dx"], guess, average="macro", zero_division=0)
    assert part["scores"]["cls"]["macro_precision"]["value"] == pytest.approx(reference)


# --- definitions ------------------------------------------------------------------------------------------------------


def test_hd95_is_the_larger_of_the_two_directions() -> None:
    # Of the target's edge far from the prediction there is a twentieth part or more only in one direction.
    predicted, target = (np.zeros((60, 200), np.uint8) for _ in range(2))
    predicted[20:40, 20:40] = target[20:40, 20:40] = 1
    target[30, 40:90] = 1  # a hair: 50 of the target's edge pixels are 1 to 50 away, none of the prediction's
    edge = 4 * 19  # the square's own; where the hair begins the target has no edge
    away = np.concatenate([np.zeros(edge - 1), np.arange(1, 51)])
    found = agreement.boundary(predicted, target)
    assert found.hd95 == pytest.approx(np.percentile(away, 95)) and found.hd95 > 40
    assert found.hd95_pooled == pytest.approx(np.percentile([*away, *np.zeros(edge - 1), 1], 95))
    assert found.hd95_pooled < found.hd95 - 3
    assert agreement.boundary(target, predicted) == found


def calibrated(ties: bool, seed: int = 0) -> pd.DataFrame:
    of = table(600, seed=seed, lesions=600)
    if not ties:
        return of
    best = of[[f"prob_{name}" for name in CLASSES]].to_numpy().argmax(1)
    p = np.where(np.eye(4)[best] > 0, 0.7, 0.1)
    return of.assign(**{f"prob_{name}": p[:, i] for i, name in enumerate(CLASSES)})


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_calibration_error_is_torchmetrics_whatever_the_order_of_the_rows(seed: int, ties: bool) -> None:
    of = calibrated(ties, seed)
    p = torch.tensor(of[[f"prob_{name}" for name in CLASSES]].to_numpy())
    y = torch.tensor(of["dx"].map(CLASSES.index).to_numpy())
    reference = multiclass_calibration_error(p, y, 4, n_bins=15, norm="l1")
    found = values(of, "cls")["ece"]
    assert found == pytest.approx(float(reference), abs=1e-5)  # theirs is in single precision
    turned = of.iloc[np.argsort(of["dx"])].reset_index(drop=True)
    assert values(turned, "cls")["ece"] == pytest.approx(found, abs=1e-12)
    if ties:
        assert values(turned, "cls")["ece_rank_bins"] != pytest.approx(values(of, "cls")["ece_rank_bins"], abs=1e-3)


def test_confidences_on_the_edge_of_a_bin_fall_where_they_do_in_torchmetrics() -> None:
    edges = torch.linspace(0, 1, 16).numpy()
    levels = np.concatenate([edges, np.nextafter(edges, np.float32(0)), np.nextafter(edges, np.float32(1))])
    levels = levels[(levels >= 0.5) & (levels <= 1)].astype(np.float64)
    right = np.arange(len(levels)) % 3 > 0
    of = pd.DataFrame({"image_id": np.arange(len(levels)).astype(str), "lesion_id": None, "split": "test"})
    of = of.assign(dx=np.where(right, "a", "b"), prob_a=levels, prob_b=1 - levels)
    reference = multiclass_calibration_error(
        torch.tensor(of[["prob_a", "prob_b"]].to_numpy()), torch.tensor(1 - right.astype(int)), 2, n_bins=15, norm="l1"
    )
    part = scores.evaluate(of, draws=2)["parts"]["test"]
    assert part["scores"]["cls"]["ece"]["value"] == pytest.approx(float(reference), abs=1e-6)


def test_a_calibration_error_has_no_interval_and_says_why() -> None:
    """Why: of calibrated samples the percentiles never hold the truth, and most draws lie above the value."""
    held, above = 0, 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        p = rng.uniform(0.5, 1, 200)
        of = pd.DataFrame({"image_id": np.arange(200).astype(str), "lesion_id": None, "split": "test"})
        of = of.assign(dx=np.where(rng.random(200) < p, "a", "b"), prob_a=p, prob_b=1 - p)
        sample = Resampling.of(of, 200, 0)
        ece = scores_of(sample)["cls"]["ece"]
        found = sample.value(ece)
        assert (found["low"], found["high"]) == (None, None) and "resampling raises" in found["reason"]
        drawn = sample.drawn({"ece": ece})["ece"]
        held += np.percentile(drawn, 2.5) <= 0
        above += np.median(drawn) > found["value"]
    assert held == 0 and above >= 15
    assert values(table(), "cls").keys() >= {"ece", "ece_rank_bins"}


def test_a_single_diagnosis_tells_nothing_apart() -> None:
    of = table(60).assign(dx="nv")
    found = scores.evaluate(of, draws=5)
    cls = found["parts"]["test"]["scores"]["cls"]
    for name in ("balanced_accuracy", "macro_f1", "macro_precision", "macro_average_precision", "mcc"):
        assert cls[name]["value"] is None and "single diagnosis" in cls[name]["reason"], name
    assert cls["accuracy"]["value"] is not None, "of four that could have been said"
    assert any("nv is the only diagnosis" in note for note in found["notes"])
    alone = of[["image_id", "lesion_id", "split", "dx"]].assign(prob_nv=1.0)
    cls = scores.evaluate(alone, draws=5)["parts"]["test"]["scores"]["cls"]
    assert {score["value"] for score in cls.values()} == {None}, "even the accuracy is 1 whatever was learned"


# --- groups and pairs -------------------------------------------------------------------------------------------------


def test_groups_of_the_split_are_resampled_whole() -> None:
    of = table()
    joined = of.assign(group=of["lesion_id"].replace({f"l{i}": f"l{i}+l{i + 1}" for i in range(0, 80, 2)}))
    joined["group"] = joined["group"].replace({f"l{i + 1}": f"l{i}+l{i + 1}" for i in range(0, 80, 2)})
    groups = scores.evaluate(joined, draws=300)
    renamed = scores.evaluate(of.assign(lesion_id=joined["group"]), draws=300)
    lesions = scores.evaluate(of, draws=300)
    assert "column group" in groups["interval"] and "column lesion_id" in lesions["interval"]
    parts = [each["parts"]["test"] for each in (groups, renamed, lesions)]
    assert parts[0]["scores"] == parts[1]["scores"] != parts[2]["scores"]
    assert parts[0]["n_lesions"] == parts[2]["n_lesions"] == of["lesion_id"].nunique()
    assert parts[0]["n_resampled"] == joined["group"].nunique() < of["lesion_id"].nunique()


def test_images_are_resampled_where_no_row_names_a_lesion_and_that_is_said() -> None:
    found = scores.evaluate(table().assign(lesion_id=None), draws=5)
    assert "images, for no row names a lesion" in found["interval"]
    assert "no row names a lesion" in found["notes"][0]


def test_a_table_differs_by_nothing_from_itself_with_its_worst_cells_blank() -> None:
    of = table(400, lesions=300)
    blank = of.copy()
    worst = of["dice"].argsort()[:100]
    measures = [name for name in of if name.endswith("_lesion") or name in ("dice", "iou", "hd95")]
    blank.loc[worst, measures] = np.nan
    blank.loc[of.index[:30], "dx"] = None
    for pair in ((of, blank), (blank, of)):
        for name, row in scores.paired(*pair).items():
            assert row["difference"] == 0 and not row["low"] < 0 and not row["high"] > 0, name
    said = scores.uncompared(of, blank)
    assert "masks: 100 of 400 images left out, whose dice is missing (0 in the first table, 100 in the" in said[0]
    assert "diagnoses: 30 of 400 images left out" in said[1]
    assert scores.uncompared(of, of) == []
    kept = of.drop(worst).reset_index(drop=True)
    one, other = (scores.paired(of, each)["mean_image_dice"]["first"] for each in (blank, of))
    assert one == pytest.approx(kept["dice"].mean()) and other == pytest.approx(of["dice"].mean())


def test_pixels_of_another_size_of_image_are_not_compared() -> None:
    of = table()
    small = of.assign(**{f"{name}_lesion": of[f"{name}_lesion"] // 4 for name in ("tp", "fp", "fn", "tn")})
    with pytest.raises(InputError, match=r"i0: \d+ pixels in one table, \d+ in the other \(\d+ images\)"):
        scores.paired(of, small)


def test_tables_of_other_tasks_are_not_compared() -> None:
    of = table()
    masks = of.loc[:, ~of.columns.str.startswith(("prob_", "dx"))]
    diagnoses = of.drop(columns=[name for name in of if name.endswith("_lesion") or name in ("dice", "iou", "hd95")])
    with pytest.raises(InputError, match="nothing to compare: the first table has masks, the second diagnoses"):
        scores.paired(masks, diagnoses)
    assert scores.uncompared(of, masks) == ["only the first table has diagnoses: they are not compared"]
    assert "accuracy" not in scores.paired(of, masks) and "mean_image_dice" in scores.paired(of, masks)


def test_a_hundred_thousand_images_fit_the_memory_of_a_laptop() -> None:
    assert max(place.stop - place.start for place in resampling._portions(2000, 100_000)) * 100_000 * 8 < 50e6
    assert sum(place.stop - place.start for place in resampling._portions(2000, 100_000)) == 2000
