"""Tasks of every kind: what they take from a table, what they learn under missing values, how a config writes them."""

from __future__ import annotations

import ast
import io
import shutil
import subprocess
import sys
import tokenize
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from kinds import segmentation
from omegaconf import OmegaConf
from sklearn.metrics import mean_absolute_error
from small_runs import CONF, compose
from torch import nn

from skinmtl.balancing.weighting import Fixed
from skinmtl.config import rules
from skinmtl.config.tasks import settle
from skinmtl.data import transforms
from skinmtl.data.datamodule import DataModule
from skinmtl.data.mixing import Mixup
from skinmtl.data.samplers import Shuffle
from skinmtl.errors import ConfigError, Faults, InputError
from skinmtl.losses import AbsoluteError, Huber, SquaredError
from skinmtl.tasks.classification.learning import Classification
from skinmtl.tasks.regression.learning import Regression
from skinmtl.training.dry_run import checked
from skinmtl.training.tasks import columns, give_losses, prepare
from skinmtl.types import Batch

PACKAGE = Path(__file__).parents[2] / "skinmtl"


# ---- A regression, under missing values ----


def age(facts: dict[str, Any] | None = None) -> Regression:
    task = Regression("age", "years", name="age")
    task.facts = facts or {"mean": 50.0, "deviation": 10.0, "spread": 8.0, "labelled": 4}
    return task


AGES = torch.tensor([40.0, float("nan"), 65.0, float("nan"), 52.0])


@pytest.mark.parametrize("loss", [AbsoluteError(), SquaredError(), Huber(0.5)], ids=lambda loss: type(loss).__name__)
def test_a_regression_learns_from_those_alone_that_have_a_number(loss: nn.Module) -> None:
    task, has = age(), torch.isfinite(AGES)
    task.loss = loss
    logits = torch.linspace(-1, 1, 5)[:, None].requires_grad_()
    value = task(logits, {"age": AGES})
    value.backward()
    alone = logits.detach()[has].requires_grad_()
    expected = task(alone, {"age": AGES[has]})
    expected.backward()
    assert torch.allclose(value, expected) and float(task.mass({"age": AGES})) == 3
    assert logits.grad is not None and alone.grad is not None
    assert torch.allclose(logits.grad[has], alone.grad) and (logits.grad[~has] == 0).all()
    # What is missing would else be a number, and another loss.
    assert not torch.allclose(value, task(logits, {"age": torch.nan_to_num(AGES, 50.0)}))


def test_a_regression_without_any_number_is_zero_and_finite() -> None:
    task = age()
    task.loss = Huber()
    logits = torch.ones(2, 1, requires_grad=True)
    value = task(logits, {"age": torch.full((2,), float("nan"))})
    value.backward()
    assert value.item() == 0 and logits.grad is not None and (logits.grad == 0).all()


@pytest.mark.parametrize(
    ("loss", "cost"),
    [
        (AbsoluteError(), lambda e: np.abs(e)),
        (SquaredError(), lambda e: e**2),
        (Huber(0.5), lambda e: np.where(np.abs(e) < 0.5, e**2 / 2, 0.5 * np.abs(e) - 0.125)),
    ],
    ids=["absolute", "squared", "huber"],
)
def test_losses_of_a_number_are_means_of_what_errors_cost(loss: nn.Module, cost: Any) -> None:  # noqa: ANN401
    draw = np.random.default_rng(0)
    predicted, value = draw.normal(size=(2, 9))
    found = loss(torch.tensor(predicted)[:, None], {"value": torch.tensor(value)})
    assert float(found) == pytest.approx(cost(predicted - value).mean())


