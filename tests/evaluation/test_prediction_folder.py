"""A folder of images becomes a folder of predictions: nothing passed over in silence, nothing left from before."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from small_runs import SMALL, train

from skinmtl.cli import commands
from skinmtl.data.images import listing
from skinmtl.errors import InputError, Interrupted
from skinmtl.evaluation import prediction_folder
from skinmtl.evaluation.predict import Predictor
from skinmtl.runs.run import Run

SIZES = ((40, 60), (75, 101), (32, 32), (90, 50))


@pytest.fixture(scope="module")
def run(synthetic_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(tmp_path_factory.mktemp("predictions") / "run", synthetic_root, [*SMALL, "trainer.precision=32-true"])


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return draw(tmp_path / "new.png")


def draw(path: Path, size: tuple[int, int] = (75, 101), kind: str = "png", seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, format=kind)
    return path


def drawn(folder: Path, count: int) -> list[Path]:
    return [draw(folder / f"p{i:03}.png", SIZES[i % len(SIZES)], seed=i) for i in range(count)]


def predict(run: Run, *words: object) -> int:
    return commands.main(["predict", str(run.path), *map(str, words)])


def accounts(out: Path) -> None:
    """The folder holds what its table says, and nothing that is not finished."""
    named = {f"{Path(name).stem}.png" for name in pd.read_csv(out / "predictions.csv")["file"]}
    for folder in ("masks", "overlays"):
        assert {file.name for file in (out / folder).iterdir()} == named
    assert {file.name for file in out.iterdir()} == set(prediction_folder.WRITTEN)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_predict_writes_masks_overlays_and_a_table(run: Run, image: Path, tmp_path: Path) -> None:
    assert commands.main(["predict", str(run.path), str(image), "--out", str(tmp_path / "out")]) == 0
    with Image.open(tmp_path / "out" / "masks" / "new.png") as file:
        mask = np.array(file)
    assert mask.shape == (75, 101) and set(np.unique(mask)) <= {0, 255}
    with Image.open(tmp_path / "out" / "overlays" / "new.png") as overlay:
        assert overlay.size == (101, 75)
    table = pd.read_csv(tmp_path / "out" / "predictions.csv")
    assert table.filter(like="prob_").sum(axis=1).iloc[0] == pytest.approx(1)
    assert "not a medical device" in (tmp_path / "out" / "README.txt").read_text()


def test_a_folder_with_a_broken_image_is_predicted_but_for_that(
    run: Run, image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (image.parent / "broken.jpg").write_bytes(b"<html>not an image</html>")
    assert commands.main(["predict", str(run.path), str(image.parent), "--out", str(tmp_path / "out")]) == 2
    assert list(pd.read_csv(tmp_path / "out" / "errors.csv")["file"]) == ["broken.jpg"]
    assert list(pd.read_csv(tmp_path / "out" / "predictions.csv")["file"]) == ["new.png"]
    assert "errors.csv" in capsys.readouterr().err


def test_two_images_of_one_name_are_refused_before_anything_is_written(run: Run, image: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    shutil.copy(image, tmp_path / "other" / "new.png")
    both = [str(image), str(tmp_path / "other" / "new.png")]
    assert commands.main(["predict", str(run.path), *both, "--out", str(tmp_path / "out")]) == 2
    assert not (tmp_path / "out").exists()


def test_every_file_of_a_folder_is_predicted_or_named(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "images"
    for name, kind in (("a.jpg", "jpeg"), ("b.jfif", "jpeg"), ("c.JPE", "jpeg"), ("plain", "png"), ("bitmap", "bmp")):
        draw(folder / name, kind=kind)
    draw(folder / "sub" / "e.jpg", kind="jpeg")
    beginnings = {
        "g.heic": b"\0\0\0\x18ftypheic",
        "heic without an ending": b"\0\0\0\x18ftypheic",
        "moving.gif": b"GIF89a",
        "._a.jpg": b"\0\5\x16\7Mac OS X",
        ".hidden": b"",
        "all.zip": b"PK\3\4",
        "letter": b"%PDF-1.7",
        "notes.txt": b"BMI, age",
        "Thumbs.db": b"\xd0\xcf\x11\xe0",
        "empty": b"",
    }
    for name, start in beginnings.items():
        (folder / name).write_bytes(start)
    os.mkfifo(folder / "pipe")
    (folder / "dangling.jpg").symlink_to("nowhere")
    assert predict(run, folder, "--out", tmp_path / "out") == 2
    tables = [pd.read_csv(tmp_path / "out" / f"{name}.csv") for name in ("predictions", "errors", "skipped")]
    predicted, errors, skipped = (list(table["file"]) for table in tables)
    assert predicted == ["a.jpg", "b.jfif", "bitmap", "c.JPE", "plain"]
    assert errors == ["dangling.jpg", "g.heic", "heic without an ending", "moving.gif"]
    others = {"sub/", "._a.jpg", ".hidden", "all.zip", "letter", "notes.txt", "Thumbs.db", "empty", "pipe"}
    assert set(skipped) == others
    assert len(predicted) + len(errors) + len(skipped) == len(list(folder.iterdir()))
    said = dict(zip(skipped, tables[2]["why"], strict=True))
    assert said["sub/"] == "a folder; give it by its name" and said["all.zip"] == "an archive"
    assert "HEIC" in tables[1]["error"][1] and tables[1]["fix"][1] == "save it as JPEG or PNG"
    out = capsys.readouterr().out
    assert "9 passed over (skipped.csv)" in out and "'._a.jpg' (hidden)" in out
    accounts(tmp_path / "out")


def test_a_folder_without_a_image_says_what_it_holds(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "one.pdf").write_bytes(b"%PDF-1.7")
    assert predict(run, tmp_path / "letters") == 2
    assert "no image there, but 'one.pdf' (a PDF)" in capsys.readouterr().err


def test_a_raw_picture_is_no_tiff_and_a_jpeg_called_heic_is_a_jpeg(tmp_path: Path) -> None:
    raw, mislabelled = draw(tmp_path / "a.nef", kind="tiff"), draw(tmp_path / "b.heic", kind="jpeg")
    assert "a raw image" in str(listing.unsupported_format(raw))
    assert listing.unsupported_format(mislabelled) is None


def test_a_image_given_twice_is_one(tmp_path: Path) -> None:
    file = draw(tmp_path / "a.png")
    assert listing.list_images([file, tmp_path, file]).images == [file]


@pytest.mark.parametrize("names", [("a.jpg", "a.png"), ("A.jpg", "a.jpg"), ("1/a.jpg", "2/a.jpg")])
def test_images_whose_masks_would_have_one_name_are_refused(tmp_path: Path, names: tuple[str, str]) -> None:
    files = [draw(tmp_path / name) for name in names]
    with pytest.raises(InputError, match="one name but for their ending or folder"):
        listing.list_images(files)


def test_listing_ten_thousand_images_takes_no_time_for_each_pair(tmp_path: Path) -> None:
    began = time.process_time()
    assert len(listing.list_images([tmp_path / f"{i}.jpg" for i in range(10_015)]).images) == 10_015
    assert time.process_time() - began < 1.5, "1.9 s went into comparing names alone when each was counted in a list"


def test_predictions_of_a_call_before_are_kept_or_replaced_and_never_mixed(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files, out = drawn(tmp_path / "in", 3), tmp_path / "out"
    (out / "mine").mkdir(parents=True)
    assert predict(run, *files[:2], "--out", out) == 0
    before = contents(out)
    assert predict(run, files[2], "--out", out) == 2
    assert "holds predictions already" in capsys.readouterr().err
    assert contents(out) == before
    assert predict(run, files[2], "--out", out, "--replace") == 0
    (out / "mine").rmdir()
    accounts(out)
    assert list(pd.read_csv(out / "predictions.csv")["file"]) == ["p002.png"]


def test_files_that_no_table_knows_are_never_replaced(
    run: Run, image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw(tmp_path / "data" / "masks" / "of_mine.png")
    for words in ([], ["--replace"]):
        assert predict(run, image, "--out", tmp_path / "data", *words) == 2
    assert "masks/of_mine.png, which no predictions.csv there knows" in capsys.readouterr().err
    assert predict(run, image, "--out", tmp_path / "out") == 0
    draw(tmp_path / "out" / "masks" / "of_mine.png")
    before = contents(tmp_path / "out")
    assert predict(run, image, "--out", tmp_path / "out", "--replace") == 2
    assert "masks/of_mine.png, which no predictions.csv there knows" in capsys.readouterr().err
    assert contents(tmp_path / "out") == before


def test_a_folder_of_predictions_repeats_to_the_byte(run: Run, tmp_path: Path) -> None:
    drawn(tmp_path / "in", 3)
    (tmp_path / "in" / "text.jpg").write_bytes(b"<html>")
    for name in ("one", "two"):
        assert predict(run, tmp_path / "in", "--out", tmp_path / name) == 2
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert " at 0x" not in (tmp_path / "one" / "errors.csv").read_text()


def test_tables_without_a_row_can_be_read(run: Run, tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_bytes(b"<html>")
    assert predict(run, tmp_path / "text.jpg", "--out", tmp_path / "out") == 2
    assert pd.read_csv(tmp_path / "out" / "predictions.csv").columns[0] == "file"


def test_images_of_mixed_sizes_are_predicted_in_bounded_batches_as_one_at_a_time(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = drawn(tmp_path / "in", 9)
    monkeypatch.setattr(prediction_folder, "TOGETHER", 1)
    prediction_folder.write_predictions(run.path, files, tmp_path / "alone", "cpu")
    monkeypatch.setattr(prediction_folder, "TOGETHER", 4)
    monkeypatch.setattr(prediction_folder, "PIXELS", 12_000)
    held: list[int] = []
    each = Predictor.predict_each

    def watched(predictor: Predictor, images: Iterator[np.ndarray]) -> Iterator[object]:
        batch = list(images)
        held.append(sum(image.shape[0] * image.shape[1] for image in batch))
        return each(predictor, batch)

    monkeypatch.setattr(Predictor, "predict_each", watched)
    prediction_folder.write_predictions(run.path, files, tmp_path / "together", "cpu")
    assert 3 <= len(held) < 9 and max(held) <= 12_000
    alone, together = (pd.read_csv(tmp_path / name / "predictions.csv") for name in ("alone", "together"))
    pd.testing.assert_frame_equal(alone, together, rtol=0, atol=1e-5)
    for file in (tmp_path / "alone" / "masks").iterdir():
        masks = [np.asarray(Image.open(tmp_path / name / "masks" / file.name)) for name in ("alone", "together")]
        assert (masks[0] != masks[1]).mean() < 1e-3


def test_a_stop_leaves_a_folder_that_holds_what_its_table_says(run: Run, tmp_path: Path) -> None:
    files, out = drawn(tmp_path / "in", 9), tmp_path / "out"
    asked = iter([False] * 14)
    with pytest.raises(Interrupted, match=r"of 9 images are predicted, skipped\.csv names the others"):
        prediction_folder.write_predictions(run.path, files, out, "cpu", stopped=lambda: next(asked, True))
    accounts(out)
    table, skipped = (pd.read_csv(out / name) for name in ("predictions.csv", "skipped.csv"))
    assert 0 < len(table) < 9 and len(table) + len(skipped) == 9
    assert set(skipped["why"]) == {"not reached: stopped"}


def test_a_signal_stops_a_call_and_what_a_killed_one_left_is_cleared(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files, out = drawn(tmp_path / "in", 3), tmp_path / "out"
    (out / prediction_folder.PARTIAL / "masks").mkdir(parents=True)
    draw(out / prediction_folder.PARTIAL / "masks" / "half.png")
    write = prediction_folder._write_one

    def terminated(*arguments: object) -> dict[str, object]:
        os.kill(os.getpid(), signal.SIGTERM)
        return write(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(prediction_folder, "_write_one", terminated)
    assert predict(run, *files, "--out", out) == 75
    assert "1 of 3 images are predicted" in capsys.readouterr().err
    accounts(out)


def test_a_call_that_fails_leaves_nothing(run: Run, image: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError):
        prediction_folder.write_predictions(run.path, [image], tmp_path / "out", device="cuda:99")
    assert not (tmp_path / "out").exists()


def test_two_calls_do_not_write_one_folder(run: Run, image: Path, tmp_path: Path) -> None:
    with prediction_folder._beside(tmp_path / "out"), pytest.raises(InputError, match="another call is writing there"):
        prediction_folder.write_predictions(run.path, [image], tmp_path / "out", "cpu")


@pytest.mark.parametrize("name", ["n" * 251 + ".png", "a,b\n.png", "%s {}.png"])
def test_a_name_of_any_kind_is_a_row_and_a_mask(run: Run, tmp_path: Path, name: str) -> None:
    draw(tmp_path / "in" / name)
    assert predict(run, tmp_path / "in", "--out", tmp_path / "out") == 0
    assert list(pd.read_csv(tmp_path / "out" / "predictions.csv")["file"]) == [name]
    accounts(tmp_path / "out")


def test_licence_of_ham10000_is_told_of_its_images_alone(run: Run, image: Path, tmp_path: Path) -> None:
    copy = Run(shutil.copytree(run.path, tmp_path / "copy"))
    for layout, told in (("csv", False), ("dataverse", True)):
        copy.update({"data": {"layout": layout}, "synthetic": False})
        assert predict(copy, image, "--out", tmp_path / layout) == 0
        assert ("CC BY-NC" in (tmp_path / layout / "README.txt").read_text()) is told


def test_a_link_to_a_image_is_a_image_of_its_own_name(tmp_path: Path) -> None:
    first = draw(tmp_path / "in" / "a.png")
    (tmp_path / "in" / "b.png").symlink_to("a.png")
    os.link(first, tmp_path / "in" / "c.png")
    (tmp_path / "again").symlink_to("in")
    for given in ([first.parent], [first.parent, first], [first.parent, tmp_path / "again"]):
        assert [path.name for path in listing.list_images(given).images] == ["a.png", "b.png", "c.png"]


@pytest.mark.parametrize("replace", [False, True])
def test_predictions_never_take_the_place_of_what_a_run_is_scored_by(
    run: Run, image: Path, tmp_path: Path, replace: bool
) -> None:
    before = run.predictions_file.read_bytes()
    with pytest.raises(InputError, match="is a run's folder"):
        prediction_folder.write_predictions(run.path, [image], run.path, replace=replace)
    assert run.predictions_file.read_bytes() == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "predictions.csv").write_text("image_id,dx\n1,nv\n")
    with pytest.raises(InputError, match="is not one of skinmtl predict" if replace else "holds predictions already"):
        prediction_folder.write_predictions(run.path, [image], tmp_path / "mine", replace=replace)
