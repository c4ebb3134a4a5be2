"""`--fast`, the inner loop: no test that trains or starts a process, and of each test one case."""

from __future__ import annotations

import types
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

HERE = str(Path(__file__).parent)
SLOW = ("small_runs.train", "survivors.forked", "twoheads.fit", "skinmtl.distributed.launch.together")
SLOW += ("skinmtl.training.run.run", "skinmtl.training.fit.fit", "skinmtl.evaluation.evaluate.evaluate")
SLOW += ("skinmtl.studies.results.study_report", "skinmtl.audit.leaks.audit")
SLOW += ("skinmtl.evaluation.baselines.compare_run", "skinmtl.reports.run.write_run_report")
SLOW += ("skinmtl.data.certificate.certificate", "recorded_errors.record")
SLOW_NAMES = {"subprocess", "runpy", "fork", "Trainer", "train", "load_run", "fit", "evaluate_file"}


def pytest_addoption(parser: pytest.Parser) -> None:
    """The option that asks for it."""
    parser.addoption("--fast", action="store_true", help="no test that trains; of each test one case")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the tests that train or start a process, themselves or by a fixture or helper; leave out what is slow."""
    kept: list[pytest.Item] = []
    left_out: list[pytest.Item] = []
    known: dict[object, bool] = {}
    cases: Counter[str] = Counter()
    for item in items:
        assert isinstance(item, pytest.Function)
        if any(_is_slow(function, known) for function in (item.function, *_fixtures(item))):
            item.add_marker("trains")
        name = item.nodeid.partition("[")[0]
        cases[name] += 1
        fast = cases[name] == 1 and not any(item.get_closest_marker(mark) for mark in ("trains", "slow", "fault"))
        (kept if fast or not config.getoption("fast") else left_out).append(item)
    items[:] = kept
    config.hook.pytest_deselected(items=left_out)


def _fixtures(item: pytest.Function) -> Iterator[Callable[..., object]]:
    for definitions in item._fixtureinfo.name2fixturedefs.values():
        yield definitions[-1].func


def _is_slow(function: Callable[..., object], known: dict[object, bool]) -> bool:
    """Whether a function of the tests names something slow, itself or by another function of theirs."""
    code = getattr(function, "__code__", None)
    if code is None:
        return False
    if code not in known:
        known[code] = False  # until it is known, for functions that call each other
        values = [function.__globals__.get(name) for name in _names(code)]  # type: ignore[attr-defined]
        known[code] = (
            bool(SLOW_NAMES & set(_names(code)))
            or any(
                f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', '')}" in SLOW for value in values
            )
            or any(
                _is_slow(value, known)
                for value in values
                if isinstance(value, types.FunctionType) and value.__code__.co_filename.startswith(HERE)
            )
        )
    return known[code]


def _names(code: types.CodeType) -> Iterator[str]:
    """The names of its module and of attributes that a function uses, with those of the functions within it."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)
