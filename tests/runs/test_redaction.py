"""What nobody meant to share is in nothing that is shared: environment, netrc, names of files, EXIF, CSV columns."""

from __future__ import annotations

import os
import shutil
import zipfile
from pathlib import Path

import pandas as pd
import pytest
from fakes import write_run
from PIL import Image
from small_runs import SMALL, train

from skinmtl.cli import commands
from skinmtl.errors import InputError
from skinmtl.runs.redaction import command_without_paths, without_paths_in
from skinmtl.runs.run import Run

CANARY = "CANARY-b3f1"


@pytest.fixture
def private(synthetic_root: Path, tmp_path: Path) -> Path:
    """The synthetic images in a patient's folder, a name in each image's EXIF and in a column of the table."""
    root = tmp_path / f"patient-{CANARY}"
    shutil.copytree(synthetic_root, root)
    (root / "synthetic.json").unlink(missing_ok=True)
    for path in root.glob("HAM10000_images_part_*/*.jpg"):
        with Image.open(path) as image:
            exif = image.getexif()
            exif[0x010E] = f"{CANARY} 1970-01-01"  # ImageDescription
            image.save(path, quality=95, exif=exif)
    shutil.copy(path, path.with_name(f"{CANARY}.jpg"))  # which the table does not know
    table = pd.read_csv(root / "HAM10000_metadata.csv")
    table.assign(patient=CANARY).to_csv(root / "HAM10000_metadata.csv", index=False)
    return root


def holding(folder: Path) -> list[str]:
    """Files below a folder that hold the canary, in archives too; or whose name does."""
    found = []
    for path in sorted(folder.rglob("*")):
        if CANARY in path.relative_to(folder).as_posix():
            found.append(path.relative_to(folder).as_posix())
        if not path.is_file():
            continue
        contents = [path.read_bytes()]
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                contents += [archive.read(name) for name in archive.namelist()]
        if any(CANARY.encode() in content for content in contents):
            found.append(path.relative_to(folder).as_posix())
    return found


@pytest.mark.fault("a stranger's run that reads the environment of whoever opens it")
@pytest.mark.parametrize("line", ["name: a-${oc.env:PASSWORD}", "data: {list: [1, '${oc.env:PASSWORD}']}"])
def test_a_strangers_run_reads_nothing_of_the_environment(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PASSWORD", CANARY)
    run = Run(write_run(tmp_path / "run"))
    assert run.config().name == "resnet18_unet", "as it comes it is sound"
    (run.path / ".hydra" / "config.yaml").write_text(f"seed: 0\n{line}\n")
    with pytest.raises(InputError, match=r"config.yaml: (name|data.list.1) is an interpolation; fix: "):
        run.config()
    assert commands.main(["report", str(run.path)]) == 0
    assert "is an interpolation" in (run.path / "report.html").read_text()
    assert holding(run.path) == []


@pytest.mark.fault("a canary in environment, netrc, EXIF, folder name, table")
def test_what_a_run_leaves_to_be_shared_names_nobody(
    private: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "PASSWORD"):
        monkeypatch.setenv(name, CANARY)
    netrc = Path(os.environ["HOME"]) / ".netrc"
    netrc.write_text(f"machine example.org login me password {CANARY}\n")
    try:
        run = train(tmp_path / f"by-{CANARY}" / "run", private, [*SMALL, f"data.masks={_masks(private)}"], figures=True)
    finally:
        netrc.unlink()
    # The config is this machine's own: it says where the images are, and a run is evaluated again by it.
    assert Run(run.path).info()["command"].startswith("python train.py")
    assert holding(run.path) == [".hydra/config.yaml"]
    assert CANARY not in Run(run.path).info()["command"]
    # Negative control: there is something to be found, and it is looked for in archives, too.
    assert len(holding(private)) > 60
    with zipfile.ZipFile(run.path / "packed.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("inner", CANARY)
    assert "packed.zip" in holding(run.path)


@pytest.mark.parametrize(
    ("told", "shown"),
    [
        ("data.root=/a/CANARY data.size=[96,128] loss/seg=dice", "data.root=[path] data.size=[96,128] loss/seg=dice"),
        ("data.root=CANARY weighting.seg=1/2", "data.root=[path] weighting.seg=1/2"),
        ("model.weights=CANARY.pth model.encoder=tu-resnet18", "model.weights=[path] model.encoder=tu-resnet18"),
        ("data.masks='/a b/CANARY/c' resume=auto", "data.masks='[path]' resume=auto"),
        ("+logger.api_key=CANARY data.split=null", "+logger.api_key=... data.split=null"),
        ("~/CANARY/x.csv: no such file (in /b/CANARY)", "[path]: no such file (in [path])"),
        ("CANARY/b/x.csv: no such file; fix: data.root", "[path]: no such file; fix: data.root"),
        ("data/x.csv: none of it (see data.) data.root", "[path]: none of it (see [path].) data.root"),
        ("monitor=val/cls/balanced_accuracy", "monitor=val/cls/balanced_accuracy"),
        ("val/score: 'a' or 'b'", "val/score: 'a' or 'b'"),
        ("/a/Anna CANARY=1/x y.csv: no such file; fix: it", "[path]: no such file; fix: it"),
        ("/a/CANARY b.yaml, line 3: no YAML", "[path], line 3: no YAML"),
    ],
)
def test_commands_and_errors_lose_paths_and_secrets_and_nothing_else(told: str, shown: str) -> None:
    assert without_paths_in(told, ["CANARY/b", "data"]) == shown


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["data.root=/a/Anna CANARY/cases", "seed=1"], "data.root=[path] seed=1"),
        (["data.root=Anna CANARY", "seed=1"], "data.root=[path] seed=1"),
        (["data.root=Anna CANARY=1/x y.csv"], "data.root=[path]"),
        (["hydra.run.dir=Anna CANARY/run"], "hydra.run.dir=[path]"),
        (["data.auxiliary={own: {root: Anna CANARY}}"], "data.auxiliary=[path]"),
        (["--config-dir", "/a/Anna CANARY/conf"], "--config-dir [path]"),
        (["+logger.api_key=a CANARY"], "+logger.api_key=..."),
        (["data.diagnoses={a b: [mel, nv]}", "size=1/2"], "data.diagnoses={a b: [mel, nv]} size=1/2"),
    ],
)
def test_no_part_of_a_path_with_spaces_stands_in_the_command(words: list[str], shown: str) -> None:
    assert command_without_paths("python train.py", words) == f"python train.py {shown}"


def _masks(root: Path) -> Path:
    (folder,) = root.glob("*segmentations*")
    return folder
