"""Every shipped experiment composes, passes the check, trains and reports."""

from __future__ import annotations

from pathlib import Path

import pytest
from training import CONF, train

EXPERIMENTS = sorted(file.stem for file in (CONF / "experiment").glob("*.yaml"))


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_trains_two_steps_and_reports(experiment: str, synthetic_root: Path, tmp_path: Path) -> None:
    done = train(tmp_path / "run", synthetic_root, [], experiment)
    info = done.info()
    assert info["status"] == "finished"
    assert (done.path / "report.html").stat().st_size > 10_000
    table = done.predictions()
    assert ("dice" in table) == ("seg" in info["tasks"])
    assert ("predicted_dx" in table) == ("cls" in info["tasks"])
    assert set(table["split"]) == {"val", "test"}
    assert len(table) == info["split"]["val"]["images"] + info["split"]["test"]["images"]
