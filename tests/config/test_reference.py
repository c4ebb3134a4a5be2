"""The reference of the config: every key has a row and a meaning, and a planted one without is found."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated, Literal

import pytest
import yaml
from annotated_types import Ge, Interval
from small_runs import CONF

from skinmtl.config import reference
from skinmtl.config.schema import outline


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    return Path(shutil.copytree(CONF, tmp_path / "conf"))


def said(folder: Path) -> dict[str, reference.Key]:
    keys = [*reference.run_keys(folder)]
    keys += [key for group in reference.groups(folder) for option in group.options for key in option.keys]
    return {key.name: key for key in keys}


def test_everything_in_conf_and_every_argument_that_it_reaches_has_a_meaning() -> None:
    assert reference.undocumented(CONF) == []
    assert len(said(CONF)) > 150


@pytest.mark.parametrize(
    ("file", "line", "found"),
    [
        ("loss/seg/focal.yaml", "gamma: 2.0\n", "loss.seg.gamma"),
        ("config.yaml", "colour: red\n", "colour"),
        ("optim/lion.yaml", "_target_: torch.optim.Adam\n", "optim=lion"),
        ("experiment/demo.yaml", "model: {encodr: resnet18}\n", "experiment=demo: model.encodr"),
    ],
)
def test_what_is_planted_without_a_meaning_is_found(conf: Path, file: str, line: str, found: str) -> None:
    name, kept = line.partition(":")[0], conf / file
    text = kept.read_text() if kept.exists() else ""
    kept.write_text("".join(old for old in text.splitlines(True) if not old.startswith(f"{name}:")) + line)
    reference.read.cache_clear()
    assert reference.undocumented(conf) == [found]


def test_an_argument_without_words_in_its_docstring_is_found(conf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = reference.meanings("skinmtl.losses.DiceBCE")
    assert {"dice", "bce", "smooth"} <= set(known)
    monkeypatch.setattr(reference, "meanings", lambda target: {})
    reference.parameters.cache_clear()
    try:
        assert "loss.seg.bce" in reference.undocumented(conf)
    finally:
        reference.parameters.cache_clear()


def test_every_key_of_every_file_and_every_argument_of_what_they_build_has_a_row() -> None:
    rows, targets = said(CONF), 0

    def walk(node: object, where: str) -> None:
        nonlocal targets
        if isinstance(node, dict) and "_target_" in node and (seen := outline(node["_target_"])) is not None:
            targets += 1
            missing = [
                f"{where}{name}"
                for name, one in seen[1].items()
                if one.is_key and name.isidentifier() and f"{where}{name}" not in rows
            ]
            assert [key for key in missing if not any(row.startswith(f"{key}.") for row in rows)] == []
        for key, value in node.items() if isinstance(node, dict) else ():
            if not str(key).startswith("_") and key != "defaults":
                assert f"{where}{key}" in rows or any(row.startswith(f"{where}{key}.") for row in rows), key
                walk(value, f"{where}{key}.")

    for file in CONF.rglob("*.yaml"):
        written = reference.read(file)
        group = str(file.parent.relative_to(CONF)).replace("/", ".")
        if written.package != "_global_" and file.name != "config.yaml":
            walk(yaml.safe_load(file.read_text(encoding="utf-8")) or {}, f"{written.package or group}.")
    assert targets > 40


def test_a_comment_beside_a_value_is_its_meaning_and_one_above_it_too(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("# Head.\n# More.\na: 1  # one\n# two,\n# in lines\nb: {c: [1, 2], d: x}\ne: '#'  # a sign\n")
    written = reference.read(file)
    assert written.header == ("Head.", "More.")
    found = [(".".join(entry.path), entry.value, entry.comment) for entry in written.entries]
    assert found == [
        ("a", "1", "one"),
        ("b.c", "[1, 2]", "two, in lines"),
        ("b.d", "x", "two, in lines"),
        ("e", "'#'", "a sign"),
    ]


def test_type_hints_are_said_in_words() -> None:
    hints = {
        Annotated[int, Ge(1)]: "integer >= 1",
        Annotated[float, Interval(gt=0, le=1)] | None: "number > 0 and <= 1 or null",
        Literal["auto", "off"]: "auto or off",
        list[str] | bool: "list of text or true or false",
        tuple[int, int]: "list of integer",
    }
    assert [reference.hint_words(hint) for hint in hints] == list(hints.values())
