from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from layouts import HAM10000_CLASSES, HAM10000_MULTIPLICITIES, ham10000_table
from sklearn.model_selection import StratifiedGroupKFold

from skinmtl.data import splits
from skinmtl.errors import ConfigError, Faults, InputError
from skinmtl.files import digest

FOLDS = [f"fold_{fold}" for fold in range(5)]


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return ham10000_table()


@pytest.fixture(scope="module")
def split(table: pd.DataFrame) -> pd.DataFrame:
    return splits.make_split(table, folds=5, seed=0)


def sides(split: pd.DataFrame, table: pd.DataFrame, fold: str) -> pd.Series:
    """On how many sides each lesion is."""
    return split[fold].groupby(table["lesion_id"].to_numpy()).nunique()


def test_the_test_table_has_the_shape_of_ham10000(table: pd.DataFrame) -> None:
    assert table["dx"].value_counts().to_dict() == HAM10000_CLASSES
    assert table["lesion_id"].value_counts().value_counts().to_dict() == HAM10000_MULTIPLICITIES


SEEDS = [seed if seed < 10 else pytest.param(seed, marks=pytest.mark.long) for seed in range(100)]


@pytest.mark.parametrize("seed", SEEDS)
def test_no_lesion_is_on_two_sides_of_six_splits(table: pd.DataFrame, seed: int) -> None:
    """One train, validation and test set, and five folds; 600 splits in all by `make test-faults`."""
    holdout, crossed = splits.make_split(table, folds=7, seed=seed), splits.make_split(table, folds=5, seed=seed)
    assert (crossed[FOLDS] == "test").sum(axis=1).eq(1).all()  # each image tests once
    for split, fold in [(holdout, "fold_0"), *((crossed, fold) for fold in FOLDS)]:
        assert split["image_id"].equals(table["image_id"])
        assert set(split[fold]) == {"train", "val", "test"}
        assert (sides(split, table, fold) == 1).all()
        assert uneven(split[fold], table) <= 0.1
    splits.check(crossed, table)


def uneven(stages: pd.Series, table: pd.DataFrame) -> float:
    """By how much of itself a class's share of a part's images is off at most; classes of 30 lesions or more."""
    lesions = table.groupby("dx", observed=True)["lesion_id"].nunique()
    whole = table["dx"].value_counts(normalize=True)
    parts = table["dx"].groupby(stages.to_numpy()).value_counts(normalize=True).unstack()
    return float((parts / whole - 1).abs()[lesions.index[lesions >= 30]].max().max())


def test_a_split_by_image_would_put_lesions_on_two_sides(table: pd.DataFrame) -> None:
    by_image = splits.make_split(table.assign(lesion_id=table["image_id"]), folds=5, seed=0)
    assert (sides(by_image, table, "fold_0") > 1).sum() > 500
    words = r"fold_0: .* lesions in more than one split, such as HAM_\d+ \(images ISIC_\d+, ISIC_\d+"
    with pytest.raises(Faults, match=words):
        splits.check(by_image, table)


@pytest.mark.parametrize("seed", [0, 1])
def test_test_folds_are_those_of_scikit_learn(table: pd.DataFrame, seed: int) -> None:
    judge = StratifiedGroupKFold(5, shuffle=True, random_state=seed).split(table, table["dx"], table["lesion_id"])
    split = splits.make_split(table, folds=5, seed=seed)
    for fold, (_, test) in zip(FOLDS, judge, strict=True):
        assert np.array_equal(np.flatnonzero(split[fold] == "test"), test)


@pytest.mark.parametrize("known", [0.0, 0.5])
def test_images_without_a_diagnosis_are_shared_out_like_one_more(table: pd.DataFrame, known: float) -> None:
    few = table[:2000].assign(dx=table["dx"].where(np.random.default_rng(0).random(len(table)) < known)).reset_index()
    assert few["dx"].isna().mean() == pytest.approx(1 - known, abs=0.05)
    words = few["dx"].astype(object).fillna("")
    judge = StratifiedGroupKFold(5, shuffle=True, random_state=0).split(few, words, few["lesion_id"])
    split = splits.make_split(few, folds=5, seed=0)
    splits.check(split, few)
    for fold, (_, test) in zip(FOLDS, judge, strict=True):
        assert np.array_equal(np.flatnonzero(split[fold] == "test"), test)
        assert (split[fold][few["dx"].isna()] == "val").mean() == pytest.approx(4 / 5 * splits.VAL_SHARE, abs=0.01)


def test_a_diagnosis_that_becomes_unknown_is_another_split_file(table: pd.DataFrame, tmp_path: Path) -> None:
    few = table[:200]
    blank = few.assign(dx=few["dx"].where(few.index != 7))
    assert splits.find_or_make(few, 5, 0, tmp_path) != splits.find_or_make(blank, 5, 0, tmp_path)
    assert splits.find_or_make(blank, 5, 0, tmp_path).exists()


