"""Bulyan: Krum selects, then each coordinate is the mean of the values nearest to its median.

El Mhamdi, Guerraoui, Rouault: The Hidden Vulnerability of Distributed Learning in Byzantium, ICML 2018,
arXiv:1802.07927, section 4. With n updates of which f may lie, n >= 4f + 3:

1. theta = n - 2f times: Krum picks one of the updates that are left, and takes it out.
2. In each coordinate: the mean of the beta = theta - 2f values of the picked ones that are nearest to their median.

Departures from the paper: none in the algorithm, which is iterated as published. When few are left, Krum's r - f - 2
neighbours are none; then the nearest one decides, and between two that are each other's nearest the distances to all.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedfleet_strategies.each import Each, Matrix, mean_of
from fedfleet_strategies.errors import Incompatible
from fedfleet_strategies.layout import Vector
from fedfleet_strategies.robust.krum import scores
from fedfleet_strategies.robust.median import Median


class Bulyan(Each):
    """Iterated Krum, then a trimmed mean around the median of each coordinate.

    Args:
        num_malicious_nodes: f.
    """

    def __init__(self, num_malicious_nodes: int = 0) -> None:
        if num_malicious_nodes < 0:
            raise Incompatible(f"num_malicious_nodes is {num_malicious_nodes}, it must be at least 0")
        self.f = num_malicious_nodes

    def admit(self, n: int) -> str | None:
        """Need n >= 4f + 3."""
        if n >= 4 * self.f + 3:
            return None
        return f"Bulyan against {self.f} liars needs at least {4 * self.f + 3} updates, got {n}"

    def select(self, squared_distances: Matrix) -> dict[int, str]:
        """Leave out the 2f updates that Krum does not pick."""
        left = list(range(len(squared_distances)))
        for _ in range(len(left) - 2 * self.f):
            here = squared_distances[np.ix_(left, left)]
            left.pop(int(np.lexsort((here.sum(axis=1), scores(here, self.f)))[0]))
        return {i: f"Krum did not pick it in {len(squared_distances) - 2 * self.f} turns" for i in left}

    def column(self, block: NDArray[Any]) -> Vector:
        """Return the mean of the values nearest to the median, for a block (theta, c)."""
        theta = len(block)
        beta = theta - 2 * self.f
        if beta >= theta:
            return mean_of(list(block))
        apart = np.abs(block - Median().column(block.copy()))
        nearest = np.argpartition(apart, beta - 1, axis=0)[:beta]
        mean: Vector = np.take_along_axis(block, nearest, axis=0).mean(axis=0)
        return mean
