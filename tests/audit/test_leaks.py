from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from layouts import write_dataverse, write_mirror, write_own
from PIL import Image

from skinmtl.audit import near_duplicates
from skinmtl.audit.leaks import audit
from skinmtl.cli import commands
from skinmtl.data import sources, splits
from skinmtl.data.synthetic.generator import Synthetic
from skinmtl.errors import Faults, InputError

Change = Callable[[Image.Image], Image.Image]
PLANTED = 20


def smaller(share: float) -> Change:
    return lambda image: image.resize(
        (round(image.width * share), round(image.height * share)), Image.Resampling.BICUBIC
    )


CHANGES: list[tuple[Change, int]] = [  # a change of the image, then JPEG at a quality
    (lambda image: image, 90),
    (lambda image: image, 70),
    (lambda image: image, 50),
    (lambda image: image, 30),
    (smaller(0.75), 90),
    (smaller(0.5), 80),
    (smaller(1.6), 75),
    (lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), 85),
    (lambda image: image.transpose(Image.Transpose.FLIP_TOP_BOTTOM), 60),
    (lambda image: smaller(0.8)(image.transpose(Image.Transpose.ROTATE_90)), 70),
]


def planted(root: Path, rows: pd.DataFrame, folder: Path) -> tuple[list[Path], list[str], set[frozenset[str]]]:
    """Images of a table with byte copies and changed copies of the first 20; paths, ids, and the true pairs."""
    paths, ids, true = [Path(path) for path in rows["image"]], rows["image_id"].tolist(), set()
    for number, (name, path) in enumerate(zip(ids[:PLANTED], paths[:PLANTED], strict=True)):
        change, quality = CHANGES[number % len(CHANGES)]
        copy, changed = folder / f"bytes_{name}.jpg", folder / f"changed_{name}.jpg"
        shutil.copy(path, copy)
        with Image.open(path) as image:
            change(image.convert("RGB")).save(changed, quality=quality)
        for made in (copy, changed):
            paths.append(made)
            ids.append(made.stem)
            true.add(frozenset((name, made.stem)))
    return paths, ids, true


def recall(found: pd.DataFrame, true: set[frozenset[str]], kind: str) -> int:
    pairs = {frozenset(pair) for pair in zip(found["first"], found["second"], strict=True)}
    return sum(pair in pairs for pair in true if any(name.startswith(kind) for name in pair))


def origin(name: str) -> str:
    return name.removeprefix("bytes_").removeprefix("changed_")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """90 images of 60 lesions, 96 x 128 px."""
    root = tmp_path_factory.mktemp("drawn")
    Synthetic(lesions=60, size=(96, 128), seed=3).write(root)
    return sources.read(root)


@pytest.mark.slow
def test_planted_copies_are_found_and_few_others_pass_for_one(drawn: pd.DataFrame, tmp_path: Path) -> None:
    paths, ids, true = planted(tmp_path, drawn, tmp_path)
    compared = near_duplicates.compare(ids, near_duplicates.fingerprint_images(paths))
    found = compared[compared["kind"] != ""]
    assert recall(found, true, "bytes") == PLANTED
    assert recall(found, true, "changed") >= 18
    assert (found.loc[found["second"].str.startswith("bytes"), "kind"] == "bytes").any()

    lesion = dict(zip(drawn["image_id"], drawn["lesion_id"], strict=True))
    lesions = [found[which].map(lambda name: lesion[origin(name)]) for which in ("first", "second")]
    false = found[lesions[0] != lesions[1]]
    assert set(false["kind"]) <= {"retake"}
    drawn_pairs = {frozenset(map(origin, pair)) for pair in zip(false["first"], false["second"], strict=True)}
    assert len(drawn_pairs) <= 0.01 * len(compared)  # networks drawn by code are regular: 4 pairs of 1,804


