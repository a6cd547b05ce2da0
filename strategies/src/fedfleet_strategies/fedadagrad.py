"""FedAdagrad: FedOpt (see `fedopt`) with the sum of squares.

    v <- v + delta^2

Reddi et al.: Adaptive Federated Optimization, ICLR 2021, arXiv:2003.00295, algorithm 2.

Departures from the paper: beta_1 is 0, as in the paper's experiments.
"""

from typing import Any

from fedfleet_strategies.fedopt import FedOpt
from fedfleet_strategies.layout import Vector


class FedAdagrad(FedOpt):
    """The step shrinks with all that a coordinate has moved so far."""

    def __init__(self, *args: Any, eta: float = 1e-1, tau: float = 1e-3, **options: Any) -> None:
        super().__init__(*args, eta=eta, tau=tau, **options)

    def grow(self, v: Vector, square: Vector) -> None:
        """Change v in place."""
        v += square
