"""What a regression says of one image."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ValuePrediction:
    """A number.

    Attributes:
        value: in the unit of the column.
    """

    value: float
