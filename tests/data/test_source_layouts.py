"""Each layout that people have on disk is recognised and read into the same table."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from layouts import (
    HAM10000_CLASSES,
    make_image,
    write_dataverse,
    write_kaggle,
    write_mirror,
    write_own,
    write_task1,
    write_task3,
)
from PIL import Image

from skinmtl.data import sources
from skinmtl.errors import Faults, InputError, SkinmtlError

MASKS = "HAM10000_segmentations_lesion_tschandl"
GROUPINGS = "ISIC2018_Task3_Training_LesionGroupings.csv"
TASK3_TRUTH = "ISIC2018_Task3_Training_GroundTruth/ISIC2018_Task3_Training_GroundTruth.csv"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO)
    return caplog


def same(ours: pd.DataFrame, theirs: pd.DataFrame, *columns: str) -> None:
    """Check that two tables say the same in these columns, whose missing values may be blank in one of them."""
    for column in columns:
        values = (table[column].astype(object).where(table[column].notna(), "").tolist() for table in (ours, theirs))
        assert next(values) == next(values), column


def write_folder(root: Path) -> None:
    root.mkdir()
    for number in range(5):
        Image.fromarray(make_image(number)[0]).save(root / f"photo {number}.JPG")


@pytest.mark.parametrize(
    ("layout", "write"),
    [
        ("dataverse", write_dataverse),
        ("kaggle", write_kaggle),
        ("mirror", write_mirror),
        ("isic2018_task3", write_task3),
        ("isic2018_task1", write_task1),
        ("csv", write_own),
        ("folder", write_folder),
    ],
)
def test_every_layout_is_recognised_named_in_the_log_and_read_alike_when_forced(
    root: Path, log: pytest.LogCaptureFixture, layout: sources.Layout, write: Callable[[Path], object]
) -> None:
    write(root)
    table = sources.read(root, allow_leak=True)
    assert sources.recognise(root) == table.attrs["layout"] == layout
    assert f"{layout} layout at {root}: {len(table):,} images" in log.text
    pd.testing.assert_frame_equal(sources.read(root, layout, allow_leak=True), table)

    assert tuple(table.columns) == sources.COLUMNS
    assert table["image_id"].is_monotonic_increasing
    assert all(Path(path).is_absolute() and Path(path).is_file() for path in [*table["image"], *table["mask"].dropna()])
    assert {name: str(kind) for name, kind in table.dtypes.items()} == {
        **dict.fromkeys(sources.COLUMNS, "str"),
        "dx": "category",
        "age": "float64",
    }


def test_another_layout_cannot_be_forced(root: Path) -> None:
    write_task1(root)
    others: list[sources.Layout] = ["dataverse", "kaggle", "mirror", "isic2018_task3", "csv", "folder"]
    for layout in others:
        with pytest.raises(SkinmtlError, match=str(root)):
            sources.read(root, layout, allow_leak=True)


# --- Kaggle -----------------------------------------------------------------------------------------------------------


def test_kaggle_has_no_masks_until_a_folder_of_them_is_given(root: Path, log: pytest.LogCaptureFixture) -> None:
    raw = write_kaggle(root)
    table = sources.read(root)
    assert table["mask"].isna().all()
    assert "21 without a mask, 0 without a diagnosis" in log.text
    same(table, raw, "image_id", "lesion_id", "dx", "sex")
    assert not sources.is_leaky(table)

    masked = sources.read(root, masks=root.with_name("data-masks"))
    assert [Path(path).name for path in masked["mask"]] == [f"{i}_segmentation.png" for i in table["image_id"]]


@pytest.mark.parametrize("place", ["ham10000_images_part_1", "HAM10000_images_part_1/HAM10000_images_part_1"])
def test_a_second_copy_of_a_folder_is_no_fault(root: Path, log: pytest.LogCaptureFixture, place: str) -> None:
    write_kaggle(root)
    expected = sources.read(root)
    shutil.copytree(root / "HAM10000_images_part_1", root / place)
    pd.testing.assert_frame_equal(sources.read(root), expected)
    assert "11 images are there again" in log.text

    (root / place / "ISIC_0000000.jpg").write_bytes(b"another one")  # so it is no copy
    with pytest.raises(Faults, match=r"the image ISIC_0000000 is also"):
        sources.read(root)


def test_a_folder_that_unpacking_put_into_itself_is_read(root: Path) -> None:
    write_dataverse(root, lesions=14)
    expected = sources.read(root)
    for name in ("HAM10000_images_part_2", MASKS):
        (root / name).rename(root / "inner")
        (root / name).mkdir()
        (root / "inner").rename(root / name / name)
    same(sources.read(root), expected, "image_id", "dx", "lesion_id")
    assert sources.read(root)["mask"].notna().all()


def test_what_a_mac_adds_to_an_archive_is_not_read(root: Path, log: pytest.LogCaptureFixture) -> None:
    write_dataverse(root, lesions=14)
    for folder, name in (("HAM10000_images_part_1", "._ISIC_0000000.jpg"), (MASKS, "._ISIC_0000000_segmentation.png")):
        (root / folder / name).write_bytes(b"\0")
    assert len(sources.read(root)) == 21
    assert "belong to no image" not in log.text


# --- ISIC 2018 --------------------------------------------------------------------------------------------------------


def test_task_3_has_lesions_from_its_groupings_and_is_leaky_without(root: Path) -> None:
    raw = write_task3(root)
    table = sources.read(root)
    same(table, raw, "image_id", "lesion_id", "dx", "dx_type")
    assert not sources.is_leaky(table)

    (root / GROUPINGS).unlink()
    with pytest.raises(Faults, match=r"no lesion ids in the layout isic2018_task3.*data\.allow_leak=true") as caught:
        sources.read(root)
    assert caught.value.exit_code == 2
    leaky = sources.read(root, allow_leak=True)
    assert sources.is_leaky(leaky)
    same(leaky, raw, "image_id", "dx")


def test_groupings_that_miss_images_or_contradict_themselves_are_faults(root: Path) -> None:
    write_task3(root)
    groupings = pd.read_csv(root / GROUPINGS)
    twice = groupings.iloc[[4]].assign(lesion_id="HAM_9999999")
    pd.concat([groupings.iloc[2:], twice]).to_csv(root / GROUPINGS, index=False)
    with pytest.raises(Faults) as caught:
        sources.read(root)
    text = str(caught.value)
    assert f"{GROUPINGS}: no row for these images: ISIC_0000000, ISIC_0000001; fix" in text
    assert "several lesions for one image: row 4 (ISIC_0000004), row 21 (ISIC_0000004)" in text


def test_task_1_has_masks_and_nothing_else(root: Path, log: pytest.LogCaptureFixture) -> None:
    write_task1(root)
    (root / "ISIC2018_Task1_Training_GroundTruth" / "ISIC_0000003_segmentation.png").unlink()
    table = sources.read(root, allow_leak=True)
    assert table["mask"].isna().tolist() == [number == 3 for number in range(20)]
    assert table["dx"].cat.codes.tolist() == [-1] * 20
    assert list(table["dx"].cat.categories) == []
    assert "1 without a mask, 20 without a diagnosis; no diagnoses" in log.text
    with pytest.raises(Faults, match="no lesion ids"):
        sources.read(root)


def test_images_come_before_a_table_that_lies_there_to_be_joined(root: Path) -> None:
    raw = write_mirror(root)
    write_task3(root.with_name("task3")).to_csv(root / "HAM10000_metadata.csv", index=False)
    assert sources.recognise(root) == "mirror"
    joined = sources.read(root, lesions=root / "HAM10000_metadata.csv")
    assert not sources.is_leaky(joined)
    assert len(joined) == len(raw)
    # A table alone is named with what is missing.
    shutil.rmtree(root / "images")
    with pytest.raises(Faults, match=r"HAM10000_images_part_1: no images here"):
        sources.read(root)


def test_a_layout_beside_the_one_that_is_read_is_named(root: Path, log: pytest.LogCaptureFixture) -> None:
    write_task3(root)
    write_task1(root)
    assert sources.read(root).attrs["layout"] == "isic2018_task3"
    (said,) = (record.getMessage() for record in log.records if record.levelno == logging.WARNING)
    assert said == f"{root}: the layout isic2018_task3 is read; these are here, too: data=isic2018_task1"
    log.clear()
    sources.read(root, "isic2018_task1", allow_leak=True)
    assert not [record for record in log.records if record.levelno == logging.WARNING]


# --- A table of one's own, a folder -----------------------------------------------------------------------------------


def test_a_table_of_ones_own_may_name_any_diagnoses_and_leave_blanks(root: Path) -> None:
    raw = write_own(root)
    names = raw["dx"].map({"nv": "Spitz naevus", "mel": "mel", "bcc": ""}).fillna("wart")
    raw = raw.assign(dx=names, age=["", *raw["age"][1:]], mask=["", *raw["mask"][1:]], hospital="x")
    raw.to_csv(root / "mine.csv", index=False)
    table = sources.read(root / "mine.csv")
    same(table, raw, "image_id", "lesion_id", "dx", "sex", "localization")
    assert list(table["dx"].cat.categories) == ["mel", "Spitz naevus", "wart"]
    assert (table["dx"].cat.codes == -1).tolist() == (names == "").tolist()
    assert table["mask"].isna().tolist() == [True] + [False] * 20
    assert table["age"].isna().tolist() == [True] + [False] * 20


def test_paths_alone_make_a_table(root: Path) -> None:
    raw = write_own(root)
    here = raw["image"].map(lambda path: str(root / path))
    here.to_frame().to_csv(root.parent / "elsewhere.csv", index=False)
    table = sources.read(root.parent / "elsewhere.csv", allow_leak=True, masks=root / "outlines")
    assert table["image_id"].tolist() == raw["image_id"].tolist()
    assert table["image"].tolist() == here.tolist()
    assert table["mask"].notna().all()
    assert sources.is_leaky(table)
    with pytest.raises(Faults, match=r"elsewhere\.csv: no lesion ids in the layout csv"):
        sources.read(root.parent / "elsewhere.csv")


def test_of_several_tables_one_has_to_be_named(root: Path) -> None:
    raw = write_own(root)
    raw.to_csv(root / "other.csv", index=False)
    with pytest.raises(InputError, match=r"several tables, mine\.csv, other\.csv; fix: point data\.root at"):
        sources.read(root, layout="csv")
    assert len(sources.read(root / "other.csv")) == 21


def test_masks_among_the_images_of_a_folder_are_not_images(root: Path) -> None:
    write_folder(root)
    for number, ending in enumerate(("_mask", "_segmentation")):
        Image.fromarray(make_image(number)[1]).save(root / f"photo {number}{ending}.png")
    Image.fromarray(make_image(9)[0]).save(root / "tape_mask.png")  # of no image, so it is one
    ids = [f"photo {number}" for number in range(5)] + ["tape_mask"]
    table = sources.read(root, allow_leak=True)
    assert table["image_id"].tolist() == ids
    assert table["mask"].isna().all()
    masked = sources.read(root, allow_leak=True, masks=root)
    assert masked["mask"].notna().tolist() == [True, True] + [False] * 4  # no image is its own mask


def test_what_is_left_out_of_a_folder_of_images_is_said(root: Path, log: pytest.LogCaptureFixture) -> None:
    write_folder(root)
    sources.read(root, allow_leak=True)
    (root / "ATTRIBUTION.txt").touch()
    sources.read(root, allow_leak=True)
    assert not [record for record in log.records if record.levelno > logging.INFO]
    (root / "ATTRIBUTION.txt").unlink()
    for name in ("a.HEIC", "b.heic", "c.jfif", "d", "._e.jpg"):
        (root / name).write_bytes(b"x")
    (root / "later").mkdir()
    assert len(sources.read(root, allow_leak=True)) == 5
    words = "left out, for images are .jpg, .jpeg, .png here: 2 .heic, 1 .jfif, 1 files without an ending, 1 folders"
    assert words in [record.getMessage().partition(": ")[2] for record in log.records if record.levelname == "WARNING"]
    for path in root.glob("photo *"):
        path.rename(path.with_suffix(".bmp"))
    with pytest.raises(Faults, match=r"no images here, but 5 \.bmp, 2 \.heic"):
        sources.read(root, layout="folder", allow_leak=True)


def test_images_that_no_row_names_are_said(root: Path, log: pytest.LogCaptureFixture) -> None:
    write_dataverse(root, lesions=14)
    sources.read(root)
    assert "no row names them" not in log.text
    file = root / "HAM10000_metadata.csv"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:-2]))
    assert len(sources.read(root)) == 19
    assert "2 images are left out, for no row names them, such as ISIC_0000019" in log.text


# --- Masks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["_segmentation.png", "_mask.png", ".png", "_segmentation.PNG"])
def test_the_usual_endings_of_masks_are_understood(root: Path, ending: str) -> None:
    write_dataverse(root, lesions=14)
    expected = [path.replace("_segmentation.png", ending) for path in sources.read(root)["mask"]]
    rename_masks(root, ending)
    assert sources.read(root)["mask"].tolist() == expected


@pytest.mark.parametrize("ending", ["_seg.png", "_lesion.png", "_segmentation.jpg", " (1).png"])
def test_an_ending_that_is_not_understood_does_not_pass_for_missing_masks(root: Path, ending: str) -> None:
    write_dataverse(root, lesions=14)
    rename_masks(root, ending)
    with pytest.raises(Faults) as caught:
        sources.read(root)
    (line,) = str(caught.value).splitlines()
    assert f"{MASKS}/ISIC_0000000{ending}: none of 21 files is the mask of an image, such as ISIC_00000" in line
    assert "<id>_mask.png" in line


def rename_masks(root: Path, ending: str) -> None:
    for path in (root / MASKS).iterdir():
        path.rename(path.with_name(path.name.replace("_segmentation.png", ending)))


def test_missing_masks_are_missing_and_strays_are_counted(root: Path, log: pytest.LogCaptureFixture) -> None:
    write_dataverse(root, lesions=14)
    for number in (2, 5, 6):
        path = root / MASKS / f"ISIC_{number:07d}_segmentation.png"
        path.rename(path.with_name(f"ISIC_1{number:06d}_segmentation.png"))
    table = sources.read(root)
    assert table.index[table["mask"].isna()].tolist() == [2, 5, 6]
    assert "3 without a mask" in log.text
    assert "3 files of masks belong to no image, such as" in log.text


def test_one_right_ending_does_not_let_the_others_pass_for_missing_masks(
    root: Path, log: pytest.LogCaptureFixture
) -> None:
    write_dataverse(root, lesions=14)
    first = root / MASKS / "ISIC_0000000_segmentation.png"
    data = first.read_bytes()
    first.unlink()
    rename_masks(root, "_seg.png")
    first.write_bytes(data)
    assert sources.read(root)["mask"].notna().sum() == 1
    (said,) = (record.getMessage() for record in log.records if record.levelno == logging.WARNING)
    assert said.startswith("20 files of masks are named after images without a mask, such as ")
    assert said.endswith("a mask is named <id>.png, <id>_segmentation.png or <id>_mask.png")


def test_folders_of_the_mirror_may_be_spelt_in_any_case(root: Path) -> None:
    write_mirror(root)
    for name in ("images", "masks"):
        (root / name).rename(root / name.capitalize())
    assert sources.read(root, allow_leak=True)["mask"].notna().all()


def test_two_masks_of_one_image_are_a_fault(root: Path) -> None:
    write_dataverse(root, lesions=14)
    mask = root / MASKS / "ISIC_0000002_segmentation.png"
    shutil.copy(mask, mask.with_name("ISIC_0000002_mask.png"))
    with pytest.raises(Faults, match=r"the mask of ISIC_0000002 is also .*ISIC_0000002_"):
        sources.read(root)


@pytest.mark.parametrize(("name", "said"), [("nowhere", "no such folder"), ("empty", "no masks here")])
def test_a_folder_of_masks_without_masks_is_a_fault(root: Path, name: str, said: str) -> None:
    write_kaggle(root)
    (root / "empty").mkdir()
    with pytest.raises(Faults, match=rf"data\.masks=.*{name}: {said}"):
        sources.read(root, masks=root / name)


# --- Lesion ids from elsewhere ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("column", ["image_id", "image"])
def test_lesion_ids_are_joined_to_a_layout_that_has_none(root: Path, column: str) -> None:
    write_mirror(root)
    raw = write_kaggle(root.with_name("kaggle"), lesions=20)  # of more images than there are
    file = root.with_name("lesions.csv")
    raw.rename(columns={"image_id": column}).assign(image=raw["image_id"] + ".jpg").to_csv(file, index=False)
    table = sources.read(root, lesions=file)
    assert not sources.is_leaky(table)
    assert table["lesion_id"].tolist() == raw["lesion_id"][:21].tolist()
    assert table["lesion_id"].nunique() == 14


def test_a_join_that_leaves_images_without_a_lesion_is_a_fault(root: Path) -> None:
    write_mirror(root)
    raw = write_kaggle(root.with_name("kaggle"))
    raw.loc[4, "lesion_id"] = ""
    raw.loc[6, "lesion_id"] = raw.loc[7, "lesion_id"] = "HAM_1"  # of two diagnoses
    raw.drop(index=[0, 1]).to_csv(root / "lesions.csv", index=False)
    with pytest.raises(Faults) as caught:
        sources.read(root, lesions=root / "lesions.csv")
    text = str(caught.value)
    assert "no row for these images: ISIC_0000000, ISIC_0000001; fix" in text
    assert "lesion_id is missing: row 4 (ISIC_0000004)" in text
    assert "lesion HAM_1 has several diagnoses" in text


def test_lesion_ids_do_not_replace_those_of_the_layout(root: Path) -> None:
    write_dataverse(root, lesions=14)
    with pytest.raises(Faults, match=r"data\.lesions: .* has lesion ids of its own"):
        sources.read(root, lesions=root / "HAM10000_metadata.csv")


# --- The real ones ----------------------------------------------------------------------------------------------------


def test_real_images_read_alike_in_the_layouts_of_kaggle_and_the_challenge(
    root: Path, real_data: Callable[[str], Path]
) -> None:
    ham = real_data("ham10000_256x192")
    expected = sources.read(ham)
    for layout in ("kaggle", "task3"):
        (root / layout).mkdir(parents=True)
    for part in ("HAM10000_images_part_1", "HAM10000_images_part_2"):
        (root / "kaggle" / part).symlink_to(ham / part)
    raw = pd.read_csv(ham / "HAM10000_metadata.csv", dtype=str, keep_default_na=False)
    raw.drop(columns="dataset").to_csv(root / "kaggle" / "HAM10000_metadata.csv", index=False)
    kaggle = sources.read(root / "kaggle", masks=ham / MASKS)
    assert kaggle.attrs["layout"] == "kaggle"
    same(kaggle, expected, "image_id", "lesion_id", "mask", "dx", "age", "sex", "localization", "dx_type")

    for part in ("1", "2"):
        (root / "task3" / f"ISIC2018_Task3_Training_Input_{part}").symlink_to(ham / f"HAM10000_images_part_{part}")
    truth = root / "task3" / TASK3_TRUTH
    truth.parent.mkdir()
    hot = pd.get_dummies(expected["dx"].astype(str).str.upper()).astype(float)
    hot.insert(0, "image", expected["image_id"])
    hot.to_csv(truth, index=False)
    task3 = sources.read(root / "task3", masks=ham / MASKS, lesions=ham / "HAM10000_metadata.csv")
    assert task3["dx"].value_counts().to_dict() == HAM10000_CLASSES
    same(task3, expected, "image_id", "lesion_id", "mask", "dx")


def test_real_lesion_ids_are_joined_to_the_mirror(real_data: Callable[[str], Path]) -> None:
    ham = sources.read(real_data("ham10000_256x192")).set_index("image_id")
    file = real_data("ham10000_256x192") / "HAM10000_metadata.csv"
    mirror = sources.read(real_data("ham10000_native"), lesions=file)
    assert not sources.is_leaky(mirror)
    assert (len(mirror), mirror["lesion_id"].nunique()) == (598, 393)
    same(mirror, ham.loc[mirror["image_id"]], "dx", "lesion_id")


def test_the_real_task_1_has_masks_only(real_data: Callable[[str], Path]) -> None:
    table = sources.read(real_data("isic2018_task1_256"), allow_leak=True)
    assert table.attrs["layout"] == "isic2018_task1"
    assert len(table) == table["mask"].notna().sum() == 800
    assert table["dx"].isna().all()


def test_a_table_may_be_parted_by_tabs_and_name_images_at_home(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_own(root)
    expected = sources.read(root)
    table = pd.read_csv(root / "mine.csv", dtype=str)
    table["image"] = "~/" + table["image"]
    (root / "mine.csv").unlink()
    table.to_csv(root / "mine.tsv", index=False, sep="\t")
    monkeypatch.setenv("HOME", str(root))
    assert sources.read(root / "mine.tsv").equals(expected)


def test_one_mask_for_two_images_is_a_fault(root: Path) -> None:
    table = write_own(root)
    table.loc[3, "mask"] = table.loc[1, "mask"]
    table.to_csv(root / "mine.csv", index=False)
    with pytest.raises(Faults, match=r"the mask of several images: row 3 .*row 5 .*"):
        sources.read(root)
