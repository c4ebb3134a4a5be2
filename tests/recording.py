"""What each process of a run sees, written down by the process itself; and an interruption on demand."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from skinmtl.types import Batch


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
        end = os.environ.get("TEST_END", "").split(":")  # rank, optimiser step and what befalls whom
        if end[:2] == [str(trainer.global_rank), str(trainer.global_step)]:
            os.kill(*((os.getpid(), signal.SIGKILL) if end[2] == "kill" else (os.getppid(), signal.Signals[end[2]])))

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        values = {key: float(value) for key, value in trainer.callback_metrics.items() if key.startswith("val/")}
        self._seen["val"].append(values)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        state = b"".join(p.detach().numpy().tobytes() for p in pl_module.parameters())
        self._seen["weights"] = hashlib.sha256(state).hexdigest()
        self._file.write_text(json.dumps(self._seen))