def test_the_mean_absolute_error_is_sklearns_in_the_unit_of_the_column() -> None:
    task, metric = age(), age().metric()
    logits = torch.tensor([[0.0], [9.0], [1.0], [9.0], [-2.0]])
    for rows in (slice(0, 2), slice(2, 5)):
        task.count(metric, logits[rows], {"age": AGES[rows]})
    scores = metric.compute()
    expected = mean_absolute_error([40, 65, 52], [50, 60, 30])
    assert float(scores["mean_absolute_error"]) == pytest.approx(expected)
    assert float(scores["closeness"]) == pytest.approx(1 / (1 + expected / 8))
    assert task.read(task.probabilities(logits)[2], (8, 8)).value == pytest.approx(60)


# ---- What a task takes from a table ----


@pytest.fixture(scope="module")
def root(synthetic_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of one's own: some sites and ages are missing, and there are two columns of no known name."""
    table = pd.read_csv(synthetic_root / "HAM10000_metadata.csv", dtype=str)
    images = {path.stem: path for path in synthetic_root.rglob("*.jpg")}
    table["image"] = table["image_id"].map(images)
    table["mask"] = table["image_id"].map({path.stem.split("_seg")[0]: path for path in synthetic_root.rglob("*.png")})
    table["camera"] = np.where(table.index % 2, "new", "old")
    table["thickness"] = (table.index / 10).astype(str)
    table.loc[table.index % 5 == 0, ["localization", "age", "camera", "thickness"]] = ""
    file = tmp_path_factory.mktemp("tasks") / "mine.csv"
    table.drop(columns="dataset").to_csv(file, index=False)
    return file


def make(root: Path, folder: Path, tasks: Sequence[Any], **options: Any) -> DataModule:  # noqa: ANN401
    settings = {"size": 16, "batch_size": 4, "workers": 0, "cache": "off", "split_dir": str(folder)} | options
    parts: dict[str, Any] = {"augment": transforms.none(), "sampler": Shuffle(), "seed": 0}
    data = DataModule(str(root), **settings, **parts, columns=columns(tasks))
    data.prepare_data()
    data.setup("fit")
    prepare(tasks, data)
    return data


def tasks() -> list[Any]:
    others = [Classification("camera", name="camera"), Regression("thickness", "mm", name="depth")]
    return [segmentation(), Classification(name="cls"), Classification("localization", name="site"), *others]


def test_batches_carry_the_targets_of_any_column_and_what_is_missing_stays_so(root: Path, tmp_path: Path) -> None:
    chosen = tasks()
    data = make(root, tmp_path, chosen)
    site, camera, depth = chosen[2:]
    assert camera.classes == ("new", "old") and list(site.classes) == sorted(
        data.table["localization"].dropna().unique()
    )
    seen = 0
    for batch in data.train_dataloader():
        for place, row in enumerate(batch["index"].tolist()):
            case = data.table.iloc[row]
            index = int(batch["site"][place])
            assert (index < 0) == pd.isna(case["localization"])
            assert index < 0 or site.classes[index] == case["localization"]
            assert camera.labelled(batch)[place] == (not pd.isna(case["camera"])) == bool(depth.labelled(batch)[place])
            if depth.labelled(batch)[place]:
                assert float(batch["depth"][place]) == pytest.approx(float(case["thickness"]))
            seen += index < 0
    assert seen > 0, "some are missing"
    train = data.table.iloc[data.rows("train")]
    assert data.class_counts("site", len(site.classes)) == [
        (train["localization"] == name).sum() for name in site.classes
    ]
    ages = pd.to_numeric(train["thickness"]).dropna()
    assert depth.facts["mean"] == pytest.approx(ages.mean())
    assert depth.facts["spread"] == pytest.approx((ages - ages.median()).abs().mean())


def test_shuffled_targets_are_those_of_one_task(root: Path, tmp_path: Path) -> None:
    plain, mixed = (make(root, tmp_path, tasks(), shuffled=name) for name in (None, "depth"))
    targets: list[dict[str, Any]] = [
        {key: torch.cat([batch[key] for batch in data.train_dataloader()]) for key in ("index", "site", "dx", "depth")}
        for data in (plain, mixed)
    ]
    for key in ("index", "site", "dx"):
        assert torch.equal(targets[0][key], targets[1][key])
    assert not torch.equal(targets[0]["depth"].nan_to_num(-1), targets[1]["depth"].nan_to_num(-1))
    assert torch.equal(targets[0]["depth"].isnan(), targets[1]["depth"].isnan())
    with pytest.raises(ConfigError, match=r"data\.shuffled: there is no task other"):
        make(root, tmp_path, tasks(), shuffled="other")


def test_mixed_images_have_both_targets_by_their_shares(root: Path, tmp_path: Path) -> None:
    chosen = tasks()
    data = make(root, tmp_path, chosen, mixing=Mixup(p=1.0))
    give_losses(chosen[2:3], {"site": {"_target_": "skinmtl.losses.CrossEntropy"}}, data, "none")
    batch: Batch = next(iter(data.train_dataloader()))
    site = chosen[2]
    logits = torch.randn(4, len(site.classes))
    assert not torch.equal(batch["site"], batch["site_other"])
    own, other = (site.loss(logits, {"dx": batch[key]}) for key in ("site", "site_other"))
    assert torch.allclose(site(logits, batch), batch["share"] * own + (1 - batch["share"]) * other)


def test_columns_that_a_task_cannot_learn_from_are_said(root: Path, tmp_path: Path) -> None:
    for task, said in (
        (
            Classification("colour", name="colour"),
            r"tasks\.colour: the table has no column colour; fix: it has image_id",
        ),
        (
            Regression("camera", name="a"),
            r"tasks\.a: \d+ cells of the column camera are no number, such as '(old|new)'",
        ),
    ):
        with pytest.raises(InputError, match=said):
            make(root, tmp_path, [task])


# ---- How a config writes its tasks ----


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ([], ["seg", "cls"]),
        (["tasks=[seg,cls]"], ["seg", "cls"]),
        (["tasks=seg", "loss/cls=none"], ["seg"]),
        (["tasks=[cls]", "loss/seg=none"], ["cls"]),
        (["arm=mask"], ["seg"]),
        (["tasks=[seg,cls,site,sex,age]"], ["seg", "cls", "site", "sex", "age"]),
        (["tasks=[seg,cls,site]", "+loss/cls@loss.site=focal"], ["seg", "cls", "site"]),
        (["tasks=[seg,cls,age]", "weighting.age=0.5"], ["seg", "cls", "age"]),
    ],
    ids=" ".join,
)
def test_tasks_are_chosen_on_the_command_line(words: list[str], names: list[str]) -> None:
    config = checked(dict(compose(words)))
    assert config.tasks == names and list(config.task) == names
    if "+loss/cls@loss.site=focal" in words:
        assert config.loss["site"]["_target_"].endswith("FocalCrossEntropy")


