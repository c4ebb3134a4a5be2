"""A run that is killed or asked to stop goes on to the same bits, and what is not finite leaves no trace."""

from __future__ import annotations

import ctypes
import gc
import os
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from nobody import become_nobody
from survivors import OFTEN, QUICK, Moment, after, ask, at, command, forked, kill, left, mark, nothing

from skinmtl.runs import checkpoints
from skinmtl.runs.run import Run

Whole = Callable[..., tuple[str, str, pd.DataFrame]]
EMA = "callbacks=ema"
TWO = "+trainer.accumulate_grad_batches=2"


@pytest.fixture(scope="module")
def whole(synthetic_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """What an unbroken run with these words leaves, which is never saved within an epoch."""
    known: dict[tuple[str, ...], tuple[str, str, pd.DataFrame]] = {}
    seconds: dict[tuple[str, ...], float] = {}

    def of(*words: str) -> tuple[str, str, pd.DataFrame]:
        if words not in known:
            folder = tmp_path_factory.mktemp("whole") / "run"
            ended = forked(folder, synthetic_root, [*QUICK, *words], at("on_train_start", 1, mark))
            assert ended == 0
            known[words] = left(Run(folder))
            seconds[words] = ended.seconds
        return known[words]

    of.seconds = seconds  # type: ignore[attr-defined]
    return of


def same(run: Run, whole: tuple[str, str, pd.DataFrame]) -> None:
    last, best, rows = left(run)
    pd.testing.assert_frame_equal(rows, whole[2])
    assert (last, best) == whole[:2]


def steps_of(folder: Path) -> int:
    """How many batches a process trained on, counted by its own training_step."""
    file = folder / "steps"
    return int(file.read_text()) if file.exists() else 0


def counted(file: Path) -> Callable[[], None]:
    def prepare() -> None:
        from skinmtl.training.lightning_module import MultiTaskModule

        inner = MultiTaskModule.training_step

        def counting(self: MultiTaskModule, *args: object) -> torch.Tensor:
            file.write_text(str(int(file.read_text()) + 1) if file.exists() else "1")
            return inner(self, *args)  # type: ignore[arg-type]

        MultiTaskModule.training_step = counting  # type: ignore[method-assign,assignment]

    return prepare


KILLED = pytest.mark.fault("kill -9 in training")
ASKED_TO_STOP = pytest.mark.fault("SIGTERM, SIGINT, SIGUSR1, one process")
NAN = pytest.mark.fault("not finite from step 3 on")
WORKERS = pytest.mark.fault("a worker killed, hanging or raising; out of memory")


# Ten batches an epoch, three epochs: the moment of the kill, and how many batches are trained after it.
@KILLED
@pytest.mark.parametrize(
    ("hook", "count", "words", "steps"),
    [
        pytest.param("training_step", 5, [], 26, marks=pytest.mark.long),
        ("training_step", 10, [EMA], 21),  # the last batch of an epoch
        # Within a group whose gradients are added up: it is trained again.
        pytest.param("on_train_batch_end", 16, [TWO], 16, marks=pytest.mark.long),
        pytest.param("validation_step", 2, [TWO, EMA], 22, marks=pytest.mark.long),
        pytest.param("on_train_epoch_end", 2, [], 11, marks=pytest.mark.long),
        pytest.param("on_train_epoch_end", 3, [], 1, marks=pytest.mark.long),
        ("on_train_batch_start", 11, ["data.workers=2"], 20),  # the first batch of an epoch
        pytest.param("on_train_batch_start", 24, ["schedule=plateau", "gradients=pcgrad"], 7, marks=pytest.mark.long),
        pytest.param("configure_optimizers", 1, ["weighting=dwa"], 30, marks=pytest.mark.long),
    ],
)
def test_a_killed_run_goes_on_to_the_same_bits(
    synthetic_root: Path, tmp_path: Path, whole: Whole, hook: str, count: int, words: list[str], steps: int
) -> None:
    now = [*QUICK, OFTEN, *words]
    assert forked(tmp_path / "run", synthetic_root, now, at(hook, count, kill)) == 128 + signal.SIGKILL
    # Another number of workers may go on with it.
    again = [*(word for word in now if "workers" not in word), f"resume={tmp_path / 'run'}"]
    assert forked(tmp_path / "again", synthetic_root, again, counted(tmp_path / "steps")) == 0
    same(Run(tmp_path / "run"), whole(*(word for word in words if "workers" not in word)))
    assert steps_of(tmp_path) == steps


@pytest.mark.fault("the last checkpoint damaged")
def test_where_the_last_checkpoint_is_damaged_the_one_before_it_is_gone_on_from(
    synthetic_root: Path, tmp_path: Path, whole: Whole, capfd: pytest.CaptureFixture[str]
) -> None:
    now = [*QUICK, OFTEN]
    assert forked(tmp_path / "run", synthetic_root, now, at("training_step", 15, kill)) == 128 + signal.SIGKILL
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 1
    last.write_bytes(content)
    again = [*now, f"resume={tmp_path / 'run'}"]
    assert forked(tmp_path / "again", synthetic_root, again, counted(tmp_path / "steps")) == 0
    said = capfd.readouterr().err
    assert "last.ckpt" in said and "last.previous.ckpt" in said
    same(Run(tmp_path / "run"), whole())
    assert steps_of(tmp_path) == 17
    # Where neither is sound, nothing begins again as if there had been nothing.
    for path in last.parent.glob("last*.ckpt"):
        path.write_bytes(b"lost")
    Run(tmp_path / "run").update({"status": "interrupted", "trained": False})
    assert forked(tmp_path / "third", synthetic_root, again, nothing) == 2


@pytest.mark.long
@KILLED
@pytest.mark.parametrize("number", range(20))
def test_twenty_kills_at_any_moment_leave_no_trace(
    synthetic_root: Path, tmp_path: Path, whole: Whole, number: int
) -> None:
    """By the clock, from the start of training to its end; with two workers or none, gradients added up or not."""
    rng = np.random.default_rng(number)
    words = [TWO] if number % 2 else []
    now = [*QUICK, OFTEN, *words, f"data.workers={2 * (number // 2 % 2)}"]
    for left_out in (OFTEN, None):  # how often it is saved changes nothing
        expected = whole(*(word for word in now[len(QUICK) :] if word != left_out))
    span = whole.seconds[tuple(now[len(QUICK) :])]  # type: ignore[attr-defined]
    for attempt in range(9):
        moment = at("on_train_start", 1, after(float(rng.uniform(0.01, span)), kill))
        if (code := forked(tmp_path / f"run{attempt}", synthetic_root, now, moment)) != 0:
            break  # else it had ended before
    assert code == 128 + signal.SIGKILL
    run = Run(tmp_path / f"run{attempt}")
    assert forked(tmp_path / "again", synthetic_root, [*now, f"resume={run.path}"], nothing) == 0
    same(run, expected)
    same(run, whole(*words))


CHAINS = ([EMA], [TWO], ["data.workers=2"], ["schedule=plateau", "gradients=pcgrad"], ["weighting=uncertainty", EMA])


@pytest.mark.long
@pytest.mark.fault("five interruptions of one run")
@pytest.mark.parametrize("words", CHAINS)
def test_five_interruptions_of_one_run_leave_no_trace(
    synthetic_root: Path, tmp_path: Path, whole: Whole, words: list[str]
) -> None:
    """Kills and signals in any order, at any hook, each a few steps after the one before."""
    rng = np.random.default_rng(CHAINS.index(words))
    now = [*QUICK, OFTEN, *words]
    moments = ["training_step", "on_train_batch_start", "on_train_batch_end", "validation_step", "on_save_checkpoint"]
    rng.shuffle(moments)
    for number, hook in enumerate(moments):
        count = 1 if hook == "validation_step" else int(rng.integers(2, 5))
        act = [kill, ask(signal.SIGTERM), ask(signal.SIGINT), ask(signal.SIGUSR1), kill][(number + len(words)) % 5]
        resume = [f"resume={tmp_path / 'run'}"] if number else []
        folder = tmp_path / (str(number) if number else "run")
        code = forked(folder, synthetic_root, [*now, *resume], at(hook, count, act))
        assert code == (128 + signal.SIGKILL if act is kill else 75), (number, hook, count)
    assert forked(tmp_path / "last", synthetic_root, [*now, f"resume={tmp_path / 'run'}"], nothing) == 0
    same(Run(tmp_path / "run"), whole(*words))


MOMENTS = (
    ("training_step", 5, 25),
    ("validation_step", 1, 30),
    ("configure_optimizers", 1, 30),
    ("on_save_checkpoint", 2, 19),
    ("on_validation_epoch_end", 3, 0),  # nobody looks any more whether it was asked to stop, but at the very end
)
ASKED = [(signal.SIGTERM, *MOMENTS[0]), (signal.SIGUSR1, *MOMENTS[1]), (signal.SIGINT, *MOMENTS[2])]
REST = [(number, *moment) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1) for moment in MOMENTS]


