"""What travels between modules: samples, batches, logits, and numbers with a range.

Shape letters, the same everywhere: B samples in a batch, H and W height and width in pixels,
M mask classes (background first), K diagnoses, N images of a table.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, NotRequired, TypedDict

from annotated_types import Interval

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor


Fraction = Annotated[float, Interval(ge=0, le=1)]


class Sample(TypedDict):
    """One image at network size; what is missing is marked, never filled in."""

    image: NDArray[np.uint8]  # (H, W, 3), RGB
    mask: NDArray[np.uint8]  # (H, W), index into the mask classes; zeros where has_mask is False
    has_mask: bool
    dx: int  # index into the diagnoses, -1 where missing
    index: int  # row of the case table
    dx_other: NotRequired[int]  # the diagnosis mixed in, `dx` where none was; under data.mixing alone, as `share`
    share: NotRequired[float]  # of `dx` in the target, in [0.5, 1], the same for all of a step


class Batch(TypedDict):
    """Samples stacked; the network normalises, so images stay bytes until then."""

    image: Tensor  # (B, 3, H, W) uint8, RGB
    mask: Tensor  # (B, H, W) uint8, index into the mask classes
    has_mask: Tensor  # (B,) bool
    dx: Tensor  # (B,) int64, index into the diagnoses; -1 where missing
    index: Tensor  # (B,) int64, row of the case table
    dx_other: NotRequired[Tensor]  # (B,) int64, the diagnosis mixed in, `dx` where none was; under data.mixing alone
    share: NotRequired[Tensor]  # () float32, of `dx` in the target, in [0.5, 1]; the rest is `dx_other`'s


# Float32 logits by task name. "seg": (B, 1, H, W) for one foreground class, (B, M, H, W) for more.  "cls": (B, K).
Logits = dict[str, "Tensor"]
