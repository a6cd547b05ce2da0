"""Centred clipping: from where we stand, nobody moves us further than a radius.

Karimireddy, He, Jaggi: Learning from History for Byzantine Robust Optimization, ICML 2021, arXiv:2012.10333,
equation 2 (algorithm 2, line 6): from v_0, L times

    v <- v + 1/n sum_i (x_i - v) min(1, tau / |x_i - v|)

v is a mix of the updates, so all distances follow from their inner products (`each`).

Departures from the paper: it clips the devices' momenta around the last aggregate; here updates are clipped around the
model that was sent, v_0 = 0. Momentum is the strategy's business (`FedAvgM`).
"""

import numpy as np
from numpy.typing import NDArray

from fedfleet_strategies.each import Each, Matrix
from fedfleet_strategies.errors import Incompatible


class CentredClipping(Each):
    """Mean of the updates, each clipped around the point reached so far; it moves by at most L tau.

    Args:
        radius: tau, above 0. iterations: L.
    """

    def __init__(self, radius: float, iterations: int = 1) -> None:
        if not radius > 0 or iterations < 1:
            raise Incompatible(f"radius is {radius}, iterations {iterations}; they must be above 0 and at least 1")
        self.radius, self.iterations = radius, iterations

    def mix(self, gram: Matrix, weights: NDArray[np.float64]) -> tuple[NDArray[np.float64], dict[int, str]]:
        """Return the share of each update."""
        n = len(weights)
        shares = np.zeros(n)
        for _ in range(self.iterations):
            apart = np.sqrt(np.maximum(shares @ gram @ shares - 2 * gram @ shares + np.diag(gram), 0.0))
            clip = np.minimum(1.0, self.radius / np.maximum(apart, 1e-300))
            shares = shares * (1 - clip.mean()) + clip / n
        return shares, {}