@pytest.mark.parametrize("written", [["seg", "cls", "age"], "seg"])
def test_a_list_in_a_body_or_a_saved_config_stands_for_files(written: object) -> None:
    cfg = compose(["loss/cls=none"] if written == "seg" else [])
    OmegaConf.set_struct(cfg, False)
    del cfg["task"]
    cfg.tasks = written  # as configs of before have it
    config = checked(dict(cfg))
    assert config.tasks == (["seg"] if written == "seg" else written)
    assert all("_target_" in node for node in config.task.values())
    assert written == "seg" or config.loss["age"]["_target_"] == "skinmtl.losses.Huber"
    again = OmegaConf.create(config.as_dict())
    settle(again)
    assert OmegaConf.to_container(again) == config.as_dict(), "what is settled stays as it is"


def test_what_the_command_chooses_counts_more_than_a_files_list() -> None:
    cfg = compose(["tasks=[cls]"])
    OmegaConf.set_struct(cfg, False)
    cfg.tasks = ["seg"]  # of an experiment's body
    chosen, listed = cfg.copy(), cfg.copy()
    settle(chosen, chosen=True)
    settle(listed)
    assert chosen.tasks == ["cls"] and list(chosen.task) == ["cls"]
    assert listed.tasks == ["seg"] and list(listed.task) == ["seg"]


