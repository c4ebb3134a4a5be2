"""Scores of classes and their probabilities as functions of sums over images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from skinmtl.tasks.confusion import agreement, matrices
from skinmtl.tasks.resampling import Floats, Score, ratio

ECE_BINS = 15
BIASED = "no interval: resampling raises a calibration error, so that its percentiles would lie above its value"


class Classified:
    """True classes and probabilities of N images, and what their scores share.

    Args:
        target: (N,) index of the true class, -1 where unknown.
        p: (N, K) probabilities.
        risk: indices of the classes that are told from the rest together, if any.
    """

    def __init__(self, target: NDArray[np.int64], p: Floats, risk: Sequence[int] = ()) -> None:
        self.target, self.p, self.risk = target, p, list(risk)
        self.known, self.k = target >= 0, p.shape[1]
        self.guess = p.argmax(1)
        self.cell = np.where(self.known, target * self.k + self.guess, 0)  # of the confusion matrix
        self.present = sorted(set(target[self.known].tolist()))
        self.own = p[np.arange(len(p)), np.clip(target, 0, None)]  # (N,) probability of the true class
        self.truth = np.eye(self.k)[np.clip(target, 0, None)]  # (N, K) one where true
        self.missing = np.where(self.known, 0.0, np.nan)  # (N,) to be added to what counts for known classes alone

    @cached_property
    def confusion(self) -> Floats:
        """The cell of the confusion matrix that each image is in, (K * K, N)."""
        cells: Floats = (np.eye(self.k**2)[self.cell] * self.known[:, None]).T.copy()
        return cells

    @cached_property
    def ranks(self) -> list[csr_array]:
        """Of each class, what its curves come from."""
        return [self.ranked(self.target == i, self.p[:, i]) for i in range(self.k)]

    def ranked(self, positive: NDArray[np.bool_], score: Floats) -> csr_array:
        """`ranks` of the images whose class is known."""
        return ranks(np.where(self.known, positive, np.nan), score)

    def calibration_error(self, equal_masses: bool) -> Score:
        """The expected calibration error, over bins of equal numbers or else of equal width."""
        confidence, right = self.p.max(1), (self.guess == self.target).astype(float)
        bins = _equal_masses(confidence, self.known) if equal_masses else _equal_widths(confidence)
        return _calibration_error(bins, confidence, right, self.known)

    def against(self, one: int) -> dict[str, Score]:
        """Scores of one class against the rest."""

        def of(take: Callable[[Floats, Floats, Floats, Floats], Floats]) -> Score:
            def score(s: Floats) -> Floats:
                matrix = matrices(s)
                tp, fp, fn = agreement(matrix, one)
                return take(tp, fp, fn, matrix.sum((1, 2)) - tp - fp - fn)

            return Score((self.confusion,), score)

        return {
            "sensitivity": of(lambda tp, fp, fn, tn: ratio(tp, tp + fn)),
            "specificity": of(lambda tp, fp, fn, tn: ratio(tn, tn + fp)),
            "ppv": of(lambda tp, fp, fn, tn: ratio(tp, tp + fp)),
            "npv": of(lambda tp, fp, fn, tn: ratio(tn, tn + fn)),
            "f1": of(lambda tp, fp, fn, tn: ratio(2 * tp, 2 * tp + fp + fn)),
            "auroc": Score((self.ranks[one],), auroc),
        }


def average(of: Callable[[Floats], Floats]) -> Callable[..., Floats]:
    """The mean of a score over several; undefined where one is."""
    return lambda *sums: np.mean([of(s) for s in sums], axis=0)


def balanced_accuracy(confusion: Floats, present: Sequence[int]) -> Floats:
    """(D,) mean recall over the classes that occur in the sample; undefined in a draw that lacks one."""
    recall = ratio(np.diagonal(confusion, axis1=1, axis2=2), confusion.sum(2))
    mean: Floats = recall[:, list(present)].mean(1)
    return mean


def macro_precision(confusion: Floats, present: Sequence[int]) -> Floats:
    """(D,) mean precision over the classes that occur; a class that is never guessed has precision zero."""
    hits, guessed = np.diagonal(confusion, axis1=1, axis2=2), confusion.sum(1)
    precision = np.divide(hits, guessed, out=np.zeros(hits.shape), where=guessed > 0)
    mean: Floats = precision[:, list(present)].mean(1)
    return mean


def macro_f1(confusion: Floats, present: Sequence[int]) -> Floats:
    """(D,) mean F1 over the classes that occur; a class never guessed right has F1 zero."""
    hits = np.diagonal(confusion, axis1=1, axis2=2)
    f1 = ratio(2 * hits, confusion.sum(1) + confusion.sum(2))
    mean: Floats = f1[:, list(present)].mean(1)
    return mean


def ranks(positive: Floats, score: Floats) -> csr_array:
    """Columns of the curves of one class: where the others stand among the G distinct scores that its rows have.

    Args:
        positive: (N,) 1, 0 or not a number where unknown.
        score: (N,) the higher, the more likely positive.

    Returns:
        (3G + 1, N): by falling score the positive rows of each, the others of that very score, the others between it
        and the score above it; last the others below all.
    """
    rows = np.flatnonzero(np.isfinite(positive))
    is_positive = positive[rows] == 1
    levels = np.unique(-score[rows][is_positive])
    place = np.searchsorted(levels, -score[rows])
    tied = np.append(levels, np.nan)[place] == -score[rows]
    g = len(levels)
    column = np.where(is_positive, place, np.where(tied, g + place, 2 * g + place))
    return csr_array((np.ones(len(rows)), (column, rows)), shape=(3 * g + 1, len(positive)))


def _curve(s: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """From sums of `ranks`: at each score of the class its own, (G, D), the others' and those above; all others."""
    g = (len(s) - 1) // 3
    own, tied, between = s[:g], s[g : 2 * g], s[2 * g : 3 * g]
    above = np.cumsum(between, axis=0) + np.cumsum(tied, axis=0) - tied
    return own, tied, above, s[g:].sum(0)


