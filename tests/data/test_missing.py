"""Words for missing: the same in every column of every table that people bring, never a class or a shared lesion."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pandas as pd
import pytest
from layouts import write_dataverse, write_mirror, write_own, write_task3

from skinmtl.data import lesion_groups, sources, splits
from skinmtl.data.diagnosis_groups import named_diagnoses
from skinmtl.errors import Faults

WORDS = [
    "",
    "NA",
    "N/A",
    "NaN",
    "nan",
    "None",
    "NULL",
    "null",
    "unknown",
    " Unknown ",
    "<NA>",
    "#N/A",
    "?",
    ".",
    "..",
    "--",
    "\u2013",
    "\u2026",
    "_",
    "#REF!",
    "#VALUE!",
    "Not available",
]


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("own")
    write_own(root)
    return root


def with_cells(
    root: Path, into: Path, cells: dict[str, str], rows: slice = slice(4, None), name: str = "mine.csv"
) -> Path:
    """A copy of a data set whose table has these cells in some rows."""
    shutil.copytree(root, into, dirs_exist_ok=True)
    table = pd.read_csv(into / name, dtype=str, keep_default_na=False)
    for column, word in cells.items():
        table.loc[table.index[rows], column] = word
    table.to_csv(into / name, index=False)
    return into


@pytest.mark.parametrize("word", WORDS)
def test_a_word_for_missing_is_missing_in_every_column_that_may_be_blank(own: Path, tmp_path: Path, word: str) -> None:
    columns = ("dx", "mask", "age", "sex", "localization")
    table = sources.read(with_cells(own, tmp_path / "own", dict.fromkeys(columns, word)))
    assert len(table) == 21 and list(table["dx"].cat.categories) == ["akiec", "bcc", "bkl"]
    assert all(table[name].notna().sum() == 4 for name in columns)


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("column", ["lesion_id", "image_id", "image"])
def test_what_every_image_needs_is_refused_with_its_rows(own: Path, tmp_path: Path, column: str, word: str) -> None:
    with pytest.raises(Faults, match=rf"{column} is missing: row 6 .*row 7 "):
        sources.read(with_cells(own, tmp_path / "own", {column: word}))


def test_a_word_is_a_diagnosis_where_the_users_own_classes_name_it(own: Path, tmp_path: Path) -> None:
    root = with_cells(own, tmp_path / "own", {"dx": "none", "sex": "none"})
    table = sources.read(root, names=named_diagnoses({"lesion": ["akiec", "bcc", "bkl"], "healthy": ["none"]}))
    assert "none" in table["dx"].cat.categories and (table["dx"] == "none").sum() == 17
    assert (table["sex"] == "none").sum() == 0, "in the column of diagnoses alone"
    assert "none" not in sources.read(root, names=named_diagnoses({"rest": "rest", "b": ["nv"]}))["dx"].cat.categories


def test_what_was_taken_for_missing_is_said_with_its_number_of_rows(
    own: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    sources.read(with_cells(own, tmp_path / "own", {"dx": "NA", "sex": "unknown"}))
    assert "taken for missing: dx NA (17 rows), sex unknown (17 rows); if a diagnosis is called so" in caplog.text
    caplog.clear()
    sources.read(own)
    assert "taken for missing" not in caplog.text


@pytest.mark.parametrize("word", ["unknown", "NA", "None"])
def test_published_metadata_has_no_sex_or_site_called_unknown(tmp_path: Path, word: str) -> None:
    write_dataverse(tmp_path / "data")
    cells = {"sex": word, "localization": word, "age": word, "dx_type": word, "dataset": word}
    table = sources.read(with_cells(tmp_path / "data", tmp_path / "other", cells, name="HAM10000_metadata.csv"))
    assert all(table[name].notna().sum() == 4 for name in ("sex", "localization", "age", "dx_type", "source"))
    for column in ("lesion_id", "dx", "image_id"):
        root = with_cells(tmp_path / "data", tmp_path / column, {column: word}, name="HAM10000_metadata.csv")
        with pytest.raises(Faults, match=rf"{column} is missing: row 6 "):
            sources.read(root)


def test_lesions_joined_from_a_table_or_from_groupings_are_never_a_word(tmp_path: Path) -> None:
    write_mirror(tmp_path / "mirror")
    ids = sorted(path.stem for path in (tmp_path / "mirror" / "images").iterdir())
    pd.DataFrame({"image_id": ids, "lesion_id": ["L0", *["NA"] * 20]}).to_csv(tmp_path / "lesions.csv", index=False)
    with pytest.raises(Faults, match="lesion_id is missing: row 3 "):
        sources.read(tmp_path / "mirror", lesions=tmp_path / "lesions.csv")
    write_task3(tmp_path / "task3")
    name = "ISIC2018_Task3_Training_LesionGroupings.csv"
    with pytest.raises(Faults, match="lesion_id is missing: row 6 "):
        sources.read(with_cells(tmp_path / "task3", tmp_path / "a", {"lesion_id": "unknown"}, name=name))
    root = with_cells(tmp_path / "task3", tmp_path / "b", {"diagnosis_confirm_type": "unknown"}, name=name)
    assert sources.read(root)["dx_type"].notna().sum() == 4


def test_a_pair_of_duplicates_names_two_images(tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_text("first,second\nA,B\nC,NA\n,D\n")
    with pytest.raises(Faults) as caught:
        lesion_groups.read(tmp_path / "pairs.csv")
    assert [fault.what for fault in caught.value.faults] == [  # type: ignore[attr-defined]
        "first is missing: row 4 (D)",
        "second is missing: row 3 (C)",
    ]


def test_a_split_file_joins_no_strangers_by_a_word(tmp_path: Path) -> None:
    rows = ["a,L1,train", "b,NA,train", "c,unknown,train", ",L4,val", "NA,NA,test"]
    (tmp_path / "split.csv").write_text("image_id,group,fold_0\n" + "\n".join(rows))
    with pytest.raises(Faults) as caught:
        splits.load(tmp_path / "split.csv")
    assert [fault.what for fault in caught.value.faults] == [  # type: ignore[attr-defined]
        "image_id is missing: row 5 ()",
        "group is missing: row 3 (b), row 4 (c)",
    ]
    (tmp_path / "split.csv").write_text("image_id,group,fold_0\na,L1,train\nNA,NA,test\n")
    assert list(splits.load(tmp_path / "split.csv")["image_id"]) == ["a", "NA"], "an image of that name is its own"


@pytest.mark.parametrize("labels", [["0", "1"], ["True", "False"], ["01", "1"], ["1.0", "1"], ["12.0", "1e3"]])
def test_labels_and_ids_are_what_is_written(own: Path, tmp_path: Path, labels: list[str]) -> None:
    root = with_cells(own, tmp_path / "one", {"dx": labels[0]}, slice(0, None))
    root = with_cells(root, tmp_path / "two", {"dx": labels[1], "lesion_id": "007.0"}, slice(-2, None))
    table = sources.read(root)
    assert sorted(table["dx"].cat.categories) == sorted(labels)
    assert (table["lesion_id"] == "007.0").sum() == 2
    path = splits.find_or_make(table, 2, 0, tmp_path / "splits")
    assert set(splits.load(path)["group"]) == set(table["lesion_id"])
