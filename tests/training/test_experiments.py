"""Every shipped experiment composes, passes the check, trains and reports."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_runs import CONF, train

PICTURED = ("demo", "resnet18_unet_seg", "resnet18_unet_cls", "trimap_malignancy")  # one of each kind of target
EXPERIMENTS = sorted(file.stem for file in (CONF / "experiment").glob("*.yaml"))


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_trains_two_steps_and_reports(experiment: str, synthetic_root: Path, tmp_path: Path) -> None:
    pictured = experiment in PICTURED
    done = train(tmp_path / "run", synthetic_root, [], experiment, figures=pictured)
    info = done.info()
    assert info["status"] == "finished"
    assert (done.path / "report.html").stat().st_size > 10_000
    assert ("data:image/" in (done.path / "report.html").read_text()) == pictured
    table = done.predictions()
    assert ("dice" in table) == ("seg" in info["tasks"])
    assert ("predicted_dx" in table) == ("cls" in info["tasks"])
    assert set(table["split"]) == {"val", "test"}
    assert len(table) == info["split"]["val"]["images"] + info["split"]["test"]["images"]
