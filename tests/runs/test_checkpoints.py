"""Weights on disk: whole or not there, what was written or refused, and nothing in them is ever run."""

from __future__ import annotations

import errno
import functools
import hashlib
import io
import json
import logging
import os
import pickle
import random
import resource
import shutil
import signal
import subprocess
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hydra.utils
import numpy as np
import pytest
import torch
from lightning_fabric.plugins import TorchCheckpointIO
from nobody import as_nobody

from skinmtl.errors import Diverged, InputError, ResourceError
from skinmtl.runs import checkpoints
from skinmtl.runs.checkpoints import LAST, PREVIOUS, RECORD, SafeCheckpointIO, load, newest

LEFT = f"{LAST} {PREVIOUS} {RECORD}".split()
FORK = pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")


def state(step: int, size: int = 5_000) -> dict[str, Any]:
    """What Lightning hands to the writer, in small."""
    generator = torch.Generator().manual_seed(step)
    weight, moment = torch.randn(2, size, generator=generator)
    best = torch.tensor(float("inf"))  # as EarlyStopping has it before the first validation
    return {
        "epoch": step,
        "state_dict": {"network.weight": weight, "network.counted": torch.tensor(step)},
        "optimizer_states": [{"state": {0: {"step": torch.tensor(1.0), "exp_avg": moment}}, "param_groups": []}],
        "callbacks": {"EarlyStopping": {"best_score": best, "wait_count": 0, "reason": None}},
        "by_score": {"best": float("-inf")},
        "skinmtl": {"tasks": ["seg"], "config": {"optim.lr": 0.1, "trainer.fast": True}},
    }


def saved(folder: Path, steps: int = 2, name: str = LAST, size: int = 5_000) -> Path:
    """A folder with so many saves, one after the other."""
    writer = SafeCheckpointIO()
    for step in range(1, steps + 1):
        writer.save_checkpoint(state(step, size), folder / name)
    return folder


def child(work: Callable[[], object]) -> int:
    """A process of its own with everything imported already, so that a kill costs milliseconds."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            os._exit(1)
    return pid


def ended(pid: int) -> int:
    """How a child ended: its exit code, or the signal that killed it as a negative number."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def refusal(path: Path) -> str:
    """The one line that a file is refused with."""
    with pytest.raises(InputError) as caught:
        load(path)
    line = str(caught.value)
    assert len(line.splitlines()) == 1 and str(path) in line and "; fix: " in line
    assert "weights_only" not in line and "safe_globals" not in line
    return caught.value.what


# ---- what is written


def test_what_was_written_is_read(tmp_path: Path) -> None:
    loaded = load(saved(tmp_path, 1) / LAST)
    assert torch.equal(loaded["state_dict"]["network.weight"], state(1)["state_dict"]["network.weight"])
    assert loaded["skinmtl"] == state(1)["skinmtl"] and loaded["by_score"] == {"best": float("-inf")}
    again = SafeCheckpointIO().load_checkpoint(str(tmp_path / LAST), map_location="cuda", weights_only=False)
    assert again["epoch"] == 1 and again["state_dict"]["network.weight"].device.type == "cpu"


def test_a_save_leaves_the_one_before_it(tmp_path: Path) -> None:
    writer = SafeCheckpointIO()
    for step in (1, 2, 3):
        writer.save_checkpoint(state(step), tmp_path / LAST)
        writer.save_checkpoint(state(10 + step), tmp_path / "best.ckpt")
    found = {name: load(tmp_path / name)["epoch"] for name in (LAST, PREVIOUS, "best.ckpt")}
    assert found == {LAST: 3, PREVIOUS: 2, "best.ckpt": 13}
    assert names(tmp_path) == ["best.ckpt", *LEFT]
    sums = {name: hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in found}
    assert json.loads((tmp_path / RECORD).read_text()) == sums

    writer.remove_checkpoint(tmp_path / "best.ckpt")
    writer.save_checkpoint(state(4), tmp_path / LAST)
    assert set(json.loads((tmp_path / RECORD).read_text())) == {LAST, PREVIOUS}


