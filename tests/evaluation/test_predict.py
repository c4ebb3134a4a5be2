"""New images through a trained run: from Python and from the command line."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from small_runs import SMALL, train

import skinmtl
from skinmtl.cli import commands
from skinmtl.errors import ConfigError, InputError
from skinmtl.evaluation.predict import Predictor, as_bytes
from skinmtl.runs.run import Run


@pytest.fixture(scope="module")
def run(synthetic_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(tmp_path_factory.mktemp("predict") / "run", synthetic_root, [*SMALL, "trainer.precision=32-true"])


@pytest.fixture
def image(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (75, 101, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "new.png")
    return tmp_path / "new.png"


def test_three_lines_of_python_give_mask_and_probabilities(run: Run, image: Path) -> None:
    prediction = skinmtl.load_run(run.path).predict(image)
    assert prediction.mask is not None and prediction.probabilities is not None
    assert prediction.mask.shape == (75, 101)
    assert prediction.mask.dtype == np.uint8 and set(np.unique(prediction.mask)) <= {0, 1}
    assert sum(prediction.probabilities.values()) == pytest.approx(1)
    assert prediction.dx == max(prediction.probabilities, key=lambda name: prediction.probabilities[name])


def test_probabilities_are_resized_and_then_thresholded(run: Run, image: Path) -> None:
    prediction = skinmtl.load_run(run.path).predict(image)
    assert prediction.mask_probability is not None
    np.testing.assert_array_equal(prediction.mask, prediction.mask_probability > 0.5)


def test_a_image_is_predicted_alike_alone_and_in_a_batch(run: Run) -> None:
    images = [np.random.default_rng(i).integers(0, 256, (40 + i, 60, 3), dtype=np.uint8) for i in range(5)]
    predictor = skinmtl.load_run(run.path)
    for alone, together in zip(map(predictor.predict, images), predictor.predict_each(images, 5), strict=True):
        np.testing.assert_allclose(alone.mask_probability, together.mask_probability, atol=1e-5)
        assert alone.probabilities == pytest.approx(together.probabilities, abs=1e-5)


def test_flips_average_four_mirror_images(run: Run) -> None:
    plain = skinmtl.load_run(run.path)
    image = np.random.default_rng(3).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    averaged = Predictor(plain.network, list(plain.tasks.values()), plain.size, "cpu", flips=True).predict(image)
    views = [slice(None), slice(None, None, -1)]
    each = [(rows, columns, plain.predict(image[rows, columns])) for rows in views for columns in views]
    mask = np.mean([one.mask_probability[rows, columns] for rows, columns, one in each], axis=0)
    np.testing.assert_allclose(averaged.mask_probability, mask, atol=1e-5)
    for name, p in averaged.probabilities.items():
        assert p == pytest.approx(np.mean([one.probabilities[name] for *_, one in each]), abs=1e-6)
    # Turned back the wrong way round, or not averaged at all, they would differ.
    assert np.abs(mask - np.mean([one.mask_probability for *_, one in each], axis=0)).max() > 1e-3
    assert np.abs(mask - plain.predict(image).mask_probability).max() > 1e-3


def test_a_run_says_whether_it_is_predicted_with_flips(synthetic_root: Path, tmp_path: Path) -> None:
    run = train(tmp_path / "run", synthetic_root, [*SMALL, "trainer.precision=32-true", "test_time_flips=true"])
    image = np.random.default_rng(3).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    predictor = skinmtl.load_run(run.path)
    one, mirrored = predictor.predict(image), predictor.predict(image[:, ::-1])
    assert one.probabilities == pytest.approx(mirrored.probabilities, abs=1e-5)
    assert run.info()["test_time_flips"] is True
    assert "mean over four mirror images" in (run.path / "report.html").read_text()


def test_evaluation_predicts_what_prediction_predicts(run: Run, synthetic_root: Path) -> None:
    row = run.predictions().query("split == 'test'").iloc[0]
    (file,) = synthetic_root.glob(f"HAM10000_images_part_*/{row['image_id']}.jpg")
    prediction = skinmtl.load_run(run.path).predict(file)
    assert prediction.probabilities is not None and prediction.mask is not None
    for name, p in prediction.probabilities.items():
        assert p == pytest.approx(row[f"prob_{name}"], abs=1e-5)
    assert int((prediction.mask > 0).sum()) == pytest.approx(row["tp_lesion"] + row["fp_lesion"], abs=2)


def test_a_run_that_still_trains_predicts_with_its_best_weights_so_far_and_says_so(
    run: Run, image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Run(shutil.copytree(run.path, tmp_path / "copy"))
    for status, said in (("running", True), ("finished", False)):
        copy.update({"status": status})
        with copy.held():
            assert commands.main(["predict", str(copy.path), str(image), "--out", str(tmp_path / status)]) == 0
        assert ("not finished (running)" in capsys.readouterr().err) is said


def test_evaluate_repeats_the_scores_when_the_data_moved(run: Run, synthetic_root: Path, tmp_path: Path) -> None:
    copy, moved = tmp_path / "copy", tmp_path / "moved"
    shutil.copytree(run.path, copy)
    shutil.copytree(synthetic_root, moved)
    before = json.loads((copy / "scores.json").read_text())
    (copy / "scores.json").unlink()
    assert commands.main(["evaluate", str(copy), f"data.root={moved}"]) == 0
    again = json.loads((copy / "scores.json").read_text())
    for part in ("val", "test"):
        for task in ("seg", "cls"):
            for name, score in before["parts"][part]["scores"][task].items():
                assert again["parts"][part]["scores"][task][name] == pytest.approx(score, abs=1e-5), name


def test_evaluate_refuses_a_split_that_the_checkpoint_was_not_trained_under(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run.path, copy)
    split = pd.read_csv(copy / "split.csv")
    swapped = split["fold_0"].map({"train": "test", "test": "train", "val": "val"})
    split.assign(fold_0=swapped).to_csv(copy / "split.csv", index=False)
    before = (copy / "predictions.csv").read_bytes()
    assert commands.main(["evaluate", str(copy)]) == 2
    assert "split_hash" in capsys.readouterr().err
    assert (copy / "predictions.csv").read_bytes() == before


def test_a_folder_that_is_no_run_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match=r"run\.json"):
        skinmtl.load_run(tmp_path)
    assert commands.main(["evaluate", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("skinmtl: error: ") and "; fix: " in line


def test_a_run_and_itself_do_not_differ(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert commands.main(["compare", str(run.path), str(run.path)]) == 0
    assert "+0.0000" in capsys.readouterr().out


def test_a_finished_table_is_scored_without_torch(run: Run) -> None:
    code = "import sys; from skinmtl.cli import commands; commands.main(['score', sys.argv[1]]);"
    code += "assert 'torch' not in sys.modules"
    command = [sys.executable, "-c", code, str(run.predictions_file)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["parts"]["test"]["n_images"] > 0


def test_the_gpu_of_a_mac_is_refused_in_one_sentence(run: Run) -> None:
    with pytest.raises(InputError, match=r"^device mps: Apple's GPU \(MPS\) has no float64, .*; fix: use cpu, or auto"):
        skinmtl.load_run(run.path, device="mps")


def test_runs_are_listed(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert commands.main(["runs", str(run.path.parent)]) == 0
    assert "finished" in capsys.readouterr().out


def test_a_run_that_cannot_be_read_hides_no_other(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    (tmp_path / "a" / "run.json").write_text("half a fi")
    shutil.copy(run.info_file, tmp_path / "b")
    assert commands.main(["runs", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "finished" in said and "cannot be read" in said


def test_a_strangers_run_folder_executes_nothing(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run.path, copy)
    config = copy / ".hydra" / "config.yaml"
    evil = f"model:\n  evil: {{_target_: os.system, _args_: [touch {tmp_path / 'canary'}]}}\n"
    config.write_text(config.read_text().replace("model:\n", evil))
    assert commands.main(["evaluate", str(copy)]) == 2
    assert "not an admitted constructor" in capsys.readouterr().err
    assert not (tmp_path / "canary").exists()


def test_weights_that_have_seen_the_test_lesions_are_no_start(run: Run, synthetic_root: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="init_from.*has learned from lesions of"):
        train(tmp_path / "run", synthetic_root, [f"init_from={run.path}", "data.fold=1"])


def test_no_folder_of_the_machine_stands_in_run_json_or_in_a_checkpoint(run: Run, synthetic_root: Path) -> None:
    assert str(synthetic_root) not in run.info_file.read_text()
    assert str(synthetic_root).encode() not in run.checkpoint().read_bytes()


COLOUR = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
GREY = COLOUR[..., 0]
OPAQUE = np.dstack([COLOUR, np.full((48, 64), 255, np.uint8)])


@pytest.mark.parametrize(
    ("image", "bytes_of_it"),
    [
        (COLOUR / 255, COLOUR),
        ((COLOUR / 255).astype(np.float16), COLOUR),
        (torch.from_numpy(COLOUR), COLOUR),
        (torch.from_numpy(COLOUR) / 255, COLOUR),
        (OPAQUE, COLOUR),
        (OPAQUE / 255, COLOUR),
        (GREY, np.dstack([GREY] * 3)),
        (GREY[..., None] / 255, np.dstack([GREY] * 3)),
        (COLOUR[:, ::-1], COLOUR[:, ::-1]),
    ],
)
def test_one_image_is_the_same_bytes_however_it_is_handed_in(image: object, bytes_of_it: np.ndarray) -> None:
    np.testing.assert_array_equal(as_bytes(image), bytes_of_it)


def test_every_byte_comes_back_from_its_share_of_255() -> None:
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    np.testing.assert_array_equal(as_bytes(ramp / 255)[..., 0], ramp)
    np.testing.assert_array_equal(as_bytes((ramp / 255).astype(np.float32))[..., 0], ramp)


NAN = np.where(np.arange(48 * 64 * 3).reshape(48, 64, 3) == 7, np.nan, 0.5)


@pytest.mark.parametrize(
    ("image", "says"),
    [
        (COLOUR.astype(np.float32), r"from 0 to 255; fix: give floats from 0 to 1, not normalised"),
        ((COLOUR / 255 - 0.5) / 0.2, "not normalised"),
        (NAN, "from nan to nan"),
        (COLOUR.astype(np.uint16), r"uint16 of shape \(48, 64, 3\); fix: give uint8"),
        (COLOUR.astype(np.int64), r"give uint8"),
        (COLOUR > 127, r"bool of shape"),
        (COLOUR.transpose(2, 0, 1), r"numpy\.moveaxis\(image, 0, -1\)"),
        (torch.from_numpy(COLOUR).permute(2, 0, 1) / 255, r"image\.permute\(1, 2, 0\)"),
        (np.dstack([COLOUR, GREY]), "transparent"),
        (COLOUR[..., :2], r"give \(H, W, 3\) uint8 RGB"),
        (COLOUR[:0], r"give \(H, W, 3\) uint8 RGB"),
        (Image.fromarray(COLOUR).convert("P"), r"numpy\.asarray\(picture\.convert\('RGB'\)\)"),
        (None, "NoneType"),
    ],
)
def test_an_array_that_is_no_image_is_refused(run: Run, image: object, says: str) -> None:
    with pytest.raises(InputError, match=says):
        skinmtl.load_run(run.path).predict(image)


def test_a_batch_is_a_list_of_predictions(run: Run, image: Path) -> None:
    predictor = skinmtl.load_run(run.path)
    for batch in ([COLOUR, image, GREY / 255], (str(image),), np.stack([COLOUR, COLOUR])):
        together = predictor.predict(batch)
        assert len(together) == len(batch)
        for one, image in zip(together, batch, strict=True):
            assert one.probabilities == pytest.approx(predictor.predict(image).probabilities, abs=1e-5)
    assert predictor.predict([]) == []
    with pytest.raises(InputError, match=r"image\.permute"):
        predictor.predict(torch.zeros(2, 3, 48, 64, dtype=torch.uint8))


def test_images_are_read_a_batch_ahead_and_answered_one_by_one(run: Run) -> None:
    read: list[int] = []

    def reading() -> Iterator[np.ndarray]:
        for i in range(7):
            read.append(i)
            yield COLOUR

    answers = skinmtl.load_run(run.path).predict_each(reading(), batch_size=3)
    next(answers)
    assert read == [0, 1, 2]
    assert len(list(answers)) == 6


def test_the_network_itself_takes_bytes_and_refuses_what_else_it_is_fed(run: Run) -> None:
    predictor = skinmtl.load_run(run.path)
    image = torch.from_numpy(COLOUR[:32, :32]).permute(2, 0, 1)[None]
    assert set(predictor.network(image)) == {"seg", "cls"}
    for wrong in (image / 255, image.double(), image.int()):
        with pytest.raises(InputError, match=r"takes bytes.*\(image \* 255\)\.round\(\)\.to\(torch\.uint8\)"):
            predictor.network(wrong)


@pytest.mark.parametrize("part", ["model", "data"])
def test_a_mistake_in_a_saved_config_is_one_line(
    run: Run, tmp_path: Path, part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run.path, copy)
    config = copy / ".hydra" / "config.yaml"
    config.write_text(config.read_text().replace(f"{part}:\n", f"{part}:\n  dropuot: 1\n", 1))
    assert commands.main(["evaluate", str(copy)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{part}.dropuot" in line
