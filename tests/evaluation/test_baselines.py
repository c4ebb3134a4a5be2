from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from skinmtl.data import cache, sources, splits
from skinmtl.errors import InputError
from skinmtl.evaluation import baselines
from skinmtl.files import digest
from skinmtl.runs.run import Run

SIZE = (24, 32)
COLOURS = {"akiec": (200, 90, 90), "bcc": (90, 200, 90), "mel": (90, 90, 200), "nv": (180, 180, 90)}


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """160 images of 120 lesions, four diagnoses that differ in the colour of the skin, a dark disc on each."""
    folder, rng = tmp_path_factory.mktemp("planted"), np.random.default_rng(0)
    rows, y, x = [], *np.mgrid[: SIZE[0], : SIZE[1]]
    for number in range(160):
        lesion = number % 120
        dx = list(COLOURS)[lesion % len(COLOURS)]
        mask = np.hypot(y - rng.uniform(9, 15), x - rng.uniform(12, 20)) < rng.uniform(4, 7)
        image = np.where(mask[..., None], 40, COLOURS[dx]) + rng.normal(0, 12, (*SIZE, 3))
        paths = {"image": folder / f"{number:03d}.png", "mask": folder / f"{number:03d}_mask.png"}
        cv2.imwrite(str(paths["image"]), np.clip(image, 0, 255).astype(np.uint8)[..., ::-1])
        cv2.imwrite(str(paths["mask"]), mask.astype(np.uint8) * 255)
        split = "train" if lesion < 60 else "val" if lesion < 80 else "test"
        row = {"image_id": f"P{number:03d}", "lesion_id": f"L{lesion:03d}", "dx": dx, "split": split}
        rows.append(row | {key: str(path) for key, path in paths.items()})
    table = pd.DataFrame(rows)
    return table.assign(dx=pd.Categorical(table["dx"], categories=list(COLOURS)))


def value(scores: pd.DataFrame, score: str, method: str = "") -> float:
    found = scores[(scores["score"] == score) & scores["method"].str.contains(method, regex=False)]
    return float(found["value"].item())


def shuffled(table: pd.DataFrame, seed: int) -> pd.DataFrame:
    """The diagnoses shuffled among the lesions anew."""
    lesions = table.drop_duplicates("lesion_id").set_index("lesion_id")["dx"].astype("str")
    dealt = pd.Series(np.random.default_rng(seed).permutation(lesions.to_numpy()), index=lesions.index)
    dx = dealt.reindex(table["lesion_id"]).to_numpy()
    return table.assign(dx=pd.Categorical(dx, categories=list(COLOURS)))


def test_both_find_what_was_planted_for_them(planted: pd.DataFrame) -> None:
    scores = baselines.compare(planted, SIZE)
    assert value(scores, "balanced_accuracy") > 0.95
    assert value(scores, "mean_image_dice") > 0.95
    assert (scores["low"] <= scores["value"]).all()
    assert (scores["value"] <= scores["high"]).all()


def test_shuffled_diagnoses_are_named_by_chance(planted: pd.DataFrame) -> None:
    reached = [value(baselines.compare(shuffled(planted, seed), SIZE), "balanced_accuracy") for seed in range(4)]
    assert 0.12 < np.mean(reached) < 0.38  # chance is 0.25


def test_masks_of_other_images_are_not_found(planted: pd.DataFrame) -> None:
    mixed = planted.assign(mask=np.random.default_rng(0).permutation(planted["mask"]))
    apart = value(baselines.compare(planted, SIZE), "mean_image_dice")
    assert value(baselines.compare(mixed, SIZE), "mean_image_dice") < apart - 0.2


def test_scores_are_those_of_scikit_learn(planted: pd.DataFrame) -> None:
    table = shuffled(planted, 1)
    table.loc[table["split"] == "train", "dx"] = planted["dx"]  # something between chance and perfect
    _, predictions = baselines.colours(table, SIZE)
    test = predictions[predictions["split"] == "test"]
    p = test[[f"prob_{dx}" for dx in COLOURS]].to_numpy()
    scores = baselines.compare(table, SIZE)
    guess = np.array(list(COLOURS))[p.argmax(1)]
    assert value(scores, "balanced_accuracy") == pytest.approx(balanced_accuracy_score(test["dx"], guess))
    auroc = roc_auc_score(test["dx"].astype("str"), p, multi_class="ovr", labels=list(COLOURS))
    assert value(scores, "macro_auroc") == pytest.approx(auroc)


def test_nothing_is_learned_from_test_images(planted: pd.DataFrame) -> None:
    known = planted["split"] != "test"
    other = planted.assign(dx=planted["dx"].where(known, "nv"), mask=planted["mask"].where(known, planted["mask"][0]))
    for method in (lambda table: baselines.colours(table, SIZE), baselines.otsu):
        (setting, before), (same, after) = method(planted), method(other)
        assert same == setting
        columns = [name for name in before if name.startswith("prob_")]
        assert np.array_equal(before[columns], after[columns])


