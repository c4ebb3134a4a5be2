"""The checkpoint of the best validation score."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint


class Best(ModelCheckpoint):
    """Save `best.ckpt`, which is evaluated and used: that of the best validation.

    With `keep` last it is that of the latest epoch: several runs are then compared at one number of steps, and
    validation chooses nothing. It holds weights and facts alone: a run is resumed from `last.ckpt`.

    Args:
        folder: the checkpoints'.
        keep: `best`, or `last`.
    """

    SCORE = "val/score"
    TRAINING = (
        *("optimizer_states", "lr_schedulers", "callbacks", "loops", "counts"),
        *("current_model_state", "averaging_state"),
    )

    def __init__(self, folder: Path, keep: Literal["best", "last"] = "best") -> None:
        self._latest: float | None = None
        self._saving = False
        super().__init__(
            dirpath=folder,
            filename="best",
            monitor=self.SCORE if keep == "best" else "epoch",
            mode="max",
            save_top_k=1,
            save_on_train_epoch_end=True,
            enable_version_counter=False,
            auto_insert_metric_name=False,
        )

    @property
    def score(self) -> float | None:
        """Give the validation score of `best.ckpt`, or the last one there was; None before the first validation."""
        if self.monitor == self.SCORE:
            return None if self.best_model_score is None else float(self.best_model_score)
        return self._latest

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save where the score is better than before."""
        scores = self._monitor_candidates(trainer)
        if self.SCORE in scores:
            self._latest = float(scores[self.SCORE])
        if self.monitor in scores:  # not before the first validation, where not every epoch has one
            super().on_train_epoch_end(trainer, pl_module)

    def _save_checkpoint(self, trainer: pl.Trainer, filepath: str) -> None:
        self._saving = True
        try:
            super()._save_checkpoint(trainer, filepath)
        finally:
            self._saving = False

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Leave out of best.ckpt what only a training needs."""
        # Lightning asks this kind of callback last, so averaged weights are in their place.
        for key in self.TRAINING if self._saving else ():
            checkpoint.pop(key, None)

    def state_dict(self) -> dict[str, Any]:
        """Give which checkpoint is best, by its name alone, and with which score."""
        # Checkpoints are passed on, and a folder may be moved: names alone.
        state = super().state_dict()
        return state | self._placed(state, lambda path: Path(path).name) | {"dirpath": "", "latest": self._latest}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take what `state_dict` gave, as checkpoints of this run's folder."""
        self._latest = state_dict["latest"]
        # Of other folders than its own Lightning forgets which checkpoint was best, and takes the next for better.
        here = self._placed(state_dict, lambda path: str(Path(str(self.dirpath)) / Path(path).name))
        super().load_state_dict(state_dict | here | {"dirpath": str(self.dirpath)})

    @staticmethod
    def _placed(state: Mapping[str, Any], place: Callable[[str], str]) -> dict[str, Any]:
        """Give what of a state is paths, each in its place; no path stays none."""
        keys = ("best_model_path", "last_model_path", "kth_best_model_path")
        paths = {key: place(state[key]) if state[key] else "" for key in keys}
        return paths | {"best_k_models": {place(path): score for path, score in state["best_k_models"].items()}}
