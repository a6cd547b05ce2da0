"""The mean of each coordinate without its largest and smallest values.

Yin, Chen, Ramchandran, Bartlett: Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates, ICML 2018,
arXiv:1803.01498, definition 2 and algorithm 1 (option II): a fraction beta is removed at either end. Holds against a
fraction of liars of at most beta.

Departures from the paper: if beta n is no integer it is rounded up, so that at least beta is removed. Flower's own
strategy rounds down, and with 4 updates and beta 0.2 removes none.
"""

import math
from typing import Any

from numpy.typing import NDArray

from fedfleet_strategies.each import Each, mean_of
from fedfleet_strategies.errors import Incompatible
from fedfleet_strategies.layout import Vector
from fedfleet_strategies.robust.ordering import between


class TrimmedMean(Each):
    """Each coordinate is the mean of the updates' without a fraction at either end, whatever they weigh.

    Args:
        beta: the fraction, at least 0 and below 0.5.
    """

    def __init__(self, beta: float = 0.2) -> None:
        if not 0 <= beta < 0.5:
            raise Incompatible(f"beta is {beta}, it must be at least 0 and below 0.5")
        self.beta = beta

    def trimmed(self, n: int) -> int:
        """Return how many of n values are removed at either end."""
        return math.ceil(self.beta * n - 1e-9)

    def admit(self, n: int) -> str | None:
        """Need a value that is not trimmed."""
        k = self.trimmed(n)
        if n > 2 * k:
            return None
        return f"trimming a fraction of {self.beta:g} at either end leaves nothing of {n} updates"

    def column(self, block: NDArray[Any]) -> Vector:
        """Return the trimmed means of a block (n, c)."""
        n = len(block)
        k = self.trimmed(n)
        rows = between(block, k, n - k) if k else list(block)
        return mean_of(rows)
