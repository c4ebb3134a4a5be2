"""What is said on the terminal: a bar for what takes long, and lists cut short."""

from __future__ import annotations

import io
import sys
import time

import pytest

from skinmtl import terminal
from skinmtl.terminal import bar, first, tracked


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def terminal_of(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """A terminal in place of stderr; asked for in a test, for pytest has its own there until that begins."""
    monkeypatch.setattr(sys, "stderr", screen := Terminal())
    monkeypatch.setenv("TERM", "xterm")
    return screen


@pytest.mark.parametrize(
    ("words", "most", "said"),
    [
        ([], 3, ""),
        (["a"], 3, "a"),
        (["a", "b", "c"], 3, "a, b, c"),
        (["a", "b", "c", "d"], 3, "a, b, c and 1 more"),
        (range(1206), 3, "0, 1, 2 and 1,203 more"),
        ((str(n) for n in range(5)), 2, "0, 1 and 3 more"),
    ],
)
def test_a_list_names_the_first_and_counts_the_others(words: object, most: int, said: str) -> None:
    assert first(words, most) == said  # type: ignore[arg-type]


def test_what_takes_less_than_a_second_shows_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = terminal_of(monkeypatch)
    assert list(tracked([1, 2, 3], "counting")) == [1, 2, 3]
    assert screen.getvalue() and "counting" not in screen.getvalue()


def test_what_takes_longer_does(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = terminal_of(monkeypatch)
    began = time.monotonic()
    now = iter(began + 2 * step for step in range(1000))
    monkeypatch.setattr(terminal.time, "monotonic", lambda: next(now))
    assert list(tracked(iter("abc"), "counting", 3)) == ["a", "b", "c"]
    assert "counting" in screen.getvalue() and "3/3" in screen.getvalue()


def test_nothing_is_written_where_no_terminal_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", file := io.StringIO())
    with bar("counting", 2) as step:
        time.sleep(1.05)
        step(1)
    assert file.getvalue() == ""
