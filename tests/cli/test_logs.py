"""Who hears what the house says: a reader that leaves early is no mistake, and no line comes twice."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from fakes import write_run
from hangs import HANGS

from skinmtl.runs.run import Run
from skinmtl.terminal import spoken

ROOT = Path(__file__).parents[2]
COMMANDS = {
    "help": [str(ROOT / "train.py"), "--help"],
    "a command's help": ["-m", "skinmtl.cli", "predict", "--help"],
    "version": ["-m", "skinmtl.cli", "--version"],
    "print": ["-m", "skinmtl.cli", "score", "run/predictions.csv"],
    "table": ["-m", "skinmtl.cli", "runs", "run"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_reader_that_leaves_early_ends_a_command_in_silence(tmp_path: Path, name: str) -> None:
    file = Run(write_run(tmp_path / "run")).predictions_file
    of = pd.read_csv(file)
    of.assign(lesion_id=of["split"] + of["lesion_id"]).to_csv(
        file, index=False
    )  # else a note says that they are shared
    reads, writes = os.pipe()
    os.close(reads)  # what `| head` has done by the time that much is printed
    command = subprocess.Popen(
        [sys.executable, *COMMANDS[name]], cwd=tmp_path, stdout=writes, stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONUNBUFFERED": "", "PYTHONPATH": f"{ROOT}:{os.environ['PYTHONPATH']}"}, text=True,
    )  # fmt: skip
    os.close(writes)
    _, said = command.communicate(timeout=HANGS)
    assert said == ""
    assert command.returncode == 141


def test_what_is_said_is_heard_once(capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    root, room = logging.getLogger(), logging.getLogger("skinmtl.data")
    handlers, root.handlers = root.handlers, []
    try:
        for _ in range(2):  # a second run in the same notebook
            with spoken(), spoken():
                room.info("89 images")
        assert capsys.readouterr().err.splitlines() == ["89 images"] * 2
        room.info("after the run")
        assert capsys.readouterr().err == ""
        root.addHandler(logging.StreamHandler(sys.stderr))  # a notebook that has its own
        with spoken():
            room.info("89 images")
        assert capsys.readouterr().err == "89 images\n"
    finally:
        root.handlers = handlers