AGE = {"_target_": "skinmtl.tasks.regression.learning.Regression", "column": "age"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tasks": ["seg", "sight"]}, "tasks: there is no task sight; fix: did you mean 'site'?"),
        ({"task.other": {"_target_": "skinmtl.losses.BCE"}}, "task.other._target_: BCE has no method learn"),
        (
            {"weighting.sgg": 2.0},
            "weighting.sgg: a weight, but tasks are ['seg', 'cls']; fix: did you mean",
        ),
        ({"weighting.age": 2.0}, "weighting.age: a weight, but tasks are ['seg', 'cls']; fix: add age to tasks"),
        ({"weighting.seg": -1.0}, "weighting.seg: -1.0 does not fit; fix: it should be greater than or equal to 0"),
        (
            {"task.dx": {"_target_": "skinmtl.tasks.regression.learning.Regression", "column": "age"}},
            "task.dx: no task",
        ),
        ({"callbacks.early_stopping.monitor": "val/seg/closeness"}, "validation does not log 'val/seg/closeness'"),
    ],
    ids=str,
)
def test_a_mistake_in_tasks_is_one_line(changes: dict[str, Any], said: str) -> None:
    cfg = compose([])
    OmegaConf.set_struct(cfg, False)
    for key, value in changes.items():
        OmegaConf.update(cfg, key, value)
        if key.startswith("task."):
            cfg.loss[key.removeprefix("task.")] = {"_target_": "skinmtl.losses.Huber"}
    with pytest.raises((Faults, ConfigError)) as raised:
        checked(dict(cfg))
    assert said in str(raised.value)


def test_an_error_is_watched_for_its_lower_end() -> None:
    words = ["tasks=[seg,cls,age]", "callbacks.early_stopping.monitor=val/age/mean_absolute_error"]
    with pytest.raises(Faults, match="of val/age/mean_absolute_error the min is best; fix: use min"):
        checked(dict(compose(words)))
    checked(dict(compose([*words, "callbacks.early_stopping.mode=min"])))


def test_a_weight_by_task_name_is_any_tasks() -> None:
    losses = {name: torch.tensor(2.0) for name in ("seg", "own")}
    assert float(Fixed(own=0.25)(losses)) == 2.5


# ---- No module knows a task's name ----


def literals(text: str, names: Sequence[str]) -> Iterator[int]:
    """Lines of a source text that hold one of the names as a whole string."""
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type != tokenize.STRING or token.string.lower().startswith(("f", "rf", "fr")):
            continue
        if ast.literal_eval(token.string) in names:
            yield token.start[0]


def test_no_module_outside_the_tasks_writes_a_tasks_name() -> None:
    names = [file.stem for file in (CONF / "tasks").glob("*.yaml") if file.stem not in ("age", "sex")]  # columns, too
    assert {"seg", "cls", "site"} == set(names)
    found = {
        f"{path.relative_to(PACKAGE)}:{line}"
        for path in PACKAGE.rglob("*.py")
        if path.relative_to(PACKAGE).parts[0] != "tasks"
        for line in literals(path.read_text(encoding="utf-8"), names)
    }
    assert found == set()
    assert list(literals('x = 1\ny = {"seg": x}  # seg\nz = "segment"', names)) == [2], "one that is planted is found"


