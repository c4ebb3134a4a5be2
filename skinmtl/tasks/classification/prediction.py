"""What a classification says of one image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class ClassPrediction:
    """Probabilities of classes.

    Attributes:
        probabilities: by class name, float64, summing to one.
    """

    probabilities: Mapping[str, float]

    @property
    def label(self) -> str:
        """The class of the largest probability."""
        return max(self.probabilities, key=self.probabilities.__getitem__)
