"""A sampler."""

import numpy as np

from skinmtl.data.samplers import Weighted


class LesionBalanced(Weighted):
    """Every lesion equally often: an image weighs one over the number of training images of its lesion."""

    rebalances = False  # it does not bring up rare diagnoses, so that class_weights=auto still does

    def __init__(self) -> None:
        super().__init__(lambda dx, lesion: 1 / np.bincount(lesion)[lesion])
