"""FedAdam: FedOpt (see `fedopt`) with a running mean of squares.

    v <- beta_2 v + (1 - beta_2) delta^2

Reddi et al.: Adaptive Federated Optimization, ICLR 2021, arXiv:2003.00295, algorithm 2.

Departures from the paper: none; as in the paper the bias of m and v is not corrected.
"""

from typing import Any

from fedfleet_strategies.fedopt import FedOpt
from fedfleet_strategies.layout import Vector


class FedAdam(FedOpt):
    """The step shrinks with what a coordinate has moved lately."""

    def __init__(self, *args: Any, beta_1: float = 0.9, beta_2: float = 0.99, **options: Any) -> None:
        super().__init__(*args, beta_1=beta_1, beta_2=beta_2, **options)

    def grow(self, v: Vector, square: Vector) -> None:
        """Change v in place."""
        v *= v.dtype.type(self.beta_2)
        v += v.dtype.type(1 - self.beta_2) * square