@ASKED_TO_STOP
@pytest.mark.parametrize(
    ("number", "hook", "count", "steps"),
    [*ASKED, *(pytest.param(*case, marks=pytest.mark.long) for case in REST if case not in ASKED)],
)
def test_who_is_asked_to_stop_saves_and_ends_with_75(
    synthetic_root: Path,
    tmp_path: Path,
    whole: Whole,
    record_property: Callable[[str, object], None],
    number: signal.Signals,
    hook: str,
    count: int,
    steps: int,
) -> None:
    ended = forked(tmp_path / "run", synthetic_root, QUICK, at(hook, count, ask(number)))
    assert ended == 75
    record_property("seconds to end", ended.seconds)
    info = Run(tmp_path / "run").info()
    assert info["status"] == "interrupted" and info["exit_code"] == 75 and "resume=" in info["error"]
    again = [*QUICK, f"resume={tmp_path / 'run'}"]
    assert forked(tmp_path / "again", synthetic_root, again, counted(tmp_path / "steps")) == 0
    same(Run(tmp_path / "run"), whole())
    assert steps_of(tmp_path) == steps


@pytest.mark.long
@ASKED_TO_STOP
@pytest.mark.parametrize("number", range(16))
def test_who_is_asked_to_stop_at_any_moment_ends_with_75(
    synthetic_root: Path,
    tmp_path: Path,
    whole: Whole,
    record_property: Callable[[str, object], None],
    number: int,
) -> None:
    """By the clock, from the beginning of the command; it begins anew where its folder was not there yet."""
    rng = np.random.default_rng(100 + number)
    name = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)[number % 3]
    expected, latest = whole(), 3 + whole.seconds[()]  # type: ignore[attr-defined]
    for attempt in range(9):
        folder = tmp_path / f"run{attempt}"
        moment = after(float(rng.uniform(0.05, latest)), ask(name))
        if (ended := forked(folder, synthetic_root, QUICK, moment)) != 0:
            break
        latest = min(latest, ended.seconds)  # all was done before: a moment within what it took
    assert ended == 75
    record_property("seconds to end", ended.seconds)
    begun = (folder / "run.json").exists()
    resume = [f"resume={folder}"] if begun else []
    assert begun or not folder.exists(), "nothing was begun, so nothing lies there"
    assert forked(tmp_path / "again", synthetic_root, [*QUICK, *resume], nothing) == 0
    same(Run(folder if begun else tmp_path / "again"), expected)


