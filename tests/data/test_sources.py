from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from layouts import HAM10000_CLASSES, write_dataverse, write_mirror, write_own

from skinmtl.data import certificate, sources, splits
from skinmtl.errors import Faults, InputError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_dataverse(tmp_path, lesions=14)
    return tmp_path


def rewrite(root: Path, change: Callable[[pd.DataFrame], pd.DataFrame], **options: object) -> None:
    path = root / "HAM10000_metadata.csv"
    change(pd.read_csv(path, dtype=str)).to_csv(path, index=False, **options)


def test_the_case_table_holds_what_the_metadata_says(root: Path) -> None:
    raw = pd.read_csv(root / "HAM10000_metadata.csv").sort_values("image_id", ignore_index=True)
    table = sources.read(root)
    assert tuple(table.columns) == sources.COLUMNS
    assert isinstance(table.index, pd.RangeIndex)
    assert tuple(table["dx"].cat.categories) == sources.DX
    for ours, theirs in {"image_id": "image_id", "lesion_id": "lesion_id", "dx": "dx", "source": "dataset"}.items():
        assert table[ours].tolist() == raw[theirs].tolist()
    assert table["age"].tolist() == raw["age"].tolist()
    assert all(Path(path).is_absolute() and Path(path).is_file() for path in [*table["image"], *table["mask"]])
    assert all(row.image_id in row.image and row.image_id in row.mask for row in table.itertuples())
    assert not sources.is_leaky(table)


def test_classes_are_those_that_occur_in_their_fixed_order(root: Path) -> None:
    rewrite(root, lambda raw: raw[raw["dx"].isin(["nv", "bcc", "mel"])])
    assert list(sources.read(root)["dx"].cat.categories) == ["bcc", "mel", "nv"]


def test_a_missing_mask_is_missing_and_nothing_else(root: Path) -> None:
    next((root / "HAM10000_segmentations_lesion_tschandl").iterdir()).unlink()
    assert sources.read(root)["mask"].isna().sum() == 1


def test_the_tab_file_and_a_part_of_any_name_are_read(root: Path) -> None:
    expected = sources.read(root)
    rewrite(root, lambda raw: raw, sep="\t")
    (root / "HAM10000_metadata.csv").rename(root / "HAM10000_metadata.tab")
    (root / "HAM10000_images_part_2").rename(root / "HAM10000_images_part_b")
    assert sources.read(root).drop(columns="image").equals(expected.drop(columns="image"))


@pytest.mark.parametrize("kind", ["byte-order mark", "Windows line ends", "blank age", "no source", "blank lines"])
def test_harmless_peculiarities_are_accepted(root: Path, kind: str) -> None:
    path = root / "HAM10000_metadata.csv"
    expected = sources.read(root)
    text = path.read_text()
    if kind == "byte-order mark":
        path.write_text(text, encoding="utf-8-sig")
    elif kind == "Windows line ends":
        path.write_text(text.replace("\n", "\r\n"), newline="")
    elif kind == "blank lines":
        path.write_text(text + "\n\n")
    elif kind == "blank age":
        rewrite(root, lambda raw: raw.assign(age=""))
        expected["age"] = float("nan")
    else:
        rewrite(root, lambda raw: raw.drop(columns="dataset"))
        expected["source"] = pd.Series(pd.NA, index=expected.index, dtype="str")
    pd.testing.assert_frame_equal(sources.read(root), expected, check_dtype=False)


def test_all_faults_are_told_at_once_with_their_rows(root: Path) -> None:
    def spoil(raw: pd.DataFrame) -> pd.DataFrame:
        raw.loc[0, "dx"] = "MEL"
        raw.loc[2, "dx"] = "nv"  # its lesion's other image, row 3, says bcc
        raw.loc[4, "age"] = "old"
        raw.loc[5, "image_id"] = "../ISIC_1"
        raw.loc[6, "lesion_id"] = ""
        raw.loc[8, "image_id"] = raw.loc[7, "image_id"]
        raw.loc[9, "image_id"] = "ISIC_9999999"
        return raw

    rewrite(root, spoil)
    with pytest.raises(Faults) as caught:
        sources.read(root)
    text = str(caught.value)
    assert caught.value.exit_code == 2
    for piece in (
        "unknown dx: row 2 (ISIC_0000000)",
        "lesion HAM_0000001 has several diagnoses: bcc (row 3), nv (row 4)",
        "age is not a number of years: row 6",
        "not an image id: row 7 (../ISIC_1)",
        "lesion_id is missing: row 8",
        "the same id twice: row 9 (ISIC_0000007), row 10 (ISIC_0000007)",
        "no such image: row 11 (ISIC_9999999)",
    ):
        assert piece in text, piece
    assert len(caught.value.faults) == 7


