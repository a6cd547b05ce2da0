"""FedNova: devices that took more steps do not pull the model to their own optimum.

Wang, Liu, Liang, Joshi, Poor: Tackling the Objective Inconsistency Problem in Heterogeneous Federated Optimization,
NeurIPS 2020, arXiv:2007.07481, equations 5 and 12, with p_k = n_k / n:

    x <- x + tau_eff sum_k p_k delta_k / |a_k|,    tau_eff = sum_k p_k |a_k|

|a_k| is the sum of the weights that the device's optimiser gives its tau_k gradients (section 4.1):

    plain SGD            tau
    momentum rho         (tau - rho (1 - rho^tau) / (1 - rho)) / (1 - rho)
    proximal term        (1 - (1 - lr mu)^tau) / (lr mu)

A device reports its steps: by `client.done(steps=...)`, or as "steps" in its metrics.

Departures from the paper: the server's own momentum is left out (`FedAvgM` has it). For momentum, tau_eff is
sum p_k |a_k|, which keeps the size of FedAvg's step, and not the variants of the paper's appendix.
"""

from typing import Any, ClassVar

from fedfleet_strategies import columns
from fedfleet_strategies.errors import Refused
from fedfleet_strategies.layout import Vector
from fedfleet_strategies.strategy import Strategy
from fedfleet_strategies.updates import Aggregate, Update


class FedNova(Strategy):
    """Federated averaging of normalised updates.

    Args:
        momentum: rho of the devices' SGD, at least 0 and below 1.
        decay: learning rate times mu, of devices that train with a proximal term; at least 0 and below 1.
    """

    scalars: ClassVar[tuple[str, ...]] = ("steps",)
    halves: ClassVar[tuple[str, ...]] = ("steps",)

    def __init__(self, *args: Any, momentum: float = 0.0, decay: float = 0.0, **options: Any) -> None:
        self.momentum, self.decay = momentum, decay
        super().__init__(*args, **options)

    def conflicts(self) -> list[str]:
        """Return what is wrong with the options."""
        found = super().conflicts()
        found += [
            f"{name} is {value}, it must be at least 0 and below 1"
            for name, value in (("momentum", self.momentum), ("decay", self.decay))
            if not 0 <= value < 1
        ]
        if self.momentum and self.decay:
            found.append("momentum and decay together have no closed form; give one of them")
        return found

    def effective(self, steps: float) -> float:
        """Return |a| of a device that took so many steps."""
        if self.momentum:
            rho = float(self.momentum)
            return float((steps - rho * (1 - rho**steps) / (1 - rho)) / (1 - rho))
        if self.decay:
            return float((1 - (1 - self.decay) ** steps) / self.decay)
        return steps

    def prepare(self, update: Update) -> Update:
        """Normalise the update."""
        steps = update.scalars["steps"]
        if not steps > 0:
            raise Refused(f"it reports {steps:g} steps, at least 1 is needed")
        a = self.effective(steps)
        update.delta /= update.delta.dtype.type(a)
        update.scalars = {"tau": update.weight * a}
        return update

    def step(self, x: Vector, aggregate: Aggregate, server_round: int) -> Vector:
        """Return x + tau_eff times the mean normalised update."""
        del server_round
        tau = aggregate.scalars["tau"] / aggregate.weight
        return columns.add(x, aggregate.delta, tau)
