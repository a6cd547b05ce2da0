"""The median of each coordinate.

Yin, Chen, Ramchandran, Bartlett: Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates, ICML 2018,
arXiv:1803.01498, definition 1 and algorithm 1 (option I). Holds against fewer than half of the devices.

Departures from the paper: none; of an even number, the mean of the two in the middle.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedfleet_strategies.each import Each
from fedfleet_strategies.layout import Vector
from fedfleet_strategies.robust.ordering import between


class Median(Each):
    """Each coordinate is the median of the updates', whatever they weigh."""

    def column(self, block: NDArray[Any]) -> Vector:
        """Return the medians of a block (n, c)."""
        n = len(block)
        middle = between(block, (n - 1) // 2, n // 2 + 1)
        if len(middle) == 1:
            return middle[0]
        # Halved first: the sum of two large floats may overflow.
        found: Vector = middle[0] * block.dtype.type(0.5) + middle[1] * block.dtype.type(0.5)
        return found


def by_sorting(block: NDArray[Any]) -> Vector:
    """Return the same by numpy, for the reader and for tests."""
    found: Vector = np.median(block, axis=0)
    return found
