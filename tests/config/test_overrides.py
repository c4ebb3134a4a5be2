"""What is typed is what is read: paths with any name, and a word that can be pasted where a value cannot be read."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from skinmtl.cli import commands
from skinmtl.config.overrides import expand, quoted, readable
from skinmtl.errors import ConfigError

NAMES = ["Läsionen", "数据", "ham=10000", "ham (1)", "ham, 2018", "it's", 'say "x"', "both ' and \"", "a\\b", "end\\"]
NAMES += ["$HOME", "a#1", "a&b;c!", "{x}", "[x]", "trailing ", " leading", "2018%", "a~b", "x|y", "*", "null", "true"]


def read(word: str) -> object:
    """What Hydra makes of a word."""
    return OverridesParser.create().parse_override(word).value()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("key", ["data.root", "+data.auxiliary.mine.root", "hydra.run.dir", "init_from"])
def test_a_path_is_read_as_it_is_typed(key: str, name: str) -> None:
    (word,) = readable([f"{key}=/data/{name}"], sweep=False)
    assert read(word) == f"/data/{name}"


@pytest.mark.parametrize("name", NAMES)
def test_what_is_quoted_is_read_as_it_is(name: str) -> None:
    assert read(f"name={quoted(name)}") == name


def test_the_home_of_a_user_is_meant_by_a_tilde(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/Zoë")
    keys = "data.root data.masks data.lesions data.split data.cache_dir data.split_dir data.duplicates model.weights"
    for key in [*keys.split(), "resume", "init_from", "hydra.run.dir", "hydra.sweep.dir"]:
        assert read(readable([f"{key}=~/x"], sweep=False)[0]) == "/home/Zoë/x"
    cfg = OmegaConf.create(
        {"data": {"root": "~/x", "auxiliary": {"a": {"root": "~/y"}}}, "name": "~", "tasks": ["~/z"]}
    )
    expand(cfg)
    assert OmegaConf.to_container(cfg) == {
        "data": {"root": "/home/Zoë/x", "auxiliary": {"a": {"root": "/home/Zoë/y"}}},
        "name": "~",
        "tasks": ["~/z"],
    }


def test_a_comma_is_between_values_of_a_sweep_unless_such_a_path_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/zoe")
    (word,) = readable(["data.root=~/a,/x/ü"], sweep=True)
    assert [getattr(each, "text", each) for each in read(word).list] == ["/home/zoe/a", "/x/ü"]  # type: ignore[attr-defined]
    assert readable(["data.root=glob(*)", "data.fold=range(3)"], sweep=True) == [
        "data.root=glob(*)",
        "data.fold=range(3)",
    ]
    (tmp_path / "ham, 2018").mkdir()
    assert read(readable([f"data.root={tmp_path}/ham, 2018"], sweep=True)[0]) == f"{tmp_path}/ham, 2018"


def test_what_is_no_path_is_left_alone() -> None:
    words = ["-m", "experiment=demo,resnet18_unet", "seed=0", "data.synthetic.lesions=60", "init_from=null", "~optim"]
    words += ["data.root=/x", "data.root='/x/ü'", "data.root=${oc.env:HOME}/x", "resume=auto", "data.size=[64,64]"]
    assert readable(words, sweep=True) == words


@pytest.mark.parametrize("word", ["name=ü", "name=a=b", "+data.auxiliary.x.disjoint=they are others (by year)"])
def test_what_cannot_be_read_is_shown_as_it_can_be(word: str) -> None:
    with pytest.raises(ConfigError) as caught:
        readable([word], sweep=False)
    (shown,) = shlex.split(caught.value.fix.removeprefix("put it in quotes: "))  # as a shell reads what is pasted
    assert read(shown) == word.partition("=")[2]


def test_what_belongs_to_an_option_is_left_to_it() -> None:
    words = ["--config-path", "/x/ham=10000, (ü)/.hydra", "-cn", "a=(b", "seed=0"]
    assert readable(words, sweep=False) == words


def test_where_a_sweep_writes_is_one_place() -> None:
    assert read(readable(["hydra.sweep.dir=a, ü"], sweep=True)[0]) == "a, ü"


def test_the_other_commands_know_a_home_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/zoe")
    told = commands.parser().parse_args(["predict", "~/run", "~/photo.jpg", "--out=~/out"])
    assert (told.run, told.images, told.out) == (
        Path("/home/zoe/run"),
        [Path("/home/zoe/photo.jpg")],
        Path("/home/zoe/out"),
    )
