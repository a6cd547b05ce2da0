"""FedAsync: each model that arrives is mixed into the server's, the less the older the version it was made for.

Xie, Koyejo, Gupta: Asynchronous Federated Optimization, OPT 2020, arXiv:1903.03934, algorithm 1, with the polynomial
staleness function of section 5:

    x <- (1 - alpha_t) x + alpha_t y,    alpha_t = alpha s(t - tau),    s(t) = (1 + t)^-a

Departures from the paper: models that have arrived together are mixed one after the other, in the order of their
devices, within one version. The proximal term of the devices' training is `FedProx`'s, and not part of this.
"""

from typing import Any, ClassVar, Literal

from flwr.app import Message

from fedfleet_strategies import receiving
from fedfleet_strategies.asynchronous.buffered import Buffered
from fedfleet_strategies.layout import Vector
from fedfleet_strategies.updates import Aggregate, Update


class FedAsync(Buffered):
    """Asynchronous mixing.

    Args:
        concurrency: devices that train at a time.
        alpha: share of a fresh model, above 0 and at most 1. exponent: a.
    """

    weights: ClassVar[Literal["reported", "own"]] = "own"

    def __init__(
        self, *args: Any, concurrency: int = 100, alpha: float = 0.6, exponent: float = 0.5, **options: Any
    ) -> None:
        self.alpha = alpha
        self._shares: dict[int, float] = {}
        super().__init__(*args, buffer=1, concurrency=concurrency, exponent=exponent, **options)

    def conflicts(self) -> list[str]:
        """Return what is wrong with the options."""
        found = super().conflicts()
        if not 0 < self.alpha <= 1:
            found.append(f"alpha is {self.alpha}, it must be above 0 and at most 1")
        if self.uplink is not None:
            found.append("FedAsync mixes models, and an uplink sends differences; FedBuff takes one")
        return found

    def prepare(self, update: Update) -> Update:
        """Return the update, whose delta is to the model there is now, with its share in the mix."""
        update = super().prepare(update)
        update.weight = self._shares[update.node]
        return update

    def step(self, x: Vector, aggregate: Aggregate, server_round: int) -> Vector:
        """Return the mix; the aggregate's delta is over the sum of the shares."""
        del server_round
        x += x.dtype.type(aggregate.weight) * aggregate.delta
        return x

    def _arrive(self, sent: receiving.Sent) -> list[Message]:
        """Return the replies, and note what is left of each once those after it are mixed in."""
        arrived = super()._arrive(sent)
        left, self._shares = 1.0, {}
        models = [message.metadata.src_node_id for message in arrived if not message.has_error()]
        for node in sorted(models, reverse=True):
            alpha = self.alpha * self.aged(self._staleness[node])
            self._shares[node] = left * alpha
            left *= 1 - alpha
        return arrived
