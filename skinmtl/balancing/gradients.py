"""Each task's gradient by itself on the parameters that the tasks share, and what is made of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Annotated, ClassVar

import numpy as np
import torch
from annotated_types import Ge, Gt, Interval
from numpy.typing import NDArray
from scipy.optimize import brentq, nnls
from torch import Tensor, nn

from skinmtl.distributed import collectives
from skinmtl.errors import ConfigError

Every = Annotated[int, Ge(0)]
Floats = NDArray[np.float64]
ZERO = 1e-10  # of the longest gradient's length: what is shorter is rounding


class Gradients(nn.Module, ABC):
    """One gradient for the shared parameters, sum_i c_i g_i of the tasks' own g_i; a method says what c_i is.

    All that a method needs are the inner products g_i . g_j and, to learn from, the losses. Parameters that are not
    shared keep the sum of the gradients, in a head that of its own task. A task whose gradient is zero, for want of a
    label in the batch or of anything to learn, leaves the others' as they are without it; with one task every method is
    plain training. More than two tasks are refused, unless a method says that it is written for them.

    Every `cosine_every` optimiser steps the cosine between the gradients of each two tasks is logged; 0 is never.
    """

    apart: ClassVar[bool] = True  # whether the method needs each task's gradient by itself, in every step
    weighs: ClassVar[bool] = False  # whether it learns weights of the losses, so that no weighting may
    of_many: ClassVar[bool] = False  # whether it is written for more tasks than two

    def __init__(self, cosine_every: Every = 50) -> None:
        super().__init__()
        self.cosine_every = cosine_every

    def weigh(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Scalars by task name, losses or their weights, times what the method weighs them by."""
        return dict(values)

    def start_step(self, chance: int) -> None:
        """Before a training step: `chance` is a hash of the run's seed and the step, the same in every process."""

    def check(self, tasks: int) -> None:
        """Refuse more tasks than the method is written for.

        Raises:
            ConfigError: with what takes as many.
        """
        if tasks > 2 and not self.of_many:
            what = f"{type(self).__name__} compares the gradients of two tasks, not of {tasks}"
            raise ConfigError("gradients", what, "use one of conf/gradients, or let the class say `of_many = True`")

    @abstractmethod
    def combine(self, inner: Tensor, losses: Tensor) -> Tensor:
        """(T,) coefficients c of the gradients of T tasks.

        Args:
            inner: (T, T) float64, g_i . g_j, of gradients averaged over processes; float16's scale, if any, squared.
            losses: (T,) unweighted, over all images of the step.
        """


class Sum(Gradients):
    """The plain sum, c = 1, by one backward pass through everything; a look at the cosine takes more of them."""

    apart = False
    of_many = True

    def __init__(self, cosine_every: Every = 0) -> None:
        super().__init__(cosine_every)

    def combine(self, inner: Tensor, losses: Tensor) -> Tensor:
        """Ones."""
        return torch.ones_like(inner[0])


class Pairwise(Gradients):
    """A method with a closed form for two gradients, which no GPU has to wait for, and a solver on the CPU for more."""

    of_many = True

    def combine(self, inner: Tensor, losses: Tensor) -> Tensor:
        """Coefficients of those gradients that are not zero, as if there were no others."""
        if len(inner) == 2:
            return torch.where((inner.diagonal() == 0).any(), 1.0, self.of_two(inner))
        gramian = inner.cpu().numpy()
        has = np.flatnonzero(gramian.diagonal() > 0)
        found = np.ones(len(gramian))
        # What float16 cannot hold stays as it is: the step is skipped.
        if len(has) > 1 and np.isfinite(gramian).all():
            scale = gramian.diagonal()[has].max()
            found[has] = self.of_several(gramian[np.ix_(has, has)] / scale)
        return torch.from_numpy(found).to(inner)

    @abstractmethod
    def of_two(self, inner: Tensor) -> Tensor:
        """(2,) coefficients, from (2, 2) inner products."""

    @abstractmethod
    def of_several(self, inner: Floats) -> Floats:
        """(n,) coefficients, from (n, n) inner products of gradients none of which is zero, the longest of length 1."""