def test_the_threshold_is_set_on_validation(planted: pd.DataFrame, tmp_path: Path) -> None:
    """Validation lesions are dark in blue, test lesions bright in it; half of each is dark. Blue is taken and fails."""
    table = planted.copy()
    for row in table[table["split"] != "train"].itertuples():
        mask = cv2.imread(row.mask, cv2.IMREAD_GRAYSCALE) > 0
        dark, bright = (30, 200) if row.split == "val" else (200, 30)
        shade = np.where(np.arange(SIZE[1]) < SIZE[1] // 2, 60, 180) * np.ones(SIZE)
        image = np.stack([np.where(mask, dark, bright), shade, shade], axis=-1).astype(np.uint8)
        path = tmp_path / f"{row.image_id}.png"
        cv2.imwrite(str(path), image)
        table.loc[row.Index, "image"] = str(path)
    setting, predictions = baselines.otsu(table)
    assert setting.startswith("blue")
    assert predictions.groupby("split")["dice"].mean()["val"] > 0.95
    assert predictions.groupby("split")["dice"].mean()["test"] < 0.3


@pytest.mark.parametrize("space", list(baselines.SPACES))
def test_a_histogram_counts_colours(space: str) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    code = baselines.SPACES[space]
    pixels = image if code is None else cv2.cvtColor(image, code)
    counts, _ = np.histogramdd(pixels.reshape(-1, 3), bins=8, range=[(0, 256)] * 3)
    features = baselines.histogram(image, space)
    assert np.allclose(features**2, counts.ravel() / counts.sum())
    assert np.sum(features**2) == pytest.approx(1)


def test_the_largest_piece_has_no_holes() -> None:
    image = np.full((40, 40, 3), 220, np.uint8)
    cv2.rectangle(image, (5, 5), (24, 24), (30, 30, 30), cv2.FILLED)
    cv2.rectangle(image, (12, 12), (15, 15), (220, 220, 220), cv2.FILLED)
    cv2.rectangle(image, (32, 32), (36, 36), (30, 30, 30), cv2.FILLED)
    assert baselines.dark_side(image, "grey", blur=False, largest=False).sum() == 20 * 20 - 4 * 4 + 5 * 5
    assert baselines.dark_side(image, "grey", blur=False, largest=True).sum() == 20 * 20


def test_images_without_mask_or_diagnosis_are_left_out(planted: pd.DataFrame) -> None:
    some = planted.assign(
        mask=planted["mask"].where(planted.index % 3 > 0), dx=planted["dx"].where(planted.index % 5 > 0)
    )
    scores = baselines.compare(some, SIZE)
    assert value(scores, "balanced_accuracy") > 0.9
    assert value(scores, "mean_image_dice") > 0.95
    assert set(baselines.compare(planted.assign(mask=pd.NA), SIZE)["task"]) == {"cls"}


@pytest.fixture
def run(synthetic_root: Path, tmp_path: Path) -> Run:
    """The folder of a finished run on the shared images, whose network is always right."""
    table = sources.read(synthetic_root)
    run = Run(tmp_path / "run")
    split = splits.make_split(table, 3, 0)
    splits.save(split, run.split_file)
    (run.path / ".hydra").mkdir()
    data = {
        "_target_": "skinmtl.data.datamodule.DataModule",
        "root": str(synthetic_root),
        "layout": "auto",
        "allow_leak": False,
        "synthetic": None,
        "fold": 1,
    }
    (run.path / ".hydra" / "config.yaml").write_text(json.dumps({"data": data}))
    hashes = {"split": digest(run.split_file), "data": cache.fingerprint(table)}
    run.info_file.write_text(json.dumps({"size": [32, 32]} | {key: {"hash": it} for key, it in hashes.items()}))

    right = table.assign(split=split["fold_1"])[lambda rows: rows["split"] != "train"]
    right = right[["image_id", "lesion_id", "split", "dx"]].assign(dice=1.0, iou=1.0, tp=72, fp=0, fn=0, tn=3000)
    right = right.rename(columns={count: f"{count}_lesion" for count in ("tp", "fp", "fn", "tn")})
    for dx in table["dx"].cat.categories:
        right[f"prob_{dx}"] = (right["dx"] == dx).astype(float)
    right.to_csv(run.predictions_file, index=False)
    return run


def test_a_runs_network_stands_beside_them_on_its_own_lesions(run: Run) -> None:
    scores = baselines.compare_run(run)
    assert value(scores, "balanced_accuracy", "network") == 1
    assert value(scores, "mean_image_dice", "network") == 1
    others = scores[scores["method"] != "network"]
    assert np.allclose(others["ahead"], 1 - others["value"])
    assert (others["ahead_low"] <= others["ahead"]).all()
    assert (others["ahead"] <= others["ahead_high"]).all()


def test_images_that_moved_are_found_where_they_are_said_to_be(run: Run, synthetic_root: Path) -> None:
    moved = shutil.copytree(synthetic_root, run.path / "moved")
    assert baselines.compare_run(run, moved).equals(baselines.compare_run(run))


@pytest.mark.parametrize("key", ["data", "split"])
def test_a_run_on_other_images_or_another_split_is_refused(run: Run, key: str) -> None:
    run.update({key: {"hash": "0" * 64}})
    with pytest.raises(InputError, match=f"not the {key} that the run was trained under"):
        baselines.compare_run(run)
