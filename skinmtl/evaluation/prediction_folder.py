"""A folder of predictions: masks, overlays and tables of many images, all of one call or nothing."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from skinmtl.data.images.listing import printable_name, unsupported_format
from skinmtl.data.images.reading import read_image
from skinmtl.errors import InputError, Interrupted
from skinmtl.evaluation.predict import TOGETHER, Prediction, Predictor, load_run
from skinmtl.files import write_text
from skinmtl.runs.record import is_ham10000
from skinmtl.runs.run import Run
from skinmtl.tasks.scoring import Scoring, ordered
from skinmtl.terminal import tracked

PIXELS = 2**26  # of images held in memory at once, or one that is larger
WRITTEN = ("masks", "overlays", "errors.csv", "skipped.csv", "README.txt", "predictions.csv")  # the last comes last
PARTIAL = ".partial"  # within the folder that is written to: what is not finished


def write_predictions(
    run: Path,
    images: Sequence[Path],
    out: Path,
    device: str = "auto",
    *,
    passed_over: Sequence[tuple[str, str]] = (),
    replace: bool = False,
    stopped: Callable[[], bool] = lambda: False,
) -> int:
    """Predict images into a folder; gives the number that could not be read.

    Writes `masks/<name>.png` (the image's own size; 0 and 255, or a palette picture whose index is the mask class
    where there are more than two), `overlays/<name>.png`, `predictions.csv` (one row per image: file, diagnosis,
    every probability, the share of the image that each mask class but the background has), `errors.csv` (file, what is
    wrong) and `skipped.csv` (file, why). The folder holds all of it or nothing: no more, and no other, than its tables
    say. Images are named by their stems, which differ.

    Args:
        run: a run's folder.
        images: as `images.listed` gives them.
        out: the folder; what else lies there stays.
        device: as for `load_run`.
        passed_over: names of further files, and why, for `skipped.csv`.
        replace: have the predictions of a call before replaced, all of them.
        stopped: asked before each image; once true, what is done is written, and the others are in `skipped.csv`.

    Raises:
        InputError: the folder is a run's, holds predictions already, or files of other names than ours that no table
            knows.
        Interrupted: it was stopped.
    """
    predictor = load_run(run, device=device)
    scorings = ordered(task.scoring() for task in predictor.tasks.values())
    folders = [name for scoring in scorings for name in scoring.folders]
    written = tuple(dict.fromkeys([*folders, *WRITTEN]))
    _check_free(out, replace, written)
    columns = ["file", *(name for scoring in scorings for name in scoring.predicted())]
    done: dict[Path, dict[str, object]] = {}
    errors: dict[Path, dict[str, str]] = {}
    with _beside(out) as partial:
        for name in folders:
            (partial / name).mkdir()
        each = _each(predictor, images, stopped)
        for path, image, answer in tracked(each, "predicting", len(images)):
            if stopped():
                break
            if image is None or isinstance(answer, InputError):
                assert isinstance(answer, InputError)
                errors[path] = {"file": printable_name(path.name), "error": answer.what, "fix": answer.fix}
            else:
                done[path] = {"file": printable_name(path.name)} | _write_one(
                    scorings, answer, image, path.stem, partial
                )
        left = [path for path in images if path not in done and path not in errors]
        if len(left) == len(images):
            raise Interrupted(str(out), "stopped before the first image; nothing is written", "start again")
        skipped = [*passed_over, *((printable_name(path.name), "not reached: stopped") for path in left)]
        tables = {
            "errors.csv": pd.DataFrame(errors.values(), columns=["file", "error", "fix"]),
            "skipped.csv": pd.DataFrame(skipped, columns=["file", "why"]),
            "predictions.csv": pd.DataFrame(done.values(), columns=columns),
        }
        _write_texts(partial, tables, is_ham10000(Run(run).info()))
        _put(partial, out, written)
    if left:
        what = f"stopped: {len(done)} of {len(images)} images are predicted, skipped.csv names the others"
        raise Interrupted(str(out), what, "predict those with another --out, or all of them again with --replace")
    return len(errors)


def _write_texts(folder: Path, tables: Mapping[str, pd.DataFrame], of_ham10000: bool) -> None:
    """Write the tables by their names, and README.txt: what the predictions are for, and under which licence."""
    for name, table in tables.items():
        write_text(folder / name, table.to_csv(index=False))
    licence = " HAM10000 is CC BY-NC 4.0, and so are weights trained on it." if of_ham10000 else ""
    write_text(folder / "README.txt", f"Research use only: not a medical device.{licence}\n")


def _each(
    predictor: Predictor, images: Iterable[Path], stopped: Callable[[], bool]
) -> Iterator[tuple[Path, NDArray[np.uint8] | None, Prediction | InputError]]:
    """Each image with its pixels and its prediction, or with what is wrong; batches bounded by their pixels."""
    batch: list[tuple[Path, NDArray[np.uint8]]] = []

    def predicted() -> Iterator[tuple[Path, NDArray[np.uint8], Prediction]]:
        answers = predictor.predict_each(image for _, image in batch)
        yield from ((path, image, answer) for (path, image), answer in zip(batch, answers, strict=True))
        batch.clear()

    for path in images:
        if stopped():
            return
        try:
            if refusal := unsupported_format(path):
                raise refusal
            image = read_image(path)
        except InputError as error:
            yield path, None, error
            continue
        held = sum(other.shape[0] * other.shape[1] for _, other in batch) + image.shape[0] * image.shape[1]
        if batch and (len(batch) == TOGETHER or held > PIXELS):
            yield from predicted()
        batch.append((path, image))
    yield from predicted()


def _check_free(out: Path, replace: bool, written: Sequence[str]) -> None:
    """Refuse a folder with predictions in it, but to replace them where its tables account for every file."""
    if out.exists() and not out.is_dir():
        raise InputError(str(out), "is no folder", "give another --out")
    if (out / "run.json").exists():
        what = "is a run's folder, whose predictions.csv is what its scores come from"
        raise InputError(str(out), what, "give another --out, such as its subfolder predict")
    there = [name for name in written if _holds(out / name)]
    if not there:
        return
    if not replace:
        fix = "give another --out, or --replace, which takes all of them away"
        raise InputError(str(out), f"holds predictions already: {', '.join(there)}", fix)
    known: set[str] = set()
    if "predictions.csv" in there:
        with (out / "predictions.csv").open(encoding="utf-8", errors="replace", newline="") as file:
            rows = csv.DictReader(file)
            if "file" not in (rows.fieldnames or ()):
                raise InputError(str(out / "predictions.csv"), "is not one of skinmtl predict", "give another --out")
            known = {f"{Path(row.get('file') or '').stem}.png" for row in rows}
    pictures = (file for name in written if (out / name).is_dir() for file in (out / name).iterdir())
    strange = sorted(
        f"{file.parent.name}/{printable_name(file.name)}" for file in pictures if printable_name(file.name) not in known
    )
    if strange:
        what = f"holds {', '.join(strange[:4])}, which no predictions.csv there knows"
        raise InputError(str(out), what, "give another --out, or take them away")
    if "predictions.csv" not in there:
        what = f"holds {', '.join(there)} without a predictions.csv"
        raise InputError(str(out), what, "give another --out, or take them away")


def _holds(path: Path) -> bool:
    return path.is_file() or (path.is_dir() and any(path.iterdir())) or path.is_symlink()


@contextmanager
def _beside(out: Path) -> Iterator[Path]:
    """An empty folder within `out` for what is not finished, this call's alone; gone in the end, however that comes."""
    was_there = out.exists()
    partial = out / PARTIAL
    partial.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        try:
            stack.enter_context(Run(partial).held())
        except InputError:
            raise InputError(str(out), "another call is writing there", "wait for it, or give another --out") from None
        try:
            for stray in partial.iterdir():  # of a call that was killed
                shutil.rmtree(stray) if stray.is_dir() else stray.unlink()
            yield partial
        finally:
            shutil.rmtree(partial, ignore_errors=True)
            if not was_there and not any(out.iterdir()):
                out.rmdir()


def _put(partial: Path, out: Path, written: Sequence[str]) -> None:
    """Move what is finished to where it belongs, what was there before away: the table goes first and comes last."""
    former = partial / "former"
    former.mkdir()
    for name in reversed(written):
        if (out / name).exists():
            (out / name).rename(former / name)
    for name in written:
        if (partial / name).exists():
            (partial / name).rename(out / name)


def _write_one(
    scorings: Sequence[Scoring], prediction: Prediction, image: NDArray[np.uint8], stem: str, out: Path
) -> dict[str, object]:
    """Write what every task has of an image; gives its columns of predictions.csv."""
    row: dict[str, object] = {}
    for scoring in scorings:
        row |= scoring.write(prediction[scoring.name], image, stem, out)
    return row