def test_a_file_alone_in_a_folder_loads(tmp_path: Path) -> None:
    saved(tmp_path / "run")
    (tmp_path / "sent").mkdir()
    shutil.copy(tmp_path / "run" / PREVIOUS, tmp_path / "sent" / "mine.ckpt")
    assert load(tmp_path / "sent" / "mine.ckpt")["epoch"] == 1


def test_a_folder_from_before_there_were_records_goes_on(tmp_path: Path) -> None:
    for number, name in enumerate((LAST, "best.ckpt")):
        torch.save(state(number), tmp_path / name)
    SafeCheckpointIO().save_checkpoint(state(2), tmp_path / LAST)
    assert [load(tmp_path / name)["epoch"] for name in (LAST, PREVIOUS, "best.ckpt")] == [2, 0, 1]


def test_a_damaged_last_one_does_not_push_out_a_sound_one(tmp_path: Path) -> None:
    last = saved(tmp_path) / LAST
    last.write_bytes(last.read_bytes()[:-1])
    SafeCheckpointIO().save_checkpoint(state(3), last)
    assert [load(tmp_path / name)["epoch"] for name in (LAST, PREVIOUS)] == [3, 1]


def test_there_is_always_a_last_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path)
    seen: list[bool] = []

    def watched(act: Callable) -> Callable:
        return lambda *args, **words: (seen.append((tmp_path / LAST).is_file()), act(*args, **words))[1]

    for name in ("replace", "link", "fsync"):
        monkeypatch.setattr(os, name, watched(getattr(os, name)))
    SafeCheckpointIO().save_checkpoint(state(3), tmp_path / LAST)
    assert all(seen) and len(seen) > 5

    # A file system without hard links has such a moment, and one generation more all the same.
    def no_links(*args: object, **kwargs: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    seen.clear()
    SafeCheckpointIO().save_checkpoint(state(4), tmp_path / LAST)
    assert not all(seen) and names(tmp_path) == LEFT
    assert [load(tmp_path / name)["epoch"] for name in (LAST, PREVIOUS)] == [4, 3]


# ---- what is not written


class Strange(dict):
    pass


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("callbacks.Mine.score", np.float64(1)),
        ("callbacks.Mine.score", np.zeros(2)),
        ("callbacks.Mine.score", Path("x")),
        ("callbacks.Mine.score", functools.partial(print)),
        ("callbacks.Mine.score", Strange()),
        ("callbacks.Mine.score", {1, 2}),
        ("callbacks.Mine.score", torch.float32),
        ("callbacks.Mine.score.1", [0, torch.device("cpu")]),
        ("callbacks.Mine.score.('a', 1)", {("a", 1): 0}),
    ],
)
def test_what_is_no_plain_type_is_named_by_its_key(tmp_path: Path, key: str, value: object) -> None:
    saved(tmp_path)
    with pytest.raises(TypeError, match="plain types") as caught:
        SafeCheckpointIO().save_checkpoint(state(3) | {"callbacks": {"Mine": {"score": value}}}, tmp_path / LAST)
    assert str(caught.value).startswith(f"{key}: a ")
    assert load(tmp_path / LAST)["epoch"] == 2 and names(tmp_path) == LEFT


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("kind", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "key",
    [
        "state_dict.network.weight",
        "optimizer_states.0.state.0.exp_avg",
        "current_model_state.network.weight",
        "averaging_state.mean",
    ],
)
def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path, key: str, kind: torch.dtype, value: float) -> None:
    saved(tmp_path)
    broken = torch.ones(1000, dtype=kind)
    broken[777] = value
    content = state(3) | {"current_model_state": {}, "averaging_state": {}}
    first, rest = key.split(".", 1)
    place = content[first]
    if first == "optimizer_states":
        place, rest = place[0]["state"][0], "exp_avg"
    place[rest] = broken
    with pytest.raises(Diverged, match="is not finite") as caught:
        SafeCheckpointIO().save_checkpoint(content, tmp_path / LAST)
    assert key in caught.value.what and caught.value.exit_code == 3
    assert load(tmp_path / LAST)["epoch"] == 2 and names(tmp_path) == LEFT

    place[rest] = torch.ones(1000, dtype=kind)  # negative control: the same, whole
    SafeCheckpointIO().save_checkpoint(content, tmp_path / LAST)
    assert load(tmp_path / LAST)["epoch"] == 3