def test_an_image_in_two_folders_is_a_fault(root: Path) -> None:
    data = (root / "HAM10000_images_part_1" / "ISIC_0000000.jpg").read_bytes()
    (root / "HAM10000_images_part_2" / "ISIC_0000000.jpg").write_bytes(data)
    with pytest.raises(Faults, match="ISIC_0000000 is also"):
        sources.read(root)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace("lesion_id", "lesion", 1).encode(), "no column lesion_id"),
        (lambda text: text.replace(",", ";").encode(), "separate columns by commas"),
        (lambda text: text.encode("utf-16"), "not UTF-8 text"),
        (lambda text: text.splitlines()[0].encode(), "no rows"),
        (lambda text: b"", "not a table"),
    ],
)
def test_a_table_that_cannot_be_read_is_named(root: Path, change: Callable[[str], bytes], message: str) -> None:
    path = root / "HAM10000_metadata.csv"
    path.write_bytes(change(path.read_text()))
    with pytest.raises(InputError, match=rf"HAM10000_metadata\.csv.*{message}"):
        sources.read(root)


def test_nothing_at_root_says_how_to_get_the_data_and_how_to_try_without(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"10\.7910/DVN/DBW86T.*CC BY-NC 4\.0.*experiment=demo") as caught:
        sources.read(tmp_path / "nowhere")
    assert caught.value.exit_code == 2


def test_a_layout_without_lesion_ids_is_refused_unless_a_leak_is_allowed(tmp_path: Path) -> None:
    hot = write_mirror(tmp_path)
    with pytest.raises(Faults, match=r"data\.allow_leak=true") as caught:
        sources.read(tmp_path)
    assert caught.value.exit_code == 2

    table = sources.read(tmp_path, allow_leak=True)
    assert sources.is_leaky(table)
    assert (table["lesion_id"] == table["image_id"]).all()
    assert table["dx"].str.upper().tolist() == hot.set_index("image").idxmax(axis=1).tolist()
    assert table["mask"].notna().all()
    assert table["age"].isna().all()


def test_a_table_may_give_each_image_a_lesion_of_its_own(tmp_path: Path) -> None:
    raw = write_own(tmp_path).drop_duplicates("lesion_id")
    raw.assign(lesion_id=raw["image_id"]).to_csv(tmp_path / "mine.csv", index=False)
    table = sources.read(tmp_path)
    assert not sources.is_leaky(table)
    assert certificate.certificate(splits.make_split(table, 2, 0), table, "abc")["lesion_ids"]


def test_a_row_that_is_not_one_hot_is_a_fault(tmp_path: Path) -> None:
    hot = write_mirror(tmp_path)
    hot.loc[3, ["MEL", "NV"]] = 1.0
    hot.loc[5, hot.columns[1:]] = 0.0
    hot.to_csv(tmp_path / "GroundTruth.csv", index=False)
    with pytest.raises(Faults, match=r"not one-hot: row 5 \(ISIC_0000003\), row 7 \(ISIC_0000005\)"):
        sources.read(tmp_path, allow_leak=True)


def test_lesion_ids_win_where_both_layouts_lie_and_the_other_can_be_forced(tmp_path: Path) -> None:
    write_mirror(tmp_path)
    write_dataverse(tmp_path, lesions=14)
    assert not sources.is_leaky(sources.read(tmp_path))
    assert sources.is_leaky(sources.read(tmp_path, layout="mirror", allow_leak=True))


def test_ham10000_is_what_was_published() -> None:
    if "SKINMTL_DATA" not in os.environ:
        pytest.skip("SKINMTL_DATA does not say where the real data is")
    table = sources.read(Path(os.environ["SKINMTL_DATA"]) / "ham10000_256x192")
    assert (len(table), table["lesion_id"].nunique()) == (10_015, 7_470)
    assert table["dx"].value_counts().to_dict() == HAM10000_CLASSES
    assert table["mask"].notna().all()
