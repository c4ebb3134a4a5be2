"""A run with three mask classes and grouped diagnoses, from config to predictions, page and new images."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.metrics import classification_report
from small_runs import compose, train

import skinmtl
from skinmtl.cli import commands
from skinmtl.data.images.reading import read_mask
from skinmtl.data.mask_classes import Trimap
from skinmtl.evaluation import baselines
from skinmtl.runs.run import Run
from skinmtl.tasks.classification.scoring import classes_in
from skinmtl.tasks.segmentation.scoring import mask_classes
from skinmtl.training.dry_run import checked

TRIMAP = ("skin", "border", "lesion")


@pytest.fixture(scope="module")
def run(synthetic_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    words = ["trainer.precision=32-true", "data.mask_classes.band=0.15"]
    return train(tmp_path_factory.mktemp("trimap") / "run", synthetic_root, words, "trimap_malignancy")


def test_every_score_is_there_by_class_in_tables_scores_and_page(run: Run) -> None:
    table, stored = run.predictions(), json.loads((run.path / "scores.json").read_text())
    assert mask_classes(table) == TRIMAP
    assert classes_in(table) == ("benign", "malignant")
    assert {"dx_original", "dice_border", "dice_lesion", "iou_border", "iou_lesion", "tp_border"} <= set(table)
    test = stored["parts"]["test"]
    assert list(test["mask_classes"]) == list(TRIMAP)
    assert list(test["classes"]) == ["benign", "malignant"]
    assert (run.info()["mask_classes"], run.info()["dx_classes"]) == (list(TRIMAP), ["benign", "malignant"])
    page = (run.path / "report.html").read_text()
    assert all(f'<th scope="row">{name}</th>' in page for name in (*TRIMAP, "benign", "malignant"))
    assert "diagnosis before grouping" in page


def test_classes_are_scored_as_scikit_learn_scores_the_table(run: Run) -> None:
    table = run.predictions().query("split == 'test'")
    ill = np.where(table["dx_original"].isin(["akiec", "bcc", "mel"]), "malignant", "benign")
    assert table["dx"].tolist() == ill.tolist()
    reference = classification_report(table["dx"], table["predicted_dx"], output_dict=True, zero_division=0)
    classes = json.loads((run.path / "scores.json").read_text())["parts"]["test"]["classes"]
    for name in ("benign", "malignant"):
        assert (classes[name]["ppv"]["value"] or 0) == pytest.approx(reference[name]["precision"])
        assert classes[name]["sensitivity"]["value"] == pytest.approx(reference[name]["recall"])
        assert classes[name]["f1"]["value"] == pytest.approx(reference[name]["f1-score"])


def test_rows_are_scored_on_the_very_band_of_the_image(run: Run, synthetic_root: Path) -> None:
    row = run.predictions().query("split == 'test'").iloc[0]
    (image,) = synthetic_root.glob(f"HAM10000_images_part_*/{row['image_id']}.jpg")
    (mask,) = synthetic_root.glob(f"*/{row['image_id']}_segmentation.png")
    true = Trimap(0.15).of(read_mask(mask))
    predicted = skinmtl.load_run(run.path).predict(image).mask
    expected = pd.crosstab(true.reshape(-1), predicted.reshape(-1)).reindex(index=range(3), columns=range(3)).fillna(0)
    found = [[row[f"pixels_{a}_as_{b}"] for b in TRIMAP] for a in TRIMAP]
    assert np.abs(np.array(found) - expected.to_numpy()).sum() <= 4  # a tie or two between batch and single image
    assert np.sum(found, axis=1).tolist() == np.bincount(true.reshape(-1), minlength=3).tolist()
    other = Trimap(0.04).of(read_mask(mask))
    assert np.sum(found, axis=1).tolist() != np.bincount(other.reshape(-1), minlength=3).tolist()


def test_training_logs_the_dice_of_all_classes(run: Run) -> None:
    logged = pd.read_csv(run.path / "metrics.csv")["val/seg/mean_image_dice"].dropna()
    assert len(logged) == 1 and 0 <= logged.iloc[0] <= 1


def test_new_images_get_masks_whose_index_is_the_class(run: Run, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (75, 101, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "new.png")
    assert commands.main(["predict", str(run.path), str(tmp_path / "new.png"), "--out", str(tmp_path / "out")]) == 0
    with Image.open(tmp_path / "out" / "masks" / "new.png") as file:
        assert file.mode == "P"
        mask = np.array(file)
    assert np.array_equal(mask, skinmtl.load_run(run.path).predict(pixels).mask)
    (row,) = pd.read_csv(tmp_path / "out" / "predictions.csv").to_dict("records")
    for index, name in ((1, "border"), (2, "lesion")):
        assert row[f"{name}_share"] == pytest.approx((mask == index).mean())
    assert row["prob_benign"] + row["prob_malignant"] == pytest.approx(1)


def test_simple_methods_are_scored_by_the_same_classes(run: Run) -> None:
    table = baselines.compare_run(run)
    otsu = table[table["method"].str.startswith("Otsu") & (table["score"] == "mean_image_dice")]
    assert otsu["ahead"].notna().all() and len(otsu) == 1
    assert otsu["value"].item() < 0.95, "a border is harder to meet than a lesion"


def test_classes_are_words_on_the_command_line() -> None:
    words = ["mask_classes=trimap", "data.mask_classes.band=0.1", "data.diagnoses={melanocytic:[mel,nv],other:rest}"]
    cfg = compose(words)
    assert cfg.data.mask_classes == {"_target_": "skinmtl.data.mask_classes.Trimap", "band": 0.1}
    assert cfg.data.diagnoses == {"melanocytic": ["mel", "nv"], "other": "rest"}
    checked(cfg)
    with pytest.raises(Exception, match=r"data\.mask_classes\.band: 2 does not fit; fix: it should be less than 1"):
        checked(compose(["mask_classes=trimap", "data.mask_classes.band=2"]))
    with pytest.raises(
        Exception, match=r"^data\.diagnoses\.b: mel stands in a already; fix: keep it in one group, once$"
    ):
        checked(compose(["data.diagnoses={a:[mel],b:[nv,mel]}"]))
