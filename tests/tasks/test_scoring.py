"""Tasks own how they are scored: further tasks have columns of their own, and a score is added in one place."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest
from fakes import predictions, write_run, write_sweep
from scipy import stats
from sklearn import metrics as sk

from skinmtl.errors import ConfigError, Faults, InputError
from skinmtl.evaluation import scores
from skinmtl.reports.run import write_run_report
from skinmtl.runs.predictions import read
from skinmtl.runs.run import Run
from skinmtl.studies.results import study_report
from skinmtl.tasks import tables
from skinmtl.tasks.classification.prediction import ClassPrediction
from skinmtl.tasks.classification.scoring import ClassificationScoring
from skinmtl.tasks.regression.prediction import ValuePrediction
from skinmtl.tasks.regression.scoring import RegressionScoring
from skinmtl.tasks.resampling import mean
from skinmtl.tasks.scoring import Metric, Scoring
from skinmtl.tasks.segmentation.prediction import MaskPrediction
from skinmtl.tasks.segmentation.scoring import SegmentationScoring

SITES = ("back", "face", "trunk")


def with_further(seed: int = 0, skill: float = 1.0, fold: int = 0) -> pd.DataFrame:
    """A table of four tasks: masks, diagnoses, the place on the body and the age, the latter two known of some."""
    rows = predictions(seed, skill=skill, fold=fold)
    ground, network = np.random.default_rng(500 + fold), np.random.default_rng((seed, fold, 7))
    site = ground.integers(0, len(SITES), len(rows))
    p = network.dirichlet(np.ones(len(SITES)), len(rows)) + skill * np.eye(len(SITES))[site]
    p /= p.sum(1, keepdims=True)
    age = ground.integers(2, 18, len(rows)) * 5.0
    written = [
        ClassificationScoring("site", SITES).row(ClassPrediction(dict(zip(SITES, of.tolist(), strict=True))), SITES[at])
        | RegressionScoring("age").row(ValuePrediction(float(years + off)), float(years))
        for of, at, years, off in zip(p, site, age, network.normal(2, 10 / skill, len(rows)), strict=True)
    ]
    rows = pd.concat([rows, pd.DataFrame(written)], axis=1)
    rows.loc[ground.random(len(rows)) < 0.1, "site_true"] = None
    rows.loc[ground.random(len(rows)) < 0.1, "age_true_value"] = np.nan
    return rows


def split_of(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[rows["split"] == "test"].reset_index(drop=True)


def test_a_table_says_by_its_columns_which_tasks_it_is_of(tmp_path: Path) -> None:
    written = with_further()
    written.to_csv(tmp_path / "t.csv", index=False)
    table = read(tmp_path / "t.csv")
    found = {scoring.name: scoring for scoring in tables.recognised(table) if scoring.is_in(table)}
    assert list(found) == ["seg", "cls", "site", "age"]
    assert found["site"].told_apart == SITES and found["cls"].told_apart[0] == "akiec"
    assert scores.evaluate_file(tmp_path / "t.csv") == scores.evaluate(written)
    bare = predictions()
    assert {scoring.name for scoring in tables.recognised(bare) if scoring.is_in(bare)} == {"seg", "cls"}


def test_scores_of_a_further_classification_are_those_of_its_columns_under_the_names_of_the_first() -> None:
    rows = with_further()
    of = split_of(rows)
    part = scores.evaluate(rows, draws=50)["parts"]["test"]
    known = of[of["site_true"].notna()]
    p = known[[f"site_prob_{name}" for name in SITES]].to_numpy()
    y = known["site_true"].map(SITES.index).to_numpy()
    found = part["scores"]["site"]
    assert found["balanced_accuracy"]["value"] == pytest.approx(sk.balanced_accuracy_score(y, p.argmax(1)))
    assert found["macro_auroc"]["value"] == pytest.approx(sk.roc_auc_score(y, p, multi_class="ovr"))
    assert part["details"]["site"]["confusion"] == sk.confusion_matrix(y, p.argmax(1)).tolist()
    # The same columns without a prefix are the same scores, and nothing of the other tasks moves.
    alone = of[["image_id", "lesion_id", "split"]].assign(dx=of["site_true"])
    alone = alone.assign(**{f"prob_{name}": of[f"site_prob_{name}"] for name in SITES})
    assert scores.evaluate(alone, draws=50)["parts"]["test"]["scores"]["cls"] == found
    before = scores.evaluate(predictions(), draws=50)["parts"]["test"]
    assert {task: part["scores"][task] for task in ("seg", "cls")} == before["scores"]
    assert all(part[key] == before[key] for key in ("classes", "confusion", "mask_classes", "pixels"))


def test_errors_of_a_regression_are_scikit_learns_and_a_missing_number_counts_in_none() -> None:
    rows = with_further()
    of = split_of(rows).dropna(subset=["age_true_value"])
    true, predicted = of["age_true_value"].to_numpy(), of["age_predicted_value"].to_numpy()
    result = scores.evaluate(rows, draws=300)
    found = result["parts"]["test"]["scores"]["age"]
    reference = {
        "mean_absolute_error": sk.mean_absolute_error(true, predicted),
        "median_absolute_error": stats.scoreatpercentile(np.abs(predicted - true), 50, interpolation_method="lower"),
        "root_mean_squared_error": sk.root_mean_squared_error(true, predicted),
        "r2": sk.r2_score(true, predicted),
        "bias": np.mean(predicted - true),
    }
    for name, value in reference.items():
        assert found[name]["value"] == pytest.approx(value), name
        assert found[name]["low"] < found[name]["value"] < found[name]["high"], name
    blank = int(split_of(rows)["age_true_value"].isna().sum())
    assert blank and any(f"{blank} of" in note and "no age" in note for note in result["notes"])


def test_the_interval_of_a_mean_absolute_error_is_that_of_a_plain_loop_over_lesions() -> None:
    of = split_of(with_further())
    found = scores.evaluate(of)["parts"]["test"]["scores"]["age"]["mean_absolute_error"]
    error = (of["age_predicted_value"] - of["age_true_value"]).abs().to_numpy()
    groups = [rows.index.to_numpy() for _, rows in of.groupby("lesion_id")]
    draw = np.random.default_rng(1)
    loop = [
        np.nanmean(error[np.concatenate([groups[i] for i in draw.integers(0, len(groups), len(groups))])])
        for _ in range(1000)
    ]
    assert [found["low"], found["high"]] == pytest.approx(np.percentile(loop, [2.5, 97.5]), abs=0.15)


def test_a_regression_of_one_number_or_of_none_has_reasons_and_no_nan() -> None:
    for value in (50.0, np.nan):
        found = scores.evaluate(with_further().assign(age_true_value=value), draws=20)
        assert found["parts"]["test"]["scores"]["age"]["r2"]["value"] is None
        assert found["parts"]["test"]["scores"]["age"]["r2"]["reason"]
        json.dumps(found, allow_nan=False)


@pytest.mark.parametrize(
    ("column", "value", "fault"),
    [
        ("age_predicted_value", np.nan, "age_predicted_value is not a number"),
        ("age_true_value", np.inf, "age_true_value is infinite"),
        ("site_true", "moon", "site_true is moon, which has no column of probabilities"),
        ("site_prob_back", 1.5, "a probability is below 0 or above 1"),
    ],
)
def test_what_a_further_task_cannot_say_is_refused(column: str, value: object, fault: str) -> None:
    rows = with_further()
    tables.check(rows)
    rows.loc[3, column] = value
    with pytest.raises(Faults, match=fault):
        tables.check(rows)


def test_words_among_the_numbers_of_a_further_task_are_refused(tmp_path: Path) -> None:
    rows = with_further().astype({"age_predicted_value": object})
    rows.loc[3, "age_predicted_value"] = "about fifty"
    rows.to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(Faults, match="age_predicted_value"):
        scores.evaluate_file(tmp_path / "t.csv")
    with pytest.raises(Faults, match="columns missing: age_true_value"):
        tables.check(
            with_further().drop(columns="age_true_value").assign(age_true_valu=1), scorings=[RegressionScoring("age")]
        )


def test_two_tables_are_compared_in_every_task_that_both_have() -> None:
    first, second = with_further(0), with_further(1, skill=0.5)
    found = scores.paired(first, second)
    assert {"mean_image_dice", "balanced_accuracy", "site_balanced_accuracy", "age_mean_absolute_error"} <= found.keys()
    assert found["age_mean_absolute_error"]["high"] < 0 < found["site_balanced_accuracy"]["low"]
    both = split_of(first)["age_true_value"].notna()
    error = [
        (split_of(rows)["age_predicted_value"] - split_of(rows)["age_true_value"])[both].abs().mean()
        for rows in (first, second)
    ]
    assert found["age_mean_absolute_error"]["difference"] == pytest.approx(error[0] - error[1])
    fewer = second.drop(columns=[name for name in second if name.startswith("age_")])
    assert "age_mean_absolute_error" not in scores.paired(first, fewer)
    assert "only the first table has age: they are not compared" in scores.uncompared(first, fewer)
    other = second.assign(age_true_value=second["age_true_value"] + 1)
    with pytest.raises(InputError, match="age_true_value of .* images differs"):
        scores.paired(first, other)


def run_with_further(folder: Path, **further: Any) -> Path:  # noqa: ANN401 -- as `with_further`
    run = write_run(folder)
    rows = with_further(**further)
    rows.to_csv(run / "predictions.csv", index=False)
    (run / "scores.json").write_text(json.dumps(scores.evaluate(rows, tables.recognised(rows), draws=50)))
    return run


def test_a_page_shows_every_task(tmp_path: Path) -> None:
    run = run_with_further(tmp_path / "run")
    page = write_run_report(run).read_text(encoding="utf-8")
    for words in ("Site: all scores", "Age: all scores", "Site: by class", "Age: Mean absolute error", "R², share"):
        assert words in page, words
    assert "Site" not in write_run_report(write_run(tmp_path / "plain")).read_text(encoding="utf-8")


def test_a_study_compares_every_task_and_less_error_helps(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path / "sweep" / "x", weights=("1", "4"), seeds=2)
    for number in range(4):
        run = sweep / str(number)
        rows = with_further(seed=number % 2, skill=3.0 if number > 1 else 0.5)
        rows.to_csv(run / "predictions.csv", index=False)
        (run / "scores.json").write_text(json.dumps(scores.evaluate(rows, draws=50)))
    out = study_report(sweep, tmp_path / "answer")
    results, text = pd.read_csv(out / "results.csv"), (out / "README.md").read_text()
    assert results["age_mean_absolute_error"].notna().all() and results["site_balanced_accuracy_low"].notna().all()
    difference = next(
        line for line in text.split("Difference to")[1].splitlines() if line.startswith("| weighting.seg=4")
    )
    head = next(line for line in text.split("Difference to")[1].splitlines() if line.startswith("| setting"))
    cells = dict(zip(head.split(" | "), difference.split(" | "), strict=True))
    error = next(cell for name, cell in cells.items() if "Mean absolute error" in name)
    assert error.startswith("-") and error.rstrip(" |").endswith("helps")
    assert next(cell for name, cell in cells.items() if "Site: Balanced" in name).rstrip(" |").endswith("helps")


@pytest.fixture
def another_score(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A score added in the one place where scores stand."""
    sharpness = Metric("Sharpness of the answer", lambda c: mean(c.p.max(1) + c.missing), headline=1)
    monkeypatch.setitem(ClassificationScoring.metrics, "sharpness", sharpness)
    yield "sharpness"