def everybody(number: signal.Signals) -> Moment:
    """Ask this process and those that it has started, as a terminal does, or SLURM."""
    name = number.name.removeprefix("SIG")

    def act() -> None:
        mark()
        # By another process: a worker tells its own run's word from others'.
        subprocess.run(["kill", "-s", name, "--", f"-{os.getpgid(0)}"], start_new_session=True, check=True)

    return act


@ASKED_TO_STOP
@pytest.mark.parametrize(
    "name",
    [
        signal.SIGINT,
        pytest.param(signal.SIGTERM, marks=pytest.mark.long),
        pytest.param(signal.SIGUSR1, marks=pytest.mark.long),
    ],
)
def test_workers_that_are_asked_to_stop_too_leave_it_to_their_run(
    synthetic_root: Path, tmp_path: Path, whole: Whole, name: signal.Signals
) -> None:
    now = [*QUICK, "data.workers=2"]

    def together() -> None:
        os.setsid()
        at("training_step", 15, everybody(name))()

    assert forked(tmp_path / "run", synthetic_root, now, together) == 75
    again = [*now, f"resume={tmp_path / 'run'}"]
    assert forked(tmp_path / "again", synthetic_root, again, counted(tmp_path / "steps")) == 0
    same(Run(tmp_path / "run"), whole())
    assert steps_of(tmp_path) == 15


