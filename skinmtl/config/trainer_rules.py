"""Faults of the trainer's node: its length, its steps, its precision, what of Lightning does not work in a run."""

from __future__ import annotations

from collections.abc import Iterator

from skinmtl.config import allowlist
from skinmtl.config.build import Node, value_of
from skinmtl.config.hardware import resolve_accelerator, resolve_precision
from skinmtl.errors import ConfigError

STRATEGIES = ("auto", "ddp", "ddp_find_unused_parameters_true")


def trainer_faults(node: Node, keep: str) -> Iterator[ConfigError]:
    """Yield faults of the trainer's node.

    Args:
        node: of Lightning's trainer.
        keep: which weights the run keeps, best or last.
    """
    yield from _length_faults(node, keep)
    yield from _step_faults(node)
    yield from _precision_faults(node)
    if node.get("profiler") not in (None, *allowlist.PROFILERS):
        what = f"{node['profiler']!r} is not known to work in a run"
        yield ConfigError("trainer.profiler", what, f"use {' or '.join(allowlist.PROFILERS)}")
    if node.get("sync_batchnorm") and node.get("accelerator") == "cpu":
        yield ConfigError("trainer.sync_batchnorm", "it works on GPUs alone", "remove it")
    if node.get("num_nodes", 1) != 1:
        yield ConfigError("trainer.num_nodes", "a run trains on one machine", "use 1; a sweep can use others beside it")
    if node.get("strategy", "auto") not in STRATEGIES:
        what = f"{node['strategy']!r} is not how a run's processes work together"
        yield ConfigError("trainer.strategy", what, f"use {' or '.join(STRATEGIES)}")


def _length_faults(node: Node, keep: str) -> Iterator[ConfigError]:
    """Yield faults of how many epochs there are, and which of them are validated."""
    epochs, every = node.get("max_epochs"), node.get("check_val_every_n_epoch") or 1
    if not isinstance(epochs, int) or epochs < 1:
        yield ConfigError("trainer.max_epochs", f"{epochs} epochs", "give 1 or more: the schedule needs its length")
    elif every > epochs:
        what = f"{every} epochs between validations, but {epochs} in all"
        yield ConfigError("trainer.check_val_every_n_epoch", what, f"give 1 to {epochs}: the best checkpoint needs one")
    elif keep == "last" and epochs % every:
        what = f"{every} epochs between validations, so that the last of {epochs}, which is kept, has none"
        yield ConfigError("trainer.check_val_every_n_epoch", what, f"give a divisor of {epochs}, or keep=best")
    least = node.get("min_epochs")
    if least is not None and isinstance(epochs, int) and least > epochs:
        yield ConfigError("trainer.min_epochs", f"{least} epochs at least, but {epochs} at most", f"give 1 to {epochs}")


def _step_faults(node: Node) -> Iterator[ConfigError]:
    """Yield faults of how many batches and steps there are, and what is clipped."""
    for key in ("limit_train_batches", "limit_val_batches", "accumulate_grad_batches", "log_every_n_steps"):
        if node.get(key) is not None and node[key] <= 0:
            yield ConfigError(f"trainer.{key}", f"{node[key]} leaves nothing", "give null, or 1 and more")
    clip = node.get("gradient_clip_val")
    if clip is not None and clip < 0:
        yield ConfigError("trainer.gradient_clip_val", f"{clip} would turn gradients round", "use null for no clipping")
    if node.get("gradient_clip_algorithm") is not None and not clip:
        what = "nothing is clipped without trainer.gradient_clip_val"
        yield ConfigError("trainer.gradient_clip_algorithm", what, "give that, or remove it")


def _precision_faults(node: Node) -> Iterator[ConfigError]:
    precision = node.get("precision")
    if precision is not None and str(precision) not in allowlist.PRECISIONS:
        why = allowlist.NOT_PRECISIONS.get(str(precision), "is not known to work in a run")
        yield ConfigError("trainer.precision", f"{precision} {why}", "use auto, bf16-mixed, 16-mixed or 32-true")
        return
    try:
        resolve_precision(precision, resolve_accelerator(value_of(node, "accelerator")))
    except ConfigError as fault:
        yield fault
