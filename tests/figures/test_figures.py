"""Figures say what their arrays say, fit a phone, and keep nothing global."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
from fakes import DX, curves_of, metrics, predictions
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont
from matplotlib.text import Text
from numpy.typing import NDArray
from PIL import Image
from sklearn.metrics import confusion_matrix, roc_auc_score

from skinmtl.figures import near_duplicates, study, style
from skinmtl.figures.fonts import _missing, labels
from skinmtl.tasks.classification import figures as of_classes
from skinmtl.tasks.segmentation import figures as of_masks

INDEX = {name: i for i, name in enumerate(DX)}


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    rows = predictions()
    return rows[rows["split"] == "test"]


@pytest.fixture(scope="module")
def target(table: pd.DataFrame) -> NDArray[np.int64]:
    return table["dx"].map(INDEX).to_numpy(dtype=np.int64)


@pytest.fixture(scope="module")
def probabilities(table: pd.DataFrame) -> NDArray[np.float64]:
    return table[[f"prob_{name}" for name in DX]].to_numpy()


def example(seed: int = 0) -> of_masks.Example:
    """A noisy image of 450 x 600 pixels with a dark ellipse, its mask, and a mask a little beside it."""
    y, x = np.mgrid[:450, :600]
    true, beside = (((x - c) / 150) ** 2 + ((y - 225) / 110) ** 2 < 1 for c in (300, 320))
    skin = np.where(true[..., None], (110, 70, 50), (222, 180, 160))
    image = np.clip(skin + np.random.default_rng(seed).normal(0, 12, skin.shape), 0, 255).astype(np.uint8)
    return of_masks.Example(image, true.astype(np.uint8), beside.astype(np.uint8), f"Dice 0.9{seed}")


def words(figure: Figure) -> str:
    """All text of the legends, the ones of the figure and of its axes."""
    legends = [*figure.legends, *(axes.get_legend() for axes in figure.axes)]
    return "\n".join(text.get_text() for legend in legends if legend is not None for text in legend.get_texts())


def settings_table() -> pd.DataFrame:
    rows = [("weighting.seg=1", 0.90, 0.70), ("weighting.seg=4", 0.92, 0.66)]
    return pd.DataFrame(rows, columns=["setting", "mean_image_dice", "balanced_accuracy"])


def test_confusion_shows_the_counts_and_colours_them_by_the_share_of_the_true_class(
    target: NDArray[np.int64], probabilities: NDArray[np.float64]
) -> None:
    counts = confusion_matrix(target, probabilities.argmax(1), labels=range(len(DX)))
    axes = of_classes.confusion(counts, DX).axes[0]
    assert [text.get_text() for text in axes.texts] == [str(count) for count in counts.ravel()]
    np.testing.assert_allclose(axes.images[0].get_array(), counts / counts.sum(1, keepdims=True))
    assert axes.get_yticklabels()[5].get_text() == f"nv ({(target == 5).sum()})"


def test_confusion_of_a_class_without_images_is_drawn() -> None:
    axes = of_classes.confusion(np.array([[3, 1], [0, 0]]), ("a", "b")).axes[0]
    assert np.asarray(axes.images[0].get_array())[1].tolist() == [0, 0]


def test_roc_names_each_area_as_scikit_learn_has_it_and_its_images(
    target: NDArray[np.int64], probabilities: NDArray[np.float64]
) -> None:
    legend = words(of_classes.roc(target, probabilities, DX))
    for i, name in enumerate(DX):
        area = roc_auc_score(target == i, probabilities[:, i])
        assert f"{name}: {area:.3f} (n = {(target == i).sum()})" in legend


def test_roc_leaves_out_missing_targets_and_says_which_class_has_no_curve(
    target: NDArray[np.int64], probabilities: NDArray[np.float64]
) -> None:
    without = np.where(target == INDEX["df"], -1, target)
    legend = words(of_classes.roc(without, probabilities, DX))
    assert "df: undefined (n = 0)" in legend
    known = without >= 0
    assert f"nv: {roc_auc_score(without[known] == 5, probabilities[known, 5]):.3f}" in legend


def test_curves_skip_empty_cells_and_mark_the_best_epoch() -> None:
    log = metrics(12)
    losses, scores = curves_of(log).axes
    lines = {str(line.get_label()): line for line in losses.lines}
    np.testing.assert_allclose(lines["training loss"].get_ydata(), log["train/loss"].dropna())
    np.testing.assert_allclose(lines["validation loss"].get_xdata(), np.arange(1, 13))
    best = int(log["val/score"].dropna().to_numpy().argmax()) + 1
    assert all(list(axes.lines[-1].get_xdata()) == [best, best] for axes in (losses, scores))


def test_curves_of_one_task_and_of_no_epoch_are_drawn() -> None:
    one = curves_of(metrics(3).drop(columns=["val/cls/balanced_accuracy", "val/cls/accuracy"]))
    assert "accuracy" not in words(one)
    assert curves_of(pd.DataFrame(columns=["step", "epoch"])).axes


def test_dice_histogram_counts_every_dice_and_no_missing_one() -> None:
    axes = of_masks.dice_histogram(np.array([0.0, 0.5, 0.71, 0.92, 1.0, np.nan])).axes[0]
    assert sum(bar.get_height() for bar in axes.patches) == 5
    assert "n = 5" in axes.get_xlabel()
    assert "median 0.710" in words(axes.figure)
    assert "n = 0" in of_masks.dice_histogram(np.array([np.nan])).axes[0].get_xlabel()


def test_reliability_is_the_share_right_among_images_of_like_probability() -> None:
    p = np.array([[0.62, 0.38], [0.66, 0.34], [0.08, 0.92], [0.05, 0.95], [0.97, 0.03]])
    axes, below = of_classes.reliability(np.array([0, 1, 1, 1, -1]), p).axes
    line = axes.lines[1]
    np.testing.assert_allclose(line.get_xdata(), [0.64, 0.935])
    np.testing.assert_allclose(line.get_ydata(), [0.5, 1.0])
    assert [bar.get_height() for bar in below.patches] == [0, 0, 0, 0, 0, 0, 2, 0, 0, 2]


def test_overlay_draws_both_contours_near_their_edges_on_a_copy() -> None:
    image, true, predicted, _ = example()
    assert true is not None
    before = image.copy()
    drawn = of_masks.overlay(image, predicted, true)
    assert np.array_equal(image, before)
    changed = (drawn != image).any(axis=2)
    assert not changed[225, 300]
    assert not changed[:100].any()
    for colour in (of_masks.TRUE_CONTOUR, of_masks.PREDICTED_CONTOUR):
        rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        assert (drawn == rgb).all(axis=2).sum() > 300


def test_overlay_of_an_empty_mask_changes_nothing() -> None:
    image, *_ = example()
    assert np.array_equal(of_masks.overlay(image, np.zeros((450, 600), np.uint8)), image)
    assert np.array_equal(of_masks.overlay(image, None), image)


def test_gallery_has_one_legend_that_names_what_is_drawn() -> None:
    image, true, predicted, title = example()
    figure = of_masks.gallery([(image, true, predicted, title), (image, None, predicted, title)])
    assert words(figure).split("\n") == ["true contour", "predicted contour"]
    assert words(of_masks.gallery([(image, None, predicted, title)])) == "predicted contour"
    assert of_masks.gallery([]).axes


def test_intervals_of_settings_run_from_low_to_high() -> None:
    rows = pd.DataFrame(
        {"setting": ["a", "b"], "score": "Dice", "value": [0.8, 0.9], "low": [0.7, np.nan], "high": [0.85, np.nan]}
    )
    axes = study.scores_by_setting(rows).axes[0]
    assert list(axes.lines[0].get_xdata()) == [0.7, 0.85]
    assert list(axes.lines[1].get_xdata()) == [0.8]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]


def test_every_run_behind_a_mean_is_a_ring() -> None:
    means = pd.DataFrame({"setting": ["a", "b"], "score": "Dice", "value": [0.8, 0.9], "low": 0.7, "high": 0.95})
    runs = pd.DataFrame({"setting": ["a", "a", "b"], "score": "Dice", "value": [0.78, 0.82, 0.9]})
    lines = study.scores_by_setting(means, runs).axes[0].lines
    rings = [list(line.get_xdata()) for line in lines if line.get_markerfacecolor() == "none"]
    assert rings == [[0.78, 0.82], [0.9]]


def test_tradeoff_names_every_setting_with_and_without_intervals() -> None:
    bare = settings_table()
    assert words(study.tradeoff(bare)).split("\n") == bare["setting"].tolist()
    bounds = {
        f"{name}_{end}": bare[name] + step
        for name in bare.columns[1:]
        for end, step in (("low", -0.01), ("high", 0.01))
    }
    assert len(study.tradeoff(bare.assign(**bounds)).axes[0].collections) == 4


def test_a_class_has_one_colour_wherever_it_is_drawn() -> None:
    chosen = style.colours(DX)
    assert len(set(chosen.values())) == len(DX)
    assert style.colours(list(DX)) == chosen


@pytest.mark.slow
def test_every_figure_is_small_and_a_phone_wide(
    tmp_path: Path, target: NDArray[np.int64], probabilities: NDArray[np.float64], table: pd.DataFrame
) -> None:
    rows = pd.DataFrame({"setting": list("ab"), "score": "Dice", "value": [0.8, 0.9], "low": 0.7, "high": 0.95})
    made = {
        "confusion.png": of_classes.confusion(np.diag(np.arange(7)), DX),
        "roc.svg": of_classes.roc(target, probabilities, DX),
        "curves.png": curves_of(metrics()),
        "dice_histogram.png": of_masks.dice_histogram(table["dice"].to_numpy()),
        "reliability.svg": of_classes.reliability(target, probabilities),
        "gallery.jpg": of_masks.gallery([example(seed) for seed in range(6)]),
        "scores.png": study.scores_by_setting(rows),
        "tradeoff.png": study.tradeoff(settings_table()),
    }
    for name, figure in made.items():
        path = style.save(figure, tmp_path / name)
        assert path.stat().st_size < 300_000, name
        assert figure.get_figwidth() == pytest.approx(5)
    with Image.open(tmp_path / "confusion.png") as image:
        assert image.width == 900
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("kind", ["svg", "png", "jpg"])
def test_the_same_figure_is_the_same_bytes(tmp_path: Path, kind: str) -> None:
    paths = [style.save(curves_of(metrics()), tmp_path / f"{name}.{kind}") for name in "ab"]
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_figures_leave_pyplot_alone() -> None:
    code = "import sys, skinmtl.tasks.curves, skinmtl.figures.study; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_overlay_of_several_classes_draws_the_edges_between_them() -> None:
    image = np.full((90, 90, 3), 128, np.uint8)
    mask = np.zeros((90, 90), np.uint8)
    mask[20:70, 20:70], mask[35:55, 35:55] = 1, 2
    yellow = [int(of_masks.PREDICTED_CONTOUR[i : i + 2], 16) for i in (1, 3, 5)]
    lines = (of_masks.overlay(image, mask) == yellow).all(axis=2)
    assert lines[45, 20] and lines[45, 35] and lines[20, 45] and lines[54, 45]
    assert not lines[45, 28] and not lines[45, 45] and not lines[45, 10]
    outer = (of_masks.overlay(image, (mask > 0).astype(np.uint8)) == yellow).all(axis=2)
    assert outer[45, 20] and not outer[45, 35], "of lesion and skin there is one edge"


def test_every_mask_class_has_a_colour_of_its_own_and_the_background_is_black() -> None:
    colours = np.array(of_masks.mask_palette(4)).reshape(4, 3)
    assert colours[0].tolist() == [0, 0, 0]
    assert len({tuple(colour) for colour in colours.tolist()}) == 4


def drawn(figure: Figure) -> set[str]:
    return {text.get_text() for text in figure.findobj(Text)}


ODD = ("$mel_{1}$", "_nv_%d", "<b>bold</b>", "a\\b", "سرطان")


def test_names_are_drawn_as_they_are_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    counts = np.eye(len(ODD), dtype=np.int64)
    confusion = of_classes.confusion(counts, ODD)
    target = np.arange(20) % len(ODD)
    roc = of_classes.roc(target, np.random.default_rng(0).dirichlet(np.ones(len(ODD)), 20), ODD)
    for name, figure in (("confusion", confusion), ("roc", roc)):
        style.save(figure, tmp_path / f"{name}.png")  # a letter that no font has is a warning, and fails
        assert not any(text.get_parse_math() for text in figure.findobj(Text) if "mel" in text.get_text())
    assert set(ODD) <= drawn(confusion)
    assert len(words(roc).split("\n")) == len(ODD), "a legend leaves out what begins with _"
    assert not caplog.records


def test_a_logarithmic_axis_keeps_its_powers_of_ten(tmp_path: Path) -> None:
    figure = near_duplicates.features_in_place(np.array([30, 31]), np.array([3] * 500), 12)
    style.save(figure, tmp_path / "log.svg")
    powers = [text for text in figure.findobj(Text) if "mathdefault" in text.get_text()]
    assert powers and all(text.get_parse_math() for text in powers)


def test_another_font_draws_the_letters_that_the_first_lacks(tmp_path: Path) -> None:
    letter = "\N{DOUBLE-STRUCK ITALIC SMALL D}\N{MATHEMATICAL SCRIPT CAPITAL A}"
    assert _missing(findfont(FontProperties()), letter), "choose a letter that the first font lacks"
    assert labels([letter, "nv"]) == (letter, "nv")
    figure = of_classes.confusion(np.eye(2, dtype=np.int64), (letter, "nv"))
    style.save(figure, tmp_path / "a.png")
    used = {text.get_text(): text.get_fontfamily() for text in figure.findobj(Text)}
    assert len(used[letter]) > 1 and len(used["nv"]) == 1


def test_a_name_that_no_font_has_is_its_place_and_that_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names = ("\U0010fffd\U0010fffc", "nv", "mel \U0010fffd")  # private letters: no font has any
    for _ in range(2):
        figure = of_classes.confusion(np.eye(3, dtype=np.int64), names)
        style.save(figure, tmp_path / "a.png")
    assert {"class 1", "nv", "class 3"} <= drawn(figure)
    said = [record.getMessage() for record in caplog.records]
    assert sum("class 1 for" in line and "class 3 for" in line for line in said) == 1
    gallery = of_masks.gallery([(np.zeros((9, 9, 3), np.uint8), None, None, "as \U0010fffd")])
    style.save(gallery, tmp_path / "b.png")
    assert "as \N{WHITE SQUARE}" in drawn(gallery)


def test_long_names_lose_their_middle_and_alike_ones_are_told_by_their_place() -> None:
    long = "pigmented benign keratosis with a name that goes on and on"
    short, other = labels([long, "nv"])
    assert len(short) <= 41 and short.startswith("pigmented benign") and short.endswith("goes on and on")
    assert other == "nv"
    assert labels([long, long.replace("with a name", "under a name")]) == ("class 1", "class 2")


def test_no_two_classes_are_drawn_alike_however_many_there_are() -> None:
    names = [f"class {i}" for i in range(60)]
    looks = {(style.colours(names)[name], style.dashes(names)[name]) for name in names}
    assert len(looks) == 60
    assert {style.dashes(DX)[name] for name in DX} == {"-"}
    target = np.arange(120) % 60
    legend = of_classes.roc(target, np.random.default_rng(0).dirichlet(np.ones(60), 120), names).legends[0]
    assert len({(line.get_color(), str(line._dash_pattern)) for line in legend.get_lines()}) == 60
    table = pd.DataFrame({"setting": names[:49], "mean_image_dice": 0.9, "balanced_accuracy": 0.7})
    points = [line for line in study.tradeoff(table).axes[0].lines if line.get_marker() not in ("None", "")]
    assert len({(line.get_color(), line.get_marker()) for line in points}) == 49
    palette = np.array(of_masks.mask_palette(256)).reshape(256, 3)
    assert len(np.unique(palette, axis=0)) == 256 and not palette[0].any()


def test_a_style_or_a_matplotlibrc_of_ones_own_changes_no_figure(tmp_path: Path) -> None:
    def drawn(name: str) -> list[bytes]:
        made = (of_classes.confusion(np.array([[3, 1], [0, 2]]), ("a", "b")), of_masks.gallery([example()]))
        files = [
            style.save(figure, tmp_path / f"{name}{kind}") for figure, kind in zip(made, (".png", ".jpg"), strict=True)
        ]
        return [file.read_bytes() for file in files]

    plain = drawn("plain")
    odd = {"axes.facecolor": "black", "savefig.facecolor": "black", "font.size": 20, "text.usetex": True}
    with matplotlib.rc_context(odd):
        assert drawn("odd") == plain
        assert matplotlib.rcParams["text.usetex"], "and nobody else's style is changed"
    with matplotlib.rc_context({"font.size": 20}):  # the control: it is these that a figure goes by
        bare = of_classes.confusion.__wrapped__(np.array([[3, 1], [0, 2]]), ("a", "b"))  # type: ignore[attr-defined]
        assert style.save(bare, tmp_path / "bare.png").read_bytes() != plain[0]


def test_cosines_are_means_over_the_runs_of_a_setting() -> None:
    rows = [("a", 0, 0.5), ("a", 0, 0.1), ("a", 50, -1.0), ("b", 0, 0.2), ("b", 50, 0.4)]
    axes = study.cosines(pd.DataFrame(rows, columns=["setting", "step", "cosine"])).axes[0]
    zero, first, second = axes.lines
    assert list(zero.get_ydata()) == [0, 0]
    assert list(first.get_xdata()) == [0, 50] and list(first.get_ydata()) == pytest.approx([0.3, -1.0])
    assert list(second.get_ydata()) == pytest.approx([0.2, 0.4])
