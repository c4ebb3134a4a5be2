"""A run's own evaluation: what its table and its scores say of themselves, and what a stop leaves."""

from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from matplotlib.figure import Figure
from small_runs import train

from skinmtl.cli import commands
from skinmtl.evaluation.evaluate import evaluate
from skinmtl.evaluation.scores import evaluate_file
from skinmtl.runs.run import Run
from skinmtl.tasks.classification.scoring import ClassificationScoring


@pytest.fixture(scope="module")
def run(synthetic_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A negative control under a split that two lesions were joined for."""
    folder = tmp_path_factory.mktemp("evaluate")
    ids = pd.read_csv(synthetic_root / "HAM10000_metadata.csv").drop_duplicates("lesion_id")["image_id"].to_numpy()
    pairs = pd.DataFrame({"first": ids[:-1:2], "second": ids[1::2]})
    pairs.to_csv(folder / "pairs.csv", index=False)
    return train(folder / "run", synthetic_root, ["data.shuffled=cls", f"data.duplicates={folder / 'pairs.csv'}"])


def test_a_lesion_is_resampled_with_those_that_the_split_joins(run: Run) -> None:
    table, split = run.predictions(), pd.read_csv(run.split_file)
    assert table["group"].tolist() == table["image_id"].map(split.set_index("image_id")["group"]).tolist()
    found = json.loads((run.path / "scores.json").read_text())
    assert "column group" in found["interval"]
    part = found["parts"]["test"]
    test = table[table["split"] == "test"]
    assert part["n_resampled"] == test["group"].nunique() < part["n_lesions"] == test["lesion_id"].nunique()


def test_table_and_scores_of_a_negative_control_are_stamped(run: Run) -> None:
    table = run.predictions()
    assert table["shuffled"].all() and not table["leaky"].any()
    assert json.loads((run.path / "scores.json").read_text())["stamp"] == "SHUFFLED"


def test_scores_from_the_file_are_those_of_the_run(run: Run) -> None:
    stored = json.loads((run.path / "scores.json").read_text())
    assert evaluate_file(run.predictions_file) == {key: value for key, value in stored.items() if key != "split"}


def test_both_distances_stand_in_the_table_by_their_names(run: Run) -> None:
    table = run.predictions()
    assert (table["hd95"] >= table["hd95_pooled"] - 1e-9).all() and (table["table_version"] == 2).all()


def test_comparing_says_what_a_table_is_stamped_with(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert commands.main(["compare", str(run.path), str(run.path), "--out", str(tmp_path / "out.csv")]) == 0
    said = capsys.readouterr().out
    assert "SHUFFLED" in said and "mean_image_sensitivity" in said, "no name is cut short"
    written = pd.read_csv(tmp_path / "out.csv").set_index("score")
    assert set(written["stamp"]) == {"SHUFFLED"}
    assert written.loc["ece", ["low", "high"]].isna().all() and written.loc["mean_image_dice", "low"] == 0


def test_an_evaluation_that_is_stopped_leaves_the_former_table_and_nothing_else(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.path.iterdir()}
    monkeypatch.setattr(os, "fsync", lambda file: (_ for _ in ()).throw(KeyboardInterrupt))
    assert commands.main(["evaluate", str(run.path)]) == 75
    assert {path: path.stat().st_mtime_ns for path in run.path.iterdir()} == before
    (run.path / ".predictions.csv.00000000.tmp").write_text("what a kill leaves")
    with run.held():
        assert sorted(run.path.iterdir()) == sorted(before)


def test_a_figure_that_nobody_declares_is_kept_as_one_that_shows_images(
    run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    own = Run(Path(shutil.copytree(run.path, tmp_path / "run")))
    figures = ClassificationScoring.figures

    def further(self: ClassificationScoring, test: pd.DataFrame, shown: Any) -> dict[str, Figure]:  # noqa: ANN401
        return {**figures(self, test, shown), "lost": Figure()}

    monkeypatch.setattr(ClassificationScoring, "figures", further)
    with caplog.at_level(logging.WARNING):
        evaluate(own)
    assert (own.figures / "lost.jpg").is_file() and not (own.figures / "lost.png").exists(), "no logger uploads a .jpg"
    assert (own.figures / "roc.png").is_file() and (own.figures / "gallery_best.jpg").is_file()
    (said,) = (line for line in caplog.messages if "lost" in line)
    assert said.endswith("fix: name it in `charts`, or in `galleries` where it shows images")
