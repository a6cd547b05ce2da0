"""FedBuff: the model steps as soon as a few updates are there, whatever version they were made for.

Nguyen, Malik, Zhan, Yousefpour, Rabbat, Malek, Huba: Federated Learning with Buffered Asynchronous Aggregation, AISTATS
2022, arXiv:2106.06639, algorithm 1, with the staleness scaling of section 5.1 and K the size of the buffer:

    x <- x + eta_g (1/K) sum_i s(t - tau_i) delta_i,    s(t) = 1 / sqrt(1 + t)

Departures from the paper: updates that have arrived together are all used, so K is the least. Devices send differences,
so the server keeps no old models.
"""

from typing import Any, ClassVar, Literal

from fedfleet_strategies.asynchronous.buffered import Buffered
from fedfleet_strategies.layout import Vector
from fedfleet_strategies.updates import Aggregate, Update


class FedBuff(Buffered):
    """Buffered asynchronous averaging; devices weigh the same, whatever they report.

    Args:
        buffer: K. concurrency: devices that train at a time.
        server_learning_rate: eta_g. exponent: a of s(t) = (1 + t)^-a.
    """

    weights: ClassVar[Literal["reported", "own"]] = "own"

    def __init__(
        self,
        *args: Any,
        buffer: int = 10,
        concurrency: int = 100,
        server_learning_rate: float = 1.0,
        exponent: float = 0.5,
        **options: Any,
    ) -> None:
        self.server_learning_rate = server_learning_rate
        options.setdefault("uplink", "plain")
        super().__init__(*args, buffer=buffer, concurrency=concurrency, exponent=exponent, **options)

    def conflicts(self) -> list[str]:
        """Return what is wrong with the options."""
        return super().conflicts() + (
            ["uplink is None, and the server keeps no old models to compare replies with; give 'plain' at least"]
            if self.uplink is None
            else []
        )

    def prepare(self, update: Update) -> Update:
        """Return the update with s(t - tau) as its weight."""
        update = super().prepare(update)
        update.weight = self.aged(update.staleness)
        return update

    def step(self, x: Vector, aggregate: Aggregate, server_round: int) -> Vector:
        """Return x + eta_g times the mean of the scaled updates; the aggregate's is over the sum of the weights."""
        del server_round
        scale = self.server_learning_rate * aggregate.weight / aggregate.count
        x += x.dtype.type(scale) * aggregate.delta
        return x
