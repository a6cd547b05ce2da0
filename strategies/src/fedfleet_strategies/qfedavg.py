"""q-FedAvg: devices where the model does badly count more.

Li, Sanjabi, Beirami, Smith: Fair Resource Allocation in Federated Learning, ICLR 2020, arXiv:1905.10497, algorithm 2;
F_k is the loss of the model that was sent on device k's data, L = 1 / learning rate:

    D_k = L (w_t - w_k),    Delta_k = F_k^q D_k,    h_k = q F_k^(q-1) |D_k|^2 + L F_k^q
    w_{t+1} = w_t - sum_k Delta_k / sum_k h_k

Departures from the paper: 1e-10 is added to F_k, as in the authors' code, so that a loss of 0 has a power. Devices are
drawn uniformly, not by examples.
"""

from typing import Any, ClassVar, Literal

import numpy as np

from fedfleet_strategies import columns
from fedfleet_strategies.errors import AppFault
from fedfleet_strategies.layout import Vector
from fedfleet_strategies.strategy import Strategy
from fedfleet_strategies.updates import Aggregate, Update, squared_norm

_LEAST = 1e-10


class QFedAvg(Strategy):
    """Federated averaging that evens out the loss over devices.

    Args:
        client_learning_rate: of the devices' SGD; 1 / L. q: fairness, at least 0; with 0 it is the plain mean.
        train_loss_key: where devices report F_k, the loss before they train.
    """

    scalars: ClassVar[tuple[str, ...]] = ()
    weights: ClassVar[Literal["reported", "own"]] = "own"

    def __init__(
        self,
        client_learning_rate: float,
        q: float = 0.1,
        train_loss_key: str = "train_loss",
        *args: Any,
        **options: Any,
    ) -> None:
        self.client_learning_rate, self.q, self.train_loss_key = client_learning_rate, q, train_loss_key
        super().__init__(*args, **options)

    def conflicts(self) -> list[str]:
        """Return what is wrong with the options."""
        found = super().conflicts()
        if not self.client_learning_rate > 0:
            found.append(f"client_learning_rate is {self.client_learning_rate}, it must be above 0")
        if not self.q >= 0:
            found.append(f"q is {self.q}, it must be at least 0")
        return found

    def prepare(self, update: Update) -> Update:
        """Weigh the update by F^q and note h."""
        loss = update.metrics.get(self.train_loss_key)
        if not isinstance(loss, (int, float)) or not 0 <= loss < np.inf:
            raise AppFault(f"its {self.train_loss_key} is {loss!r}; q-FedAvg needs the loss before training there")
        lipschitz, loss = 1 / self.client_learning_rate, loss + _LEAST
        update.weight = loss**self.q
        squared = squared_norm(update.delta) * lipschitz**2
        update.scalars = {"h": self.q * loss ** (self.q - 1) * squared + lipschitz * update.weight}
        return update

    def step(self, x: Vector, aggregate: Aggregate, server_round: int) -> Vector:
        """Return x - sum Delta / sum h."""
        del server_round
        factor = aggregate.weight / (self.client_learning_rate * aggregate.scalars["h"])
        return columns.add(x, aggregate.delta, factor)