@pytest.mark.parametrize("act", [ask(), pytest.param(kill, marks=pytest.mark.long)], ids=["SIGTERM", "kill"])
def test_a_run_that_had_stopped_early_trains_no_further(synthetic_root: Path, tmp_path: Path, act: Moment) -> None:
    early = [f"callbacks.early_stopping.{word}" for word in ("monitor=val/cls/balanced_accuracy", "patience=1")]
    early += ["+callbacks.early_stopping.min_delta=0.5"]
    now = [*(word for word in QUICK if "early_stopping" not in word), *early]
    assert forked(tmp_path / "whole", synthetic_root, now, nothing) == 0
    unbroken = left(Run(tmp_path / "whole"))
    assert unbroken[2]["epoch"].max() == 1, "it stops early"
    assert forked(tmp_path / "run", synthetic_root, now, at("on_train_end", 1, act)) in (75, 128 + signal.SIGKILL)
    again = [*now, f"resume={tmp_path / 'run'}"]
    assert forked(tmp_path / "again", synthetic_root, again, counted(tmp_path / "steps")) == 0
    same(Run(tmp_path / "run"), unbroken)
    assert steps_of(tmp_path) == 0


def test_the_second_ctrl_c_stops_at_once(synthetic_root: Path, tmp_path: Path) -> None:
    def twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    assert forked(tmp_path / "run", synthetic_root, QUICK, at("training_step", 5, twice)) == 75
    assert not (tmp_path / "run" / "checkpoints" / "last.ckpt").exists(), "nothing was saved, for nobody waited"