# ---- what is read back


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert refusal(tmp_path / LAST) == "no such file"
    assert refusal(tmp_path) == "no such file"
    with pytest.raises(InputError, match="no such file"):
        load(Path("https://example.org/last.ckpt"))
    with pytest.raises(InputError, match=rf"{LAST}: no such file; {PREVIOUS}: no such file"):
        newest(tmp_path)


def falls_back(folder: Path, caplog: pytest.LogCaptureFixture) -> bool:
    """Whether the save before the last is taken, and why is said."""
    why = refusal(folder / LAST)
    caplog.clear()
    with caplog.at_level(logging.WARNING, "skinmtl"):
        found = newest(folder)
    return found == folder / PREVIOUS and [r.getMessage() for r in caplog.records] == [
        f"{folder / LAST}: {why}; resuming from {PREVIOUS}, one save earlier"
    ]


@pytest.mark.fault("a checkpoint cut, changed, foreign or of a later version", tries=5)
def test_what_was_cut_or_replaced_is_told_apart(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    last = saved(tmp_path) / LAST
    whole = last.read_bytes()
    assert newest(tmp_path) == last and not caplog.records
    page = b"<!DOCTYPE html><html><body>404 Not Found</body></html>"
    cases = {f"cut short at {share}%": whole[: len(whole) * share // 100] for share in (10, 50, 99)}
    cases |= {"empty": b"", "not a checkpoint (it begins with b'<!DO')": page}
    for what, content in cases.items():
        for record in (True, False):
            folder = tmp_path / f"{what.split('(')[0]}{record}"
            shutil.copytree(tmp_path, folder, ignore=shutil.ignore_patterns("* *", *(() if record else (RECORD,))))
            (folder / LAST).write_bytes(content)
            assert refusal(folder / LAST).startswith(what.split(" at ")[0])
            assert falls_back(folder, caplog)


@pytest.mark.fault("a checkpoint cut, changed, foreign or of a later version", tries=50)
def test_every_flipped_bit_is_found(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    last = saved(tmp_path, size=20_000) / LAST
    whole, luck = last.read_bytes(), random.Random(0)
    silent, kinds = 0, []
    for number in range(50):
        broken = bytearray(whole)
        broken[luck.randrange(len(whole))] ^= 1 << luck.randrange(8)
        last.write_bytes(broken)
        kinds.append(refusal(last))
        assert falls_back(tmp_path, caplog), number
        try:
            torch.load(last, weights_only=True)
            silent += 1
        except Exception:  # noqa: S110
            pass
    assert sum(kind.startswith("changed since it was written") for kind in kinds) == 50
    assert silent > 0  # negative control: a reader without hashes takes some of them


@pytest.mark.fault("a checkpoint cut, changed, foreign or of a later version", tries=2)
def test_what_is_of_something_else_is_told_apart(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path, 1)
    writer = SafeCheckpointIO()
    writer.save_checkpoint({"state_dict": {}, "epoch": 1}, tmp_path / LAST)
    assert refusal(tmp_path / LAST) == "not a checkpoint of skinmtl (it has no skinmtl)"
    assert falls_back(tmp_path, caplog)

    later = tmp_path / "later"
    saved(later, 1)
    monkeypatch.setattr(checkpoints, "FORMAT", 2)
    SafeCheckpointIO().save_checkpoint(state(2), later / LAST)
    monkeypatch.undo()
    assert refusal(later / LAST) == "of another version of skinmtl (its format is 2, this one reads 1)"
    assert falls_back(later, caplog)

    (tmp_path / RECORD).unlink()
    endless: list[object] = []
    endless.append(endless)
    torch.save(state(1) | {"endless": endless}, tmp_path / "alone.ckpt")
    assert refusal(tmp_path / "alone.ckpt") == "nested without end"
    torch.save([1, 2], tmp_path / "alone.ckpt")
    assert refusal(tmp_path / "alone.ckpt") == "not a checkpoint of skinmtl (it holds a list)"
    torch.save(state(1) | {"kind": torch.float32}, tmp_path / "alone.ckpt")
    assert refusal(tmp_path / "alone.ckpt") == "holds more than tensors and plain types (kind is a dtype)"
    for content in ("[", '{"last.ckpt": ["a"]}'):
        (tmp_path / RECORD).write_text(content)
        for look in (lambda: load(tmp_path / "alone.ckpt"), lambda: newest(tmp_path)):
            with pytest.raises(InputError, match=rf"{RECORD}: not a record of hashes; fix: delete it"):
                look()


def test_a_caller_may_need_more_keys(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    assert load(tmp_path / LAST, ("skinmtl", "epoch"))["epoch"] == 1
    with pytest.raises(InputError, match="it has no loops and no lr_schedulers"):
        load(tmp_path / LAST, ("skinmtl", "loops", "lr_schedulers"))


# ---- hostile files


class Call:
    """Pickled as a call, which an unwary reader makes."""

    def __init__(self, act: Callable, *words: object) -> None:
        self.act, self.words = act, words

    def __reduce__(self) -> tuple[object, ...]:
        return self.act, self.words


class Rebuilt:
    """Runs what it was given when its state is set."""

    def __setstate__(self, state: dict[str, str]) -> None:
        os.system(state["line"])  # noqa: S605


def rebuilt(line: str) -> Rebuilt:
    made = Rebuilt()
    made.line = line  # type: ignore[attr-defined]
    return made


def zipped(path: Path, content: object, protocol: int) -> None:
    """As torch.save writes, with a pickle of another protocol."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(content, protocol))
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")


def script(canary: Path) -> str:
    return f"open({str(canary)!r}, 'w').close()"


# By name: what is put into the file, how it is written, and the name that the refusal gives.
HOSTILE: dict[str, tuple[Callable[[Path], object], Callable[[object, Path], object], str]] = {
    "os.system": (lambda c: Call(os.system, f"touch {c}"), torch.save, "posix.system"),
    "eval": (lambda c: Call(eval, script(c)), torch.save, "builtins.eval"),
    "exec": (lambda c: Call(exec, script(c)), torch.save, "builtins.exec"),
    "subprocess": (lambda c: Call(subprocess.check_call, ["touch", str(c)]), torch.save, "subprocess.check_call"),
    "functools": (
        lambda c: Call(functools.reduce, exec, [script(c), {}]),
        torch.save,
        "functools.reduce, builtins.exec",
    ),
    "numpy": (
        lambda c: Call(np.testing.assert_no_warnings, os.system, f"touch {c}"),
        torch.save,
        "numpy.testing._private.utils.assert_no_warnings",
    ),
    "hydra": (
        lambda c: Call(hydra.utils.instantiate, {"_target_": "torch.save", "obj": 1, "f": str(c)}),
        torch.save,
        "hydra._internal.instantiate._instantiate2.instantiate",
    ),
    "setstate": (lambda c: rebuilt(f"touch {c}"), torch.save, "test_checkpoints.Rebuilt"),
    "legacy": (
        lambda c: Call(os.system, f"touch {c}"),
        lambda content, path: torch.save(content, path, _use_new_zipfile_serialization=False),
        "posix.system",
    ),
    "protocol 5": (lambda c: Call(os.system, f"touch {c}"), lambda x, path: zipped(path, x, 5), "posix.system"),
}


@pytest.mark.fault("a checkpoint that would run code")
@pytest.mark.parametrize("name", HOSTILE)
def test_code_in_a_checkpoint_is_not_run(tmp_path: Path, name: str) -> None:
    make, write, refused = HOSTILE[name]
    canary, folder = tmp_path / "canary", saved(tmp_path / "run", 1)
    path = tmp_path / LAST
    write(state(1) | {"callbacks": {"Mine": make(canary)}}, path)
    what = refusal(path)
    assert what.startswith("holds objects that could run code (") and refused in what
    with pytest.raises(InputError):
        SafeCheckpointIO().load_checkpoint(path, weights_only=False)
    shutil.copy(path, folder / LAST)
    shutil.copy(path, folder / PREVIOUS)
    with pytest.raises(InputError, match="changed since it was written"):
        newest(folder)
    assert not canary.exists()
    torch.load(path, weights_only=False)  # negative control: an unwary reader
    assert canary.exists()


@FORK
@pytest.mark.fault("a checkpoint that would run code")
def test_no_environment_variable_has_code_run(tmp_path: Path) -> None:
    canary, path = tmp_path / "canary", tmp_path / LAST
    torch.save(state(1) | {"callbacks": Call(os.system, f"touch {canary}")}, path)

    def work() -> None:
        os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"
        assert "could run code (posix.system)" in refusal(path) and not canary.exists()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.load(path)  # negative control: by its own default torch runs it

    assert ended(child(work)) == 0 and canary.exists()


# ---- kill -9


def save_on(writer: TorchCheckpointIO, folder: Path, first: int, say: int, temp: Path) -> None:
    """Save one step after the other, for ever, and say which are done."""
    tempfile.tempdir = str(temp)
    for step in range(first, first + 1000):
        writer.save_checkpoint(state(step, 200_000), folder / LAST)
        os.write(say, step.to_bytes(4, "big"))


def killed_while_saving(writer: TorchCheckpointIO, folder: Path, first: int, delay: float, temp: Path) -> int:
    """Kill a writer so many seconds after it has done its first save; gives the last step that it said is done."""
    hear, say = os.pipe()
    pid = child(lambda: save_on(writer, folder, first, say, temp))
    os.close(say)
    with os.fdopen(hear, "rb") as answers:
        said = answers.read(4)
        time.sleep(delay)
        os.kill(pid, signal.SIGKILL)
        assert ended(pid) == -signal.SIGKILL
        said += answers.read()
    return int.from_bytes(said[-4:], "big")


def strays(folder: Path) -> list[str]:
    return [name for name in names(folder) if name not in (*LEFT, "best.ckpt")]


def look(times: int, folder: Path, temp: Path) -> None:
    luck, step = random.Random(0), 0
    start = time.perf_counter()
    saved(folder, 5, size=200_000)
    span = (time.perf_counter() - start) / 5
    swept = 0
    for number in range(times):
        done = killed_while_saving(SafeCheckpointIO(), folder, step + 1, luck.uniform(0, 3 * span), temp)
        found = {name: load(folder / name)["epoch"] for name in names(folder) if name.endswith(".ckpt")}
        assert newest(folder) == folder / LAST, number
        assert found[LAST] in (done, done + 1) and found[PREVIOUS] >= found[LAST] - 2, (number, found, done)
        assert len(before := strays(folder)) <= 2, before
        swept += len(before)
        # The restart: what the next writer's first save leaves.
        step = found[LAST] + 1
        SafeCheckpointIO().save_checkpoint(state(step, 200_000), folder / LAST)
        assert strays(folder) == [] and load(folder / LAST)["epoch"] == step
        assert os.listdir(temp) == []
    assert swept > 0  # negative control: some were killed in the middle


@pytest.fixture(params=["same", "other"])
def temp(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A folder for temporary files, on the file system of the test's own folder or on another."""
    base = tmp_path if request.param == "same" else Path("/dev/shm")
    if request.param == "other" and (not base.is_dir() or base.stat().st_dev == tmp_path.stat().st_dev):
        pytest.skip("no second file system at /dev/shm")
    folder = Path(tempfile.mkdtemp(dir=base))
    yield folder
    shutil.rmtree(folder)


@FORK
@pytest.mark.parametrize(
    "times",
    [
        pytest.param(10, marks=pytest.mark.fault("kill -9 while saving", tries=10)),
        pytest.param(100, marks=[pytest.mark.fault("kill -9 while saving", tries=100), pytest.mark.long]),
    ],
)
def test_a_writer_killed_at_any_time_leaves_sound_checkpoints(tmp_path: Path, temp: Path, times: int) -> None:
    (tmp_path / "run").mkdir()
    look(times, tmp_path / "run", temp)


class Straight(TorchCheckpointIO):
    def save_checkpoint(self, checkpoint: dict[str, Any], path: Path, storage_options: object = None) -> None:
        torch.save(checkpoint, path)


@FORK
def test_a_plain_writer_killed_so_leaves_broken_ones(tmp_path: Path) -> None:
    """The negative control of the test above."""
    luck, broken = random.Random(0), 0
    for number in range(20):
        folder = tmp_path / str(number)
        folder.mkdir()
        killed_while_saving(Straight(), folder, 1, luck.uniform(0, 0.01), tmp_path)
        try:
            load(folder / LAST)
        except InputError:
            broken += 1
    assert broken > 0


@FORK
@pytest.mark.parametrize("name", [LAST, "best.ckpt"])
@pytest.mark.parametrize("links", [True, False])
def test_a_writer_killed_between_any_two_steps_leaves_sound_checkpoints(tmp_path: Path, name: str, links: bool) -> None:
    ways: list[int] = []

    def work(folder: Path, last: int) -> None:
        """Save, and die before the call of that number among those that change the folder."""
        calls = 0

        def counted(act: Callable) -> Callable:
            def call(*args: object, **words: object) -> object:
                nonlocal calls
                calls += 1
                if calls == last:
                    os.kill(os.getpid(), signal.SIGKILL)
                if act is link and not links:
                    raise OSError(errno.EPERM, "Operation not permitted")
                return act(*args, **words)

            return call

        for step in ("replace", "link", "unlink", "fsync", "open"):
            setattr(os, step, counted(getattr(os, step)))
        SafeCheckpointIO().save_checkpoint(state(3), folder / name)

    link = os.link
    saved(tmp_path / "0", name="best.ckpt")
    saved(tmp_path / "0")
    for number in range(1, 100):
        folder = tmp_path / str(number)
        shutil.copytree(tmp_path / "0", folder)
        way = ended(child(lambda folder=folder, number=number: work(folder, number)))
        ways.append(way)
        found = {path.name: load(path)["epoch"] for path in folder.glob("*.ckpt")}
        assert load(newest(folder))["epoch"] in ((2, 3) if name == LAST else (2,)), number
        assert found["best.ckpt"] in ((2, 3) if name == "best.ckpt" else (2,))
        assert len(strays(folder)) <= 2
        if way == 0:
            break
        SafeCheckpointIO().save_checkpoint(state(4), folder / name)
        assert load(folder / name)["epoch"] == 4 and load(newest(folder)) and strays(folder) == []
        assert set(json.loads((folder / RECORD).read_text())) == {p.name for p in folder.glob("*.ckpt")}
    assert ways[-1] == 0 and set(ways[:-1]) == {-signal.SIGKILL} and len(ways) > 8


# ---- disks and rights


def fails(folder: Path, match: str, content: dict[str, Any] | None = None) -> str:
    """Save once more, which has to fail and to leave what was there."""
    with pytest.raises(ResourceError, match=match) as caught:
        SafeCheckpointIO().save_checkpoint(content or state(3), folder / LAST)
    assert caught.value.exit_code == 4 and str(folder / LAST) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert newest(folder) == folder / LAST and load(folder / LAST)["epoch"] == 2
    assert names(folder) == LEFT
    return str(caught.value)


@pytest.mark.parametrize("where", ["write", "fsync", "close"])
def test_a_disk_that_fills_up_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    saved(tmp_path)

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    class Full(io.FileIO):
        def write(self, data: memoryview) -> int:
            if where == "write" and self.tell() > 10_000:
                full()
            return super().write(data)

        def close(self) -> None:
            already = self.closed
            super().close()
            if where == "close" and not already:
                full()

    monkeypatch.setattr(io, "FileIO", Full)
    if where == "fsync":
        monkeypatch.setattr(os, "fsync", full)
    assert "MB are free there" in fails(tmp_path, "No space left")
    monkeypatch.undo()
    SafeCheckpointIO().save_checkpoint(state(3), tmp_path / LAST)  # negative control
    assert load(tmp_path / LAST)["epoch"] == 3


def test_what_will_not_fit_is_said_before_a_byte_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=1_500_000))
    monkeypatch.setattr(torch, "save", None)
    large = state(3, 250_000)
    assert "it takes 2.0 MB, 1.5 MB are free there; fix: free disk space" in fails(tmp_path, "No space left", large)


@pytest.mark.parametrize("ahead", [True, False])
def test_a_full_disk_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ahead: bool) -> None:
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", tmp_path], capture_output=True)
    if mounted.returncode:
        pytest.skip("this user may mount nothing")
    try:
        folder = saved(tmp_path / "run", size=100_000)
        (tmp_path / "other").write_bytes(bytes(2_000_000))
        if not ahead:
            monkeypatch.setattr(checkpoints, "_check_room", lambda *args: None)
        assert "it takes 0.8 MB, 0.6 MB are free there" in fails(folder, "No space left", state(3, 100_000))
        (tmp_path / "other").unlink()  # negative control
        SafeCheckpointIO().save_checkpoint(state(3, 100_000), folder / LAST)
        assert load(folder / LAST)["epoch"] == 3
    finally:
        subprocess.run(["umount", tmp_path], check=True)


@pytest.mark.parametrize("ahead", [True, False])
def test_a_limit_on_file_sizes_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ahead: bool) -> None:
    saved(tmp_path)
    if not ahead:
        monkeypatch.setattr(checkpoints, "_check_room", lambda *args: None)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, before[1]))
    try:
        said = fails(tmp_path, "File too large", state(3, 200_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "it takes 1.6 MB, a file may have 1.0 MB; fix: raise the limit on file sizes (ulimit -f" in said


def test_a_save_that_fails_at_any_step_leaves_sound_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path / "0")
    calls = last = 0

    def counted(act: Callable) -> Callable:
        def call(*args: object, **words: object) -> object:
            nonlocal calls
            calls += 1
            if calls == last:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return act(*args, **words)

        return call

    for step in ("replace", "link", "fsync", "open"):
        monkeypatch.setattr(os, step, counted(getattr(os, step)))
    failed = 0
    for last in range(1, 100):
        shutil.copytree(tmp_path / "0", folder := tmp_path / str(last))
        calls, writer = -1000, SafeCheckpointIO()
        writer.save_checkpoint(state(2), folder / LAST)
        calls = 0
        try:
            writer.save_checkpoint(state(3), folder / LAST)
        except ResourceError as error:
            assert "Input/output error" in str(error)
            failed += 1
        assert load(newest(folder))["epoch"] in (2, 3) and [load(path) for path in folder.glob("*.ckpt")]
        assert strays(folder) == []
        if calls < last:
            break
        writer.save_checkpoint(state(4), folder / LAST)  # negative control: the same writer, once that is mended
        assert load(folder / LAST)["epoch"] == 4 and load(folder / PREVIOUS) and strays(folder) == []
        assert set(json.loads((folder / RECORD).read_text())) == {path.name for path in folder.glob("*.ckpt")}
    assert failed > 8


def test_a_disk_that_gives_back_something_else_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path)
    sync = os.fsync

    def spoil(handle: int) -> None:
        sync(handle)
        if os.fstat(handle).st_size > 10_000:
            os.pwrite(handle, b"x", 5_000)

    monkeypatch.setattr(os, "fsync", spoil)
    fails(tmp_path, "what the disk gives back is not what was written")


def _saved_or_said(folder: Path) -> str:
    """What a save into a closed folder says."""
    try:
        SafeCheckpointIO().save_checkpoint(state(3), folder / LAST)
    except ResourceError as error:
        return str(error)
    return "saved"


@FORK
def test_a_closed_folder_is_said_and_keeps_the_old_one(public: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root may become another user")
    saved(public)
    answers = {}
    for rights in (0o755, 0o777):
        public.chmod(rights)
        answers[rights] = as_nobody(lambda: _saved_or_said(public))
        assert load(newest(public))["epoch"] == (2 if rights == 0o755 else 3) and names(public) == LEFT
    assert f"{public / LAST}: cannot be written (Permission denied)" in answers[0o755]
    assert f"fix: allow writing into {public}" in answers[0o755]
    assert answers[0o777] == "saved"  # negative control


def test_a_place_that_is_no_folder_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="cannot be written"):
        SafeCheckpointIO().save_checkpoint(state(1), tmp_path / "file" / LAST)
