"""FedYogi: FedOpt (see `fedopt`) with a v that changes by steps of one size.

    v <- v - (1 - beta_2) delta^2 sign(v - delta^2)

Reddi et al.: Adaptive Federated Optimization, ICLR 2021, arXiv:2003.00295, algorithm 2.

Departures from the paper: none.
"""

from typing import Any

import numpy as np

from fedfleet_strategies.fedopt import FedOpt
from fedfleet_strategies.layout import Vector


class FedYogi(FedOpt):
    """As FedAdam, but v changes by what a coordinate moved and not by how far it is from it, so it falls slowly."""

    def __init__(self, *args: Any, beta_1: float = 0.9, beta_2: float = 0.99, **options: Any) -> None:
        super().__init__(*args, beta_1=beta_1, beta_2=beta_2, **options)

    def grow(self, v: Vector, square: Vector) -> None:
        """Change v in place."""
        v -= v.dtype.type(1 - self.beta_2) * square * np.sign(v - square)
