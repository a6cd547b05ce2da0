"""FedOpt: the mean update is a gradient for an adaptive optimiser on the server.

Reddi, Charles, Zaheer, Garrett, Rush, Konečný, Kumar, McMahan: Adaptive Federated Optimization, ICLR 2021,
arXiv:2003.00295, algorithm 2; `delta` is the mean update of the round:

    m <- beta_1 m + (1 - beta_1) delta
    v <- as the method says, from v_0 >= tau^2
    x <- x + eta m / (sqrt(v) + tau)

`fedadagrad`, `fedadam` and `fedyogi` say how v changes.

Departures from the paper: none in the step; v_0 is tau^2, its least value. The mean is weighted by examples, which the
paper does in its experiments (appendix D.1). Flower's own strategies begin at v_0 = 0 and correct the bias of
Adam by round + 1, and so train otherwise in the first rounds.
"""

from typing import Any

import numpy as np

from fedfleet_strategies import columns
from fedfleet_strategies.layout import Vector
from fedfleet_strategies.strategy import Strategy
from fedfleet_strategies.updates import Aggregate

_BLOCK = 1 << 14


class FedOpt(Strategy):
    """What the three adaptive strategies share.

    Args:
        eta: the server's learning rate. eta_l: the devices' one; Flower's signature has it, the app sets its own.
        beta_1, beta_2: decay of m and of v, at least 0 and below 1. tau: degree of adaptivity, above 0.
    """

    def __init__(
        self,
        *args: Any,
        eta: float = 1e-1,
        eta_l: float = 1e-1,
        beta_1: float = 0.0,
        beta_2: float = 0.0,
        tau: float = 1e-3,
        **options: Any,
    ) -> None:
        self.eta, self.eta_l, self.beta_1, self.beta_2, self.tau = eta, eta_l, beta_1, beta_2, tau
        super().__init__(*args, **options)

    def conflicts(self) -> list[str]:
        """Return what is wrong with the options."""
        found = super().conflicts()
        if not self.tau > 0:
            found.append(f"tau is {self.tau}, it must be above 0")
        for name, beta in (("beta_1", self.beta_1), ("beta_2", self.beta_2)):
            if not 0 <= beta < 1:
                found.append(f"{name} is {beta}, it must be at least 0 and below 1")
        return found

    def init(self, x: Vector) -> dict[str, Any]:
        """Begin with m = 0 and v = tau^2."""
        return {"m": np.zeros_like(x), "v": np.full_like(x, self.tau**2)}

    def grow(self, v: Vector, square: Vector) -> None:
        """Change v in place, given the squared mean update; both are a block of columns."""
        raise NotImplementedError

    def step(self, x: Vector, aggregate: Aggregate, server_round: int) -> Vector:
        """Return x + eta m / (sqrt(v) + tau)."""
        del server_round
        number = x.dtype.type
        m, v, delta = self.s["m"], self.s["v"], aggregate.delta

        def work(start: int, stop: int) -> None:
            for low in range(start, stop, _BLOCK):
                here = slice(low, min(low + _BLOCK, stop))
                mean, d = m[here], delta[here]
                mean *= number(self.beta_1)
                mean += number(1 - self.beta_1) * d
                self.grow(v[here], d * d)
                x[here] += number(self.eta) * mean / (np.sqrt(v[here]) + number(self.tau))

        columns.over(x.size, work)
        return x