def test_planted_copies_among_real_images(real_data: Callable[[str], Path], tmp_path: Path) -> None:
    table = sources.read(real_data("ham10000_256x192")).sample(100, random_state=0)
    paths, ids, true = planted(tmp_path, table, tmp_path)
    compared = near_duplicates.compare(ids, near_duplicates.fingerprint_images(paths))
    found = compared[compared["kind"] != ""]
    assert recall(found, true, "bytes") == PLANTED
    assert recall(found, true, "changed") >= 18
    # Nothing else: these 100 are of 100 lesions or nearly.
    assert len(found) <= 3 * PLANTED + 2


def test_noise_of_its_own_is_no_duplicate(tmp_path: Path) -> None:
    write_dataverse(tmp_path)  # discs of one colour on noise: alike, but not the same
    table = sources.read(tmp_path)
    compared = near_duplicates.compare(
        table["image_id"].tolist(), near_duplicates.fingerprint_images(map(Path, table["image"]))
    )
    assert len(compared) > 100
    assert (compared["kind"] == "").all()


def test_eight_orientations_are_eight() -> None:
    square = np.arange(9, dtype=np.float32).reshape(3, 3)
    found = {turned.tobytes() for turned in near_duplicates.orientations(square)}
    by_hand = {np.ascontiguousarray(np.rot90(side, k)).tobytes() for side in (square, square.T) for k in range(4)}
    assert found == by_hand and len(found) == 8


def test_unreadable_images_are_listed(tmp_path: Path) -> None:
    write_dataverse(tmp_path)
    broken = sorted((tmp_path / "HAM10000_images_part_1").iterdir())[:2]
    for path in broken:
        path.write_bytes(b"")
    with pytest.raises(Faults) as caught:
        audit(tmp_path)
    assert [fault.where for fault in caught.value.faults] == [str(path) for path in broken]


@pytest.fixture
def two_ids(tmp_path: Path) -> Path:
    """63 images of 42 lesions, of which the first image of lesion 0 is that of lesion 2, too."""
    root = tmp_path / "data"
    table = write_dataverse(root)
    first, second = (table.loc[table["lesion_id"] == f"HAM_{lesion:07d}", "image_id"].iloc[0] for lesion in (0, 2))
    files = {path.stem: path for path in root.rglob("*.jpg")}
    shutil.copy(files[first], files[second])
    return root