@pytest.mark.parametrize("stage", ["val", "test"])
def test_each_diagnosis_has_its_share_of_every_side(table: pd.DataFrame, split: pd.DataFrame, stage: str) -> None:
    share = {"test": 1 / 5, "val": 4 / 5 * splits.VAL_SHARE}[stage]
    for fold in FOLDS:
        counts = table["dx"][split[fold] == stage].value_counts()
        for dx, images in HAM10000_CLASSES.items():
            assert counts[dx] == pytest.approx(share * images, rel=0.1)


def test_seeds_and_folds_give_other_splits_and_the_same_seed_the_same(table: pd.DataFrame, split: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(splits.make_split(table, 5, seed=0), split)
    assert not splits.make_split(table, 5, seed=1)[FOLDS].equals(split[FOLDS])
    assert all((split[a] != split[b]).any() for a in FOLDS for b in FOLDS if a < b)


def test_a_split_is_written_once_and_never_redrawn(table: pd.DataFrame, split: pd.DataFrame, tmp_path: Path) -> None:
    path = splits.find_or_make(table, 5, 0, tmp_path / "deep" / "splits")
    pd.testing.assert_frame_equal(splits.load(path), split, check_dtype=False)
    text, mark = path.read_text(), digest(path)
    assert splits.find_or_make(table, 5, 0, path.parent) == path

    path.write_text(text.replace("val", "train"))
    assert splits.find_or_make(table, 5, 0, path.parent) == path
    assert digest(path) != mark
    assert splits.find_or_make(table, 5, 1, path.parent) != path
    assert splits.find_or_make(table.iloc[1:], 5, 0, path.parent) != path
    assert len(list(path.parent.iterdir())) == 3  # and no temporary file


def test_a_folder_that_cannot_be_written_to_is_said(table: pd.DataFrame, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "splits"):
        with pytest.raises(ConfigError, match=rf"data\.split_dir: {folder}: cannot be written to \(.*\); fix: "):
            splits.find_or_make(table, 5, 0, folder)


def test_a_fresh_draw_has_the_same_digest(table: pd.DataFrame, tmp_path: Path) -> None:
    digests = {digest(splits.find_or_make(table, 5, 0, tmp_path / name)) for name in "ab"}
    assert len(digests) == 1


def test_a_split_file_of_other_data_is_refused(table: pd.DataFrame, split: pd.DataFrame) -> None:
    other = split.copy()
    other.loc[0, "image_id"] = "ISIC_9999999"
    other.loc[1, "image_id"] = other.loc[2, "image_id"]
    with pytest.raises(Faults) as caught:
        splits.check(other, table)
    text = str(caught.value)
    assert "images twice: ISIC_0000002" in text
    assert "images that are not in the data: ISIC_9999999" in text
    assert "delete the split file to have it made anew" in text
    with pytest.raises(Faults) as caught:
        splits.check(other, table, given=True)
    assert "delete" not in str(caught.value), "it may be another run's"
    assert "images of the data that are missing: ISIC_0000000, ISIC_0000001" in text


def test_duplicates_grouped_by_the_file_may_not_be_torn(table: pd.DataFrame, split: pd.DataFrame) -> None:
    train, test = split.index[split["fold_0"] == "train"][0], split.index[split["fold_0"] == "test"][0]
    grouped = split.copy()
    grouped.loc[train, "group"] = grouped.loc[test, "group"]
    with pytest.raises(Faults, match="fold_0: 1 groups of the file in more than one split"):
        splits.check(grouped, table)


def test_a_split_file_with_faults_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "split.csv"
    with pytest.raises(InputError, match=r"split\.csv: no split file here"):
        splits.load(path)
    path.write_text("image_id,group\na,b\n")
    with pytest.raises(InputError, match="no column fold_0"):
        splits.load(path)
    path.write_text("image_id,group,fold_0,fold_1\na,b,train,test\nc,d,dev,\n")
    with pytest.raises(Faults, match=r"row 3, fold_0: 'dev'(.|\n)*row 3, fold_1: ''"):
        splits.load(path)


def test_few_lesions_still_split_and_too_few_are_refused(table: pd.DataFrame, caplog: pytest.LogCaptureFixture) -> None:
    few = table.groupby("dx", observed=True).head(3).reset_index(drop=True)
    splits.check(splits.make_split(few, folds=4, seed=0), few)
    assert "not every one of 4 folds can test it" in caplog.text
    with pytest.raises(ConfigError, match=r"data\.folds: 5 folds of 4 lesions"):
        splits.make_split(few.drop_duplicates("lesion_id").head(4), folds=5, seed=0)