def test_a_score_added_in_one_place_is_in_scores_page_study_comparison_and_dashboard(
    another_score: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = write_sweep(tmp_path / "sweep" / "x", weights=("1", "4"), seeds=1)
    run = sweep / "0"
    rows = split_of(Run(run).predictions())
    value = rows[[name for name in rows if name.startswith("prob_")]].to_numpy().max(1).mean()
    found = json.loads((run / "scores.json").read_text())["parts"]["test"]["scores"]["cls"][another_score]
    assert found["value"] == pytest.approx(value) and found["low"] < value < found["high"]
    assert write_run_report(run).read_text(encoding="utf-8").count("Sharpness of the answer") == 2  # card and table
    assert another_score in scores.paired(*(Run(sweep / name).predictions() for name in "01"))
    out = study_report(sweep, tmp_path / "answer")
    assert pd.read_csv(out / "results.csv")[another_score].iloc[0] == pytest.approx(value)
    assert "Sharpness of the answer" in (out / "README.md").read_text()
    assert logged(run, monkeypatch)[f"test/cls/{another_score}"] == pytest.approx(value)


def test_without_it_the_score_is_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_run(tmp_path / "run")
    assert "sharpness" not in (run / "scores.json").read_text()
    assert "Sharpness" not in write_run_report(run).read_text(encoding="utf-8")
    assert "test/cls/accuracy" in logged(run, monkeypatch) and "test/cls/sharpness" not in logged(run, monkeypatch)


def logged(run: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What W&B gets of a finished run, tables and figures by their names."""
    from skinmtl.tracking.wandb import WandB

    class Board:
        def __init__(self) -> None:
            self.summary: dict[str, Any] = {}

        def log(self, values: Mapping[str, Any]) -> None:
            self.summary |= values

    stand_in = ModuleType("wandb")
    stand_in.Table = stand_in.Image = lambda *given, **named: "drawn"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", stand_in)
    (run / "figures").mkdir(exist_ok=True)
    board = WandB(folder=run, run_id=run.name)
    board._run = Board()
    board.log_run(Run(run))
    return dict(board._run.summary)


def test_a_dashboard_gets_every_tasks_confusion_and_no_figure_that_shows_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_with_further(tmp_path / "run")
    (run / "figures").mkdir()
    for name in ("roc.png", "gallery_best.jpg", "hair_gallery_best.jpg", "moles.jpg"):
        (run / "figures" / name).write_bytes(b"")
    found = logged(run, monkeypatch)
    assert {"test/confusion", "test/site/confusion", "figures/roc"} <= found.keys()
    assert not [name for name in found if "gallery" in name or "moles" in name]


# --- a kind of one's own ----------------------------------------------------------------------------------------------

OWN = """
import numpy as np
from skinmtl.tasks.resampling import mean
from skinmtl.tasks.scoring import Metric, Scoring


class Ordinal(Scoring):
    metrics = {"mean_step": Metric("Steps from the truth", lambda steps: mean(steps), headline=0, lower_is_better=True)}

    def __init__(self, name, grades):
        super().__init__(name)
        self.grades = list(grades)

    def arguments(self):
        return {"name": self.name, "grades": self.grades}

    @property
    def truth(self):
        return self.column("true_value")

    def row(self, prediction, truth):
        return {self.truth: truth, self.column("answer_value"): prediction}

    def is_in(self, table):
        return self.column("answer_value") in table

    def needed(self, table):
        return [self.truth] if self.is_in(table) else []

    def read(self, table):
        return np.abs(table[self.truth] - table[self.column("answer_value")]).to_numpy(dtype=float)
"""


def test_a_kind_of_ones_own_is_scored_reported_and_compared_from_its_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "own_kind.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("SKINMTL_ALLOW", "own_kind")
    import own_kind  # type: ignore[import-not-found]

    run = write_run(tmp_path / "run")
    rows = predictions()
    grade = np.arange(len(rows)) % 3
    answers = [own_kind.Ordinal("grade", "abc").row(int(of + (i % 4 == 0)), int(of)) for i, of in enumerate(grade)]
    rows = pd.concat([rows, pd.DataFrame(answers)], axis=1)
    scorings = [*tables.recognised(rows), own_kind.Ordinal("grade", "abc")]
    rows.to_csv(run / "predictions.csv", index=False)
    result = scores.evaluate(rows, scorings, draws=50)
    (run / "scores.json").write_text(json.dumps(result))
    again = scores.evaluate_file(run / "predictions.csv")
    wanted = float((np.arange(len(rows)) % 4 == 0)[(rows["split"] == "test").to_numpy()].mean())
    for found in (result, again):
        assert found["parts"]["test"]["scores"]["grade"]["mean_step"]["value"] == pytest.approx(wanted)
    page = write_run_report(run).read_text(encoding="utf-8")
    assert "Grade: all scores" in page and "Steps from the truth" in page
    beside = [tables.of_run(Run(run))[1]] * 2
    assert scores.paired(rows, rows, scorings=beside)["grade_mean_step"]["difference"] == 0

    # Where its package is not admitted nothing of it is run: what was scored is still shown, under its own words.
    assert "not admitted" not in caplog.text
    monkeypatch.delenv("SKINMTL_ALLOW")
    assert "grade" not in scores.evaluate_file(run / "predictions.csv")["parts"]["test"]["scores"]
    assert "Steps from the truth" in write_run_report(run).read_text(encoding="utf-8")
    (said,) = (line for line in caplog.messages if "not admitted" in line)
    assert said.startswith("task grade: own_kind.Ordinal is not") and said.endswith("fix: SKINMTL_ALLOW=own_kind")


def test_a_record_names_scorings_alone() -> None:
    assert isinstance(tables.made_of(RegressionScoring("age", "years").record()), RegressionScoring)
    for target in ("skinmtl.runs.run.Run", "os.system", "skinmtl.tasks.scoring.nothing", None):
        assert tables.made_of({"scoring": {"_target_": target, "path": "x"}}) is None


def test_scores_a_page_and_a_comparison_of_finished_tables_do_not_load_torch(tmp_path: Path) -> None:
    first, second = (run_with_further(tmp_path / name, seed=seed) for seed, name in enumerate("ab"))
    code = """
import sys
from skinmtl.cli.commands import main
codes = [main(command) for command in (["score", sys.argv[1]], ["compare", *sys.argv[1:3]], ["report", sys.argv[1]])]
sys.exit(f"codes {codes}" if any(codes) else "torch" in sys.modules and "torch was loaded")
"""
    done = subprocess.run([sys.executable, "-c", code, first, second], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    code = "import sys, skinmtl.tasks.base; sys.exit('torch' in sys.modules and 'torch was loaded')"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 1, "the control"


@pytest.mark.parametrize(
    "scoring",
    [
        SegmentationScoring(classes=("skin", "border", "lesion")),
        ClassificationScoring("site", SITES, malignant=("face",)),
        RegressionScoring("age", "years", "Age in years"),
    ],
)
def test_a_scoring_is_made_again_from_its_record(scoring: Scoring) -> None:
    again = tables.made_of(json.loads(json.dumps(scoring.record())))
    assert again is not None and again.record() == scoring.record()


def test_scores_of_before_have_the_words_of_their_tasks_today(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    found = json.loads((run / "scores.json").read_text())
    page = write_run_report(run).read_text(encoding="utf-8")
    tasks = found.pop("tasks")
    (run / "scores.json").write_text(json.dumps(found))
    assert write_run_report(run).read_text(encoding="utf-8") == page
    assert {name: task.labels for name, task in tables.described(found).items()} == {
        n: t["labels"] for n, t in tasks.items()
    }


# --- rows, figures, files ---------------------------------------------------------------------------------------------


def test_a_missing_target_leaves_its_cells_blank_and_the_answer_stands() -> None:
    site = ClassificationScoring("site", SITES).row(ClassPrediction({"back": 0.2, "face": 0.5, "trunk": 0.3}), None)
    assert site["site_true"] is None and site["site_predicted"] == "face" and site["site_prob_trunk"] == 0.3
    age = RegressionScoring("age").row(ValuePrediction(41.5), None)
    assert np.isnan(age["age_true_value"]) and age["age_predicted_value"] == 41.5
    mask = np.zeros((6, 8), np.uint8)
    row = SegmentationScoring(classes=("skin", "lesion")).row(MaskPrediction(mask, mask.astype(np.float32), mask), None)
    assert row == {"height": 6, "width": 8}


def test_figures_of_further_tasks_have_their_names_and_show_known_targets_alone() -> None:
    of = split_of(with_further())
    made = {}
    for task in tables.recognised(of):
        if task.prefix:
            made |= task.figures(of, lambda rows: [])
    assert set(made) == {"site_confusion", "site_roc", "site_reliability", "age_scatter"}
    known = int(of["age_true_value"].notna().sum())
    axes = made["age_scatter"].axes[0]
    assert f"n = {known}" in axes.get_xlabel() and len(axes.lines[0].get_xdata()) == known
    of = of.assign(age_true_value=np.nan)
    assert "n = 0" in RegressionScoring("age").figures(of, lambda rows: [])["age_scatter"].axes[0].get_xlabel()


def test_a_second_segmentation_has_pictures_and_columns_of_its_own(tmp_path: Path) -> None:
    scoring = SegmentationScoring("hair", ("skin", "hair"))
    for folder in scoring.folders:
        (tmp_path / folder).mkdir()
    mask = np.zeros((6, 8), np.uint8)
    mask[2:4] = 1
    answer = MaskPrediction(mask, mask.astype(np.float32), mask)
    written = scoring.write(answer, np.zeros((6, 8, 3), np.uint8), "a", tmp_path)
    assert written == {"hair_hair_share": pytest.approx(1 / 3)}
    assert sorted(str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*.png")) == [
        "hair_masks/a.png",
        "hair_overlays/a.png",
    ]
    rows = pd.concat([predictions(images=60), pd.DataFrame([scoring.row(answer, np.roll(mask, 1, 0))] * 60)], axis=1)
    found = scores.evaluate(rows, draws=20)
    part = found["parts"]["test"]
    assert part["scores"]["hair"]["mean_image_dice"]["value"] == pytest.approx(0.5)
    assert part["scores"]["seg"] == scores.evaluate(predictions(images=60), draws=20)["parts"]["test"]["scores"]["seg"]
    assert part["details"]["hair"]["pixels"] == (np.array([[24, 8], [8, 8]]) * len(split_of(rows))).tolist()
    wrong = rows.assign(hair_dice=0.9)
    with pytest.raises(Faults, match="hair_dice is not that of the pixels beside it"):
        tables.check(wrong)


@pytest.mark.parametrize(
    ("of", "said"),
    [
        (lambda c: 0.5, "it gives a float, no Score and not None"),
        (lambda c: 1 / 0, "ZeroDivisionError: division by zero"),
    ],
)
def test_what_is_wrong_in_a_metric_of_ones_own_is_said_by_its_name(
    of: Callable[[Any], Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics = ClassificationScoring.metrics
    monkeypatch.setattr(ClassificationScoring, "metrics", {**metrics, "mine": Metric("Mine", of)})
    with pytest.raises(ConfigError, match=f"metric mine of task cls: {said}; fix: mend its function, then `skinmtl"):
        scores.evaluate(predictions(images=40), draws=20)