@pytest.mark.slow
def test_the_command_writes_what_a_run_reads(two_ids: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "audit"
    assert commands.main(["audit", str(two_ids), "--out", str(out)]) == 0
    told = capsys.readouterr().out
    assert "63 images, 42 lesions, 41 groups" in told
    assert "identical files: 0 pairs within a lesion, 1 under two lesion ids" in told
    assert "one group, several diagnoses (akiec, bkl): ISIC_0000000, ISIC_0000003" in told

    facts = json.loads((out / "audit.json").read_text())
    assert facts["merged"][0]["lesions"] == ["HAM_0000000", "HAM_0000002"]
    table = sources.read(two_ids)
    split = splits.make_split(table, 5, 0, [("ISIC_0000000", "ISIC_0000003")])
    groups = pd.read_csv(out / "groups.csv")
    assert groups["group"].tolist() == split["group"].tolist()
    from skinmtl.data import lesion_groups

    assert lesion_groups.pairs(str(out / "duplicates.csv"), table) == [("ISIC_0000000", "ISIC_0000003")]
    assert (out / "audit.html").stat().st_size > 5_000
    assert {path.name for path in out.iterdir()} == {
        "audit.html", "audit.json", "duplicates.csv", "groups.csv", "figures"
    }  # fmt: skip


@pytest.mark.parametrize("torn", ["nothing", "a pair", "a lesion"])
def test_a_split_that_tears_ends_in_exit_2(
    torn: str, two_ids: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = sources.read(two_ids)
    split = splits.make_split(table, 5, 0, [("ISIC_0000000", "ISIC_0000003")])
    if torn != "nothing":
        split["group"] = split["image_id"]
        name = {"a pair": "ISIC_0000003", "a lesion": "ISIC_0000001"}[torn]
        split.loc[split["image_id"] == name, "fold_0"] = (
            "val" if (split.loc[split["image_id"] == name, "fold_0"] != "val").all() else "train"
        )
    path = tmp_path / "split.csv"
    splits.save(split, path)
    code = commands.main(["audit", str(two_ids), "--split", str(path), "--out", str(tmp_path / "audit")])
    told = capsys.readouterr()
    assert code == (0 if torn == "nothing" else 2)
    assert ("no lesion is in more than one split" in told.out) == (torn == "nothing")
    words = "in more than one split"
    expected = {"nothing": "", "a pair": f"1 groups of duplicates {words}", "a lesion": f"1 lesions {words}"}
    assert expected[torn] in told.err
    facts = json.loads((tmp_path / "audit" / "audit.json").read_text())
    fold = facts["split"]["folds"]["fold_0"]
    assert fold["lesions_on_two_sides"] == (torn == "a lesion")
    assert (fold["groups_on_two_sides"] > 0) == (torn != "nothing")


def test_overlap_with_a_second_data_set(two_ids: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other"
    other.mkdir()
    mine = sorted(two_ids.rglob("*.jpg"))
    shutil.copy(mine[5], other / mine[5].name)
    shutil.copy(mine[6], other / "renamed.jpg")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (24, 32, 3), dtype=np.uint8)).save(other / "new.jpg")
    Image.new("L", (32, 24)).save(other / "renamed_segmentation.png")
    out = tmp_path / "audit"
    assert commands.main(["audit", str(two_ids), "--with", str(other), "--out", str(out)]) == 0
    assert "overlap with 3 other images: 1 by id, 2 by bytes, 0 by copy, 0 by retake" in capsys.readouterr().out
    found = pd.read_csv(out / "overlap.csv")
    assert found[["first", "second", "kind"]].to_numpy().tolist() == [
        [mine[5].stem, mine[5].stem, "id"],
        [mine[5].stem, mine[5].stem, "bytes"],
        [mine[6].stem, "renamed", "bytes"],
    ]


def test_a_layout_without_lesion_ids_is_audited(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_mirror(tmp_path / "data")
    assert commands.main(["audit", str(tmp_path / "data"), "--out", str(tmp_path / "out")]) == 0
    assert "21 images, no lesion ids, 21 groups" in capsys.readouterr().out


def test_a_folder_with_an_equals_sign_in_its_name_is_audited_and_a_misspelt_key_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_mirror(Path("a b=1"))
    assert commands.main(["audit", "a b=1", "--out", "out"]) == 0
    assert "21 images" in capsys.readouterr().out
    assert commands.main(["audit", "data.rot=a b=1", "--out", "out"]) == 2
    assert "data.rot: is not known here; fix: write data.root=FOLDER" in capsys.readouterr().err


def test_what_training_reads_is_audited(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own, root, out = tmp_path / "own" / "mine.csv", tmp_path / "data", ["--out", str(tmp_path / "out")]
    write_own(own.parent)
    write_mirror(root)
    assert commands.main(["audit", str(own), *out]) == 0
    assert "21 images, 14 lesions" in capsys.readouterr().out
    given = ["--layout", "mirror", "--masks", str(own.parent / "outlines"), "--lesions", str(own)]
    assert commands.main(["audit", str(root), *given, *out]) == 0
    assert "21 images, 14 lesions" in capsys.readouterr().out


@pytest.mark.parametrize("wrong", [["--with", "nowhere"], ["--layout", "mirrow"], ["--out", __file__]])
def test_what_is_wrong_with_a_command_is_said_before_images_are_read(
    wrong: list[str], two_ids: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(near_duplicates, "fingerprint_images", lambda paths: pytest.fail("images were read"))
    assert commands.main(["audit", str(two_ids), *wrong]) == 2
    assert wrong[1] in capsys.readouterr().err


def test_a_folder_that_is_not_there_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert commands.main(["audit", str(tmp_path / "nothing")]) == 2
    assert "no such folder" in capsys.readouterr().err
    with pytest.raises(InputError, match="none of the layouts"):
        audit(tmp_path)
