"""A metric of the diagnosis: Cohen's kappa."""

import numpy as np

from skinmtl.tasks.classification.learning import Classification
from skinmtl.tasks.classification.scores import Classified
from skinmtl.tasks.classification.scoring import ClassificationScoring
from skinmtl.tasks.confusion import matrices
from skinmtl.tasks.resampling import Floats, Score, ratio
from skinmtl.tasks.scoring import Metric


def kappa(confusion: Floats) -> Floats:
    """(D,) agreement beyond chance, (p_o - p_e) / (1 - p_e), from confusion matrices (D, K, K)."""
    n = confusion.sum((1, 2))
    observed = ratio(np.trace(confusion, axis1=1, axis2=2), n)
    expected = ratio((confusion.sum(1) * confusion.sum(2)).sum(1), n**2)
    return ratio(observed - expected, 1 - expected)


def kappa_of(read: Classified) -> Score:
    """The metric as a function of sums over images, here of the cells of the confusion matrix."""
    return Score((read.confusion,), lambda sums: kappa(matrices(sums)))


class WithKappa(ClassificationScoring):
    """A classification's metrics and one more."""

    metrics = {**ClassificationScoring.metrics, "kappa": Metric("Cohen's kappa", kappa_of)}


class Diagnosis(Classification):
    """A classification that is scored by one metric more."""

    def scoring(self) -> WithKappa:
        """As of any classification."""
        return WithKappa(self.name, self.classes)
