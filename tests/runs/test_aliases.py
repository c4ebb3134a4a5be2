"""Names of before: what a config of version 0.1.0 could name is known, and said once to whoever writes it."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from skinmtl.config.overrides import readable
from skinmtl.config.schema import find
from skinmtl.errors import ConfigError
from skinmtl.runs import aliases

RECORDED = Path(__file__).parents[1] / "recorded" / "targets.yaml"
TARGETS = sorted(set(re.findall(r"_target_: ([\w.]+)", RECORDED.read_text())))


def test_every_target_of_before_names_something_of_today() -> None:
    assert len(TARGETS) > 40
    now = {name: aliases.target(name) for name in TARGETS}
    for name in now.values():
        assert callable(find(name))
    assert now["skinmtl.losses.Dice"] == "skinmtl.losses.Dice", "a class that stays is called as ever"
    moved = [name for name in TARGETS if now[name] != name]
    assert len(moved) > 15
    for name in moved:
        with pytest.raises(ConfigError):
            find(name)


def test_every_name_of_today_in_the_table_is_there() -> None:
    for module in aliases.MODULES.values():
        assert importlib.util.find_spec(f"skinmtl.{module}") is not None, module
    for name in aliases.NAMES.values():
        module, _, last = f"skinmtl.{name}".rpartition(".")
        assert hasattr(importlib.import_module(module), last), name


def test_a_name_of_today_has_no_other() -> None:
    for name in TARGETS:
        assert aliases.target(aliases.target(name)) == aliases.target(name)
    assert aliases.target("torch.optim.AdamW") == "torch.optim.AdamW"
    assert aliases.target("mine.network.Net") == "mine.network.Net"


def test_an_old_name_is_said_once_to_who_writes_it_and_never_of_a_saved_run(caplog: pytest.LogCaptureFixture) -> None:
    node = {"_target_": "skinmtl.heads.MaskGuided"}
    cfg = OmegaConf.create({"model": {"head": node}, "more": [node, node], "dropout": "${.more}"})
    assert OmegaConf.to_container(aliases.renamed(cfg), resolve=True)["more"][1] == {  # type: ignore[index,call-overload]
        "_target_": "skinmtl.models.heads.MaskGuided"
    }
    assert caplog.messages == []
    aliases.renamed(cfg, warn=True)
    said = "skinmtl.heads.MaskGuided is now called skinmtl.models.heads.MaskGuided: write that"
    assert caplog.messages == [said]
    assert aliases.renamed(aliases.renamed(cfg), warn=True) is not None
    assert caplog.messages == [said]


def test_a_renamed_key_is_taken_in_a_file_and_on_the_command_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(aliases, "KEYS", {"data.extra": "data.further", "patience": "callbacks.patience"})
    cfg = OmegaConf.create({"data": {"extra": {"a": {"share": 1}}, "size": 3}, "patience": 2, "extra": 4})
    assert aliases.renamed(cfg) == {
        "data": {"size": 3, "further": {"a": {"share": 1}}},
        "callbacks": {"patience": 2},
        "extra": 4,
    }
    words = readable(["+data.extra.a.share=0.5", "patience=3", "data.extras=1", "extra=5"], sweep=False)
    assert words == ["+data.further.a.share=0.5", "callbacks.patience=3", "data.extras=1", "extra=5"]
    assert "data.extra.a.share is now called data.further.a.share: write that" in caplog.messages
    assert len(caplog.messages) == 2


def test_auxiliary_data_are_still_taken_by_their_name_of_before(caplog: pytest.LogCaptureFixture) -> None:
    assert readable(["also=[labels]", "data.also.labels.root=x"], sweep=False) == [
        "auxiliary=[labels]",
        "data.auxiliary.labels.root=x",
    ]
    said = ["also is now called auxiliary: write that"]
    assert caplog.messages == [*said, "data.also.labels.root is now called data.auxiliary.labels.root: write that"]
    saved = OmegaConf.create({"data": {"also": {"labels": {"_target_": "skinmtl.data.also.Also", "root": "x"}}}})
    node = {"_target_": "skinmtl.data.auxiliary.AuxiliaryData", "root": "x"}
    assert aliases.renamed(saved) == {"data": {"auxiliary": {"labels": node}}}
    assert readable(["auxiliary=[labels]"], sweep=False) == ["auxiliary=[labels]"] and len(caplog.messages) == 2


def test_a_value_of_before_is_known_in_configs_and_in_studies() -> None:
    cfg = OmegaConf.create({"data": {"split_by": "photograph"}, "logger": {"photographs": True}})
    assert aliases.renamed(cfg) == {"data": {"split_by": "image"}, "logger": {"images": True}}
    assert aliases.value("data.split_by", "lesion") == "lesion" and aliases.value("name", "photograph") == "photograph"
