"""SCAFFOLD: control variates take the drift out of the devices' steps.

Karimireddy, Kale, Mohri, Reddi, Stich, Suresh: SCAFFOLD: Stochastic Controlled Averaging for Federated Learning, ICML
2020, arXiv:1910.06378, algorithm 1, option II. On device i, K steps of learning rate lr from x:

    y <- y - lr (g_i(y) - c_i + c)
    c_i+ = c_i - c + (x - y) / (K lr)

On the server, over the cohort S of N devices:

    x <- x + eta mean(y_i - x),    c <- c + |S| / N mean(c_i+ - c_i)

The app takes c - c_i from `client.correction()` and says K and lr by `client.done(steps=, lr=)`. A device whose reply
was not used keeps its old c_i, so c stays the mean of all c_i.

Departures from the paper: N is the number of devices there are when the round begins.
"""

from typing import Any, ClassVar, Literal

import numpy as np

from fedfleet_strategies import columns
from fedfleet_strategies.layout import Vector
from fedfleet_strategies.strategy import Strategy
from fedfleet_strategies.updates import Aggregate, Update


class Scaffold(Strategy):
    """Federated averaging with control variates.

    Args:
        server_learning_rate: eta.
    """

    halves: ClassVar[tuple[str, ...]] = ("scaffold",)
    extras: ClassVar[tuple[str, ...]] = ("c",)
    weights: ClassVar[Literal["reported", "own"]] = "own"

    def __init__(self, *args: Any, server_learning_rate: float = 1.0, **options: Any) -> None:
        self.eta = server_learning_rate
        super().__init__(*args, **options)

    def init(self, x: Vector) -> dict[str, Any]:
        """Begin with c = 0."""
        return {"c": np.zeros_like(x)}

    def shared(self) -> dict[str, Vector]:
        """Send c."""
        return {"c": self.s["c"]}

    def prepare(self, update: Update) -> Update:
        """All devices weigh the same."""
        update.weight = 1.0
        return update

    def step(self, x: Vector, aggregate: Aggregate, server_round: int) -> Vector:
        """Move x and c."""
        del server_round
        self.s["c"] = self.s["c"] + x.dtype.type(aggregate.count / self.population) * aggregate.extra["c"]
        return columns.add(x, aggregate.delta, self.eta)
