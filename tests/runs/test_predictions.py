"""A predictions table comes back as it was written, and one that cannot be so is refused with its rows."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fakes import predictions as table

from skinmtl.cli import commands
from skinmtl.errors import Faults, InputError
from skinmtl.evaluation import scores
from skinmtl.runs import predictions
from skinmtl.runs.run import Run
from skinmtl.tasks import tables
from skinmtl.tasks.classification.scoring import classes_in

NAMES = [
    ("0", "1"),
    ("True", "False"),
    ("NA", "nan"),
    ("None", "null"),
    ("1.0", "01"),
    ("1e3", "-inf"),
    ('a, "b"', "c;d\t'"),
    ("黑色素瘤", "névus"),
    ("#N/A", "a_as_b"),
]


def named(names: tuple[str, str], count: int = 60) -> pd.DataFrame:
    """A table whose diagnoses, ids, parts and further columns are all such names."""
    rng = np.random.default_rng(0)
    dx = rng.permutation(np.arange(count) % 2)
    p = rng.uniform(0, 1, count)
    return pd.DataFrame(
        {
            "image_id": [f"{names[i % 2]}{'' if i < 2 else i}" for i in range(count)],
            "lesion_id": [names[i % 2] if i < 2 else f"L{i}" for i in range(count)],
            "localization": [names[i % 2] for i in range(count)],
            "dx": [names[i] for i in dx],
            "predicted_dx": [names[int(x > 0.5)] for x in p],
            f"prob_{names[0]}": 1 - p,
            f"prob_{names[1]}": p,
            "split": [names[i % 2] for i in range(count)],
            "leaky": False,
        }
    )


@pytest.mark.parametrize("names", NAMES)
def test_names_come_back_as_they_were_written(names: tuple[str, str], tmp_path: Path) -> None:
    written = named(names)
    written.to_csv(tmp_path / "predictions.csv", index=False)
    for read in (predictions.read(tmp_path / "predictions.csv"), Run(tmp_path).predictions()):
        for column in written:
            assert read[column].tolist() == written[column].tolist(), column
    found = scores.evaluate_file(tmp_path / "predictions.csv")
    assert found == scores.evaluate(written)
    assert found["parts"][names[0]]["scores"]["cls"]["accuracy"]["value"] is not None


def test_a_blank_cell_is_missing_and_nothing_else_is(tmp_path: Path) -> None:
    written = table(images=30)
    written["dx"] = ["NA", *written["dx"][1:]]
    written["sex"] = [None, "unknown", *written["sex"][2:]]
    written.to_csv(tmp_path / "t.csv", index=False)
    read = predictions.read(tmp_path / "t.csv")
    assert read["sex"].isna().tolist() == [True, *[False] * 29]
    with pytest.raises(Faults, match="dx is NA, which has no column of probabilities"):
        tables.check(read)


@pytest.mark.parametrize("word", ["NA", "nan", "None", "NULL", "unknown", "#N/A", "-"])
@pytest.mark.parametrize("column", ["lesion_id", "group"])
def test_a_word_for_missing_is_no_lesion_of_several_images(tmp_path: Path, column: str, word: str) -> None:
    written = table(images=30)
    written["group"] = written["lesion_id"]
    tables.check(written)
    written[column] = [word, word, *written[column][2:]]
    written.to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(Faults, match=rf"{written['image_id'][0]}: {column} is a word for missing \(2 rows\), also"):
        tables.check(predictions.read(tmp_path / "t.csv"))


def test_a_image_may_be_called_as_a_word_for_missing(tmp_path: Path) -> None:
    written = table(images=30)
    for column in ("image_id", "lesion_id"):
        written[column] = ["none", *written[column][1:]]
    tables.check(written)


def test_distances_that_cannot_be_are_refused() -> None:
    written = table(images=30).assign(height=30, width=40)
    written = written.drop(columns=["tp_lesion", "fp_lesion", "fn_lesion", "tn_lesion", "dice", "iou"])
    written = written.assign(hd95=50.0)  # as far as corner from corner: of one empty mask
    tables.check(written)
    wrong = written.copy()
    wrong.loc[0, "hd95"] = 50.1
    with pytest.raises(Faults, match=rf"{written['image_id'][0]}: hd95 is above the image's diagonal.* \(1 row\)"):
        tables.check(wrong)


def test_rows_of_blanks_behind_a_table_are_none(tmp_path: Path) -> None:
    written = table(images=30)
    text = written.to_csv(index=False)
    (tmp_path / "t.csv").write_text(text + "," * (len(written.columns) - 1) + "\r\n\r\n")
    read = predictions.read(tmp_path / "t.csv")
    tables.check(read)
    assert len(read) == 30
    (tmp_path / "t.csv").write_text(text + ",\n" + "a,b\n")  # the control: half a row is a fault
    with pytest.raises(InputError, match="row 33 has 2 cells"):
        predictions.read(tmp_path / "t.csv")


def test_semicolons_are_told_although_decimals_have_commas(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("image_id;split;dice\na;test;0,9\n")
    with pytest.raises(InputError, match="fix: separate columns by commas"):
        predictions.read(tmp_path / "t.csv")


def test_measures_come_back_to_the_last_bit_and_counts_as_whole_numbers(tmp_path: Path) -> None:
    written = table(images=60).assign(leaky=True)
    written.loc[3, ["dice", "iou"]] = np.nan
    written.to_csv(tmp_path / "t.csv", index=False)
    read = predictions.read(tmp_path / "t.csv")
    for column in written.select_dtypes("number"):
        np.testing.assert_array_equal(read[column], written[column], err_msg=column)
    assert read["tp_lesion"].dtype == read["height"].dtype == read["fold"].dtype == np.int64
    assert read["leaky"].dtype == bool


def test_masks_alone_are_scored_without_their_pixels(tmp_path: Path) -> None:
    columns = ["image_id", "lesion_id", "split", "dice", "iou"]
    written = table(images=60)
    written[columns].to_csv(tmp_path / "t.csv", index=False)
    found = scores.evaluate_file(tmp_path / "t.csv")["parts"]["test"]
    whole = scores.evaluate(written)["parts"]["test"]
    assert list(found["scores"]) == ["seg"]
    for name, score in found["scores"]["seg"].items():
        assert score == whole["scores"]["seg"][name], name
    assert "pooled_dice" not in found["scores"]["seg"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        ("image_id,split\na,test\n".encode("utf-16"), "not UTF-8"),
        (b"image_id,split\na,test\n", "columns missing: lesion_id, dice and iou, or prob_<class>"),
        (b"image_id;lesion_id;split\n", "separate columns by commas"),
        (b"image_id,image_id\na,b\n", "two columns are called image_id"),
        (b"image_id,lesion_id,split,dice,iou\na,l,test,0.5,0.4\nb,m,te", "row 3 has 3 cells for 5 columns"),
        (b"image_id,lesion_id,split,dice,iou\na,l,test,good,0.4\n", "dice is 'good' in row 2"),
        (b"image_id,lesion_id,split,dice,iou,leaky\na,l,test,1,1,perhaps\n", "leaky is 'perhaps' in row 2"),
        (b'image_id,lesion_id,split,dice,iou\n"a,l,test,1,1\n', "not a table"),
    ],
)
def test_what_is_no_predictions_table_is_one_line(
    content: bytes, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "t.csv").write_bytes(content)
    assert commands.main(["score", str(tmp_path / "t.csv")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line and "t.csv" in line


def changed(column: str, value: object) -> Callable[[pd.DataFrame], pd.DataFrame]:
    def change(of: pd.DataFrame) -> pd.DataFrame:
        of = of.astype({column: object})
        of.loc[[3, 7], column] = value
        return of

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (changed("dice", 1.7), r"SYN_000003: dice is below 0 or above 1 \(2 rows\), also SYN_000007"),
        (changed("dice", 56.0), "dice is below 0 or above 1"),
        (changed("dice", -np.inf), "dice is below 0 or above 1"),
        (changed("iou", 1.2), "iou is below 0 or above 1"),
        (changed("dice_input", 2.0), "dice_input is below 0 or above 1"),
        (changed("hd95", -1.0), "hd95 is below 0 or infinite"),
        (changed("assd", np.inf), "assd is below 0 or infinite"),
        (changed("tp_lesion", -3), "tp_lesion is no number of pixels"),
        (changed("tn_lesion", 0.5), "tn_lesion is no number of pixels"),
        (changed("fp_lesion", np.inf), "fp_lesion is no number of pixels"),
        (changed("dice", 0.1), "iou is above dice"),
        (changed("iou", 0.01), "iou is not that of the pixels beside it"),
        (changed("tp_lesion", 1), "dice is not that of the pixels beside it"),
        (changed("tn_lesion", 5), "its pixels do not add up to one size of image"),
        (changed("split", "Test"), "split is spelt 'Test' and 'test'"),
        (changed("split", None), "SYN_000003: no split"),
        (changed("image_id", None), "row 5: no image_id"),
        (lambda of: of.assign(group=of["image_id"]), "its lesion is in several groups"),
        (lambda of: of.drop(columns="tn_lesion"), "columns missing: tn_lesion"),
        (lambda of: of[["image_id", "lesion_id", "split", "tp_lesion"]], "columns missing: dice and iou"),
    ],
)
def test_what_cannot_be_is_refused_with_its_rows(
    change: Callable[[pd.DataFrame], pd.DataFrame], words: str, tmp_path: Path
) -> None:
    tables.check(table(images=60))
    change(table(images=60)).to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(Faults, match=words):
        scores.evaluate_file(tmp_path / "t.csv")


def test_scores_rounded_to_two_places_are_not_contradicted_by_their_pixels() -> None:
    tables.check(table().round({"dice": 2, "iou": 2}))


def test_what_was_left_out_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    of = table(images=60)
    assert scores.evaluate(of, draws=5)["notes"] == []
    of.loc[of["split"].eq("test"), "lesion_id"] = None
    of.loc[[50, 51], "dx"] = None
    of.loc[52, ["dice", "iou"]] = None
    of.to_csv(tmp_path / "t.csv", index=False)
    assert commands.main(["score", str(tmp_path / "t.csv")]) == 0
    said = capsys.readouterr().err
    assert "test: no row names a lesion: images are resampled" in said
    assert "test: 2 of 40 images have no diagnosis" in said
    assert said.count("1 of 40 images have no ") == 1, "one sentence for all of it"
    assert "test: 1 of 40 images have no dice, iou, and count in no score of it" in said


def test_an_old_table_of_ours_has_its_pooled_distances_by_that_name(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old = table(images=60).drop(columns="table_version")
    old.to_csv(tmp_path / "predictions.csv", index=False)
    read = Run(tmp_path).predictions()
    assert read["hd95_pooled"].tolist() == old["hd95"].tolist() and "hd95" not in read
    assert "read as hd95_pooled" in caplog.text
    new = table(images=60).assign(hd95_pooled=old["hd95"] - 1)
    found = scores.paired(new, read)
    assert "mean_image_hd95" not in found, "never one definition minus the other"
    assert found["mean_image_hd95_pooled"]["difference"] == pytest.approx(-1)
    others = old.drop(columns="dice_input")  # nobody else has that column: theirs is what they say
    others.to_csv(tmp_path / "theirs.csv", index=False)
    assert "hd95" in predictions.read(tmp_path / "theirs.csv")


def test_a_table_that_is_not_there_is_one_line() -> None:
    with pytest.raises(InputError, match="no such file"):
        predictions.read(Path("nowhere.csv"))


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path: Path) -> None:
    table(images=60).to_csv(tmp_path / "predictions.csv", index=False)
    command = f"{sys.executable} -m skinmtl.cli score {tmp_path} | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.long
def test_a_hundred_thousand_images_are_scored_within_a_minute_and_two_gigabytes(tmp_path: Path) -> None:
    many = [table(seed, fold=seed, images=10_000).replace({"split": "val"}, "test") for seed in range(10)]
    pd.concat(many).to_csv(tmp_path / "t.csv", index=False)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, "-m", "skinmtl.cli", "score", str(tmp_path / "t.csv")],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 60, "seconds of a core"
    assert after.ru_maxrss < 2e6, "kB"


def said_of(of: pd.DataFrame) -> str:
    return "\n".join(scores.evaluate(of, draws=5)["notes"])


@pytest.mark.parametrize("column", ["lesion_id", "group"])
def test_lesions_that_a_table_parts_by_a_space_are_said(column: str) -> None:
    of = table(images=60)
    of["lesion_id"] = [f"l{i // 2}" for i in range(60)]
    if column == "group":
        of["group"] = of["lesion_id"]
    assert said_of(of) == ""
    parted = of.assign(**{name: of[name].mask(of.index == 59, "l29 ") for name in ("lesion_id", column)})
    assert f"test: 2 names in {column} differ from another in letters or spaces alone" in said_of(parted)


def test_a_image_that_stands_there_twice_in_two_spellings_is_said() -> None:
    of = table(images=60)
    of.loc[59, "image_id"] = of.loc[58, "image_id"].upper() + " "
    assert "test: 2 names in image_id differ" in said_of(of)


def test_groups_that_are_few_are_said_for_they_may_mean_something_else() -> None:
    of = table(images=60)
    few = of.assign(group=of["lesion_id"].map({name: "AB"[i % 2] for i, name in enumerate(of["lesion_id"].unique())}))
    lesions = of[of["split"].eq("test")]["lesion_id"].nunique()
    assert f"test: {lesions} lesions are in 2 groups, which are what is resampled" in said_of(few)


def test_lesions_of_several_splits_are_said() -> None:
    of = table(images=60)
    of["split"] = ["val", "test"] * 30
    shared = int((of.groupby("lesion_id")["split"].nunique() > 1).sum())
    assert f"{shared} of {of['lesion_id'].nunique()} lesions are in several splits" in said_of(of)


def test_guesses_that_are_not_scored_are_said() -> None:
    of = table(images=60)
    probabilities = of[[f"prob_{name}" for name in classes_in(of)]]
    of["predicted_dx"] = probabilities.idxmax(axis=1).str.removeprefix("prob_")
    assert said_of(of) == ""
    last = probabilities.iloc[50:].idxmin(axis=1).str.removeprefix("prob_")
    assert "predicted_dx is not the diagnosis of the largest probability in 10 of 40 rows" in said_of(
        of.assign(predicted_dx=of["predicted_dx"].where(of.index < 50, last))
    )


def test_masks_without_a_lesion_and_masks_without_skin_are_said() -> None:
    of = table(images=60)
    whole = int(of.loc[57, [f"{count}_lesion" for count in predictions.COUNTS]].sum())
    columns = [*(f"{count}_lesion" for count in ("tp", "fp", "fn", "tn")), "dice", "iou"]
    of.loc[57, columns] = 0, 0, 0, whole, 1, 1
    of.loc[[58, 59], columns] = whole, 0, 0, 0, 1, 1
    said = said_of(of)
    assert "test: 1 of 40 masks are empty" in said and "test: 2 of 40 masks are lesion throughout" in said


def test_what_a_table_says_doubtfully_is_said_where_it_is_compared() -> None:
    of = table(images=60)
    assert scores.uncompared(of, of) == []
    of["lesion_id"] = [f"l{i // 2}" for i in range(60)]
    parted = of.assign(lesion_id=of["lesion_id"].mask(of.index == 59, "l29 "))
    assert "names in lesion_id differ" in "".join(scores.uncompared(parted, parted))
