"""Files appear whole or not at all, are known by their checksum, and are held by one process at a time."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import multiprocessing
import os
import signal
import time
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from skinmtl import files
from skinmtl.errors import InputError
from skinmtl.files import digest, locked, write_bytes, write_text
from skinmtl.runs.run import Run

FORK = pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    write_text(path, "a\n1\n")
    write_text(path, "b\nä\n")
    assert path.read_bytes() == "b\nä\n".encode()  # no line's end is another on another system
    assert os.listdir(tmp_path) == ["table.csv"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_write_that_fails_leaves_what_was_there_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = tmp_path / "table.csv"
    write_bytes(path, b"before")

    def full(*args: object, **words: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, step, full)
    with pytest.raises(OSError, match="No space left"):
        write_bytes(path, b"after")
    monkeypatch.undo()
    assert path.read_bytes() == b"before" and os.listdir(tmp_path) == ["table.csv"]
    write_bytes(path, b"after")  # negative control
    assert path.read_bytes() == b"after"


def test_what_is_soon_made_again_does_not_wait_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[int] = []
    monkeypatch.setattr(os, "fsync", waits.append)
    write_text(tmp_path / "figure.svg", "x", durable=False)
    assert waits == []
    write_text(tmp_path / "run.json", "x")
    assert len(waits) == 1


def test_a_digest_is_that_of_the_whole_file(tmp_path: Path) -> None:
    path, content = tmp_path / "file", os.urandom(300_000)
    path.write_bytes(content)
    assert digest(path) == hashlib.sha256(content).hexdigest()
    assert digest(path, "md5") == hashlib.md5(content).hexdigest()
    with path.open("rb") as file:
        file.read(7)
        assert digest(file) == digest(path)
    path.write_bytes(content[:-1])
    assert digest(path) != hashlib.sha256(content).hexdigest()


def _hold(path: Path, news: Connection) -> None:
    with locked(path):
        news.send("held")
        time.sleep(60)


@FORK
@pytest.mark.parametrize("name", ["run", "run/file"])
def test_a_lock_ends_with_its_process_however_that_ends(tmp_path: Path, name: str) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "file").touch()
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=_hold, args=(tmp_path / name, theirs))
    process.start()
    assert ours.recv() == "held"
    with pytest.raises(BlockingIOError), locked(tmp_path / name):
        pass
    started = time.monotonic()
    with pytest.raises(BlockingIOError), locked(tmp_path / name, patience=0.3):
        pass
    assert time.monotonic() - started >= 0.3
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    with locked(tmp_path / name):
        pass
    assert os.listdir(tmp_path) == ["run"] and os.listdir(tmp_path / "run") == ["file"]  # no file of the lock's own


def test_what_is_held_is_free_again_after_a_failure(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), locked(tmp_path):
        raise RuntimeError
    with locked(tmp_path):
        pass


def test_a_disk_without_locks_is_not_taken_for_a_held_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As some network file systems are: there a run that says it is running is believed."""
    run = Run(tmp_path)
    run.info_file.write_text(json.dumps({"status": "running"}))
    assert run.status == "killed"  # nobody holds it

    def none(*args: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", none)
    with pytest.raises(OSError, match="No locks available") as caught, locked(tmp_path):
        pass
    assert not isinstance(caught.value, BlockingIOError)
    assert run.status == "running"


def test_two_that_only_look_do_not_take_each_other_for_a_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path)
    run.info_file.write_text(json.dumps({"status": "running"}))
    with locked(tmp_path):
        assert run.status == "running"  # negative control: who stays is at work
        monkeypatch.setattr(time, "sleep", lambda seconds: os.close(handles.pop()) if handles else None)
        handles: list[int] = []
    handle = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    handles.append(handle)  # looks for a moment, and is gone when it is asked again
    assert run.status == "killed"


@FORK
def test_a_run_that_another_process_holds_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("skinmtl.runs.run.PATIENCE", 0)
    Run(tmp_path).info_file.write_text("{}")
    with locked(tmp_path):
        assert Run(tmp_path).is_held()
        with pytest.raises(InputError, match="another process is training this run"), Run(tmp_path).held():
            pass
    with Run(tmp_path).held():
        assert files.temporary(tmp_path / "run.json").name.startswith(".run.json.")
