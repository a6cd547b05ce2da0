"""RFA: the point with the least sum of distances to all updates.

Pillutla, Kakade, Harchaoui: Robust Aggregation for Federated Learning, IEEE Transactions on Signal Processing 2022,
arXiv:1912.13445, algorithm 2 (smoothed Weiszfeld): from v_0, R times

    b_k = a_k / max(nu, |v - w_k|),    v <- sum_k b_k w_k / sum_k b_k

v is always a mix of the updates, so all distances follow from their inner products (`each`): the updates are read
twice, however large R is. Holds against less than half of the weight.

Departures from the paper: every update weighs the same unless `weighted`, as a liar can claim any weight. v_0 is the
model that was sent and not the updates' mean, which a single liar can put anywhere.
"""

import numpy as np
from numpy.typing import NDArray

from fedfleet_strategies.each import Each, Matrix
from fedfleet_strategies.errors import Incompatible


class GeometricMedian(Each):
    """The geometric median of the updates, nearly.

    Args:
        iterations: R; the paper finds 3 enough. nu: distances below it count as it. weighted: by what devices report.
    """

    def __init__(self, iterations: int = 3, nu: float = 1e-6, *, weighted: bool = False) -> None:
        if iterations < 1 or not nu > 0:
            raise Incompatible(f"iterations is {iterations}, nu {nu}; they must be at least 1 and above 0")
        self.iterations, self.nu, self.weighted = iterations, nu, weighted

    def mix(self, gram: Matrix, weights: NDArray[np.float64]) -> tuple[NDArray[np.float64], dict[int, str]]:
        """Return the share of each update in the median."""
        n = len(weights)
        alpha = weights / weights.sum() if self.weighted and weights.sum() > 0 else np.full(n, 1 / n)
        shares = np.zeros(n)
        for _ in range(self.iterations):
            apart = np.sqrt(np.maximum(shares @ gram @ shares - 2 * gram @ shares + np.diag(gram), 0.0))
            shares = alpha / np.maximum(self.nu, apart)
            shares /= shares.sum()
        return shares, {}
