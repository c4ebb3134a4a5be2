"""Processes of one run: how they start, and that one failure ends them all and is told once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import pytest
from hangs import HANGS
from workers import fail, fail_in_turn, ignore_stops, note

from skinmtl.distributed import launch
from skinmtl.distributed.launch import ProcessDied, together
from skinmtl.distributed.signals import STOPS, Stop, handled, stoppable
from skinmtl.errors import Diverged, InputError, SkinmtlError
from skinmtl.studies import sweep

TWO = ["cpu", "cpu"]


def gone(pid: int) -> bool:
    deadline = time.monotonic() + HANGS
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.1)
    return False


def test_each_process_knows_its_place_and_no_other_launchers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"MASTER_PORT": "1", "GROUP_RANK": "5", "RANK": "7"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("OMP_NUM_THREADS")
    together(partial(note, tmp_path), TWO, tmp_path)
    cores = len(os.sched_getaffinity(0))
    for rank in (0, 1):
        told = f"{rank} {rank} 2 {max(1, cores // 2)} None None 2 cpu False"
        assert (tmp_path / str(rank)).read_text() == told
    assert capfd.readouterr().out == "said by 0\n", "the terminal is the first one's"
    assert (tmp_path / "rank_1.log").read_text() == "said by 1\n"
    assert os.environ["RANK"] == "7" and "OMP_NUM_THREADS" not in os.environ, "nothing is left behind here"


def test_threads_are_a_share_of_the_cores_unless_somebody_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(12)), raising=False)
    assert launch.threads(5) == 1, "as the tests' environment says"
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert [launch.threads(n) for n in (1, 2, 5, 50)] == [12, 6, 2, 1]


@pytest.mark.parametrize("who", [0, 1])
@pytest.mark.parametrize(
    ("kind", "error", "code", "said"),
    [
        ("input", InputError, 2, "half an image"),
        ("bug", ValueError, None, "a mistake of ours"),
        ("kill", ProcessDied, 137, "killed by SIGKILL"),
    ],
)
def test_the_failure_of_one_ends_the_other_and_is_raised_here(
    tmp_path: Path, kind: str, error: type[Exception], code: int | None, said: str, who: int
) -> None:
    with pytest.raises(error, match=said) as caught:
        together(partial(fail, kind, who), TWO, tmp_path)
    if isinstance(caught.value, SkinmtlError):
        assert caught.value.exit_code == code
    if kind == "bug":
        assert f"process {who}:\nTraceback" in caught.value.__notes__[0] and "in fail\n" in caught.value.__notes__[0]
    assert list(tmp_path.iterdir()) == [], "an empty log is no log"


def test_an_answer_is_taken_for_the_cause_and_not_what_it_brings_about(tmp_path: Path) -> None:
    with pytest.raises(Diverged):
        together(fail_in_turn, TWO, tmp_path)


def test_who_does_not_listen_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "PATIENCE", 0.5)
    with pytest.raises(InputError, match="no image"):
        together(ignore_stops, TWO, tmp_path)


@pytest.mark.parametrize(
    "watch",
    [lambda: handled(STOPS, signal.default_int_handler), lambda: sweep._handed_on(None)],
    ids=["a run", "a sweep"],
)
def test_a_hangup_that_nohup_ignores_stays_ignored(watch: Callable[[], AbstractContextManager[object]]) -> None:
    before, asked_to_end = signal.signal(signal.SIGHUP, signal.SIG_IGN), signal.getsignal(signal.SIGTERM)
    try:
        with watch() as stopped:
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN and not stopped
            assert signal.getsignal(signal.SIGTERM) not in (signal.SIG_IGN, signal.SIG_DFL)
        assert signal.getsignal(signal.SIGTERM) == asked_to_end
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 75), (signal.SIGTERM, 75), (signal.SIGKILL, -9)])
def test_a_stopped_parent_leaves_nobody_behind(tmp_path: Path, number: int, code: int) -> None:
    text = f"""
import sys
from functools import partial
from pathlib import Path
sys.path[:0] = {[str(Path(__file__).parents[1]), *sys.path]!r}
from skinmtl.distributed.launch import together
from workers import wait_long
if __name__ == "__main__":
    folder = Path({str(tmp_path)!r})
    try:
        together(partial(wait_long, folder), ["cpu", "cpu"], folder)
    except KeyboardInterrupt:
        sys.exit(75)
"""
    script = tmp_path / "script.py"
    script.write_text(text)
    parent = subprocess.Popen([sys.executable, str(script)], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + HANGS
    while len(pids := [int(file.name) for file in tmp_path.iterdir() if file.name.isdigit()]) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    parent.send_signal(number)
    _, said = parent.communicate(timeout=HANGS)
    assert parent.returncode == code, said
    assert "Traceback" not in said
    assert all(gone(pid) for pid in pids)


def test_asked_in_two_ways_a_process_still_waits_and_asked_twice_in_one_it_does_not() -> None:
    stop = Stop()
    stop.looked_for = True
    stop(signal.SIGUSR1, None)
    stop(signal.SIGINT, None)
    assert stop.asked and stop.number == signal.SIGUSR1
    for again in (signal.SIGUSR1, signal.SIGINT):
        with pytest.raises(KeyboardInterrupt):
            stop(again, None)
    with pytest.raises(KeyboardInterrupt):
        Stop()(signal.SIGTERM, None)  # nobody looks


def test_handlers_are_put_back_and_what_nohup_ignores_stays_ignored() -> None:
    before = signal.getsignal(signal.SIGHUP)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stoppable() as stop:
            assert signal.getsignal(signal.SIGTERM) is stop and signal.getsignal(signal.SIGUSR1) is stop
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)
