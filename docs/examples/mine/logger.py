"""A logger: what a run logs and what it ends with, as lines of JSON in a file of the run folder."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers.logger import Logger
from pytorch_lightning.utilities import rank_zero_only

from skinmtl.runs.run import Run


class JSONLines(Logger):
    """Write `<name>.jsonl` into the run folder.

    Args:
        file: its name without the ending.
        folder: the run's folder, handed in by the run.
        run_id: the run's id, handed in by the run.
    """

    def __init__(self, file: str = "log", *, folder: Path, run_id: str) -> None:
        super().__init__()
        self.path, self.run_id = folder / f"{file}.jsonl", run_id

    @property
    def name(self) -> str:
        """What Lightning calls this logger."""
        return "jsonl"

    @property
    def version(self) -> str:
        """The run's id."""
        return self.run_id

    @rank_zero_only  # of several processes the first one writes
    def _write(self, row: Mapping[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def start(self, config: Mapping[str, Any], stamps: str = "") -> None:
        """Begin, with the whole config and what the scores have to be shown with."""
        self._write({"run": self.run_id, "stamps": stamps})

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Lightning's own; the config came at the start."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """One row of metrics.csv."""
        self._write({"step": step, **metrics})

    def log_run(self, run: Run) -> None:
        """What the run ended with: its folder has scores.json and figures/."""
        scores = json.loads((run.path / "scores.json").read_text(encoding="utf-8"))
        self._write({"test": scores["parts"]["test"]["scores"]})

    def finish(self, exit_code: int) -> None:
        """End; another exit code than 0 is a run that failed or was stopped."""
        self._write({"exit_code": exit_code})
