"""What each process of a run sees, written down by the process itself; and an interruption on demand."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from skinmtl.types import Batch, Logits


def _lost(network: torch.nn.Module, inputs: object, logits: Logits) -> Logits:
    return {name: value * float("nan") for name, value in logits.items()} if network.training else logits


class Record(pl.Callback):
    """`rank_<n>.json` in `folder`: rows of each training batch by epoch, scores, threads, a hash of the weights."""

    def __init__(self, folder: str) -> None:
        self._file = Path(folder) / f"rank_{os.environ.get('RANK', '0')}.json"
        self._seen: dict[str, Any] = {"rows": [], "val": [], "threads": torch.get_num_threads()}

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if os.environ.get("TEST_STOP_AT") == str(trainer.current_epoch) and trainer.global_rank == 1:
            raise KeyboardInterrupt
        self._seen["rows"].append([])

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Batch, *_: int) -> None:
        if not self._seen["rows"]:  # it goes on within an epoch
            self._seen["rows"].append([])
        self._seen["rows"][-1].append(batch["index"].tolist())
        self._moment("train", trainer, trainer.global_step)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._moment("setup", trainer, 0)

    def on_validation_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: object) -> None:
        self._moment("validation", trainer, trainer.current_epoch)

    def on_save_checkpoint(self, trainer: pl.Trainer, *_: object) -> None:
        self._moment("save", trainer, trainer.global_step)

    def _moment(self, where: str, trainer: pl.Trainer, count: int) -> None:
        """What TEST_END asks for as `<where>:<rank>:<step or epoch>:<what>`, when it is there."""
        *when, what = os.environ.get("TEST_END", ":").split(":")
        if when != [where, str(trainer.global_rank), str(count)]:
            return
        self._file.with_name("moment").write_text(str(time.monotonic()))
        if what == "lose":  # this process's losses from here on
            trainer.lightning_module.network.register_forward_hook(_lost)  # type: ignore[operator,union-attr]
        else:
            os.kill(*((os.getpid(), signal.SIGKILL) if what == "kill" else (os.getppid(), signal.Signals[what])))

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        values = {key: float(value) for key, value in trainer.callback_metrics.items() if key.startswith("val/")}
        self._seen["val"].append(values)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        state = b"".join(p.detach().numpy().tobytes() for p in pl_module.parameters())
        self._seen["weights"] = hashlib.sha256(state).hexdigest()
        self._file.write_text(json.dumps(self._seen))
