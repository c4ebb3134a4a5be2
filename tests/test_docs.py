"""The README and the documentation: what they tell to type is run, what they show as code works."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
import pytest
from hydra.core.global_hydra import GlobalHydra
from nbclient import NotebookClient
from small_runs import CONF, SMALL

from skinmtl.cli import commands, train
from skinmtl.runs.run import Run

ROOT = CONF.parent
DOCS = ROOT / "docs"
EXAMPLES = DOCS / "examples"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
# In place of a data set, of ten epochs and of ResNet-18.
TINY = ["data.synthetic.lesions=60", "data.synthetic.size=[48,64]", "data.size=32", "data.batch_size=8", *SMALL]
TINY += ["trainer.max_epochs=1", "trainer.limit_train_batches=2", "trainer=cpu", "trainer.precision=32-true"]
SYNTHETIC = "outputs/.cache/synthetic/60-48x64-0/HAM10000_images_part_1"


def typed(page: Path, begins: str) -> list[list[str]]:
    """The commands of a page, indented or fenced, as words, without comments and without what stands in front."""
    found = []
    for line in page.read_text(encoding="utf-8").splitlines():
        if re.match(rf"(    )?([A-Z_]+=\S+ )?{begins} ", line):
            bare = re.sub(r"<([^<>]+)>", lambda name: name[1].replace(" ", "_"), line)
            words = shlex.split(bare, comments=True)
            found.append(words[words.index(begins.split()[-1]) + 1 :])
    return found


def all_typed(begins: str) -> list[list[str]]:
    unique = {tuple(words): None for page in PAGES for words in typed(page, begins)}
    return [list(words) for words in unique]


def placed(words: list[str], folder: Path = EXAMPLES) -> list[str]:
    """Words that name `mine/conf`, or the same in docs/examples, by where it is."""
    return [re.sub(r"file://(docs/examples/)?mine/conf", f"file://{folder}/mine/conf", word) for word in words]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    GlobalHydra.instance().clear()
    return tmp_path


@pytest.mark.parametrize("words", all_typed("python train.py"), ids=" ".join)
def test_a_training_command_of_the_pages_is_composed(words: list[str], here: Path) -> None:
    if words == ["--help"] or "[key=value" in words:
        assert train.main(CONF, ["train.py", "--help"]) == 0
        return
    words = [word for word in words if word not in ("-m", "--multirun")]
    # Of a sweep the first job, as `--cfg job` does.
    words = [re.sub(r"^((?!tasks|auxiliary|data\.)[\w./]+=[^,\[{]+),.*", r"\1", word) for word in words]
    assert train.main(CONF, ["train.py", *placed(words), "--cfg", "job"]) == 0


def test_a_training_command_that_does_not_exist_is_not_composed(here: Path) -> None:
    assert train.main(CONF, ["train.py", "experiment=resnet18_unett", "--cfg", "job"]) == 2


@pytest.mark.parametrize("words", all_typed("skinmtl"), ids=" ".join)
def test_a_command_of_the_pages_is_understood(words: list[str]) -> None:
    assert callable(commands.parser().parse_args(words).act)


def test_a_command_that_does_not_exist_is_not_understood() -> None:
    with pytest.raises(SystemExit):
        commands.parser().parse_args(["scores", "predictions.csv"])


def test_the_tutorial_and_the_readmes_python_can_be_followed_to_the_end(
    here: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    page = DOCS / "getting-started" / "tutorial.md"
    text = page.read_text(encoding="utf-8")
    told = re.findall(r"^(python train\.py|skinmtl) (.*)$", text, re.MULTILINE)
    assert len(told) >= 8
    for program, rest in told:
        words = [re.sub(r"outputs/\.cache/synthetic/\S+", SYNTHETIC, word) for word in shlex.split(rest)]
        if program == "skinmtl":
            assert commands.main(words) == 0, rest
        else:
            few = [word for word in words if not word.startswith("trainer.max_epochs")]
            assert train.main(CONF, ["train.py", *few, *TINY]) == 0, rest
    said = capfd.readouterr().out
    assert "balanced_accuracy" in said and "shuffled" in said
    assert len(list(Path("outputs/tutorial/predicted/masks").iterdir())) > 10

    check_reference(Run.open("outputs/tutorial/first"))

    image = next(Path(SYNTHETIC).glob("*.jpg"))
    (shown,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert '"experiment=demo", "seed=1"' in shown and '"image.jpg"' in shown
    names: dict[str, object] = {}
    asked = shown.replace('"seed=1"', f'"seed=1", *{TINY!r}').replace('"image.jpg"', repr(str(image)))
    exec(asked, names)  # noqa: S102 - the page's own lines
    prediction = names["prediction"]
    assert prediction.mask.shape == (48, 64) and sum(prediction.probabilities.values()) == pytest.approx(1)  # type: ignore[attr-defined]

    notebook = nbformat.read(EXAMPLES / "notebook" / "a_run.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "kept without outputs"
    monkeypatch.delenv("MPLBACKEND")  # a notebook draws into its page
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(here)}}).execute()
    (drawn,) = (cell for cell in notebook.cells if "contour" in cell.source)
    assert any("image/png" in output.get("data", {}) for output in drawn.outputs)


def admitted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the package of the how-to pages imported anew, and let configs name it."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setenv("SKINMTL_ALLOW", "mine")
    for name in [name for name in sys.modules if name.split(".")[0] == "mine"]:
        monkeypatch.delitem(sys.modules, name)


def test_a_task_and_a_metric_of_ones_own_are_trained_scored_reported_and_predicted(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    admitted(monkeypatch)
    words = ["experiment=demo", f"hydra.searchpath=[file://{EXAMPLES}/mine/conf]", *TINY, "hydra.run.dir=run"]
    words += ["tasks=[seg,cls,places]", "task.cls._target_=mine.metrics.Diagnosis"]
    assert train.main(CONF, ["train.py", *words]) == 0
    test, page = scores(Run.open("run")), (here / "run" / "report.html").read_text(encoding="utf-8")
    assert 0 < test["places"]["mean_accuracy"]["low"] < test["places"]["mean_accuracy"]["high"] <= 1
    assert -1 <= test["cls"]["kappa"]["low"] <= test["cls"]["kappa"]["high"] <= 1
    assert "Accuracy, mean over attributes" in page and "kappa" in page
    image = next(Path(SYNTHETIC).glob("*.jpg"))
    assert commands.main(["predict", "run", str(image), "--out", "new"]) == 0
    assert "places_back_value" in pd.read_csv("new/predictions.csv")


def test_code_of_ones_own_trains_as_the_pages_show_it(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    admitted(monkeypatch)
    groups = {path.relative_to(EXAMPLES / "mine" / "conf") for path in EXAMPLES.glob("mine/conf/**/*.yaml")}
    chosen = [f"{path.parent}={path.stem}" for path in sorted(groups) if path.parts[0] not in ("study", "tasks")]
    apart = ["model=pixels"]  # which has no encoder of its own choice, and no first task that a weighting would halve
    assert len(chosen) >= 8 and set(apart) < set(chosen)
    tiny = [word for word in TINY if not word.startswith("model")]
    search = [f"hydra.searchpath=[file://{EXAMPLES}/mine/conf]", "experiment=demo", "evaluate=false", *tiny]
    together = [word for word in chosen if word not in apart]
    for run, words in (("all", together), ("network", ["model=pixels"])):
        assert train.main(CONF, ["train.py", *search, *words, f"hydra.run.dir={run}"]) == 0, words
    targets = (here / "all" / ".hydra" / "config.yaml").read_text().count("_target_: mine.")
    assert targets == len(together) and list((here / "all").glob("log*.jsonl"))
    monkeypatch.delenv("SKINMTL_ALLOW")
    assert train.main(CONF, ["train.py", *search, "model=pixels", "hydra.run.dir=refused"]) == 2


def built(config: Path, site: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", str(config), "-d", str(site)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=environment, timeout=600)


def fetched(html: str) -> list[str]:
    """What a page would fetch from another machine; links that a reader may follow are none."""
    return re.findall(r'<(?:script|img|link|iframe)[^>]*?(?:src|href)="((?:https?:)?//[^"]+)"', html)


def test_the_site_is_built_with_every_link_and_anchor_in_place(tmp_path: Path) -> None:
    done = built(ROOT / "mkdocs.yml", tmp_path / "site")
    assert done.returncode == 0, done.stderr
    pages = {page.name: page.read_text(encoding="utf-8") for page in (tmp_path / "site").rglob("*.html")}
    assert "optim" in pages["config.html"] and "_target_" not in pages["config.html"]
    for name, page in pages.items():
        assert fetched(page) == [] and "{{ " not in page, name
    assert fetched('<script defer src="https://cdn.example.org/a.js">') == ["https://cdn.example.org/a.js"]
    for link in re.findall(r"\]\(((?!http)[^)#]+)", (ROOT / "README.md").read_text(encoding="utf-8")):
        assert (ROOT / link).exists(), link


@pytest.mark.parametrize("link", ["nowhere.md", "index.md#nowhere"])
def test_a_link_that_leads_nowhere_fails_the_build(tmp_path: Path, link: str) -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    (checks,) = re.findall(r"^validation:\n(?:  .*\n)+", text, re.MULTILINE)
    (tmp_path / "mkdocs.yml").write_text(f"site_name: x\ntheme: {{name: mkdocs}}\nplugins: []\n{checks}")
    (tmp_path / "docs").mkdir()
    for place, code in ((link, 1), ("index.md#title", 0)):
        (tmp_path / "docs" / "index.md").write_text(f"# Title\n\n[x]({place})\n")
        assert built(tmp_path / "mkdocs.yml", tmp_path / "site").returncode == code


def test_the_drawing_and_the_page_of_the_house_have_every_folder() -> None:
    spec = importlib.util.spec_from_file_location("hooks", DOCS / "hooks.py")
    assert spec is not None and spec.loader is not None
    hooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hooks)
    page = (DOCS / "explanation" / "house.md").read_text(encoding="utf-8")
    for folder in (path.parent.name for path in (ROOT / "skinmtl").glob("*/__init__.py")):
        assert f">{folder}</text>" in hooks.house() and f"| `skinmtl/{folder}` |" in page, folder


def test_the_first_page_is_short() -> None:
    assert len((ROOT / "README.md").read_bytes()) <= 9000


# What the reference says of files and metrics


def named_in(page: str) -> set[str]:
    """What a page of the reference has as code."""
    return set(re.findall(r"`([^`\n]+)`", (DOCS / "reference" / page).read_text(encoding="utf-8")))


def is_named(name: str, known: set[str]) -> bool:
    """Whether a name stands among those of a page, of which some have a part in <>."""
    shapes = (re.split(r"<[^>]+>", one) for one in known if not one.startswith("<"))
    return any(re.fullmatch(".+".join(map(re.escape, shape)), name) for shape in shapes)


def check_reference(run: Run) -> None:
    """The reference names every file, column, fact and metric of a run."""
    known = named_in("run-folder.md")
    files = [str(file.relative_to(run.path)) for file in run.path.rglob("*") if file.is_file()]
    columns = [*pd.read_csv(run.path / "metrics.csv"), *run.predictions(), *run.info()]
    assert [name for name in files if not {name, Path(name).name} & known] == []
    assert [name for name in map(str, columns) if not is_named(name, known)] == []
    assert is_named("prob_nv", known) and not is_named("probability", known)
    assert [name for named in scores(run).values() for name in named if name not in named_in("metrics.md")] == []


def scores(run: Run) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = json.loads((run.path / "scores.json").read_text())["parts"]["test"]["scores"]
    return found
