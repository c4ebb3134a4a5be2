"""Scores of confusion matrices, (..., K, K), true class by row, of images or of pixels alike."""

from __future__ import annotations

import numpy as np

from skinmtl.tasks.resampling import Floats, ratio


def matrices(s: Floats) -> Floats:
    """Sums of the cells of a confusion matrix, (K * K, D), as matrices, (D, K, K)."""
    k = round(np.sqrt(len(s)))
    return s.T.reshape(-1, k, k)


def agreement(pixels: Floats, one: int) -> tuple[Floats, Floats, Floats]:
    """tp, fp and fn, (...), of one class in confusion matrices (..., M, M)."""
    tp = pixels[..., one, one]
    return tp, pixels[..., :, one].sum(-1) - tp, pixels[..., one, :].sum(-1) - tp


def accuracy(confusion: Floats) -> Floats:
    """(D,) share on the diagonal."""
    return ratio(np.trace(confusion, axis1=1, axis2=2), confusion.sum((1, 2)))


def mcc(confusion: Floats) -> Floats:
    """(D,) multi-class correlation of Gorodkin 2004; zero, as scikit-learn has it, when all guesses are one class."""
    n, hits = confusion.sum((1, 2)), np.trace(confusion, axis1=1, axis2=2)
    true, guessed = confusion.sum(2), confusion.sum(1)
    cover = hits * n - (true * guessed).sum(1)
    spread = np.sqrt((n**2 - (guessed**2).sum(1)) * (n**2 - (true**2).sum(1)))
    return np.where(n > 0, np.divide(cover, spread, out=np.zeros_like(cover), where=spread > 0), np.nan)
