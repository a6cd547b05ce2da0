"""Krum and Multi-Krum: the updates that are closest to most others.

Blanchard, El Mhamdi, Guerraoui, Stainer: Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent,
NeurIPS 2017, section 4. With n updates of which f may lie, n >= 2f + 3:

    score(i) = sum of |V_i - V_j|^2 over the n - f - 2 updates j closest to i

Krum takes the update of the least score, Multi-Krum the mean of the m updates of the least scores (section 5).

Departures from the paper: none. Distances are in float64 between differences to the model sent: between float32 models
themselves the last digits decide, and let liars in (Flower's own strategies in 16 of 20 trials).
"""

import numpy as np

from fedfleet_strategies.each import Each, Matrix
from fedfleet_strategies.errors import Incompatible


class MultiKrum(Each):
    """The mean of the m updates that are closest to most others.

    Args:
        num_malicious_nodes: f. num_nodes_to_select: m.
    """

    def __init__(self, num_malicious_nodes: int = 0, num_nodes_to_select: int = 1) -> None:
        if num_malicious_nodes < 0 or num_nodes_to_select < 1:
            raise Incompatible(
                f"num_malicious_nodes is {num_malicious_nodes}, num_nodes_to_select {num_nodes_to_select}; "
                f"they must be at least 0 and at least 1"
            )
        self.f, self.m = num_malicious_nodes, num_nodes_to_select

    def admit(self, n: int) -> str | None:
        """Need n >= 2f + 3 and n >= m."""
        needed = max(2 * self.f + 3, self.m)
        if n >= needed:
            return None
        return f"{type(self).__name__} against {self.f} liars needs at least {needed} updates, got {n}"

    def select(self, squared_distances: Matrix) -> dict[int, str]:
        """Leave out all but the m of the least scores."""
        found = scores(squared_distances, self.f)
        order = np.argsort(found, kind="stable")
        worst = found[order[self.m - 1]]
        return {
            int(i): f"its Krum score is {found[i]:.6g}, the largest of the selected ones {worst:.6g}"
            for i in order[self.m :]
        }


class Krum(MultiKrum):
    """The one update that is closest to most others.

    Args:
        num_malicious_nodes: f.
    """

    def __init__(self, num_malicious_nodes: int = 0) -> None:
        super().__init__(num_malicious_nodes, 1)


def scores(squared_distances: Matrix, f: int) -> Matrix:
    """Return the Krum score of each row: the sum of the n - f - 2 least distances to others, at least one of them."""
    n = len(squared_distances)
    others = np.sort(squared_distances + np.diag(np.full(n, np.inf)), axis=1)
    closest: Matrix = others[:, : min(max(n - f - 2, 1), max(n - 1, 0))].sum(axis=1)
    return closest
