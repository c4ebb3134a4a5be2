"""Several tasks' losses into the one number that is minimised."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn

from skinmtl.distributed import collectives

Weight = Annotated[float, Ge(0)]


class Weighting(nn.Module, ABC):
    """sum_i w_i L_i over the tasks of a run; each weighting says what w_i is, and how it moves.

    What it remembers stands in buffers or parameters, so that a run goes on with it. Only the training moves it: a
    validation takes the weights as they are. With one task there is nothing to learn, and a learned w is 1.
    """

    _seen: Mapping[str, Tensor] | None = None

    def forward(self, losses: Mapping[str, Tensor]) -> Tensor:
        """Scalar, from scalar losses by task name."""
        return torch.stack(list(self.terms(losses).values())).sum()

    def see(self, seen: Mapping[str, Tensor]) -> None:
        """Before `terms` and `end_epoch`: which of their losses are of labelled images, () bool by task name.

        While training of those of any process. A loss without a label is 0, and so may be another. Until told, all are.
        """
        self._seen = dict(seen)

    def terms(self, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What each task adds to the loss, scalars by task name; their sum has the gradient that trains."""
        weights = self.weights()
        return {task: weights[task] * loss for task, loss in losses.items()}

    @abstractmethod
    def weights(self) -> Mapping[str, float | Tensor]:
        """The weight of each task now, by task name."""

    def start_step(self, chance: int) -> None:
        """Before a training step: `chance` is a hash of the run's seed and the step, the same in every process."""

    def end_epoch(self, losses: Mapping[str, Tensor]) -> None:
        """After an epoch and its validation: mean training losses over the labelled images of all processes."""

    def _rows(self, losses: Mapping[str, Tensor], tasks: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Losses and whether they are of labels, both (T,) in the order of the tasks."""
        row = torch.stack([losses[task].detach() for task in tasks])
        if self._seen is None:
            return row, torch.ones_like(row, dtype=torch.bool)
        return row, torch.stack([self._seen[task] for task in tasks])


class _Given(dict[str, float]):
    """Weights by task name, and 1 of a task for which none is given."""

    def __missing__(self, task: str) -> float:
        return 1.0


class Fixed(Weighting):
    """sum_i w_i L_i with the weights as given, by task name, and 1 of a task for which none is.

    A task that the run does not train has no loss: its weight stays 1, and the check refuses another.
    """

    def __init__(self, **weights: Weight) -> None:
        super().__init__()
        self._weights = _Given(weights)

    def weights(self) -> Mapping[str, float | Tensor]:
        """The weights as given."""
        return self._weights


class BesidePCGrad(Fixed):
    """Fixed weights under gradients=pcgrad, both of which weighting=pcgrad chooses: one word for a point of a study."""

    gradients = "PCGrad"  # the class without which the name would not be true


class Uncertainty(Weighting):
    """sum_i exp(-s_i) L_i + s_i / 2, with s_i = log sigma_i^2 learned beside the network, one for each task.

    Kendall et al. 2018, arXiv:1705.07115, in its form for classification, L / sigma^2 + log sigma, which a pixel's
    class is, too. s starts at 0, all weights 1; with L held it rests at w = 1 / (2 L). It takes no weight decay. A step
    without a labelled image of a task says nothing of its s.
    """

    def __init__(self, *, tasks: Sequence[str]) -> None:
        super().__init__()
        self._tasks = tuple(tasks)
        self.log_variance = nn.Parameter(torch.zeros(len(tasks)), requires_grad=len(tasks) > 1)

    def terms(self, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weighted losses, and what keeps the variances from growing."""
        _, known = self._rows(losses, self._tasks)
        rows = zip(self._tasks, self.log_variance.unbind(), known, strict=True)
        return {task: torch.exp(-s) * losses[task] + torch.where(has, s / 2, 0.0) for task, s, has in rows}

    def weights(self) -> Mapping[str, float | Tensor]:
        """exp(-s) of each task."""
        return dict(zip(self._tasks, torch.exp(-self.log_variance.detach()).unbind(), strict=True))


class _Kept(Weighting):
    """A weighting whose weights are kept in a buffer, (T,) in the order of the tasks."""

    weight: Tensor

    def __init__(self, start: float, tasks: Sequence[str]) -> None:
        super().__init__()
        self._tasks = tuple(tasks)
        self.register_buffer("weight", torch.full((len(tasks),), start))

    def weights(self) -> Mapping[str, float | Tensor]:
        """The weights as they were last set."""
        return dict(zip(self._tasks, self.weight.unbind(), strict=True))


class DWA(_Kept):
    """Dynamic weight average: a task whose loss has fallen less than the others' weighs more in the next epoch.

    w_i = T exp(r_i / t) / sum_k exp(r_k / t) for T tasks, r_i the mean loss of the last epoch over that of the one
    before, and t the `temperature`, at which large values even the weights out. All are 1 in the first two epochs.
    r_i is 1 where the one before was 0, or none is known. Liu et al. 2019, arXiv:1803.10704.
    """

    before: Tensor

    def __init__(self, temperature: Annotated[float, Gt(0)] = 2.0, *, tasks: Sequence[str]) -> None:
        super().__init__(1.0, tasks)
        self.temperature = temperature
        self.register_buffer("before", torch.zeros(len(tasks)))  # mean losses of the last epoch; 0 where none are known

    def end_epoch(self, losses: Mapping[str, Tensor]) -> None:
        """Take the next epoch's weights from the mean losses of this one."""
        now, known = self._rows(losses, self._tasks)
        ratio = torch.where((self.before > 0) & known, now / self.before, 1.0)
        self.weight.copy_(len(now) * torch.softmax(ratio / self.temperature, 0))
        self.before.copy_(torch.where(known, now, self.before))


class Geometric(_Kept):
    """The geometric mean of the losses, so that their scales do not matter: L = prod_i L_i^(1/T) for T tasks.

    Chennupati et al. 2019, arXiv:1904.08325. w_i = L / (T L_i) has the same value and the same gradient, and is what is
    logged. A task without a labelled image is left out of the mean. While training, the losses are those of all
    processes. Needs losses that are not negative; one that is 0 makes the mean 0 and all weights, too, so that the step
    learns nothing: the hinge of `loss/seg=lovasz` gets there.
    """

    def __init__(self, *, tasks: Sequence[str]) -> None:
        super().__init__(1 / len(tasks), tasks)

    def terms(self, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Shares of the geometric mean."""
        row, known = self._rows(losses, self._tasks)
        training = torch.is_grad_enabled()
        row = collectives.mean(row) if training else row
        log, count = row.log(), known.sum().clamp(min=1)
        # exp(mean - log L_i) and not a quotient: of one task it is exactly 1.
        weight = torch.exp(torch.where(known, log, 0.0).sum() / count - log) / count
        weight = torch.where(known & (row != 0), weight, 0.0)
        if training:
            self.weight.copy_(weight)
        return {task: w * losses[task] for task, w in zip(self._tasks, weight.unbind(), strict=True)}


class Random(_Kept):
    """Weights drawn anew for every optimiser step, softmax of standard normal numbers, so that their sum is 1.

    Lin et al. 2022, arXiv:2111.10603. The draw is a function of seed and step: the same in every process, and again in
    a run that goes on. A validation takes those of the step before it.
    """

    def __init__(self, *, tasks: Sequence[str]) -> None:
        super().__init__(1 / len(tasks), tasks)

    def start_step(self, chance: int) -> None:
        """Draw."""
        normal = torch.randn(len(self._tasks), generator=torch.Generator().manual_seed(chance))
        self.weight.copy_(torch.softmax(normal, 0))
