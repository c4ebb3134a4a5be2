"""A run's page stands alone and says what its files say; a study's answer is made of its runs and nothing else."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from fakes import DX, curves_of, metrics, predictions, write_run, write_sweep
from sklearn.metrics import balanced_accuracy_score, classification_report

from skinmtl.errors import InputError
from skinmtl.evaluation import scores
from skinmtl.figures import style
from skinmtl.reports.run import study_report, write_run_report
from skinmtl.studies.jobs import read_jobs
from skinmtl.studies.results import leak_gap
from skinmtl.tasks.segmentation import figures as of_masks

VOID = {"meta", "img", "br"}


class Reader(HTMLParser):
    """The text of a page, what it would fetch, and tags that do not close."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.sources: list[str] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_run(tmp_path_factory.mktemp("outputs") / "2026-01-02_03-04-05_abcd")
    (folder / "figures").mkdir()
    style.save(curves_of(metrics()), folder / "figures" / "curves.svg")
    style.save(of_masks.dice_histogram(predictions()["dice"].to_numpy()), folder / "figures" / "dice_histogram.png")
    return folder


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sweep(tmp_path_factory.mktemp("sweep") / "2026-01-02_03-04-05_abcd", weights=("1", "4"), folds=2)


def read(run: Path) -> Reader:
    return Reader(write_run_report(run).read_text(encoding="utf-8"))


def stored_scores(run: Path) -> dict[str, Any]:
    stored: dict[str, Any] = json.loads((run / "scores.json").read_text())
    return stored


# --- a run's page -----------------------------------------------------------------------------------------------------


def test_page_stands_alone_and_every_tag_closes(run: Path) -> None:
    page = read(run)
    assert page.open == []
    assert len(page.sources) == 2
    assert all(source.startswith(("data:image/png;base64,", "data:image/svg+xml;base64,")) for source in page.sources)
    assert not page.tags & {"script", "link", "iframe"}
    assert "url(" not in (run / "report.html").read_text()


def test_page_gives_headline_scores_with_intervals_images_and_lesions(run: Path) -> None:
    text, test = read(run).text, stored_scores(run)["parts"]["test"]
    for task, name in (("seg", "mean_image_dice"), ("cls", "balanced_accuracy")):
        score = test["scores"][task][name]
        assert f"{score['value']:.3f} ({score['low']:.3f} to {score['high']:.3f})" in text
    assert f"{test['n_images']} test images of {test['n_lesions']} lesions." in text
    assert "percentile bootstrap over lesions" in text
    assert "Research use only: not a medical device." in text


def test_page_holds_split_certificate_settings_and_what_is_not_provided(run: Path) -> None:
    text = read(run).text
    for words in (
        "5" * 64,
        "d" * 64,
        "AVX512",
        "0123456789ab",
        "data.size [192, 256]",
        "corrected by one dermatologist",
    ):
        assert words in text
    for words in ("External validation", "Skin tone", "human reader", "No lesion is in two splits."):
        assert words in text


def test_page_names_no_folder_of_its_owner(run: Path) -> None:
    read(run)
    assert "somebody" not in (run / "report.html").read_text()


def test_commands_lose_the_folders_of_their_absolute_paths(tmp_path: Path) -> None:
    told = "train.py --config-path /home/somebody/0/.hydra hydra.run.dir='/home/some body/0' conf/x.yaml lr=1/2"
    text = read(write_run(tmp_path / "run", command=told)).text
    assert "train.py --config-path <path> hydra.run.dir=<hydra.run.dir> conf/x.yaml lr=1/2" in text


def test_page_says_how_to_read_it(run: Path) -> None:
    text = read(run).text
    assert "How to read this page" in text
    assert "whole lesions are resampled, never single images" in text


