"""pFedMe: personal models by Moreau envelopes.

Dinh, Tran, Nguyen: Personalized Federated Learning with Moreau Envelopes, NeurIPS 2020, arXiv:2006.08848, algorithm 1.
On device i, from w = x, R times:

    theta = argmin_t f_i(t) + lambda/2 |t - w|^2,    by the app, as exactly as it can
    w <- w - eta lambda (w - theta)

On the server, over the cohort: x <- (1 - beta) x + beta mean(w_i). theta stays on the device as its personal model.
The app takes the proximal term from `client.correction()` and is called R times.

Departures from the paper: the mean is over the cohort, as in the authors' code, and weighs all devices the same.
"""

from typing import Any, ClassVar, Literal

from fedfleet_strategies import columns
from fedfleet_strategies.layout import Vector
from fedfleet_strategies.strategy import Strategy
from fedfleet_strategies.updates import Aggregate, Update


class PFedMe(Strategy):
    """Personal models by Moreau envelopes.

    Args:
        lam: lambda, above 0. eta: the devices' learning rate of w. beta: the server's share of the new model.
        local_rounds: R. evaluate: which model devices evaluate.
    """

    halves: ClassVar[tuple[str, ...]] = ("pfedme",)
    weights: ClassVar[Literal["reported", "own"]] = "own"

    def __init__(
        self,
        *args: Any,
        lam: float = 15.0,
        eta: float = 0.005,
        beta: float = 1.0,
        local_rounds: int = 20,
        evaluate: Literal["personal", "global"] = "personal",
        **options: Any,
    ) -> None:
        self.lam, self.eta, self.beta, self.local_rounds, self.evaluate = lam, eta, beta, local_rounds, evaluate
        super().__init__(*args, **options)

    def conflicts(self) -> list[str]:
        """Return what is wrong with the options."""
        found = super().conflicts()
        if not (self.lam > 0 and self.eta > 0 and self.beta > 0 and self.local_rounds >= 1):
            found.append("lam, eta and beta must be above 0 and local_rounds at least 1")
        return found

    def settings(self) -> dict[str, Any]:
        """Tell the client half its numbers."""
        return {"lambda": self.lam, "eta": self.eta, "rounds": self.local_rounds, "evaluate": self.evaluate}

    def prepare(self, update: Update) -> Update:
        """All devices weigh the same."""
        update.weight = 1.0
        return update

    def step(self, x: Vector, aggregate: Aggregate, server_round: int) -> Vector:
        """Return (1 - beta) x + beta mean(w_i)."""
        del server_round
        return columns.add(x, aggregate.delta, self.beta)
