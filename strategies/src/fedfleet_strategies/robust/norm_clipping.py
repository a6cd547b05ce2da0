"""Norm clipping: no update is longer than a bound.

Sun, Kairouz, Suresh, McMahan: Can You Really Backdoor Federated Learning?, 2019, arXiv:1911.07963, section 4:

    mean of delta_k / max(1, |delta_k| / M)

It is a sum, so it folds like FedAvg.

Departures from the paper: none; integers are averaged unclipped. For privacy use the strategy's own clipping, which
also takes the weights away.
"""

from typing import Any

import numpy as np

from fedfleet_strategies.errors import Incompatible
from fedfleet_strategies.rules import Spool
from fedfleet_strategies.sums import Mean, Sum
from fedfleet_strategies.updates import Update, squared_norm


class NormClipping(Mean):
    """The weighted mean of updates, each shortened to a bound.

    Args:
        bound: M, above 0.
    """

    def __init__(self, bound: float) -> None:
        if not bound > 0:
            raise Incompatible(f"bound is {bound}, it must be above 0")
        self.bound = bound

    def open(self, d: int, k: int, dtype: np.dtype[Any], spool: Spool) -> Sum:
        """Return an empty fold that clips."""
        del spool
        return _Clipped(d, k, dtype, self.bound)


class _Clipped(Sum):
    def __init__(self, d: int, k: int, dtype: np.dtype[Any], bound: float) -> None:
        super().__init__(d, k, dtype)
        self._bound = bound

    def add(self, update: Update) -> None:
        norm = squared_norm(update.delta) ** 0.5
        if norm > self._bound:
            update.delta *= update.delta.dtype.type(self._bound / norm)
        super().add(update)