class PCGrad(Pairwise):
    """Gradient surgery: where two gradients conflict, each loses its part against the other; then their sum.

    For g_1 . g_2 < 0: c_i = 1 - g_1 . g_2 / |g_i|^2, else 1. Yu et al. 2020, arXiv:2001.06782. Of more than two tasks
    each gradient loses its parts against the others one after the other, in an order drawn for each step.
    """

    def __init__(self, cosine_every: Every = 50) -> None:
        super().__init__(cosine_every)
        self._chance = 0

    def start_step(self, chance: int) -> None:
        """As of any method; the order of the tasks follows from it."""
        self._chance = chance

    def of_two(self, inner: Tensor) -> Tensor:
        """One, and more of what both want where they conflict."""
        return 1 - inner[0, 1].clamp(max=0) / inner.diagonal()

    def of_several(self, inner: Floats) -> Floats:
        """The sum over tasks of what each gradient is made of after its surgery."""
        rng, count = np.random.default_rng(self._chance), len(inner)
        total = np.zeros(count)
        for task in range(count):
            own = np.eye(count)[task]
            for other in rng.permutation(count):
                if other != task and (product := inner[other] @ own) < 0:
                    own[other] -= product / inner[other, other]
            total += own
        return total


class UPGrad(Pairwise):
    """The mean of the gradients, each projected onto the cone of directions that conflict with none.

    Quinton and Rey 2024, arXiv:2406.16232. Of two gradients in conflict each is projected onto the plane at right
    angles to the other, so that two tasks get half of what `PCGrad` gives them.
    """

    def of_two(self, inner: Tensor) -> Tensor:
        """Half of PCGrad's."""
        return (1 - inner[0, 1].clamp(max=0) / inner.diagonal()) / 2

    def of_several(self, inner: Floats) -> Floats:
        """Projections by their duals: the smallest |g_i + sum_j v_j g_j| over v >= 0."""
        root = _root(inner)
        projected = [own + nnls(root, -root @ own)[0] for own in np.eye(len(inner))]
        return np.asarray(np.mean(projected, axis=0))


class MGDA(Pairwise):
    """The shortest convex combination of the gradients, along which no loss rises: c >= 0, sum_i c_i = 1.

    For two, c_1 = (|g_2|^2 - g_1 . g_2) / |g_1 - g_2|^2, cut to [0, 1]. Sener and Koltun 2018, arXiv:1810.04650, on the
    parameters themselves and without normalisation, so that the task with the smaller gradient rules.
    """

    def of_two(self, inner: Tensor) -> Tensor:
        """The point of least norm."""
        (a, dot), (_, b) = inner
        apart = a + b - 2 * dot
        first = torch.where(apart == 0, 0.5, (b - dot) / apart).clamp(0, 1)
        return torch.stack([first, 1 - first])

    def of_several(self, inner: Floats) -> Floats:
        """The point of least norm."""
        return _shortest(_root(inner))


class CAGrad(Pairwise):
    """The step within `c` |g_0| of the mean gradient g_0 that is best for the task that gains least.

    g_0 + c |g_0| g_w / |g_w|, g_w = sum_i w_i g_i, where w >= 0 of sum 1 makes g_w . g_0 + c |g_0| |g_w| least; c = 0
    is the mean, which is also taken where g_w is 0 and no step serves all. Liu et al. 2021, arXiv:2110.14048.
    """

    def __init__(self, c: Annotated[float, Interval(ge=0, lt=1)] = 0.4, cosine_every: Every = 50) -> None:
        super().__init__(cosine_every)
        self.c = c

    def of_two(self, inner: Tensor) -> Tensor:
        """A half each, and c |g_0| / |g_w| of g_w."""
        (a, dot), (_, b) = inner
        radius = self.c * inner.sum().clamp(min=0).sqrt() / 2
        # |g_w|^2 = apart (w - nearest)^2 + rest. The objective is linear in w plus radius |g_w|: convex, and its slope
        # is zero at `w`, or nowhere, and then the end to which it falls is best.
        apart, slope = a + b - 2 * dot, (a - b) / 2
        nearest, rest = (b - dot) / apart, ((a * b - dot.square()) / apart).clamp(min=0)
        room = radius.square() * apart - slope.square()
        way = torch.where(room > 0, slope.abs() * (rest / (apart * room)).sqrt(), torch.inf)
        w = torch.where(slope == 0, nearest, nearest - slope.sign() * way).clamp(0, 1)
        w = torch.where(apart == 0, 0.5, w)
        length = (w.square() * a + 2 * w * (1 - w) * dot + (1 - w).square() * b).clamp(min=0).sqrt()
        more = torch.where(length == 0, 0.0, radius / length)
        return 0.5 + more * torch.stack([w, 1 - w])

    def of_several(self, inner: Floats) -> Floats:
        """One over their number each, and c |g_0| / |g_w| of g_w.

        As radius |x| is the least of (m radius^2 + |x|^2 / m) / 2 over m > 0, w is that of the shortest combination of
        the g_i + m g_0, for the one m at which |g_w| = m radius.
        """
        root, even = _root(inner), np.full(len(inner), 1 / len(inner))
        mean = root @ even
        radius = self.c * float(np.linalg.norm(mean))

        def combination(m: float) -> Floats:
            return _shortest(root + m * mean[:, None])

        def too_long(m: float) -> float:
            return float(np.linalg.norm(root @ combination(m))) - m * radius

        if radius < ZERO or too_long(ZERO / radius) <= 0:
            return even
        # The longest gradient has length 1, and so has no combination more.
        w = combination(brentq(too_long, ZERO / radius, 2 / radius, xtol=1e-14 / radius, rtol=1e-14))
        return even + w * radius / float(np.linalg.norm(root @ w))


