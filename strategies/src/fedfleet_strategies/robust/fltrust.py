"""FLTrust: the server trains on a little data of its own, and trusts updates as far as they point its way.

Cao, Fang, Liu, Gong: FLTrust: Byzantine-robust Federated Learning via Trust Bootstrapping, NDSS 2021,
arXiv:2012.13995, equations 2 to 4, with the server's own update g_0:

    TS_i = ReLU(cos(g_i, g_0)),    g = sum_i TS_i (|g_0| / |g_i|) g_i / sum_i TS_i

Holds against any number of liars, as far as the server's data are like the devices'.

Departures from the paper: none; its global learning rate is 1. If nobody points the server's way the model stays, and
`explain` says so.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from flwr.app import ArrayRecord
from numpy.typing import NDArray

from fedfleet_strategies.each import Each, Matrix
from fedfleet_strategies.errors import Refused
from fedfleet_strategies.layout import Layout, Vector
from fedfleet_strategies.strategy import Strategy


class Trust(Each):
    """Updates as long as the server's own, in proportion to how far they point its way."""

    def mix(self, gram: Matrix, weights: NDArray[np.float64]) -> tuple[NDArray[np.float64], dict[int, str]]:
        """Return the share of each update."""
        n = len(weights)
        if len(gram) != n + 1:
            raise Refused("the strategy has no update of its own to compare with; FLTrust has")
        norms = np.sqrt(np.diag(gram))
        if not norms[n] > 0:
            raise Refused("the server's own update is zero")
        with np.errstate(divide="ignore", invalid="ignore"):
            cosine = np.where(norms[:n] > 0, gram[:n, n] / (norms[:n] * norms[n]), 0.0)
        trust = np.maximum(cosine, 0.0)
        if not trust.sum() > 0:
            raise Refused(f"none of {n} updates points the way of the server's own")
        left = {
            i: f"it points away from the server's own update, cosine {cosine[i]:.3g}"
            for i in np.flatnonzero(trust == 0).tolist()
        }
        shares = np.divide(trust * norms[n], norms[:n], out=np.zeros(n), where=norms[:n] > 0)
        return shares / trust.sum(), left


class FLTrust(Strategy):
    """FedAvg with the rule `Trust`.

    Args:
        train: called with the model and the round; returns the model after training on the server's data. It must give
            the same result when a round runs again.
    """

    def __init__(self, train: Callable[[ArrayRecord, int], ArrayRecord], *args: Any, **options: Any) -> None:
        self.train = train
        super().__init__(*args, rule=Trust(), **options)

    def reference(self, arrays: ArrayRecord, x: Vector, server_round: int) -> Vector | None:
        """Return the server's own update."""
        layout = Layout.of(arrays, self.local)
        trained, _ = layout.flat(self.train(arrays, server_round))
        return trained - layout.flat(arrays)[0]
