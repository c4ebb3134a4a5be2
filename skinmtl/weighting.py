"""Several tasks' losses into the one number that is minimised."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor, nn

Weight = Annotated[float, Ge(0)]


class Fixed(nn.Module):
    """sum_i w_i L_i with the weights as given; a task that the run does not train has no loss, so no weight counts."""

    def __init__(self, seg: Weight = 1.0, cls: Weight = 1.0) -> None:
        super().__init__()
        self._weights = {"seg": seg, "cls": cls}

    def forward(self, losses: Mapping[str, Tensor]) -> Tensor:
        """Scalar, from scalar losses by task name."""
        return torch.stack([self._weights[task] * loss for task, loss in losses.items()]).sum()

    def weights(self) -> dict[str, float]:
        """The weight of each task now."""
        return dict(self._weights)
