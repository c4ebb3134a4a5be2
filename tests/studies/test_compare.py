"""Settings are compared pair by pair on the same lesions, and a verdict wants the interval and every pair."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from fakes import predictions, write_run
from sklearn.metrics import balanced_accuracy_score

from skinmtl.errors import InputError
from skinmtl.runs.run import Run
from skinmtl.studies.compare import Difference, Setting, all_reached, difference
from skinmtl.studies.jobs import Job, read_jobs
from skinmtl.studies.results import sharing, study_report


def reached(name: str, jobs: list[Job]) -> Setting:
    (setting,) = all_reached([(name, jobs)])
    return setting


PLACES = [(seed, fold) for seed in (0, 1) for fold in (0, 1)]


def jobs(folder: Path, skill: float, places: list[tuple[int, int]] = PLACES, folds: int = 5) -> list[Job]:
    """Finished runs, one for each seed and fold, of so many folds."""
    found = []
    for number, (seed, fold) in enumerate(places):
        run = Run(write_run(folder / str(number), seed=seed, fold=fold, skill=skill))
        split = run.info()["split"] | {"folds": folds}
        run.update({"split": split})
        found.append(Job(number, {}, {}, run, run.info()))
    return found


def accuracy(seed: int, fold: int, skill: float) -> float:
    table = predictions(seed, skill=skill, fold=fold).query("split == 'test'")
    return float(balanced_accuracy_score(table["dx"], table["predicted_dx"]))


@pytest.fixture(scope="module")
def good_and_poor(tmp_path_factory: pytest.TempPathFactory) -> tuple[Setting, Setting]:
    root = tmp_path_factory.mktemp("runs")
    return reached("good", jobs(root / "good", 1.0)), reached("poor", jobs(root / "poor", 0.5))


def some(setting: Setting, which: slice) -> Setting:
    return replace(setting, replicates=setting.replicates[which])


def test_a_difference_is_the_mean_of_its_pairs_as_scikit_learn_scores_them(
    good_and_poor: tuple[Setting, Setting],
) -> None:
    good, poor = good_and_poor
    gap = difference(good, poor, "balanced_accuracy")
    assert gap is not None
    pairs = [accuracy(*place, 1.0) - accuracy(*place, 0.5) for place in PLACES]
    assert gap.pairs == pytest.approx(pairs) and gap.value == pytest.approx(np.mean(pairs))
    assert gap.low < gap.value < gap.high
    assert gap.verdict == "helps"
    back = difference(poor, good, "balanced_accuracy")
    assert back is not None and back.verdict == "hurts" and back.value == -gap.value


def test_pairing_is_narrower_than_two_intervals_and_two_folds_than_one(
    good_and_poor: tuple[Setting, Setting],
) -> None:
    one, other = good_and_poor
    both = difference(one, other, "accuracy")
    first = difference(*(some(each, slice(None, None, 2)) for each in good_and_poor), "accuracy")
    assert both is not None and first is not None
    assert both.high - both.low < first.high - first.low, "twice the lesions"
    ends = [setting.interval("accuracy") for setting in (one, other)]
    assert both.high - both.low < np.hypot(*(high - low for low, high in ends)) * 1.05


def test_a_setting_beside_itself_differs_by_nothing(good_and_poor: tuple[Setting, Setting]) -> None:
    same, _ = good_and_poor
    gap = difference(same, same, "macro_auroc")
    assert gap == Difference(0, 0, 0, (0, 0, 0, 0)) and gap.verdict == "cannot tell"


def test_only_seeds_and_folds_that_both_have_are_compared(good_and_poor: tuple[Setting, Setting]) -> None:
    good, poor = good_and_poor
    gap = difference(good, some(poor, slice(1, None)), "balanced_accuracy")
    assert gap is not None
    assert gap.pairs == pytest.approx([accuracy(*place, 1.0) - accuracy(*place, 0.5) for place in PLACES[1:]])


@pytest.mark.parametrize(
    ("low", "high", "pairs", "verdict"),
    [
        (0.01, 0.03, (0.01, 0.03), "helps"),
        (-0.03, -0.01, (-0.01, -0.03), "hurts"),
        (-0.01, 0.03, (0.01, 0.02), "cannot tell"),  # the interval holds zero
        (0.01, 0.03, (0.05, -0.01), "cannot tell"),  # one training has it the other way round
        (0.01, 0.03, (0.02,), "cannot tell"),  # one training is none
        (0.01, 0.03, (), "cannot tell"),
    ],
)
def test_a_verdict_wants_the_interval_and_every_pair(
    low: float, high: float, pairs: tuple[float, ...], verdict: str
) -> None:
    assert Difference((low + high) / 2, low, high, pairs).verdict == verdict


def test_test_parts_that_overlap_in_part_have_no_interval(tmp_path: Path) -> None:
    two = jobs(tmp_path, 1.0, [(0, 0), (0, 1)])
    setting = reached("", two)
    parts = pd.concat([predictions(fold=fold).query("split == 'test'") for fold in (0, 1)])
    assert setting.tested() == (len(parts), parts["lesion_id"].nunique())
    assert np.isfinite(setting.interval("accuracy")).all()
    table = pd.read_csv(two[1].run.predictions_file)
    table.loc[table.index[-1], ["image_id", "lesion_id"]] = "SYN_000399", "SYN_L000398"
    table.to_csv(two[1].run.predictions_file, index=False)
    torn = reached("", two)
    assert torn.tested() is None and np.isnan(torn.interval("accuracy")).all()
    assert difference(torn, torn, "accuracy") is None


def test_a_pair_that_is_not_resampled_alike_is_refused(tmp_path: Path) -> None:
    old, new = (jobs(tmp_path / name, 1.0, [(0, 0)]) for name in ("old", "new"))
    table = new[0].run.predictions()
    table.assign(group=table["lesion_id"]).to_csv(new[0].run.predictions_file, index=False)
    gap = difference(reached("old", old), reached("new", new), "accuracy")
    assert gap is not None and gap.pairs == (0,), "the same lesions by another name"
    table.assign(group="one").to_csv(new[0].run.predictions_file, index=False)
    with pytest.raises(InputError, match="old and new: .* by groups in one and by lesions in the other"):
        difference(reached("old", old), reached("new", new), "accuracy")


def test_different_images_are_resampled_by_themselves(tmp_path: Path) -> None:
    here, there = (reached("", jobs(tmp_path / str(fold), 1.0, [(0, fold), (1, fold)])) for fold in (0, 1))
    gap = difference(here, there, "accuracy")
    assert gap is not None and gap.pairs == () and gap.verdict == "cannot tell"
    widths = [high - low for low, high in (here.interval("accuracy"), there.interval("accuracy"))]
    assert gap.high - gap.low == pytest.approx(np.hypot(*widths), rel=0.1)


def test_scores_of_other_classes_are_not_compared(tmp_path: Path) -> None:
    seven, two = (jobs(tmp_path / name, 1.0, [(0, 0)]) for name in ("seven", "two"))
    table = pd.read_csv(two[0].run.predictions_file)
    ill = ["akiec", "bcc", "mel"]
    risk = table[[f"prob_{name}" for name in ill]].sum(axis=1)
    table = table.loc[:, ~table.columns.str.startswith("prob_")].assign(prob_benign=1 - risk, prob_malignant=risk)
    named = {True: "malignant", False: "benign"}
    table = table.assign(dx=table["dx"].isin(ill).map(named), predicted_dx=(risk > 0.5).map(named))
    table.to_csv(two[0].run.predictions_file, index=False)
    one, other = all_reached([("seven", seven), ("two", two)])
    assert difference(one, other, "balanced_accuracy") is None
    assert difference(one, other, "mean_image_dice") is not None, "the masks' classes are the same"


# --- arms -------------------------------------------------------------------------------------------------------------


def write_arms(folder: Path, skills: dict[str, float]) -> Path:
    """A sweep over arms, seeds and folds; an arm of one task has no columns of the other."""
    cells = [(arm, *place) for arm in skills for place in ((0, 0), (1, 1))]
    for number, (arm, seed, fold) in enumerate(cells):
        run = Run(write_run(folder / str(number), seed=seed, fold=fold, skill=skills[arm]))
        run.update({"split": run.info()["split"] | {"folds": 5}, "shuffled": "shuffled" in arm})
        table = pd.read_csv(run.predictions_file)
        if arm == "mask":
            table = table.loc[:, ~table.columns.str.startswith(("prob_", "predicted_"))]
        if arm == "diagnosis":
            table = table.drop(columns=["dice", "iou", "hd95", "assd", "dice_input"])
        table.to_csv(run.predictions_file, index=False)
        words = [f"arm={arm}", f"seed={seed}", f"data.fold={fold}"]
        (run.path / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(words))
    return folder


ARMS = {"mask": 1.0, "diagnosis": 0.7, "both": 1.0, "both_masks_shuffled": 0.3, "both_diagnoses_shuffled": 1.0}


@pytest.mark.slow
def test_arms_are_compared_with_the_arm_of_one_task_and_controls_do_not_help(tmp_path: Path) -> None:
    sweep = write_arms(tmp_path / "sweep", ARMS)
    said = sharing(read_jobs(sweep))
    # Masks do not follow the skill of these runs: they are the same in every arm.
    assert [line.rpartition(": ")[2] for line in said] == ["cannot tell", "helps", "cannot tell", "hurts"]
    assert "both minus mask: Dice" in said[0] and "both_masks_shuffled minus diagnosis: Balanced" in said[3]
    text = (study_report(sweep, tmp_path / "out") / "README.md").read_text()
    rows = [line for line in text.splitlines() if "minus" in line and line.startswith("| ")]
    assert len(rows) == 2 * 2 + 2 * 5, "two scores of segmentation, five of classification, each asked twice"
    assert sum("negative control" in row for row in rows) == 7
    assert "**SHUFFLED" in text


def test_an_arm_that_did_not_run_is_not_compared(tmp_path: Path) -> None:
    sweep = write_arms(tmp_path / "sweep", {"mask": 1.0, "both": 1.0})
    assert len(sharing(read_jobs(sweep))) == 1


def test_other_sweeps_say_nothing_of_sharing(tmp_path: Path) -> None:
    sweep = write_arms(tmp_path / "sweep", {"both": 1.0})
    assert sharing(read_jobs(sweep)) == []
