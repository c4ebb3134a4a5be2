"""How the learning rate moves, and who learns at which share of it.

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
    """Linear warm-up over the first `warmup` share of all steps, then half a cosine down to `end` times the rate.

    Loshchilov and Hutter 2017, arXiv:1608.03983, without restarts.
    """

    by: Literal["step"] = "step"

    def __init__(self, warmup: Annotated[float, Interval(ge=0, lt=1)] = 0.05, end: Fraction = 0.0) -> None:
        self.warmup, self.end = warmup, end

    def factor(self, step: int, total_steps: int) -> float:
        """What the rate is multiplied by at optimiser step `step`, counted from 0."""
        warm = self.warmup * total_steps
        if step < warm:
            return (step + 1) / (warm + 1)
        done = min(1.0, (step - warm) / max(1.0, total_steps - warm))
        return self.end + (1 - self.end) * (1 + math.cos(math.pi * done)) / 2

    def on(self, optimizer: Optimizer, total_steps: int, steps_per_epoch: int) -> LambdaLR:
        """The scheduler, stepped after every optimiser step."""
        return LambdaLR(optimizer, lambda step: self.factor(step, total_steps))


class Step:
    """The rate times `gamma` after every `every` epochs."""

    by: Literal["step"] = "step"

    def __init__(self, every: Annotated[int, Ge(1)] = 10, gamma: Fraction = 0.1) -> None:
        self.every, self.gamma = every, gamma

    def on(self, optimizer: Optimizer, total_steps: int, steps_per_epoch: int) -> LambdaLR:
        """The scheduler, stepped after every optimiser step."""
        return LambdaLR(optimizer, lambda step: self.gamma ** (step // (self.every * steps_per_epoch)))


class Constant:
    """The rate as it is, after a linear warm-up over the first `warmup` share of all steps."""

    by: Literal["step"] = "step"

    def __init__(self, warmup: Fraction = 0.0) -> None:
        self.warmup = warmup

    def on(self, optimizer: Optimizer, total_steps: int, steps_per_epoch: int) -> LambdaLR:
        """The scheduler, stepped after every optimiser step."""
        warm = self.warmup * total_steps
        return LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / (warm + 1)))


class Plateau:
    """The rate times `factor` when the validation score has not risen for more than `patience` validations in a row."""

    by: Literal["score"] = "score"

    def __init__(
        self, factor: Annotated[float, Interval(gt=0, lt=1)] = 0.3, patience: Annotated[int, Ge(0)] = 3
    ) -> None:
        self.factor, self.patience = factor, patience

    def on(self, optimizer: Optimizer, total_steps: int, steps_per_epoch: int) -> ReduceLROnPlateau:
        """The scheduler, stepped with the score after every validation."""
        return ReduceLROnPlateau(optimizer, mode="max", factor=self.factor, patience=self.patience)


def with_rates(make: Callable[..., Optimizer], rates: Mapping[Parameter, float]) -> Callable[..., Optimizer]:
    """What makes an optimiser in which some parameters learn at a share of its rate.

    It takes groups of parameters, as torch's optimisers do, and makes a group of each share in each of them, the
    largest first; a schedule moves all groups alike. Without shares it is `make` itself.

    Args:
        make: an optimiser's constructor that lacks its parameters alone.
        rates: the share of each parameter that does not learn at the whole rate.
    """
    if not rates:
        return make

    def grouped(groups: Sequence[Mapping[str, Any]]) -> Optimizer:
        shared: list[dict[str, Any]] = []
        shares: list[float] = []
        for group in groups:
            for share in sorted({rates.get(parameter, 1.0) for parameter in group["params"]}, reverse=True):
                shared.append({**group, "params": [p for p in group["params"] if rates.get(p, 1.0) == share]})
                shares.append(share)
        optimizer = make(shared)
        for group, share in zip(optimizer.param_groups, shares, strict=True):
            group["lr"] *= share
        return optimizer

    return grouped
