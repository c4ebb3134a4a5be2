"""A callback of Lightning."""

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback


class WeightNorm(Callback):
    """Log the norm of all weights at the end of each epoch, as `weights/norm`."""

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log it: metrics.csv has it, and so has every other logger."""
        norms = [parameter.detach().norm() for parameter in pl_module.parameters()]
        pl_module.log("weights/norm", torch.stack(norms).norm())
