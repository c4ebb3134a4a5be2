"""What travels between modules: samples, batches, logits, and numbers with a range.

Shape letters, the same everywhere: B samples in a batch, H and W height and width in pixels,
M mask classes (background first), K classes such as diagnoses, C logits, N images of a table.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, NotRequired, TypedDict

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
    targets: NotRequired[dict[str, Any]]  # further ones by batch key: a number or an array each
    dx_other: NotRequired[int]  # the diagnosis mixed in, `dx` where none was; under data.mixing alone, as the next two
    targets_other: NotRequired[dict[str, Any]]  # the further targets mixed in, `targets` where none were
    share: NotRequired[float]  # of `dx` in the target, in [0.5, 1], the same for all of a step


# Samples stacked, by key; the network normalises, so images stay bytes until then.
#   image     (B, 3, H, W) uint8, RGB
#   mask      (B, H, W) uint8, index into the mask classes
#   has_mask  (B,) bool
#   dx        (B,) int64, index into the diagnoses; -1 where missing
#   index     (B,) int64, row of the case table
#   further keys as each task declares them, (B, ...), with a value of the task's for what is missing
# Under data.mixing also:
#   dx_other, <key>_other  the target mixed in, the own one where none was
#   share     () float32, of the own target, in [0.5, 1]; the rest is the other's
Batch = dict[str, "Tensor"]

# Float32 logits by task name: (B, C, H, W) of a dense task, (B, C) of any other.
Logits = dict[str, "Tensor"]