@pytest.mark.parametrize(
    ("changes", "skill", "stamps"),
    [
        ({}, 1.0, set()),
        ({"leaky": True}, 1.0, {"LEAKY"}),
        ({"synthetic": True}, 1.0, {"SYNTHETIC"}),
        ({}, 6.0, {"SUSPICIOUS"}),
        ({"synthetic": True}, 6.0, {"SYNTHETIC"}),
    ],
)
def test_page_is_stamped_when_and_only_when_it_must_be(
    tmp_path: Path, changes: dict[str, bool], skill: float, stamps: set[str]
) -> None:
    words = read(write_run(tmp_path / "run", skill=skill, **changes)).words
    assert {"LEAKY", "SYNTHETIC", "SUSPICIOUS"} & set(words) == stamps


def test_subgroups_are_scored_apart_and_small_ones_are_not_scored(run: Path) -> None:
    text, table = read(run).text, predictions()
    test = table[table["split"] == "test"]
    women = test[test["sex"] == "female"]
    lesions = women["lesion_id"].nunique()
    accuracy = (women["dx"] == women["predicted_dx"]).mean()
    row = text[text.index(f"female {len(women)} {lesions} lesions {women['dice'].mean():.3f}") :]
    assert f" {accuracy:.3f} (" in row[:120]
    assert f" {balanced_accuracy_score(women['dx'], women['predicted_dx']):.3f} (" in row[:120]
    few = test[test["sex"] == "unknown"]
    assert f"unknown {len(few)} {few['lesion_id'].nunique()} lesions too few too few too few" in text


def test_page_has_a_classification_report_with_support(run: Path) -> None:
    text, table = read(run).text, predictions()
    test = table[table["split"] == "test"]
    reference = classification_report(test["dx"], test["predicted_dx"], output_dict=True, zero_division=0)
    assert "class training images test images precision (PPV) recall (sensitivity) F1 specificity AUROC" in text
    begin = text.index("By class: classification report")
    for name, key in {**{dx: dx for dx in DX}, "mean over classes": "macro avg"}.items():
        row = text[text.index(f" {name} ", begin) :][:160]
        assert f" {int(reference[key]['support'])} " in row
        for score in ("precision", "recall", "f1-score"):
            assert f" {reference[key][score]:.3f} (" in row, (name, score)


def test_page_has_scores_and_pixels_of_every_mask_class(run: Path) -> None:
    text, test = read(run).text, predictions().query("split == 'test'")
    row = text[text.index(f"lesion {len(test)} {test['dice'].mean():.3f} (", text.index("By mask class")) :][:400]
    tp, fp, fn, tn = (int(test[f"{name}_lesion"].sum()) for name in ("tp", "fp", "fn", "tn"))
    assert f" {2 * tp / (2 * tp + fp + fn):.3f} (" in row
    assert f"skin, true {tn + fp:,} {tn / (tn + fp):.3f} {tn:,} {fp / (tn + fp):.3f} {fp:,}" in text
    assert f"lesion, true {fn + tp:,} {fn / (fn + tp):.3f} {fn:,} {tp / (fn + tp):.3f} {tp:,}" in text


