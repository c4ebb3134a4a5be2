"""Every one-line error is in a list that is looked at when it changes; what stands there is what a user is told."""

from __future__ import annotations

from pathlib import Path

import pytest
from recorded_errors import RECORD, record

from skinmtl.errors import ConfigError, Faults, InputError

PLANTED = """
from pkg.words import FIX


class SkinmtlError(Exception):
    pass


class InputError(SkinmtlError):
    pass


def plain(path):
    raise InputError(str(path), "no such file", "give another")


def far(path, count):
    what = f"{path}: {count:,} rows"
    if count > 3:
        what = "too many"
        print(what)
        return None
    fix = FIX
    if count == 2:
        fix = "give three"
    other = ["no words"]
    return InputError("table", what + f" of {other}", fix)


def several(faults):
    raise InputError(*faults)


def strange():
    raise ValueError("where", "what", "fix")


def printed(path):
    print(f"skinmtl: error: {path}: gone; fix: look")
"""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    folder = tmp_path / "pkg"
    folder.mkdir()
    (folder / "words.py").write_text('FIX = "give two"\n')
    (folder / "told.py").write_text(PLANTED)
    return folder


def test_every_error_is_recorded() -> None:
    assert record() == RECORD.read_text(encoding="utf-8"), "words changed: `make errors`, and look at the difference"


def test_words_are_found_where_they_stand(package: Path) -> None:
    assert record(package).splitlines()[2:] == [
        "pkg.told",
        "  InputError  table: {path}: {count} rows of {other}; fix: (give two | give three)",
        "  InputError  {path}: no such file; fix: give another",
        "  print  {path}: gone; fix: look",
    ]


@pytest.mark.parametrize("word", ["no such file", "give another", "give two", "rows of", "gone"])
def test_a_changed_word_is_seen(package: Path, word: str) -> None:
    before = record(package)
    for file in package.iterdir():
        file.write_text(file.read_text().replace(word.split(" of")[0], "other words"))
    assert record(package) != before


def test_an_answer_is_one_line_of_where_what_and_fix() -> None:
    error = InputError("a\nb.csv", "no rows", "give one")
    assert str(error) == "a\\nb.csv: no rows; fix: give one"
    assert str(Faults([error, ConfigError("x", "y", "z")])).splitlines() == [str(error), "x: y; fix: z"]