def auroc(s: Floats) -> Floats:
    """Area under the ROC curve, ties counted half."""
    own, tied, above, others = _curve(s)
    return ratio((own * (others - above - tied / 2)).sum(0), own.sum(0) * others)


def average_precision(s: Floats) -> Floats:
    """sum_n (R_n - R_{n-1}) P_n over the distinct scores, without interpolation."""
    own, tied, above, _ = _curve(s)
    hits = np.cumsum(own, axis=0)
    n = hits + above + tied
    precision = np.divide(hits, n, out=np.zeros_like(hits), where=n > 0)
    return ratio((own * precision).sum(0), own.sum(0))


def _equal_widths(confidence: Floats) -> NDArray[np.int64]:
    """The bin of each confidence among ECE_BINS of equal width, lower edges in; 1 itself is one more."""
    # With the step of torch.linspace and from both ends, as it does, so that what lies on an edge falls as there.
    step, place = float(np.float32(1) / np.float32(ECE_BINS)), np.arange(ECE_BINS + 1)
    edges = np.where(place < (ECE_BINS + 1) // 2, step * place, 1 - step * (ECE_BINS - place))
    return np.searchsorted(edges.astype(np.float32), confidence.astype(np.float32), side="right") - 1


def _equal_masses(confidence: Floats, known: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The bin of each confidence among ECE_BINS of equal numbers; equal ones are parted by the order of the rows."""
    rank = np.zeros(len(confidence), dtype=np.int64)
    rank[np.flatnonzero(known)[np.argsort(confidence[known], kind="stable")]] = np.arange(known.sum())
    return rank * ECE_BINS // max(1, int(known.sum()))


def _calibration_error(bins: NDArray[np.int64], confidence: Floats, right: Floats, known: NDArray[np.bool_]) -> Score:
    """Expected calibration error of the largest probability: gaps of bins, weighted by their images.

    `ece` is that of Guo et al. 2017, arXiv:1706.04599, as torchmetrics has it (multiclass_calibration_error, l1): bins
    of equal width. `ece_rank_bins`, which was called ECE here before, has bins of equal numbers: where confidences are
    equal it depends on the order of the rows. It goes with the next version.
    """
    gaps = np.eye(ECE_BINS + 1)[bins].T * ((confidence - right) * known)
    columns = np.concatenate([gaps, known[None].astype(float)])
    return Score((columns,), lambda s: ratio(np.abs(s[:-1]).sum(0), s[-1]), no_interval=BIASED)
