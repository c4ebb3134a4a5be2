"""Tasks made by hand, and what a network is told of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from skinmtl.tasks.base import Task
from skinmtl.tasks.classification.learning import Classification
from skinmtl.tasks.segmentation.learning import Segmentation


def segmentation(
    loss: nn.Module | None = None, classes: Sequence[str] = ("skin", "lesion"), name: str = "seg"
) -> Segmentation:
    return _given(Segmentation(name=name), loss, classes)


def classification(loss: nn.Module | None = None, classes: Sequence[str] = "abc", name: str = "cls") -> Classification:
    column = "dx" if name == "cls" else name
    return _given(Classification(column, name=name), loss, classes)


def _given(task: Any, loss: nn.Module | None, classes: Sequence[str]) -> Any:  # noqa: ANN401
    task.facts = {"classes": list(classes)}
    if loss is not None:
        task.loss = loss
    return task


def outputs(tasks: Sequence[str] = ("seg", "cls"), mask_classes: int = 2, dx_classes: int = 7) -> list[Task]:
    """Tasks of so many classes, as a network is told of them."""
    masks, classes = (list(map(str, range(count))) for count in (mask_classes, dx_classes))
    both = {"seg": segmentation(classes=masks), "cls": classification(classes=classes)}
    return [both[name] for name in tasks]
