"""metrics.csv: every value that Lightning logs, by epoch and step."""

from __future__ import annotations

import csv
import io
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers.logger import Logger

from skinmtl.errors import InputError
from skinmtl.files import write_text

log = logging.getLogger(__name__)


class MetricsFile(Logger):
    """Write metrics.csv: one row per call of the trainer's log, a column per name, whatever other loggers run.

    A new name adds a column: the file is then written again, whole. Cells that were not logged are empty. Of several
    processes all but the first give no path, and nothing is written. A file that is there is continued.

    Args:
        path: of the file; None writes nothing.

    Raises:
        InputError: what is there are not the metrics of a run.
    """

    def __init__(self, path: Path | None) -> None:
        super().__init__()
        self.path = path
        self.rows = 0
        self._columns: list[str] = []
        if path is not None and path.exists():
            try:
                with path.open(newline="", encoding="utf-8") as file:
                    lines = csv.reader(file)
                    self._columns = next(lines, [])
                    self.rows = sum(1 for _ in lines)
            except (ValueError, csv.Error):
                self._columns = ["?"]
            if self._columns[:2] not in ([], ["step", "time"]):
                raise InputError(str(path), "not the metrics of a run", "restore it, or delete it: no score needs it")

    @property
    def name(self) -> str:
        """Give what Lightning calls this logger."""
        return "csv"

    @property
    def version(self) -> int:
        """Give 0: a run has one metrics.csv."""
        return 0

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """The config stands in .hydra/config.yaml; nothing to do."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append one row; `epoch` is counted from 0, `step` in optimiser steps."""
        if self.path is None:
            return
        row = {"step": step, "time": round(time.time(), 3)} | dict(metrics)
        new = [name for name in row if name not in self._columns]
        if new:
            self._columns += new
            self._widen(self.path)
        with self.path.open("a", encoding="utf-8", newline="") as file:
            csv.DictWriter(file, self._columns).writerow(row)
        self.rows += 1

    def cut(self, rows: int) -> None:
        """Keep so many rows: what came after them is trained again."""
        if self.path is not None and self.rows > rows:
            self._write(self.path, self._read(self.path)[:rows])
            self.rows = rows

    def _widen(self, path: Path) -> None:
        self._write(path, self._read(path) if path.exists() else [])

    def _read(self, path: Path) -> list[dict[str, str]]:
        with path.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))

    def _write(self, path: Path, rows: list[dict[str, str]]) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, self._columns)
        writer.writeheader()
        writer.writerows(rows)
        write_text(path, text.getvalue(), durable=False)
