from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from skinmtl.data import sources
from skinmtl.data.synthetic import generator
from skinmtl.data.synthetic.generator import Synthetic
from skinmtl.errors import InputError, ResourceError

SIZE = (48, 64)
COLUMNS = ["lesion_id", "image_id", "dx", "dx_type", "age", "sex", "localization", "dataset"]  # the Dataverse's own


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("synthetic") / "drawn"
    Synthetic(lesions=40, size=SIZE, seed=3).write(root)
    return root


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_the_same_arguments_give_the_same_bytes(root: Path, tmp_path: Path) -> None:
    Synthetic(lesions=40, size=SIZE, seed=3).write(tmp_path / "again")
    assert contents(tmp_path / "again") == contents(root)


def test_another_seed_gives_other_images(root: Path, tmp_path: Path) -> None:
    Synthetic(lesions=40, size=SIZE, seed=4).write(tmp_path / "other")
    first, other = contents(root), contents(tmp_path / "other")
    assert sorted(first) == sorted(other)
    assert not any(first[name] == other[name] for name in first if name.endswith(".jpg"))


def test_an_image_does_not_depend_on_how_many_are_drawn(root: Path) -> None:
    drawer = Synthetic(lesions=40, size=SIZE, seed=3)
    case = list(drawer.cases())[17]
    image, mask = drawer.render(case)
    again, _ = drawer.render(case)
    assert np.array_equal(image, again)
    stored = cv2.imread(str(root / generator.MASKS / f"{case.row['image_id']}_segmentation.png"), cv2.IMREAD_GRAYSCALE)
    assert np.array_equal(stored, mask * 255)


def test_masks_are_binary_of_the_images_size_and_hold_a_lesion(root: Path) -> None:
    table = sources.read(root)
    for row in table.itertuples():
        image, mask = cv2.imread(row.image), cv2.imread(row.mask, cv2.IMREAD_UNCHANGED)
        assert image.shape == (*SIZE, 3)
        assert mask.shape == SIZE
        assert set(np.unique(mask)) == {0, 255}
        assert 0.03 < (mask > 0).mean() < 0.8


def test_the_mask_is_where_the_lesion_is(root: Path) -> None:
    """Border pixels inside and outside differ in colour more than pixels on either side differ among themselves."""
    contrasts = []
    for row in sources.read(root).itertuples():
        image = cv2.cvtColor(cv2.imread(row.image), cv2.COLOR_BGR2LAB).astype(float)
        mask = cv2.imread(row.mask, cv2.IMREAD_GRAYSCALE)
        kernel = np.ones((5, 5), np.uint8)
        inside = cv2.erode(mask, kernel) > 0
        outside = (cv2.dilate(mask, kernel, iterations=2) > 0) & (cv2.dilate(mask, kernel) == 0)
        contrasts.append(np.linalg.norm(image[inside].mean(axis=0) - image[outside].mean(axis=0)))
    assert np.median(contrasts) > 15
    assert min(contrasts) > 3


def test_metadata_are_those_of_ham10000(root: Path) -> None:
    raw = pd.read_csv(root / "HAM10000_metadata.csv")
    assert list(raw.columns) == COLUMNS
    assert raw["image_id"].is_unique
    assert raw["image_id"].str.startswith("SYN_").all()
    assert raw["lesion_id"].str.startswith("SYN_").all()
    assert raw["age"].dropna().between(0, 90).all()


def test_some_ages_are_blank_but_not_many() -> None:
    ages = pd.Series([case.row["age"] for case in Synthetic(lesions=800).cases()])
    assert 0 < (ages == "").mean() < 0.1


@pytest.mark.parametrize("lesions", [7, 8, 40, 800])
def test_all_seven_diagnoses_occur_and_none_rules(lesions: int) -> None:
    cases = pd.DataFrame([case.row for case in Synthetic(lesions=lesions).cases()]).drop_duplicates("lesion_id")
    assert len(cases) == lesions
    assert set(cases["dx"]) == set(sources.DX)
    assert cases["dx"].value_counts(normalize=True).max() < 0.3


def test_a_lesion_has_one_diagnosis_and_some_have_several_images(root: Path) -> None:
    lesions = sources.read(root).groupby("lesion_id", observed=True)
    assert (lesions["dx"].nunique() == 1).all()
    assert set(lesions.size()) == {1, 2, 3}
    assert lesions.size().mode().item() == 1


def test_images_of_one_lesion_are_alike_but_not_the_same() -> None:
    drawer = Synthetic(lesions=40, size=SIZE)
    several = [case for case in drawer.cases() if case.number == 4]
    images = [drawer.render(case)[0] for case in several]
    assert len(images) == 3
    assert not any(np.array_equal(images[0], other) for other in images[1:])


def test_one_that_stops_half_way_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, written = generator._write, []

    def breaks(path: Path, *rest: object) -> None:
        written.append(path)
        if len(written) == 9:
            raise OSError(28, "No space left on device")
        write(path, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(generator, "_write", breaks)
    with pytest.raises(ResourceError, match="No space"):
        Synthetic(lesions=14, size=SIZE).write(tmp_path / "drawn")
    assert list(tmp_path.iterdir()) == []

    monkeypatch.undo()
    Synthetic(lesions=14, size=SIZE).write(tmp_path / "drawn")
    assert len(sources.read(tmp_path / "drawn")) == 21


def test_one_that_is_killed_half_way_leaves_nothing_that_reads_as_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generator.os, "rename", lambda *_: pytest.fail("killed before"))
    monkeypatch.setattr(generator.shutil, "rmtree", lambda *_, **__: None)  # nobody tidies up after a kill
    with pytest.raises(pytest.fail.Exception):
        Synthetic(lesions=7, size=SIZE).write(tmp_path / "drawn")
    assert not (tmp_path / "drawn").exists()

    monkeypatch.undo()
    Synthetic(lesions=7, size=SIZE).write(tmp_path / "drawn")
    assert len(sources.read(tmp_path / "drawn")) == 10


def test_what_is_there_is_left_alone(root: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    Synthetic(lesions=40, size=SIZE, seed=3).write(root)
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


@pytest.mark.parametrize("other", [{"lesions": 41}, {"size": (64, 48)}, {"seed": 4}])
def test_other_arguments_at_the_same_root_are_refused(root: Path, other: dict[str, object]) -> None:
    arguments = {"lesions": 40, "size": SIZE, "seed": 3} | other
    with pytest.raises(InputError, match="delete the folder"):
        Synthetic(**arguments).write(root)  # type: ignore[arg-type]


def test_other_peoples_files_are_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "HAM10000_metadata.csv").write_text("mine")
    with pytest.raises(InputError, match="other files"):
        Synthetic(lesions=7, size=SIZE).write(tmp_path)
    assert (tmp_path / "HAM10000_metadata.csv").read_text() == "mine"


def test_the_loser_of_a_race_takes_the_winners_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def winner_comes_first(self: Synthetic, beside: Path) -> None:
        (tmp_path / "drawn").mkdir()
        (tmp_path / "drawn" / generator.MARK).write_text(json.dumps(self._arguments()))

    monkeypatch.setattr(Synthetic, "_write_all", winner_comes_first)
    Synthetic(lesions=7, size=SIZE).write(tmp_path / "drawn")
    assert [path.name for path in tmp_path.iterdir()] == ["drawn"]