RENAMED = """
import sys
sys.path[:0] = {paths!r}
from pathlib import Path
import skinmtl
assert skinmtl.__file__.startswith({copy!r})
import small_runs
small_runs.CONF = Path({copy!r}) / "conf"
from skinmtl.cli import commands
run = small_runs.train(Path("run"), Path({root!r}), ["tasks=[seg,dgn,site,age]", *small_runs.SMALL])
scores = run.path / "scores.json"
import json
said = json.loads(scores.read_text())
print(run.info()["tasks"], sorted(said["parts"]["test"]["scores"]), (run.path / "report.html").stat().st_size > 9999)
print([name for name in run.predictions().columns if name.startswith("predicted") or name == "dx"])
import pandas as pd
from skinmtl.data import sources
split = pd.read_csv(run.split_file)
train = sources.read(Path({root!r})).set_index("image_id").loc[split.image_id[split.fold_0 == "train"]]
counted = run.info()["split"]["train"]["tasks"]
assert set(counted) == {{"dgn", "site"}}
for name, column in (("dgn", "dx"), ("site", "localization")):
    wanted = train[column].astype("object").value_counts().to_dict()
    assert {{of: count for of, count in counted[name].items() if count}} == wanted
assert "not recorded" not in (run.path / "report.html").read_text().split("Site: by class")[1].split("</section>")[0]
assert commands.main(["evaluate", str(run.path)]) == 0 and commands.main(["report", str(run.path)]) == 0
image = next(Path({root!r}).rglob("*.jpg"))
assert commands.main(["predict", str(run.path), str(image), "--out", "new"]) == 0
print((Path("new") / "predictions.csv").read_text().splitlines()[0].split(",")[:2])
"""


def test_a_task_renamed_in_its_folder_and_in_conf_alone_is_trained_and_reported(
    synthetic_root: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    kept = shutil.ignore_patterns("__pycache__")
    for name in ("skinmtl", "conf"):
        shutil.copytree(PACKAGE.parent / name, copy / name, ignore=kept)
    for path in [*(copy / "skinmtl" / "tasks").rglob("*.py"), *(copy / "conf").rglob("*.yaml")]:
        text = path.read_text(encoding="utf-8")
        renamed = rename(text) if path.suffix == ".yaml" else text.replace('"cls"', '"dgn"')
        path.write_text(renamed, encoding="utf-8")
        if path.stem == "cls":
            path.rename(path.with_stem("dgn"))
    (copy / "conf" / "loss" / "cls").rename(copy / "conf" / "loss" / "dgn")
    paths = [str(copy), str(Path(__file__).parents[1])]
    program = RENAMED.format(paths=paths, copy=str(copy), root=str(synthetic_root))
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    first, second, *_, last = done.stdout.splitlines()
    assert first == "['seg', 'dgn', 'site', 'age'] ['age', 'dgn', 'seg', 'site'] True"
    assert second == "['dx', 'predicted_dx']" and last == "['file', 'dx']"


def rename(text: str) -> str:
    """A config's text with the task cls called dgn."""
    lines = []
    for line in text.splitlines(keepends=True):
        for before in ("  cls:", "\ncls:", "/cls", ".cls", "[cls", ",cls", ", cls", "{cls"):
            line = line.replace(before, before.replace("cls", "dgn"))
        lines.append(f"dgn{line.removeprefix('cls')}" if line.startswith("cls:") else line)
    return "".join(lines)


@pytest.mark.parametrize("name", ["items", "keys", "forward", "parameters", "mask"])
def test_a_name_that_torch_has_taken_is_no_task(name: str) -> None:
    node = {"_target_": "skinmtl.tasks.classification.learning.Classification", "column": "sex"}
    tree: dict[str, Any] = {"tasks": [name], "task": {name: node}}
    (fault,) = rules.faults_across(tree)
    assert str(fault).startswith(f"task.{name}: no task can be called so; fix: ")


def test_the_diagnosis_is_not_another_column() -> None:
    said = r"task\.cls\.column: cls is the diagnosis, .*; fix: add a task of another name"
    with pytest.raises(ConfigError, match=said):
        Classification("sex", name="cls")
    assert Classification("sex", name="sex").column == "sex" and Classification(name="cls").column == "dx"
