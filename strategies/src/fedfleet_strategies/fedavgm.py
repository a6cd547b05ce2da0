"""FedAvgM: the server's step has momentum.

Hsu, Qi, Brown: Measuring the Effects of Non-Identical Data Distribution for Federated Visual Classification, 2019,
arXiv:1909.06335, section 4:

    v <- beta v + delta,    w <- w - v,    delta = sum_k (n_k / n) delta_k,   delta_k = w - w_k

Departures from the paper: `delta` has the opposite sign here, and the server has a learning rate besides, as in Flower.
"""

from typing import Any

import numpy as np

from fedfleet_strategies import columns
from fedfleet_strategies.layout import Vector
from fedfleet_strategies.strategy import Strategy
from fedfleet_strategies.updates import Aggregate


class FedAvgM(Strategy):
    """Federated averaging with server momentum.

    Args:
        server_learning_rate: eta. server_momentum: beta, at least 0 and below 1.
    """

    def __init__(
        self, *args: Any, server_learning_rate: float = 1.0, server_momentum: float = 0.0, **options: Any
    ) -> None:
        self.eta, self.beta = server_learning_rate, server_momentum
        super().__init__(*args, **options)

    def conflicts(self) -> list[str]:
        """Return what is wrong with the options."""
        wrong = [] if 0 <= self.beta < 1 else [f"server_momentum is {self.beta}, it must be at least 0 and below 1"]
        return super().conflicts() + wrong

    def init(self, x: Vector) -> dict[str, Any]:
        """Begin at rest."""
        return {"v": np.zeros_like(x)}

    def step(self, x: Vector, aggregate: Aggregate, server_round: int) -> Vector:
        """Return x + eta v."""
        del server_round
        v = self.s["v"]
        v *= x.dtype.type(self.beta)
        v += aggregate.delta
        return columns.add(x, v, self.eta)
