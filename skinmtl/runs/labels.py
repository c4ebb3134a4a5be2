"""Scores and what runs record, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

NOT_RECORDED = "not recorded"


def stamps(info: Mapping[str, Any]) -> str:
    """What every score of a run has to be shown with, from its run.json: such as "LEAKY SYNTHETIC", or nothing."""
    return " ".join(name.upper() for name in ("leaky", "synthetic", "shuffled") if info.get(name))


def score_words(score: Mapping[str, Any] | None) -> tuple[str, str]:
    """A score as "0.812" and its interval as "(0.790 to 0.834)"; said in words where there is none."""
    if score is None:
        return NOT_RECORDED, ""
    if score.get("value") is None:
        return "undefined", ""
    places = 1 if abs(score["value"]) >= 10 else 3
    if score.get("low") is None:
        return f"{score['value']:.{places}f}", ""
    return f"{score['value']:.{places}f}", f"({score['low']:.{places}f} to {score['high']:.{places}f})"


def said(value: object) -> str:
    """A value as text; "not recorded" for None, words joined by commas for a list."""
    if value is None:
        return NOT_RECORDED
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(str, value)) or "none"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
