"""What befell runs in tests marked `fault(name, tries)`: how often it was tried, how often the promise held."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

COLUMNS = ("fault", "tries", "held", "worst")


def pytest_addoption(parser: pytest.Parser) -> None:
    """The option that asks for it."""
    parser.addoption("--tally", type=Path, metavar="FILE", help="count what befell runs and how many held, as CSV")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Take the marker along, over processes too. A test may record figures: the worst of each is kept."""
    report = yield
    marker = item.get_closest_marker("fault")
    if marker is not None and report.when == "call":  # type: ignore[attr-defined]
        report.user_properties.append(("fault", [*marker.args, marker.kwargs.get("tries", 1)]))  # type: ignore[attr-defined]
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """A line for each fault, on the terminal and in the file. A test that was skipped tried nothing."""
    file: Path | None = config.getoption("tally")
    if file is None:
        return
    rows: dict[str, dict[str, Any]] = {}
    for outcome in ("passed", "failed"):
        for report in terminalreporter.stats.get(outcome, []):
            told = dict(report.user_properties)
            if "fault" not in told:
                continue
            name, tries = told.pop("fault")
            row = rows.setdefault(name, {"fault": name, "tries": 0, "held": 0, "worst": {}})
            row["tries"] += tries
            row["held"] += tries if outcome == "passed" else 0
            row["worst"] |= {key: max(value, row["worst"].get(key, value)) for key, value in told.items()}
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="") as out:
        writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for name in sorted(rows):
            worst = ", ".join(f"{key} {value:.3g}" for key, value in sorted(rows[name]["worst"].items()))
            writer.writerow(rows[name] | {"worst": worst})
            terminalreporter.write_line(f"{rows[name]['held']:>4} of {rows[name]['tries']:>4}  {name}  {worst}")
    terminalreporter.write_line(f"written to {file}")
