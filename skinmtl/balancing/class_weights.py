"""How much one image counts where its diagnosis has n of them; samplers and losses weigh alike."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def effective_number_weights(n: NDArray[np.float64], beta: float) -> NDArray[np.float64]:
    """Weights (1 - beta) / (1 - beta^n), of the shape of n: of n images, as many count as still tell apart.

    One for beta = 0, and 1 / n for beta = 1, which is the limit. Cui et al. 2019, arXiv:1901.05555.

    Args:
        n: images of a diagnosis, above 0.
        beta: in [0, 1].
    """
    return 1 / n if beta == 1 else (1 - beta) / (1 - beta**n)