@pytest.mark.fault("a job that SLURM requeues", tries=2)
def test_a_requeued_slurm_job_ends_in_its_own_run_folder(
    synthetic_root: Path, tmp_path: Path, whole: Whole, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A `scontrol` of ours writes down what it is asked; the job begins again twice, each time with a fresh folder."""
    tool = tmp_path / "bin" / "scontrol"
    tool.parent.mkdir()
    tool.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path / "asked"}\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    steps = [at("training_step", 5, ask(signal.SIGUSR1)), at("training_step", 9, ask(signal.SIGTERM)), nothing]
    for count, moment in enumerate(steps):
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(count))
        code = forked(tmp_path / "runs" / f"begun_{count}", synthetic_root, QUICK, moment)
        assert code == (0 if count == 2 else 75)
    assert (tmp_path / "asked").read_text() == "requeue 77\n", "SIGTERM is answered by SLURM itself"
    assert [path.name for path in (tmp_path / "runs").glob("begun_*")] == ["begun_0"]
    same(Run(tmp_path / "runs" / "begun_0"), whole())
    # Negative control: another job does not go on with it.
    monkeypatch.setenv("SLURM_JOB_ID", "78")
    Run(tmp_path / "runs" / "begun_0").update({"status": "interrupted"})
    assert forked(tmp_path / "runs" / "begun_3", synthetic_root, QUICK, at("training_step", 2, ask())) == 75
    assert (tmp_path / "runs" / "begun_3" / "run.json").exists()


# --- what is not finite ---------------------------------------------------------------------------------------------


def poisoned(first: int, last: int) -> Callable[[], None]:
    """A network whose weights' gradients and running statistics are lost in these batches, counted from 1."""

    def prepare() -> None:
        from skinmtl.models.multitask_net import MultiTaskNet

        inner, calls = MultiTaskNet.forward, [0]

        def forward(self: MultiTaskNet, image: torch.Tensor) -> dict[str, torch.Tensor]:
            calls[0] += self.training
            bad = self.training and first <= calls[0] <= last
            if bad:
                for buffer in self.buffers():
                    if buffer.is_floating_point():
                        buffer.fill_(float("nan"))
            return {name: logits * (float("nan") if bad else 1.0) for name, logits in inner(self, image).items()}

        MultiTaskNet.forward = forward  # type: ignore[method-assign,assignment]

    return prepare


@NAN
@pytest.mark.parametrize("words", [[EMA], ["weighting=geometric"]])  # which keeps what the losses made of the weights
def test_three_steps_in_a_row_are_skipped_and_leave_no_trace(
    synthetic_root: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], words: list[str]
) -> None:
    assert forked(tmp_path / "run", synthetic_root, [*QUICK, OFTEN, *words], poisoned(3, 5)) == 0
    said = capfd.readouterr().err
    assert said.count("the step is skipped") == 3 and "SYN_" in said and "epoch 1, step 3" in said
    tensors = checkpoints.load(Run(tmp_path / "run").checkpoint("last"))
    assert all(torch.isfinite(value).all() for value in tensors["state_dict"].values() if value.is_floating_point())
    rows = pd.read_csv(tmp_path / "run" / "metrics.csv")
    assert len(rows["weight/seg"].dropna()) == 3
    assert rows["train/loss"].dropna().map(lambda value: value == value).all() and len(rows["train/loss"].dropna()) == 3


