"""What a run recorded, found in nested files. Never fails on what is missing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from skinmtl.runs import aliases

HAM10000 = {"dataverse", "kaggle", "mirror", "isic2018_task3"}  # layouts in which its images are published


def read_scores(folder: Path) -> dict[str, Any]:
    """Read scores.json in a run's folder; empty when there is none.

    In one from before version 2 the scores whose definition has changed since go by the names that they have today.
    """
    path = folder / "scores.json"
    scores: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if "version" not in scores:
        for part in dig(scores, "parts", default={}).values():
            for task, values in dig(part, "scores", default={}).items():
                part["scores"][task] = {aliases.SCORES.get(name, name): value for name, value in values.items()}
    return scores


def dig(tree: object, *keys: str, default: Any = None) -> Any:  # noqa: ANN401 -- JSON
    """Look up the value under nested keys; the default where one is missing or holds None."""
    for key in keys:
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return default if tree is None else tree


def flat(tree: Mapping[Any, Any], above: str = "") -> dict[str, object]:
    """Give the leaves of a nested mapping by dotted key, in its order."""
    leaves: dict[str, object] = {}
    for key, value in tree.items():
        inner = isinstance(value, Mapping) and value
        leaves |= flat(value, f"{above}{key}.") if inner else {f"{above}{key}": value}
    return leaves


def is_ham10000(info: Mapping[str, Any]) -> bool:
    """Tell whether a run's images are HAM10000's, by the layout that run.json names; synthetic ones borrow it."""
    return not info.get("synthetic") and dig(info, "data", "layout") in HAM10000
