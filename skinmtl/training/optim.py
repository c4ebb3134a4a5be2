"""How the learning rate moves, and which parameters learn at a fraction of it.

Each schedule makes a torch scheduler for an optimiser and a number of steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal

from annotated_types import Ge, Interval
from torch.nn import Parameter
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from skinmtl.types import Fraction


class Cosine:
    """Warm up linearly, then follow half a cosine down to `end` times the rate.

    Loshchilov and Hutter 2017, arXiv:1608.03983, without restarts.

    Args:
        warmup: fraction of all steps over which the rate rises to its full value.
        end: fraction of the rate that the last step has.
    """

    by: Literal["step"] = "step"

    def __init__(self, warmup: Annotated[float, Interval(ge=0, lt=1)] = 0.05, end: Fraction = 0.0) -> None:
        self.warmup, self.end = warmup, end

    def factor(self, step: int, total_steps: int) -> float:
        """Give what the rate is multiplied by at optimiser step `step`, counted from 0."""
        warm = self.warmup * total_steps
        if step < warm:
            return (step + 1) / (warm + 1)
        done = min(1.0, (step - warm) / max(1.0, total_steps - warm))
        return self.end + (1 - self.end) * (1 + math.cos(math.pi * done)) / 2

    def on(self, optimizer: Optimizer, total_steps: int, steps_per_epoch: int) -> LambdaLR:
        """Make the scheduler, which is stepped after every optimiser step."""
        return LambdaLR(optimizer, lambda step: self.factor(step, total_steps))


class Step:
    """Multiply the rate by `gamma` after every `every` epochs.

    Args:
        every: epochs between two drops.
        gamma: the factor of a drop.
    """

    by: Literal["step"] = "step"

    def __init__(self, every: Annotated[int, Ge(1)] = 10, gamma: Fraction = 0.1) -> None:
        self.every, self.gamma = every, gamma

    def on(self, optimizer: Optimizer, total_steps: int, steps_per_epoch: int) -> LambdaLR:
        """Make the scheduler, which is stepped after every optimiser step."""
        return LambdaLR(optimizer, lambda step: self.gamma ** (step // (self.every * steps_per_epoch)))


class Constant:
    """Keep the rate as it is, after a linear warm-up.

    Args:
        warmup: fraction of all steps over which the rate rises to its full value.
    """

    by: Literal["step"] = "step"

    def __init__(self, warmup: Fraction = 0.0) -> None:
        self.warmup = warmup

    def on(self, optimizer: Optimizer, total_steps: int, steps_per_epoch: int) -> LambdaLR:
        """Make the scheduler, which is stepped after every optimiser step."""
        warm = self.warmup * total_steps
        return LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / (warm + 1)))


class Plateau:
    """Multiply the rate by `factor` when the validation score has stopped rising.

    Args:
        factor: of a drop.
        patience: validations in a row without a better score; one more is followed by a drop.
    """

    by: Literal["score"] = "score"

    def __init__(
        self, factor: Annotated[float, Interval(gt=0, lt=1)] = 0.3, patience: Annotated[int, Ge(0)] = 3
    ) -> None:
        self.factor, self.patience = factor, patience

    def on(self, optimizer: Optimizer, total_steps: int, steps_per_epoch: int) -> ReduceLROnPlateau:
        """Make the scheduler, which is stepped with the score after every validation."""
        return ReduceLROnPlateau(optimizer, mode="max", factor=self.factor, patience=self.patience)


def with_rates(make: Callable[..., Optimizer], rates: Mapping[Parameter, float]) -> Callable[..., Optimizer]:
    """Give what makes an optimiser in which some parameters learn at a fraction of its rate.

    It takes groups of parameters, as torch's optimisers do, and makes a group of each fraction in each of them, the
    largest first; a schedule moves all groups alike. Without fractions it is `make` itself.

    Args:
        make: an optimiser's constructor that lacks its parameters alone.
        rates: the fraction of each parameter that does not learn at the whole rate.
    """
    if not rates:
        return make

    def grouped(groups: Sequence[Mapping[str, Any]]) -> Optimizer:
        shared: list[dict[str, Any]] = []
        fractions: list[float] = []
        for group in groups:
            for fraction in sorted({rates.get(parameter, 1.0) for parameter in group["params"]}, reverse=True):
                shared.append({**group, "params": [p for p in group["params"] if rates.get(p, 1.0) == fraction]})
                fractions.append(fraction)
        optimizer = make(shared)
        for group, fraction in zip(optimizer.param_groups, fractions, strict=True):
            group["lr"] *= fraction
        return optimizer

    return grouped