@NAN
def test_the_fourth_ends_the_run_with_3_and_no_checkpoint_has_it(
    synthetic_root: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert forked(tmp_path / "run", synthetic_root, [*QUICK, OFTEN], poisoned(3, 10**9)) == 3
    said = capfd.readouterr().err
    assert said.count("the step is skipped") == 3 and "3 steps in a row were skipped before" in said
    assert Run(tmp_path / "run").info()["exit_code"] == 3
    tensors = checkpoints.load(Run(tmp_path / "run").checkpoint("last"))
    assert all(torch.isfinite(value).all() for value in tensors["state_dict"].values() if value.is_floating_point())


def test_a_skipped_step_is_as_if_it_had_not_been(synthetic_root: Path, tmp_path: Path) -> None:
    """After a first step that is skipped the weights are those at the start."""
    states = []
    for name, moment in (("skipped", poisoned(1, 1)), ("trained", nothing)):
        words = [*QUICK, OFTEN]

        def stopped(moment: Callable[[], None] = moment) -> None:
            moment()
            at("on_train_batch_end", 1, ask())()

        assert forked(tmp_path / name, synthetic_root, words, stopped) == 75
        states.append(checkpoints.load(Run(tmp_path / name).checkpoint("last"))["state_dict"])
    assert forked(tmp_path / "start", synthetic_root, [*QUICK, OFTEN], at("training_step", 1, ask())) == 75
    skipped, trained = ({name: value for name, value in state.items() if "network" in name} for state in states)
    moved = [name for name in skipped if not torch.equal(skipped[name], trained[name])]
    assert moved, "a step that is not skipped moves them"
    counts = [value for name, value in skipped.items() if name.endswith("running_mean")]
    assert all((value == 0).all() for value in counts)


# --- what runs out, dies or hangs -----------------------------------------------------------------------------------


def workers_that(act: Callable[[], None], hangs: float = 300.0) -> Callable[[], None]:
    """Workers of which one does something else at the twentieth image."""

    def prepare() -> None:
        from skinmtl.data import datamodule

        inner, calls, parent = datamodule.Samples._one, [0], os.getpid()

        def reading(self: datamodule.Samples, row: int, key: tuple[int, ...]) -> datamodule.Sample:
            calls[0] += 1
            if calls[0] == 10 and os.getpid() != parent:
                act()
            return inner(self, row, key)

        datamodule.Samples._one = reading  # type: ignore[method-assign,assignment]
        datamodule.HANGS = hangs

    return prepare


def small_memory() -> None:
    """Leave 32 kB of memory that processes share; as seen from here alone."""
    ctypes.CDLL(None).unshare(0x00020000)  # CLONE_NEWNS
    for words in (["--make-rprivate", "/"], ["-t", "tmpfs", "-o", "size=32k", "tmpfs", "/dev/shm"]):
        subprocess.run(["mount", *words], check=True)


def fails() -> None:
    raise ValueError("not enough memory, a transform says")  # of its own, not of the machine


def out_of_memory() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


MOUNTS = pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")


@WORKERS
@pytest.mark.parametrize(
    ("prepare", "says"),
    [
        (workers_that(kill), "data.workers: DataLoader worker (pid"),
        pytest.param(
            workers_that(lambda: time.sleep(10_000), hangs=3.0),
            "data.workers: DataLoader timed out after 3",
            marks=pytest.mark.long,
        ),
        (workers_that(fails), ".jpg: a worker failed at it (ValueError: not enough memory, a transform says); fix:"),
        pytest.param(small_memory, "free are 0.0 of 0.0 MB in /dev/shm", marks=[pytest.mark.long, MOUNTS]),
        (at("training_step", 3, out_of_memory), "memory: not enough for 4 images of 32 x 32 a step"),
    ],
)
def test_what_runs_out_dies_or_hangs_ends_the_run_with_4_and_says_what_to_change(
    synthetic_root: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], prepare: Callable[[], None], says: str
) -> None:
    assert forked(tmp_path / "run", synthetic_root, [*QUICK, "data.workers=1"], prepare) == 4
    assert says in (said := capfd.readouterr().err) and "Traceback" not in said
    assert Run(tmp_path / "run").info()["exit_code"] == 4


def fill(folder: Path) -> None:
    """Leave no room on the disk of a folder."""
    with suppress(OSError), (folder / "other").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1 << 16))
    with suppress(OSError), (folder / "other").open("ab", buffering=0) as file:
        while True:
            file.write(b"0")


def limit(folder: Path) -> None:
    """Have the system refuse files of more than 30 kB to this process."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, resource.RLIM_INFINITY))


def close(folder: Path) -> None:
    """Allow nobody to write into the run's folder."""
    for place in (folder / "run" / "checkpoints", folder / "run"):
        place.chmod(0o555)


@pytest.fixture
def disk(public: Path) -> Iterator[Path]:
    """A small disk of its own."""
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200m", "tmpfs", public], capture_output=True).returncode:
        pytest.skip("this user may mount nothing")
    public.chmod(0o777)
    yield public
    subprocess.run(["umount", public], check=True)


