"""Parts of the network that are frozen for the first epochs."""

from __future__ import annotations

from typing import Annotated

import pytorch_lightning as pl
from annotated_types import Ge
from pytorch_lightning.callbacks import Callback
from torch import nn
from torch.optim import Optimizer

from skinmtl.errors import ConfigError


class Freeze(Callback):
    """Freeze the encoder: all of it for the first `encoder_epochs` epochs, its batch normalisation throughout.

    A frozen encoder takes no step, not even of weight decay, and works as in evaluation: batch normalisation by the
    running statistics, which do not move, no dropout. With `batch_norm` its batch normalisation stays so, scales and
    shifts included, after the rest has been let go.

    What is held follows from the epoch alone, so a resumed run is as an unbroken one.

    Args:
        encoder_epochs: for how many epochs the whole encoder is frozen.
        batch_norm: freeze its batch normalisation throughout.
    """

    def __init__(self, encoder_epochs: Annotated[int, Ge(0)] = 0, batch_norm: bool = False) -> None:
        self.encoder_epochs, self.batch_norm = encoder_epochs, batch_norm
        self._learning: list[nn.Parameter] = []
        self._held: list[nn.Parameter] = []

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remember which parameters of the encoder would learn."""
        # The optimiser has its parameters by now, those that are let go later among them.
        if self.encoder_epochs or self.batch_norm:
            self._learning = [p for p in _encoder(pl_module).parameters() if p.requires_grad]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Freeze what the current epoch freezes."""
        # A run that is resumed within an epoch is not told that one starts.
        self.on_train_epoch_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Freeze what this epoch freezes, and let the rest learn."""
        if not (self.encoder_epochs or self.batch_norm):
            return
        encoder = _encoder(pl_module)
        still: list[nn.Module] = [encoder]
        if trainer.current_epoch >= self.encoder_epochs:
            norms = (layer for layer in encoder.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm))
            still = list(norms) if self.batch_norm else []
        encoder.train()
        for part in still:
            part.eval()
        held = {parameter for part in still for parameter in part.parameters()}
        self._held = [parameter for parameter in self._learning if parameter in held]
        pl_module.hold(held)  # type: ignore[operator]
        for parameter in self._learning:
            # Alone, a held parameter costs no backward pass. Several processes wait for the gradient of each.
            parameter.requires_grad_(parameter not in held or trainer.world_size > 1)

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Take the gradients of frozen parameters away, so that they take no step."""
        for parameter in self._held:
            parameter.grad = None


def _encoder(module: pl.LightningModule) -> nn.Module:
    encoder = getattr(module.network, "encoder", None)
    if not isinstance(encoder, nn.Module):
        what = f"{type(module.network).__name__} has no `encoder` to hold still"
        raise ConfigError("callbacks.freeze", what, "name it so, or set encoder_epochs to 0 and batch_norm to false")
    return encoder
