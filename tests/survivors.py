"""Runs in processes of their own that are killed, or asked to stop, at a moment of one's choice; what they leave."""

from __future__ import annotations

import hashlib
import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
from hangs import HANGS
from hydra.core.global_hydra import GlobalHydra
from small_runs import CONF, SHORT

from skinmtl import runs
from skinmtl.runs import checkpoints
from skinmtl.runs.run import Run

# Ten steps an epoch of a network that takes a moment and 200 kB, saved as often as one likes.
QUICK = ["trainer.precision=32-true", "callbacks.early_stopping=null", "trainer.max_epochs=3"]
QUICK += ["model=shared_cnn", "model.encoder.layers=3", "model.encoder.filters=4"]
QUICK += ["trainer.limit_train_batches=null", "trainer.limit_val_batches=null", "trainer.log_every_n_steps=2"]
OFTEN = "save_every=1e-9"

Moment = Callable[[], None]


class Ended(int):
    """A process's exit code, 128 + the signal's number for a signal."""

    seconds: float  # since its last moment (see `mark`), or its start


def forked(folder: Path, root: Path, words: Sequence[str], prepare: Moment) -> Ended:
    """Run the command in a process of its own after `prepare`.

    Nothing is evaluated: what is asked is what training leaves behind.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    hear, say = os.pipe()
    child = os.fork()
    if child:
        os.close(say)
        start = time.monotonic()
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        end = time.monotonic()
        with os.fdopen(hear) as marks:
            moments = [start, *map(float, marks)]
        ended = Ended(128 - code if code < 0 else code)
        ended.seconds = end - moments[-1]
        return ended
    try:
        os.environ["TEST_MARK"] = str(say)
        prepare()
        os._exit(command(folder, root, words))
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def command(folder: Path, root: Path, words: Sequence[str]) -> int:
    """The real command line, without its evaluation; caches go beside the folder."""
    import skinmtl.training.fit
    from skinmtl.cli import train

    skinmtl.training.fit.evaluate = lambda run: None  # type: ignore[assignment]
    skinmtl.training.fit.write_run_report = lambda path, ending: path  # type: ignore[assignment]
    runs.run.PATIENCE = HANGS  # where much else runs, the workers of a killed run take their time to end
    places = [f"data.root={root}", "data.synthetic=null", f"hydra.run.dir={folder}"]
    places += [f"data.{key}={folder.parent / key}" for key in ("cache_dir", "split_dir")]
    GlobalHydra.instance().clear()
    logging.getLogger().handlers.clear()  # pytest's, in whose place the command puts its own
    sys.argv = ["train.py", "experiment=resnet18_unet", *SHORT, *places, *words]
    return train.main(CONF, sys.argv)


def mark() -> None:
    """Say that the moment is now."""
    os.write(int(os.environ["TEST_MARK"]), f"{time.monotonic()}\n".encode())


def nothing() -> None:
    """No moment at all."""


def at(hook: str, count: int, act: Moment) -> Moment:
    """Do something the `count`-th time that a hook of the module is called, counted from 1."""

    def prepare() -> None:
        from skinmtl.training.lightning_module import MultiTaskModule

        inner, calls = getattr(MultiTaskModule, hook), [0]

        def hooked(self: object, *args: object, **kwargs: object) -> object:
            calls[0] += 1
            if calls[0] == count:
                act()
            return inner(self, *args, **kwargs)

        setattr(MultiTaskModule, hook, hooked)

    return prepare


def after(seconds: float, act: Moment) -> Moment:
    """Do something so many seconds from now, whatever is being done then."""

    def prepare() -> None:
        signal.signal(signal.SIGALRM, lambda *_: act())
        signal.setitimer(signal.ITIMER_REAL, seconds)

    return prepare


def kill() -> None:
    """End this process as a machine that is taken away does."""
    mark()
    os.kill(os.getpid(), signal.SIGKILL)


def ask(number: signal.Signals = signal.SIGTERM) -> Moment:
    """Ask this process to stop."""

    def act() -> None:
        mark()
        signal.raise_signal(number)  # of this thread, so that it has been heard when the next line runs

    return act


def left(run: Run) -> tuple[str, str, pd.DataFrame]:
    """Hashes of the last and the best weights, the optimiser's among them, and metrics.csv without its times."""
    hashes = [_hash(checkpoints.load(run.checkpoint(which))) for which in ("last", "best")]
    table = pd.read_csv(run.path / "metrics.csv")
    return hashes[0], hashes[1], table.drop(columns=[name for name in table if "time" in name])


def _hash(tree: object) -> str:
    digest = hashlib.sha256()

    def walk(value: object) -> None:
        if hasattr(value, "numpy"):
            digest.update(value.numpy().tobytes())
        elif isinstance(value, dict):
            for key in sorted(value, key=str):
                walk(value[key])
        elif isinstance(value, (list, tuple)):
            for item in value:
                walk(item)

    assert isinstance(tree, dict)
    walk({key: tree[key] for key in ("state_dict", "optimizer_states", "current_model_state") if key in tree})
    return digest.hexdigest()
