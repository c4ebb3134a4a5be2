"""Run folders, configs and tables that version 0.1.0 wrote still open, and say what they said then."""

from __future__ import annotations

import hashlib
import json
import re
import runpy
import shutil
from collections.abc import Iterator, Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from omegaconf import OmegaConf
from small_runs import CONF

import skinmtl
from skinmtl.cli.commands import main
from skinmtl.config.check import check_names, check_saved
from skinmtl.errors import ConfigError, InputError, SkinmtlError
from skinmtl.runs import checkpoints
from skinmtl.runs.run import Run

RECORDED = Path(__file__).parents[1] / "recorded"
EXPECTED = json.loads((RECORDED / "expected.json").read_text())
CONFIGS = yaml.safe_load((RECORDED / "targets.yaml").read_text())
NODES = {"data", "augment", "sampler", "model", "loss", "weighting", "gradients", "optim", "schedule", "callbacks"}
NODES |= {"trainer", "logger"}


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The recorded folders where one may write, with their images, as the working directory."""
    for name in ("finished", "interrupted", "sweep"):
        shutil.copytree(RECORDED / name, tmp_path / name)
    shutil.unpack_archive(RECORDED / "photographs.tar.xz", tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def weights(checkpoint: Path) -> str:
    """One sha256 of all tensors, whatever they are called."""
    tensors = checkpoints.load(checkpoint)["state_dict"].values()
    each = sorted(hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest() for tensor in tensors)
    return hashlib.sha256("".join(each).encode()).hexdigest()


def is_the_recording_machine() -> bool:
    """Whether bits may be compared: elsewhere torch adds up in another order."""
    cpu = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*: (.*)", cpu.read_text()) if cpu.exists() else None
    here = {"torch": torch.__version__, "cpu": model and model[1], "threads": torch.get_num_threads()}
    return here | {"capability": torch.backends.cpu.get_cpu_capability()} == EXPECTED["recorded_on"]


def close(value: Any, abs: float = 1e-6) -> Any:  # noqa: ANN401 -- as pytest.approx
    return pytest.approx(value, abs=0 if is_the_recording_machine() else abs, rel=0)


def words(run: Path) -> list[str]:
    """The words that a recorded run was started with."""
    given: list[str] = yaml.safe_load((run / ".hydra" / "overrides.yaml").read_text())
    return given


def train_py(*words: str) -> int:
    """Exit code of `python train.py <words>`."""
    script = runpy.run_path(str(CONF.parent / "train.py"))
    code: int = script["main"](CONF, ["train.py", *words])
    return code


def numbers(node: object, where: str = "") -> Iterator[tuple[str, float]]:
    """Every number of a nested dict or list, by its place."""
    if isinstance(node, Mapping | list):
        for key, value in node.items() if isinstance(node, Mapping) else enumerate(node):
            yield from numbers(value, f"{where}/{key}")
    elif isinstance(node, int | float):
        yield where, node


def opened(folder: Path, changes: Mapping[str, Any]) -> Any:  # noqa: ANN401 -- a config
    """The config of a run folder that saved the recorded default config with some changes."""
    config = OmegaConf.create(CONFIGS["default"])
    for key, value in changes.items():
        OmegaConf.update(config, key, value, merge=False, force_add=True)
    (folder / ".hydra").mkdir(parents=True, exist_ok=True)
    OmegaConf.save(config, folder / ".hydra" / "config.yaml")
    (folder / "run.json").write_text("{}")
    return Run.open(folder).config()


@pytest.mark.parametrize("name", ["finished", "interrupted"])
def test_a_recorded_run_predicts_what_it_predicted(recorded: Path, name: str) -> None:
    then = EXPECTED[name]
    now = skinmtl.load_run(recorded / name, device="cpu").predict(then["image"])
    assert now.probabilities == close(then["probabilities"])
    assert now.mask_probability[16].tolist() == close(then["mask_probability"])
    other = skinmtl.load_run(recorded / name, device="cpu").predict(then["image"].replace("0000000", "0000001"))
    assert other.probabilities != pytest.approx(then["probabilities"], abs=1e-4), "another image says something else"


def test_recorded_checkpoints_hold_the_weights_that_they_held(recorded: Path) -> None:
    read = weights(recorded / "finished/checkpoints/best.ckpt"), weights(recorded / "interrupted/checkpoints/best.ckpt")
    assert read == (EXPECTED["finished"]["weights"], EXPECTED["interrupted"]["best"])
    assert read[0] != read[1]


def test_a_recorded_run_is_evaluated_to_the_scores_that_it_had(recorded: Path) -> None:
    run = recorded / "finished"
    table, scores = pd.read_csv(run / "predictions.csv"), json.loads((run / "scores.json").read_text())
    (run / "predictions.csv").unlink()
    (run / "scores.json").unlink()
    assert main(["evaluate", "finished", "--device", "cpu"]) == 0
    again = dict(numbers(json.loads((run / "scores.json").read_text())))
    before = dict(numbers(scores))
    assert len(before) > 500
    assert {key: again.get(key) for key in before} == close(before)
    pd.testing.assert_frame_equal(pd.read_csv(run / "predictions.csv")[table.columns], table, rtol=0, atol=1e-6)
    assert f"{_dice(run):.3f}" in (run / "report.html").read_text()


def test_a_recorded_table_is_scored_as_it_was(
    recorded: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = dict(numbers(json.loads(Path("sweep/1/scores.json").read_text())["parts"]))
    Path("alone.csv").write_bytes(Path("sweep/1/predictions.csv").read_bytes())
    assert main(["score", "alone.csv"]) == 0
    assert dict(numbers(json.loads(capsys.readouterr().out)["parts"])) == pytest.approx(before, rel=1e-9)
    table = pd.read_csv("alone.csv")
    table.assign(predicted_dx="benign", prob_benign=1.0, prob_malignant=0.0).to_csv("other.csv", index=False)
    assert main(["score", "other.csv"]) == 0
    assert dict(numbers(json.loads(capsys.readouterr().out)["parts"])) != pytest.approx(before, rel=1e-9)


def test_a_recorded_run_is_resumed_to_the_end_that_it_would_have_had(recorded: Path) -> None:
    run = recorded / "interrupted"
    began = [*words(run), "resume=interrupted"]
    with pytest.raises(ConfigError, match=r"optim\.lr 0\.01, now 0\.02"):
        skinmtl.fit(*began, "optim.lr=0.02")
    assert skinmtl.fit(*began, "evaluate=false").path == run
    metrics, then = pd.read_csv(run / "metrics.csv"), EXPECTED["resumed"]
    for name in ("val/loss", "val/score", "train/loss"):
        assert metrics[name].dropna().tolist() == close(then[name], abs=1e-4)
    last = weights(run / "checkpoints/last.ckpt")
    assert last != EXPECTED["interrupted"]["last"]
    assert last == then["last"] or not is_the_recording_machine()
    assert Run(run).status == "finished"


def test_a_run_starts_from_the_weights_of_a_recorded_one(recorded: Path) -> None:
    began = [*words(recorded / "finished"), "hydra.run.dir=next", "trainer.max_epochs=1", "evaluate=false"]
    run = skinmtl.fit(*began, "init_from=finished")
    assert run.info()["init_from"]["run_id"] == "finished"
    assert run.info()["status"] == "finished"
    with pytest.raises(ConfigError, match="weights of interrupted do not fit"):
        skinmtl.fit(*began, "hydra.run.dir=other", "init_from=interrupted")


def test_a_recorded_config_trains_again_from_its_file(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    short = ["evaluate=false", "hydra.run.dir=again"]
    assert train_py("--config-path", str(recorded / "finished/.hydra"), "--config-name", "config", *short) == 0
    first, again = (pd.read_csv(f"{run}/metrics.csv")["train/loss"].dropna().tolist() for run in ("finished", "again"))
    assert again == close(first, abs=1e-4)
    best = weights(Path("again/checkpoints/best.ckpt"))
    assert best == EXPECTED["finished"]["weights"] or not is_the_recording_machine()
    config = recorded / "finished/.hydra/config.yaml"
    config.write_text(re.sub(r"_target_: skinmtl\S*Cosine", "_target_: skinmtl.optim.Sine", config.read_text()))
    assert train_py("--config-path", str(config.parent), "--config-name", "config", *short) == 2
    assert "schedule" in capsys.readouterr().err


def test_every_target_and_every_key_of_a_recorded_config_is_known(tmp_path: Path) -> None:
    def check(changes: Mapping[str, Any]) -> None:
        config = opened(tmp_path, changes)
        check_names(config)
        check_saved(config, *({key.partition(".")[0] for key in changes or NODES} & NODES))

    together: list[dict[str, Any]] = [{}]  # options that change different nodes, in one config
    for changes in CONFIGS["options"].values():
        parts = {key.partition(".")[0] for key in changes}
        apart = (one for one in together[1:] if parts.isdisjoint(key.partition(".")[0] for key in one))
        if (one := next(apart, None)) is None:
            together.append(one := {})
        one |= changes
    for changes in together:
        check(changes)
    for key, value in (("model._target_", "skinmtl.network.Other"), ("data.sise", 3), ("sed", 0)):
        with pytest.raises(SkinmtlError, match=f"{key}: "):
            check({key: value})


def test_the_recorded_keys_are_those_of_the_recorded_configs() -> None:
    def keys(node: Mapping[str, Any], above: str = "") -> Iterator[str]:
        for key, value in node.items():
            yield from (above + ".".join(key.split(".")[: n + 1]) for n in range(key.count(".") + 1))
            if isinstance(value, Mapping):
                yield from keys(value, f"{above}{key}.")

    found = {key for node in (CONFIGS["default"], *CONFIGS["options"].values()) for key in keys(node)}
    assert found == set((RECORDED / "config_keys.txt").read_text().split())


def test_every_recorded_key_is_taken_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    config = OmegaConf.create(CONFIGS["default"])
    given = dict(_leaves(OmegaConf.to_container(config)))
    assert given.pop("logger") is None, "a group's name takes no null"
    assert len(given) > 75
    assert train_py(*(f"{key}={json.dumps(value)}" for key, value in given.items()), "--cfg", "job") == 0
    capsys.readouterr()
    assert train_py("data.sise=3", "--cfg", "job") == 2
    assert "did you mean 'data.size'" in capsys.readouterr().err


def _leaves(node: object, where: str = "") -> Iterator[tuple[str, object]]:
    if isinstance(node, dict) and node:
        for key, value in node.items():
            yield from _leaves(value, f"{where}.{key}".lstrip("."))
    else:
        yield where, node


def test_every_recorded_option_is_taken_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    groups: dict[str, list[str]] = {}
    for word in CONFIGS["options"]:
        groups.setdefault(word.partition("=")[0], []).append(word)
    for together in zip_longest(*groups.values()):
        assert train_py(*filter(None, together), "--cfg", "job") == 0, capsys.readouterr().err
    assert train_py("augment=lite", "--cfg", "job") == 2


def test_a_recorded_study_is_reported(recorded: Path) -> None:
    assert main(["report", "sweep", "--out", "answer"]) == 0
    results = pd.read_csv("answer/results.csv")
    assert len(results) == 2 and set(results["status"]) == {"finished"}
    for number, dice in enumerate(_dice(recorded / f"sweep/{number}") for number in (0, 1)):
        row = results.loc[results["job"] == number].iloc[0]
        assert any(value == pytest.approx(dice, abs=1e-6) for value in row if isinstance(value, float)), row
    assert "both" in Path("answer/README.md").read_text()


def _dice(run: Path) -> float:
    scores = json.loads((run / "scores.json").read_text())
    value: float = scores["parts"]["test"]["scores"]["seg"]["mean_image_dice"]["value"]
    return value


def test_recorded_runs_are_listed_and_compared(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", "."]) == 0
    listed = capsys.readouterr().out
    for name, status in (("finished", "finished"), ("interrupted", "interrupted"), ("sweep/0", "finished")):
        assert re.search(rf"{name} .*shared_cnn.* {status} .*SYNTHETIC", listed)
    assert main(["compare", "sweep/1", "sweep/0", "--out", "difference.csv"]) == 0
    difference = pd.read_csv("difference.csv")["difference"].tolist()
    expected = _dice(recorded / "sweep/1") - _dice(recorded / "sweep/0")
    assert any(value == pytest.approx(expected, abs=1e-6) for value in difference)
    assert main(["compare", "sweep/1", "nowhere"]) == InputError.exit_code


def test_the_recordings_are_small_and_name_no_machine() -> None:
    files = [file for file in RECORDED.rglob("*") if file.is_file()]
    assert 50_000 < sum(file.stat().st_size for file in files) < 300_000
    place = re.compile(rb"(?<![\w.\]:/])/(tmp|home|root|work|mnt|Users)/")
    assert place.search(b"root: /home/somebody/data")
    assert not [file.name for file in files if place.search(file.read_bytes())]
