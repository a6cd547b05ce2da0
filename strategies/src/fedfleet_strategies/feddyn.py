"""FedDyn: each device's objective is bent so that its optimum is the fleet's.

Acar, Zhao, Navarro, Mattina, Whatmough, Saligrama: Federated Learning Based on Dynamic Regularization, ICLR 2021,
arXiv:2111.04263, algorithm 1. On device k, from x:

    y_k = argmin_w L_k(w) - <g_k, w> + alpha/2 |w - x|^2,    g_k <- g_k - alpha (y_k - x)

On the server, over the cohort P of m devices:

    h <- h - alpha |P| / m mean(y_k - x),    x <- mean(y_k) - h / alpha

The app takes the two terms from `client.correction()`. A device whose reply was not used keeps its old g_k.

Departures from the paper: m is the number of devices there are when the round begins.
"""

from typing import Any, ClassVar, Literal

import numpy as np

from fedfleet_strategies.layout import Vector
from fedfleet_strategies.strategy import Strategy
from fedfleet_strategies.updates import Aggregate, Update


class FedDyn(Strategy):
    """Federated averaging with dynamic regularisation.

    Args:
        alpha: above 0.
    """

    halves: ClassVar[tuple[str, ...]] = ("feddyn",)
    weights: ClassVar[Literal["reported", "own"]] = "own"

    def __init__(self, *args: Any, alpha: float = 0.01, **options: Any) -> None:
        self.alpha = alpha
        super().__init__(*args, **options)

    def conflicts(self) -> list[str]:
        """Return what is wrong with the options."""
        return super().conflicts() + ([] if self.alpha > 0 else [f"alpha is {self.alpha}, it must be above 0"])

    def settings(self) -> dict[str, Any]:
        """Tell the client half alpha."""
        return {"alpha": self.alpha}

    def init(self, x: Vector) -> dict[str, Any]:
        """Begin with h = 0."""
        return {"h": np.zeros_like(x)}

    def prepare(self, update: Update) -> Update:
        """All devices weigh the same."""
        update.weight = 1.0
        return update

    def step(self, x: Vector, aggregate: Aggregate, server_round: int) -> Vector:
        """Move h and x."""
        del server_round
        share = x.dtype.type(self.alpha * aggregate.count / self.population)
        self.s["h"] = self.s["h"] - share * aggregate.delta
        x += aggregate.delta
        x -= self.s["h"] / x.dtype.type(self.alpha)
        return x