def test_page_of_scores_from_before_there_were_mask_classes_is_written(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    stored = stored_scores(run)
    for part in stored["parts"].values():
        del part["mask_classes"], part["pixels"]
    (run / "scores.json").write_text(json.dumps(stored))
    assert "By mask class" not in read(run).text


def test_page_of_a_run_that_recorded_nothing_says_so(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    text = read(tmp_path).text
    assert text.count("not recorded") > 20
    assert "NO TEST SCORES" in text


def test_page_of_a_failed_run_says_why(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(
        json.dumps({"status": "failed", "error": "step 3: the loss is not finite", "seconds": None})
    )
    assert "step 3: the loss is not finite" in read(tmp_path).text


def test_undefined_score_is_said_with_its_reason(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    stored = stored_scores(run)
    stored["parts"]["test"]["scores"]["cls"]["macro_auroc"] = {"value": None, "reason": "one class only"}
    (run / "scores.json").write_text(json.dumps(stored))
    text = read(run).text
    assert "AUROC, mean over classes undefined" in text
    assert "Undefined: one class only." in text


def test_page_of_a_run_with_one_task_has_only_its_scores(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", tasks=["cls"])
    table = predictions().drop(columns=["dice", "iou", "hd95", "assd", "dice_input"])
    table.to_csv(run / "predictions.csv", index=False)
    (run / "scores.json").write_text(json.dumps(scores.evaluate(table, draws=50)))
    text = read(run).text
    assert "Dice, mean over images" not in text
    assert "Balanced accuracy" in text


def test_names_are_text_and_never_markup(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", name="<script>alert(1)</script>")
    page = read(run)
    assert "script" not in page.tags
    assert "<script>alert(1)</script>" in page.text


HAM = {"hash": "d" * 64, "layout": "dataverse", "images": 3000}
OWN = HAM | {"layout": "csv"}


def test_what_is_known_of_ham10000_is_said_of_it_alone(tmp_path: Path) -> None:
    pages = {
        name: read(write_run(tmp_path / name, **changes)).text
        for name, changes in {"ham": {}, "own": {"data": OWN}, "drawn": {"synthetic": True}}.items()
    }
    for sentence in ("corrected by one dermatologist", "HAM10000 does not record it", "CC BY-NC", "official ISIC 2018"):
        assert [name for name, text in pages.items() if sentence in text] == ["ham"], sentence
    assert "Skin tone: no score is told by it." in pages["own"]
    assert [name for name, text in pages.items() if "HAM10000" in text] == ["ham"]


@pytest.mark.parametrize(
    ("changes", "suspicious"),
    [
        ({}, True),
        ({"data": OWN}, False),
        ({"dx_classes": ["benign", "malignant"]}, False),
        ({"dx_classes": [*DX, "scc"]}, False),
    ],
)
def test_a_score_is_suspicious_only_where_it_is_known_what_is_plausible(
    tmp_path: Path, changes: dict[str, Any], suspicious: bool
) -> None:
    words = read(write_run(tmp_path / "run", skill=6.0, **changes)).words
    assert ("SUSPICIOUS" in words) is suspicious


@pytest.mark.parametrize(
    ("split_by", "changes", "why"),
    [
        ("lesion", {}, "The data name no lesions: images of one lesion"),
        ("image", {}, "The split was made by image (data.split_by=image), not by lesion: "),
        (
            "lesion",
            {"also": {"labels": {"images": 4, "leaky": True}}},
            "An auxiliary data set names no lesions: images",
        ),
    ],
)
def test_a_leak_is_told_with_its_own_reason(tmp_path: Path, split_by: str, changes: dict[str, Any], why: str) -> None:
    run = write_run(tmp_path / "run", leaky=True, **changes)
    config = yaml.safe_load((run / ".hydra" / "config.yaml").read_text())
    config["data"]["split_by"] = split_by
    (run / ".hydra" / "config.yaml").write_text(yaml.safe_dump(config))
    text = read(run).text
    assert why in text and text.count("images of one lesion may be") == 1


def test_paths_in_the_command_are_blanks_that_nobody_takes_for_a_value(tmp_path: Path) -> None:
    text = read(write_run(tmp_path / "run", command="python train.py seed=1 data.root=/home/somebody/ham")).text
    assert "data.root=<data.root>" in text and "[path]" not in text[: text.index("Configuration")]
    assert "in place of <...>" in text and "somebody" not in text
    plain = read(write_run(tmp_path / "plain", command="python train.py seed=1")).text
    assert "in place of" not in plain


def test_class_names_are_text_in_every_table(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    odd = dict(zip(DX, ("<b>bold</b>", "黑色素瘤", "$mel_{1}$", "_nv_%d", "a\\b", "x" * 200, '"&amp;'), strict=True))
    content = json.dumps(json.loads((run / "scores.json").read_text()), ensure_ascii=False)
    stored = json.loads(content)
    for part in stored["parts"].values():
        part["classes"] = {odd[name]: facts for name, facts in part["classes"].items()}
    (run / "scores.json").write_text(json.dumps(stored))
    info = json.loads((run / "run.json").read_text()) | {"dx_classes": list(odd.values())}
    (run / "run.json").write_text(json.dumps(info))
    page = read(run)
    assert all(page.text.count(name) >= 2 for name in odd.values())
    assert "<b>bold</b>" in page.text
    assert "is its place in this list there" in page.text
    assert "is its place in this list there" not in read(write_run(tmp_path / "plain")).text


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no run.json"):
        write_run_report(tmp_path)


# --- a study's answer -------------------------------------------------------------------------------------------------


def test_results_have_a_row_per_run_with_the_scores_of_its_files(sweep: Path, tmp_path: Path) -> None:
    results = pd.read_csv(study_report(sweep, tmp_path / "weights") / "results.csv")
    assert results[["weighting.seg", "seed", "fold"]].to_numpy().tolist() == [
        [w, s, f] for w in (1, 4) for s in (0, 1) for f in (0, 1)
    ]
    assert set(results["study"]) == {"weights"}
    assert set(results["status"]) == {"finished"}
    for job, row in results.iterrows():
        test = stored_scores(sweep / str(job))["parts"]["test"]
        assert row["n_lesions"] == test["n_lesions"]
        for task, name in (("seg", "mean_image_dice"), ("cls", "balanced_accuracy")):
            ends = [row[name], row[f"{name}_low"], row[f"{name}_high"]]
            assert ends == pytest.approx(list(test["scores"][task][name].values()))


def test_folds_of_a_seed_are_pooled_and_scored_as_one_table(sweep: Path, tmp_path: Path) -> None:
    text = (study_report(sweep, tmp_path / "weights") / "README.md").read_text()
    pooled = []
    for seed in (0, 1):
        table = pd.concat([predictions(seed, skill=1.0, fold=fold) for fold in (0, 1)])
        test = scores.evaluate(table[table["split"] == "test"], draws=20)["parts"]["test"]
        pooled.append(test["scores"]["cls"]["balanced_accuracy"]["value"])
    row = next(line for line in text.splitlines() if line.startswith("| weighting.seg=1 | 2 |"))
    assert "seed, 2 folds pooled" in row
    assert f"{np.mean(pooled):.3f} ± {np.std(pooled, ddof=1):.3f} (" in row
    assert f"| {test['n_images']} | {test['n_lesions']} |" in row


def test_folds_are_not_pooled_where_one_is_missing(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path / "sweep", weights=("1",), seeds=1, folds=2)
    (sweep / "1" / "predictions.csv").unlink()
    text = (study_report(sweep, tmp_path / "out") / "README.md").read_text()
    assert "| 1 | run (seed and fold) |" in text
    assert "pooled" not in text


def test_interval_of_one_run_is_that_of_its_own_scores(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path / "sweep", weights=("1",), seeds=1)
    text = (study_report(sweep, tmp_path / "out") / "README.md").read_text()
    table = predictions().sort_values("image_id")
    dice = scores.evaluate(table)["parts"]["test"]["scores"]["seg"]["mean_image_dice"]
    assert f"| {dice['value']:.3f} ({dice['low']:.3f} to {dice['high']:.3f}) |" in text


def test_settings_are_compared_on_the_same_lesions(sweep: Path, tmp_path: Path) -> None:
    text = (study_report(sweep, tmp_path / "out") / "README.md").read_text()
    assert "Difference to weighting.seg=1" in text
    # The two settings' outlines are the same, so their difference is zero in every resampling.
    row = next(line for line in text.splitlines() if line.startswith("| weighting.seg=4 | +"))
    assert "+0.000 (+0.000 to +0.000)" in row


def test_only_what_stands_between_the_marks_is_replaced(sweep: Path, tmp_path: Path) -> None:
    out = tmp_path / "weights"
    out.mkdir()
    (out / "README.md").write_text(
        "# Question\n\nmine\n\n<!-- results -->\nformer answer\n<!-- /results -->\n\nverdict\n"
    )
    once = (study_report(sweep, out) / "README.md").read_text()
    assert once.startswith("# Question\n\nmine\n\n<!-- results -->\n| setting")
    assert once.endswith("<!-- /results -->\n\nverdict\n")
    assert "former answer" not in once
    assert (study_report(sweep, out) / "README.md").read_text() == once


def test_a_lone_mark_is_refused_and_the_file_stays(sweep: Path, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("mine\n<!-- results -->\n")
    with pytest.raises(InputError, match="mend these two lines"):
        study_report(sweep, tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine\n<!-- results -->\n"


def test_a_failed_job_stays_in_the_table_with_its_exit_code(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path / "sweep", weights=("1",), seeds=1)
    table = pd.read_csv(sweep / "sweep.csv")
    lost = {"job": 1, "overrides": "weighting.seg=4 seed=0", "status": "failed", "exit_code": 3}
    pd.concat([table, pd.DataFrame([lost])]).to_csv(sweep / "sweep.csv", index=False)
    out = study_report(sweep, tmp_path / "out")
    results = pd.read_csv(out / "results.csv")
    assert results["status"].tolist() == ["finished", "failed"]
    assert results["weighting.seg"].tolist() == [1, 4]
    text = (out / "README.md").read_text()
    assert "1 of 2 runs finished." in text
    assert "- job 1 (weighting.seg=4 seed=0): failed, exit code 3" in text


def test_predictions_of_a_run_that_did_not_finish_are_not_counted(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path / "sweep", weights=("1", "4"), seeds=1)
    table = pd.read_csv(sweep / "sweep.csv")
    table.assign(status=["finished", "failed"]).to_csv(sweep / "sweep.csv", index=False)
    text = (study_report(sweep, tmp_path / "out") / "README.md").read_text()
    assert "| weighting.seg=1 | 1 |" in text
    assert "| weighting.seg=4 | 0 | none finished | 0 | 0 | none |" in text


def test_study_file_holds_hashes_and_overrides_and_no_folder_of_its_owner(sweep: Path, tmp_path: Path) -> None:
    out = study_report(sweep, tmp_path / "weights")
    study = yaml.safe_load((out / "study.yaml").read_text())
    assert study["data_sha256"] == ["d" * 64]
    assert study["commit"] == ["0123456789ab"]
    assert study["jobs"][7]["overrides"]["weighting.seg"] == "4"
    assert not any(b"somebody" in path.read_bytes() for path in out.rglob("*") if path.is_file())


def test_settings_whose_folders_end_alike_stay_apart(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path / "sweep", weights=("1", "4"), seeds=1)
    for path in sweep.glob("*/.hydra/overrides.yaml"):
        text = (
            path.read_text()
            .replace("weighting.seg=1", "model.weights=/low/w.pth")
            .replace("weighting.seg=4", "model.weights=/high/w.pth")
        )
        path.write_text(text)
    text = (study_report(sweep, tmp_path / "out") / "README.md").read_text()
    assert "| model.weights=[path] (1) | 1 |" in text and "| model.weights=[path] (2) | 1 |" in text
    assert "/high" not in text


def test_tradeoff_is_drawn_for_weights_of_losses_and_for_nothing_else(sweep: Path, tmp_path: Path) -> None:
    weights = study_report(sweep, tmp_path / "weights") / "figures"
    assert {path.name for path in weights.iterdir()} == {"scores.png", "tradeoff.png"}
    for path in sweep.glob("*/.hydra/overrides.yaml"):
        path.write_text(path.read_text().replace("weighting.seg", "optim.lr"))
    rates = study_report(sweep, tmp_path / "rates") / "figures"
    assert {path.name for path in rates.iterdir()} == {"scores.png"}


def write_leaking(folder: Path, learned: float, key: str = "data.split_by") -> Path:
    """Two runs, one split by lesion and one, better, by image, with a training accuracy at the end."""
    for number, (by, skill) in enumerate((("lesion", 0.7), ("image", 1.0))):
        run = write_run(folder / str(number), skill=skill, leaky=by == "image")
        (run / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump([f"{key}={by}", "seed=0"]))
        table = pd.concat([metrics(), pd.DataFrame({"train/cls/accuracy": [0.5, learned]})])
        table.to_csv(run / "metrics.csv", index=False)
    return folder


@pytest.mark.parametrize(("learned", "says"), [(0.96, "long enough"), (0.94, "too short to show a leak")])
def test_leak_gap_is_said_with_its_interval_and_whether_training_was_long_enough(
    tmp_path: Path, learned: float, says: str
) -> None:
    sweep = write_leaking(tmp_path / "sweep", learned)
    text = (study_report(sweep, tmp_path / "out") / "README.md").read_text()
    assert says in text and "LEAKY" in text
    tables = [pd.read_csv(sweep / str(number) / "predictions.csv").query("split == 'test'") for number in (1, 0)]
    leaky, honest = (balanced_accuracy_score(table["dx"], table["predicted_dx"]) for table in tables)
    found = re.search(r"Balanced accuracy ([+-][\d.]+) \(([+-][\d.]+) to ([+-][\d.]+)\)", text)
    assert found is not None
    gap, low, high = map(float, found.groups())
    assert gap == pytest.approx(leaky - honest, abs=6e-4) and low < gap < high
    # Each resampled by itself: wider than where the same lesions are resampled for both.
    assert high - low > 0.02


def test_leak_gap_compares_nothing_where_the_split_by_lesion_leaks_too(tmp_path: Path) -> None:
    sweep = write_leaking(tmp_path / "sweep", 0.96)
    info = sweep / "0" / "run.json"
    info.write_text(json.dumps(json.loads(info.read_text()) | {"leaky": True}))
    (line,) = leak_gap(read_jobs(sweep))
    assert "nothing to compare" in line and "there are no lesion ids" in line


def test_leak_gap_prints_no_interval_where_one_side_has_no_finished_run(tmp_path: Path) -> None:
    sweep = write_leaking(tmp_path / "sweep", 0.96)
    (sweep / "1" / "predictions.csv").unlink()
    (line, _) = leak_gap(read_jobs(sweep))
    assert "no score that both have" in line and "interval: ." not in line
    again = write_leaking(tmp_path / "again", 0.96)
    info = again / "1" / "run.json"
    info.write_text(json.dumps(json.loads(info.read_text()) | {"status": "failed"}))
    assert leak_gap(read_jobs(again)) == [] or "no run split by" in leak_gap(read_jobs(again))[0]


def test_scores_from_before_the_standard_definitions_go_by_the_older_names(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    stored = stored_scores(run)
    now = read(run).text
    assert "HD95, pixels of the image" in now and "Expected calibration error" in now
    del stored["version"]
    (run / "scores.json").write_text(json.dumps(stored))
    text = read(run).text
    assert "HD95 of both directions pooled, as before version 2" in text
    assert "HD95, pixels of the image" not in text
    assert "Expected calibration error of bins of equal numbers, as before version 2" in text


def test_other_sweeps_say_nothing_about_leaking(tmp_path: Path) -> None:
    sweep = write_leaking(tmp_path / "sweep", 0.96, key="augment")
    assert "training accuracy" not in (study_report(sweep, tmp_path / "out") / "README.md").read_text()


def test_synthetic_runs_are_stamped_in_the_answer(tmp_path: Path) -> None:
    for number, made in enumerate((True, False)):
        sweep = tmp_path / str(made)
        write_run(sweep / str(number), synthetic=made)
        text = (study_report(sweep, tmp_path / f"out{made}") / "README.md").read_text()
        assert ("**SYNTHETIC" in text) is made


def test_leaky_runs_are_stamped_in_the_answer_and_in_every_row(tmp_path: Path) -> None:
    for number, leaky in enumerate((True, False)):
        write_run(tmp_path / "sweep" / str(number), leaky=leaky)
    out = study_report(tmp_path / "sweep", tmp_path / "out")
    assert "**LEAKY" in (out / "README.md").read_text()
    assert pd.read_csv(out / "results.csv", keep_default_na=False)["stamp"].tolist() == ["LEAKY", ""]


def test_a_folder_without_jobs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no job"):
        study_report(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
