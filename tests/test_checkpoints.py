"""Weights on disk: whole or not there, and nothing in them is ever run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from skinmtl import checkpoints
from skinmtl.errors import InputError, ResourceError


class Bomb:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.canary}",)


def test_what_was_written_is_read(tmp_path: Path) -> None:
    checkpoints.SafeCheckpointIO().save_checkpoint({"a": torch.arange(3), "b": {"c": [1, "x"]}}, tmp_path / "x.ckpt")
    loaded = checkpoints.load(tmp_path / "x.ckpt")
    assert torch.equal(loaded["a"], torch.arange(3)) and loaded["b"] == {"c": [1, "x"]}
    assert [file.name for file in tmp_path.iterdir()] == ["x.ckpt"]


def test_a_write_that_fails_leaves_the_old_one_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = checkpoints.SafeCheckpointIO()
    writer.save_checkpoint({"a": 1}, tmp_path / "x.ckpt")

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResourceError, match="No space left"):
        writer.save_checkpoint({"a": 2}, tmp_path / "x.ckpt")
    assert checkpoints.load(tmp_path / "x.ckpt") == {"a": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["x.ckpt"]


@pytest.mark.parametrize("keep", [0, 10, 200])
def test_a_broken_file_is_one_line(tmp_path: Path, keep: int) -> None:
    checkpoints.SafeCheckpointIO().save_checkpoint({"a": torch.zeros(100)}, tmp_path / "x.ckpt")
    (tmp_path / "x.ckpt").write_bytes((tmp_path / "x.ckpt").read_bytes()[:keep])
    with pytest.raises(InputError, match=r"x\.ckpt.*not a readable checkpoint") as caught:
        checkpoints.load(tmp_path / "x.ckpt")
    assert "weights_only" not in str(caught.value)


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    torch.save({"a": Bomb(tmp_path / "canary")}, tmp_path / "x.ckpt")
    with pytest.raises(InputError):
        checkpoints.load(tmp_path / "x.ckpt")
    assert not (tmp_path / "canary").exists()
    torch.load(tmp_path / "x.ckpt", weights_only=False)  # negative control: another reader would have run it
    assert (tmp_path / "canary").exists()