@pytest.mark.fault("a full disk, a limit on file sizes, a folder that is closed")
@pytest.mark.parametrize(
    ("act", "often", "says"),
    [
        (fill, True, "No space left on device"),
        pytest.param(fill, False, "No space left on device", marks=pytest.mark.long),  # the table of metrics is first
        pytest.param(limit, True, "File too large", marks=pytest.mark.long),
        pytest.param(close, True, "Permission denied", marks=pytest.mark.long),
    ],
)
def test_what_cannot_be_written_ends_the_run_with_4_and_leaves_the_checkpoint_before(
    synthetic_root: Path,
    disk: Path,
    whole: Whole,
    capfd: pytest.CaptureFixture[str],
    record_property: Callable[[str, object], None],
    act: Callable[[Path], None],
    often: bool,
    says: str,
) -> None:
    root = disk / "images"
    shutil.copytree(synthetic_root, root)  # pytest's folders are closed to others
    expected = whole()  # before the limit

    def prepare() -> None:
        if act is close:
            command(disk / "before", root, words)  # all modules are read, which may lie in closed folders, too
            become_nobody()
        at("training_step", 15, lambda: (mark(), act(disk)))()  # type: ignore[arg-type,return-value]

    words = [*QUICK, *([OFTEN] if often else [])]
    ended = forked(disk / "run", root, words, prepare)
    said = capfd.readouterr().err
    assert ended == 4, said
    record_property("seconds to end", ended.seconds)
    (line,) = [line for line in said.splitlines() if line.startswith("skinmtl: error: ")]
    assert str(disk / "run") in line and says in line and "; fix: " in line and "Traceback" not in said
    (disk / "other").unlink(missing_ok=True)
    for place in (disk / "run", disk / "run" / "checkpoints"):
        place.chmod(0o755)
    assert checkpoints.load(checkpoints.newest(disk / "run" / "checkpoints"))["global_step"] == (14 if often else 10)
    assert forked(disk / "again", root, [*words, f"resume={disk / 'run'}"], nothing) == 0
    same(Run(disk / "run"), expected)


@pytest.mark.long
@pytest.mark.fault("2,150 steps, 50 epochs, two workers that stay")
def test_two_thousand_steps_and_fifty_epochs_leave_no_memory_handle_or_child_behind(
    synthetic_root: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    def watched() -> None:
        """Size and handles as each epoch begins; handles and children as the process ends."""

        def note() -> None:
            status = Path("/proc/self/status").read_text().splitlines()
            size = next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))
            handles = len(os.listdir("/proc/self/fd"))
            with (tmp_path / "seen.csv").open("a") as file:
                file.write(f"{size},{handles}\n")

        for count in range(1, 51):
            at("on_train_epoch_start", count, note)()
        (tmp_path / "before").write_text(str(len(os.listdir("/proc/self/fd"))))

        def last() -> None:
            children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
            (tmp_path / "after").write_text(f"{len(os.listdir('/proc/self/fd'))} {len(children)}")

        at_exit = os._exit
        os._exit = lambda code: (gc.collect(), last(), at_exit(code))  # type: ignore[assignment,func-returns-value]

    words = [*QUICK, "trainer.max_epochs=50", "data.batch_size=1", "data.size=64", "data.workers=2", EMA]
    assert forked(tmp_path / "run", synthetic_root, words, watched) == 0
    info = pd.read_csv(tmp_path / "run" / "metrics.csv")
    assert info["step"].max() >= 2000 - 1
    seen = pd.read_csv(tmp_path / "seen.csv", names=["kB", "handles"])
    assert len(seen) == 50
    record_property("memory, times that of the fifth epoch", float(seen["kB"].iloc[-1] / seen["kB"].iloc[4]))
    assert seen["kB"].iloc[-1] <= 1.05 * seen["kB"].iloc[4]
    assert seen["handles"].iloc[-1] <= seen["handles"].iloc[4]
    handles, children = map(int, (tmp_path / "after").read_text().split())
    assert children == 0 and handles <= int((tmp_path / "before").read_text())


@pytest.mark.long
@pytest.mark.fault("one seed twice and with two workers, the same bits; five seeds, ten different pairs", tries=12)
def test_five_seeds_are_ten_different_pairs_and_one_seed_is_one(synthetic_root: Path, tmp_path: Path) -> None:
    hashes = []
    for number, words in enumerate([[f"seed={seed}"] for seed in (0, 1, 2, 3, 4, 0)] + [["data.workers=2"]]):
        assert forked(tmp_path / str(number), synthetic_root, [*QUICK, *words], nothing) == 0
        hashes.append(left(Run(tmp_path / str(number)))[0])
    assert len(set(hashes[:5])) == 5 and hashes[5] == hashes[6] == hashes[0]


