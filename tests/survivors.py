"""Runs in processes of their own that are killed, or asked to stop, at a moment of one's choice; what they leave."""

from __future__ import annotations

import hashlib
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
from training import train

from skinmtl import checkpoints
from skinmtl.errors import SkinmtlError
from skinmtl.runs import Run

# Ten steps an epoch of a network that takes a moment, saved as often as one likes.
QUICK = ["trainer.precision=32-true", "callbacks.early_stopping=null", "model/encoder=conv_pool"]
QUICK += ["model.encoder.layers=5", "model.encoder.filters=2", "model.encoder.growth=1.0", "trainer.max_epochs=3"]
QUICK += ["trainer.limit_train_batches=null", "trainer.limit_val_batches=null", "trainer.log_every_n_steps=2"]
OFTEN = "save_every=1e-9"

Moment = Callable[[], None]


def forked(folder: Path, root: Path, words: Sequence[str], prepare: Moment) -> int:
    """Train in a process of its own after `prepare`; gives its exit code, 128 + the signal's number for a signal.

    Nothing is evaluated: what is asked is what training leaves behind.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        return 128 - code if code < 0 else code
    try:
        import skinmtl.train

        logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr, force=True)
        skinmtl.train.evaluate = lambda run: None  # type: ignore[assignment]
        skinmtl.train.write_run_report = lambda path: path  # type: ignore[assignment]
        prepare()
        train(folder, root, words)
        os._exit(0)
    except SkinmtlError as error:
        print(error, file=sys.stderr)
        os._exit(error.exit_code)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def nothing() -> None:
    """No moment at all."""


def at(hook: str, count: int, act: Moment) -> Moment:
    """Do something the `count`-th time that a hook of the module is called, counted from 1."""

    def prepare() -> None:
        from skinmtl.module import MultiTaskModule

        inner, calls = getattr(MultiTaskModule, hook), [0]

        def hooked(self: object, *args: object, **kwargs: object) -> object:
            calls[0] += 1
            if calls[0] == count:
                act()
            return inner(self, *args, **kwargs)

        setattr(MultiTaskModule, hook, hooked)

    return prepare


def kill() -> None:
    """End this process as a machine that is taken away does."""
    os.kill(os.getpid(), signal.SIGKILL)


def ask(number: signal.Signals = signal.SIGTERM) -> Moment:
    """Ask this process to stop."""
    return lambda: signal.raise_signal(number)  # of this thread, so that it has been heard when the next line runs


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
