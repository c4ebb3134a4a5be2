"""The README and the documentation: what they tell to type is run, what they show as code works."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from hydra.core.global_hydra import GlobalHydra
from nbclient import NotebookClient
from training import CONF, SMALL

import skinmtl
from skinmtl.cli import commands, train

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


def test_code_of_ones_own_trains_as_the_pages_show_it(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setenv("SKINMTL_ALLOW", "mine")
    for name in [name for name in sys.modules if name.split(".")[0] == "mine"]:
        monkeypatch.delitem(sys.modules, name)
    groups = {path.relative_to(EXAMPLES / "mine" / "conf") for path in EXAMPLES.glob("mine/conf/**/*.yaml")}
    chosen = [f"{path.parent}={path.stem}" for path in sorted(groups) if path.parts[0] != "study"]
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


def test_the_site_is_built_with_every_link_and_anchor_in_place(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=600, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    )
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "site" / "reference" / "config.html").read_text(encoding="utf-8")
    assert "optim" in page and "_target_" not in page
    assert "googleapis" not in page and "unpkg" not in page, "nothing is fetched"
    for link in re.findall(r"\]\(((?!http)[^)#]+)", (ROOT / "README.md").read_text(encoding="utf-8")):
        assert (ROOT / link).exists(), link


def test_the_readme_is_short() -> None:
    assert (ROOT / "README.md").stat().st_size <= 9_000 and skinmtl.__doc__ is not None
