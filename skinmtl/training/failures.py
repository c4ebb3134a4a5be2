"""What a training that failed stands for: Lightning's and torch's errors as answers to a user."""

from __future__ import annotations

import difflib
import os
import re
import shutil
import traceback

from lightning_fabric.utilities.exceptions import MisconfigurationException

from skinmtl.data.datamodule import DataModule
from skinmtl.errors import ConfigError, Diverged, ResourceError, SkinmtlError, lacks_memory


def failure(error: BaseException, data: DataModule) -> SkinmtlError | None:
    """Give the error for the user that a failed training stands for.

    Args:
        error: what Lightning or torch raised.
        data: its images, for their number and size.

    Returns:
        None where the error speaks for itself, or is a mistake of ours.
    """
    if isinstance(error, SkinmtlError):
        return None
    said = " ".join(str(error).split())
    if isinstance(error, MisconfigurationException):
        return ConfigError("trainer", said, "see conf/trainer")
    if lacks_memory(error):
        return _out_of_memory(said, data)
    if is_of_workers(error):
        if _frames(error, "resource_sharer"):
            said = f"DataLoader worker (pid not known) died as it handed over a batch ({said})"
        fix = "take fewer data.workers, or data.workers=0; then resume with resume="
        return ResourceError("data.workers", said[:200] + _shared_memory(), fix)
    if "Expected more than 1 value per channel" in said:
        what = "batch normalisation needs more than one value a channel"
        return ConfigError("data.batch_size", what, "use larger batches, or larger images")
    if found := re.search(r"conditioned on metric `(.+?)` which is not available.* any of the following: (.+)", said):
        known = sorted(name for name in re.findall(r"`([^`]+)`", found[2]) if not name.startswith("step/"))
        near = difflib.get_close_matches(found[1], known, 1)
        fix = f"did you mean {near[0]!r}?" if near else f"it should be {', '.join(known)}"
        return ConfigError("callbacks.early_stopping.monitor", f"nothing logs {found[1]!r}", fix)
    if "returned nan values in its" in said:
        return Diverged("trainer.detect_anomaly", said[:300], "lower optim.lr, or look at the images of this step")
    if "find_unused_parameters" in said:
        what = "some of its weights take no part in the loss, and other processes wait for their gradients"
        return ConfigError("model", what, "trainer.strategy=ddp_find_unused_parameters_true")
    return None


def is_of_workers(error: BaseException) -> bool:
    """Tell whether loader workers died, hung, or could not be started."""
    known = ("DataLoader worker", "DataLoader timed out", "unable to allocate shared memory")
    # The second is where a batch is fetched from a worker, which may be gone by then.
    of_system = isinstance(error, OSError | EOFError) and (
        _frames(error, "SemLock") or _frames(error, "resource_sharer")
    )
    return any(words in str(error) for words in known) or of_system


def _frames(error: BaseException, name: str) -> bool:
    """Tell whether a name stands in the traceback of an error."""
    return name in "".join(traceback.format_tb(error.__traceback__))


def _shared_memory() -> str:
    """Say how much is left of shared memory, through which workers send batches, and of memory; empty if unknown."""
    try:
        shared, pages = shutil.disk_usage("/dev/shm"), os.sysconf("SC_AVPHYS_PAGES")
    except (OSError, ValueError):
        return ""
    free = pages * os.sysconf("SC_PAGE_SIZE")
    words = f"{shared.free / 1e6:.1f} of {shared.total / 1e6:.1f} MB in /dev/shm, {free / 1e9:.1f} GB of memory"
    return f"; free are {words}"


def _out_of_memory(said: str, data: DataModule) -> ResourceError:
    """Give the error of a step that does not fit into memory, and what makes it smaller."""
    height, width = data.size
    what = f"not enough for {data.batch_size} images of {height} x {width} a step ({said[:160]})"
    fix = "lower data.batch_size (+trainer.accumulate_grad_batches= makes one step of several), or data.size"
    return ResourceError("memory", what, fix)


def exit_code(error: BaseException) -> int:
    """Give the exit code that an error ends a run with: 75 where it was asked to stop, 1 for our own mistake."""
    if isinstance(error, SkinmtlError):
        return error.exit_code
    return 75 if isinstance(error, KeyboardInterrupt) else 1
