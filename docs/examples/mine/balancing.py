"""A weighting of losses and a gradient method."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from skinmtl.balancing.gradients import Gradients
from skinmtl.balancing.weighting import Weighting


class Halving(Weighting):
    """The first task's weight halves with every epoch; the others keep theirs, 1.

    Args:
        tasks: their names, handed in by the run.
    """

    weight: Tensor

    def __init__(self, *, tasks: Sequence[str]) -> None:
        super().__init__()
        self.tasks = tuple(tasks)
        self.register_buffer("weight", torch.tensor(1.0))  # a buffer, so that a resumed run continues with it

    def weights(self) -> Mapping[str, float | Tensor]:
        """The weight of each task now."""
        return {task: self.weight if task == self.tasks[0] else 1.0 for task in self.tasks}

    def end_epoch(self, losses: Mapping[str, Tensor]) -> None:
        """Halve it."""
        self.weight.div_(2)


class Normalised(Gradients):
    """The tasks' gradients, each scaled to their mean length, c_i = mean(|g|) / |g_i|."""

    def combine(self, inner: Tensor, losses: Tensor) -> Tensor:
        """Coefficients of the gradients; ones where a task has none."""
        norm = inner.diagonal().sqrt()
        return torch.where((norm == 0).any(), 1.0, norm.mean() / norm)
