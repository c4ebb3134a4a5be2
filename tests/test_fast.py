"""`make test-fast` leaves out what trains or starts a process, and nothing else but further cases."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from fast import _is_slow
from small_runs import compose, train


def trains() -> None:
    train(Path(), Path(), [])


def by_another() -> None:
    trains()


def within() -> None:
    def inner() -> None:
        subprocess.run([sys.executable], check=True)

    inner()


def composes() -> None:
    compose([])


def calls_itself() -> None:
    calls_itself()


@pytest.mark.parametrize("function", [trains, by_another, within])
def test_what_trains_or_starts_a_process_is_known_by_what_it_names(function: object) -> None:
    assert _is_slow(function, {})  # type: ignore[arg-type]


@pytest.mark.parametrize("function", [composes, calls_itself, len])
def test_what_does_neither_is_not_taken_for_it(function: object) -> None:
    assert not _is_slow(function, {})  # type: ignore[arg-type]
