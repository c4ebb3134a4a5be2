"""Losses by task: each a mean over the samples that carry the task's target, in float32, finite whatever the batch."""

from skinmtl.losses.classification import LDAM, ClassBalanced, CrossEntropy, FocalCrossEntropy, LogitAdjusted
from skinmtl.losses.common import mean_over_labelled
from skinmtl.losses.regression import AbsoluteError, Huber, SquaredError
from skinmtl.losses.segmentation import BCE, Boundary, Dice, DiceBCE, Focal, FocalTversky, Lovasz, Tversky

# Configs, those of finished runs too, call a loss by its name here.
__all__ = [
    "BCE",
    "LDAM",
    "AbsoluteError",
    "Boundary",
    "ClassBalanced",
    "CrossEntropy",
    "Dice",
    "DiceBCE",
    "Focal",
    "FocalCrossEntropy",
    "FocalTversky",
    "Huber",
    "LogitAdjusted",
    "Lovasz",
    "SquaredError",
    "Tversky",
    "mean_over_labelled",
]