DAMAGE = {
    "run.json": ("[]", "run.json: holds a list"),
    ".hydra/config.yaml": ("a: ${b", "config.yaml: "),
    "metrics.csv": ("a,b\n", "metrics.csv: not the metrics of a run"),
    "checkpoints/sha256.json": ("{}", "changed since it was written"),
}


def test_a_damaged_folder_is_named_and_no_neighbour_minds_it(
    synthetic_root: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    runs = tmp_path / "runs"
    assert forked(runs / "a", synthetic_root, QUICK, at("training_step", 15, ask())) == 75
    for name, (content, says) in DAMAGE.items():
        whole = (runs / "a" / name).read_text()
        (runs / "a" / name).write_text(content)
        capfd.readouterr()
        assert forked(tmp_path / "again", synthetic_root, [*QUICK, f"resume={runs / 'a'}"], nothing) == 2
        said = capfd.readouterr().err
        assert says in said and said.count("skinmtl: error: ") == 1 and "Traceback" not in said, name
        if name != "metrics.csv":
            fresh = runs / f"b{name.replace('/', '')}"
            code = forked(fresh, synthetic_root, [*QUICK, "resume=auto"], at("configure_optimizers", 1, ask()))
            assert code == (2 if "sha256" in name else 75) and fresh.exists() == (code == 75)
        (runs / "a" / name).write_text(whole)
        shutil.rmtree(runs / f"b{name.replace('/', '')}", ignore_errors=True)
    assert forked(tmp_path / "last", synthetic_root, [*QUICK, f"resume={runs / 'a'}"], nothing) == 0


# --- going on with something else -----------------------------------------------------------------------------------


@pytest.mark.fault("another seed, batch, split, rate or data")
@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["seed=1"], "seed 0, now 1"),
        pytest.param(["data.batch_size=8"], "data.batch_size 4, now 8", marks=pytest.mark.long),
        pytest.param(["data.fold=1"], "data.fold 0, now 1", marks=pytest.mark.long),
        pytest.param(["optim.lr=0.1"], "optim.lr 0.001, now 0.1", marks=pytest.mark.long),
        ([TWO], "trainer.accumulate_grad_batches 'not there', now 2"),
    ],
)
def test_a_run_does_not_go_on_with_other_values(
    synthetic_root: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], words: list[str], says: str
) -> None:
    assert forked(tmp_path / "run", synthetic_root, QUICK, at("training_step", 5, ask())) == 75
    again = [*QUICK, *words, f"resume={tmp_path / 'run'}"]
    assert forked(tmp_path / "refused", synthetic_root, again, nothing) == 2
    assert says in capfd.readouterr().err
    # What the run is counted in, tested on, or has saved with its weights stays as it is.
    told = forked(tmp_path / "told", synthetic_root, [*again, "allow_change=true"], nothing)
    assert told == (0 if says.startswith("seed") else 2)


@pytest.mark.fault("another seed, batch, split, rate or data")
def test_a_run_does_not_go_on_with_other_images(
    synthetic_root: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "root"
    shutil.copytree(synthetic_root, root)
    (root / "synthetic.json").unlink(missing_ok=True)
    assert forked(tmp_path / "run", root, QUICK, at("training_step", 5, ask())) == 75
    table = pd.read_csv(root / "HAM10000_metadata.csv")
    other = {"mel": "nv", "nv": "mel"}
    table.assign(dx=table["dx"].replace(other)).to_csv(root / "HAM10000_metadata.csv", index=False)
    again = [*QUICK, f"resume={tmp_path / 'run'}"]
    assert forked(tmp_path / "refused", root, again, nothing) == 2
    said = capfd.readouterr().err
    assert "the run began with" in said and "data.split" in said
    # Under another split it would be tested on lesions that it has learned from.
    assert forked(tmp_path / "told", root, [*again, "allow_change=true"], nothing) == 2
