"""What Lightning and torch say that nobody has to act on, kept from the terminal."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from skinmtl.terminal import only


@contextmanager
def calm() -> Iterator[None]:
    """Silence, while this holds, what of Lightning's log and warnings nobody has to act on."""
    with only(logging.WARNING, "pytorch_lightning"), warnings.catch_warnings():
        # torch 2.15 renames a class that Lightning 2.6 uses.
        warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*", category=FutureWarning)
        # A short look at a few batches is no mistake, and how many workers suit a machine is said in conf/data.
        warnings.filterwarnings("ignore", message="The number of training batches .* is smaller than the logging")
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        # The CPU where a GPU is was asked for, or the GPU is a Mac's, which cannot be used.
        warnings.filterwarnings("ignore", message="GPU available but not used")
        # A resumed run finds its own checkpoints.
        warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
        # Within an epoch, too: our sampler begins at the batch where training stands.
        warnings.filterwarnings("ignore", message="You're resuming from a checkpoint that ended before the epoch ended")
        # Of several processes one may have nothing to validate, and all log what is the same for all.
        warnings.filterwarnings("ignore", message="The ``compute`` method of metric .* was called before")
        warnings.filterwarnings("ignore", message="It is recommended to use .*sync_dist=True")
        yield