def _root(inner: Floats) -> Floats:
    """(n, n) rows as long, and at the same angles, as the gradients of these inner products are as columns."""
    values, vectors = np.linalg.eigh(inner)
    return np.asarray(np.sqrt(values.clip(min=0))[:, None] * vectors.T)


def _shortest(vectors: Floats) -> Floats:
    """(n,) weights, none negative and of sum 1, of the shortest combination of the columns of (d, n).

    The w >= 0 that makes |sum_i w_i g_i|^2 + (1 - sum_i w_i)^2 least, over its sum: where the slope of the first is the
    same for all w_i > 0, and no smaller elsewhere, it is so for their shares.
    """
    length = np.linalg.norm(vectors, axis=0)
    if not length.all():
        w: Floats = (length == 0).astype(np.float64)
    else:  # the shortest says how long a combination may be at most; beside it the others' scale is none
        rows = np.vstack([vectors / length.min(), np.ones(len(length))])
        w = nnls(rows, np.append(np.zeros(len(vectors)), 1.0))[0]
    return np.asarray(w / w.sum())


class GradNorm(Gradients):
    """Learned weights of the losses, under which the tasks train at one rate: sum_i w_i L_i, in the heads too.

    With G_i = |w_i g_i| and r_i = L_i / L_i(0) over the mean of these ratios, w_i moves against the derivative of
    sum_i |G_i - mean(G) r_i^alpha|, targets held; then the weights are scaled to a sum of T for T tasks. Chen et al.
    2018, arXiv:1711.02257, on all shared parameters. The derivative is divided by mean(G): a weight of 1 whose gradient
    is as long as the others' moves by `rate` a step, whatever the scale of the losses. L_i(0) is the first loss that is
    not 0.
    """

    weighs = True
    of_many = True
    weight: Tensor
    first: Tensor

    def __init__(
        self,
        alpha: Annotated[float, Ge(0)] = 1.5,
        rate: Annotated[float, Gt(0)] = 0.025,
        cosine_every: Every = 50,
        *,
        tasks: Sequence[str],
    ) -> None:
        super().__init__(cosine_every)
        self.alpha, self.rate, self._tasks = alpha, rate, tuple(tasks)
        self.register_buffer("weight", torch.ones(len(tasks)))
        self.register_buffer("first", torch.zeros(len(tasks)))  # losses; 0 where none has been seen

    def weigh(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Times the learned weights."""
        weights = dict(zip(self._tasks, self.weight.unbind(), strict=True))
        return {task: value * weights[task] for task, value in values.items()}

    def combine(self, inner: Tensor, losses: Tensor) -> Tensor:
        """Ones, after learning: the gradients are those of weighted losses already."""
        norm = inner.diagonal().sqrt()
        self.first.copy_(torch.where((self.first == 0) & torch.isfinite(losses), losses, self.first))
        ratio = losses.double() / self.first
        target = norm.mean() * (ratio / ratio.mean()) ** self.alpha
        derivative = torch.sign(norm - target) * norm / self.weight / norm.mean()
        # Of a weight at least a hundredth is left: at none, its task would have no gradient to bring it back.
        moved = (self.weight - self.rate * derivative).clamp(min=0.01)
        moved = moved * len(moved) / moved.sum()
        # A batch without labels of a task, or one that float16 could not hold, teaches nothing.
        useful = torch.isfinite(moved).all() & (norm > 0).all()
        self.weight.copy_(torch.where(useful, moved, self.weight))
        return torch.ones_like(norm)


def cosine(inner: Tensor, first: int = 0, second: int = 1) -> float | None:
    """The cosine between two gradients in [-1, 1], from (T, T) inner products; None where one is zero."""
    value = float(inner[first, second] / (inner[first, first] * inner[second, second]).sqrt())
    return max(-1.0, min(1.0, value)) if value == value else None


class TaskGradients:
    """Each task's gradient on the parameters of `shared`, added up over the batches of one optimiser step.

    Either `backward` takes them in place of the one backward pass, or `measure` does beside it, at the price of passes
    of its own and without a trace in what is trained. `average` makes them those of all processes, `inner` compares
    them, `combine` spends them. Parameters that are frozen take no part.
    """

    def __init__(self, shared: nn.Module) -> None:
        self._shared = shared
        self.held: set[nn.Parameter] = set()  # frozen for now, whether or not they are given gradients
        self._sums: list[list[Tensor | None]] = []  # by task, then by parameter
        self._losses: list[tuple[Tensor, Tensor]] = []  # (T,) of each batch, and of how many labels, by their weights

    def __bool__(self) -> bool:
        return bool(self._sums)

    def backward(self, loss: Tensor, terms: Sequence[Tensor], losses: Tensor, mass: Tensor) -> None:
        """Backward passes through each term of `loss`: one through each head, one for each task through the rest.

        Whatever the loss was multiplied by since its terms were added up, for float16 or as one of several batches,
        their gradients are multiplied by, too. Parameters that are not shared have their gradients in `.grad`, as after
        one backward pass; those that are shared have none until `combine`.
        """
        parameters = self._parameters()
        seeds = torch.autograd.grad(loss, terms)
        sums = self._sums or [[None] * len(parameters) for _ in terms]
        for task, (term, seed) in enumerate(zip(terms, seeds, strict=True)):
            _put(parameters, sums[task])
            term.backward(seed, retain_graph=task + 1 < len(terms))  # type: ignore[no-untyped-call]
            sums[task] = [parameter.grad for parameter in parameters]
        _put(parameters, [None] * len(parameters))
        self._sums = sums
        self._losses.append((losses, mass))

    def measure(self, loss: Tensor, terms: Sequence[Tensor]) -> None:
        """The same gradients on the shared parameters, leaving every `.grad` and the graph of `loss` as they are."""
        parameters = self._parameters()
        seeds = torch.autograd.grad(loss, terms, retain_graph=True)
        sums = self._sums or [[None] * len(parameters) for _ in terms]
        if parameters:
            for task, (term, seed) in enumerate(zip(terms, seeds, strict=True)):
                more = torch.autograd.grad(term, parameters, seed, retain_graph=True, allow_unused=True)
                sums[task] = [_added(before, new) for before, new in zip(sums[task], more, strict=True)]
        self._sums = sums

    def average(self, others: Sequence[nn.Parameter] = ()) -> None:
        """Average over processes, with the gradients of `others`; each process has to ask."""
        if collectives.world_size() == 1:
            return
        own = {id(parameter) for parameter in self._parameters()}
        rest = [other.grad for other in others if id(other) not in own]
        gradients = [g for g in chain(*self._sums, rest) if g is not None]
        # One message for all of them.
        mean = collectives.mean(torch.cat([gradient.flatten() for gradient in gradients]))
        parts = mean.split([gradient.numel() for gradient in gradients])  # type: ignore[no-untyped-call]
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view(gradient.shape))

    def inner(self) -> Tensor:
        """(T, T) float64 inner products of the tasks' gradients."""
        device = self._losses[0][0].device if self._losses else next(self._shared.parameters()).device
        values = torch.zeros(len(self._sums), len(self._sums), dtype=torch.float64, device=device)
        for i, first in enumerate(self._sums):
            for j, second in enumerate(self._sums[i:], i):
                pairs = [(a, b) for a, b in zip(first, second, strict=True) if a is not None and b is not None]
                products = [_product(a.float(), b.float()) for a, b in pairs]
                if products:
                    values[i, j] = values[j, i] = torch.stack(products).double().sum()
        return values

    def losses(self) -> Tensor:
        """(T,) mean losses of the step's labelled images, by their weights; 0 where a task has none."""
        losses, mass = (torch.stack(values) for values in zip(*self._losses, strict=True))
        total = mass.sum(0)
        return (losses * mass).sum(0) / torch.where(total > 0, total, 1.0)

    def combine(self, coefficients: Tensor) -> None:
        """Give the shared parameters the sum of their gradients times (T,) coefficients, which uses these up."""
        for parameter, gradients in zip(self._parameters(), zip(*self._sums, strict=True), strict=True):
            parts = [g.mul_(c) for g, c in zip(gradients, coefficients, strict=True) if g is not None]
            for part in parts[1:]:
                parts[0].add_(part)
            parameter.grad = parts[0] if parts else None

    def forget(self) -> None:
        """Drop what was added up."""
        self._sums, self._losses = [], []

    def _parameters(self) -> list[nn.Parameter]:
        return [p for p in self._shared.parameters() if p.requires_grad and p not in self.held]


def _put(parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor | None]) -> None:
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient


def _product(a: Tensor, b: Tensor) -> Tensor:
    # A norm reads its tensor once and writes nothing, whatever its memory format.
    return torch.linalg.vector_norm(a).square() if a is b else (a * b).sum()


def _added(before: Tensor | None, new: Tensor | None) -> Tensor | None:
    return new if before is None else before if new is None else before + new
