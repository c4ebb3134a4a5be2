"""A learning-rate schedule."""

from typing import Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, PolynomialLR


class Polynomial:
    """Let the rate fall to zero like (1 - step / total steps) to a power.

    Args:
        power: above 1 it falls faster at first, below 1 at the end.
    """

    by: Literal["step"] = "step"

    def __init__(self, power: float = 0.9) -> None:
        self.power = power

    def on(self, optimizer: Optimizer, total_steps: int, steps_per_epoch: int) -> LRScheduler:
        """Make the scheduler, which is stepped after every optimiser step."""
        return PolynomialLR(optimizer, total_steps, self.power)
