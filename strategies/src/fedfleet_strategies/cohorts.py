"""Whom a round asks. A cohort policy is a slot of the strategy: `FedAvg(cohort=RoundRobin())`.

All choose among a million devices in well under a second, and all from the round's own generator: a round that runs
again asks the same devices.
"""

from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from fedfleet_strategies.table import ClientTable

Ids = NDArray[np.uint64]
Sampling = Literal["fixed", "poisson", "adaptive"]


class Cohort(Protocol):
    """Whom a round asks.

    Attributes:
        sampling: what an accountant of privacy may assume: as many as planned, each with the same chance, neither.
        reads: columns of the table it looks at.
    """

    sampling: Sampling
    reads: frozenset[str]

    def choose(self, ids: Ids, n: int, table: ClientTable, server_round: int, rng: np.random.Generator) -> Ids:
        """Return at most `n` of the sorted `ids`."""
        ...


class Random:
    """Every device with the same chance, `n` of them."""

    sampling: Sampling = "fixed"
    reads: frozenset[str] = frozenset()

    def choose(self, ids: Ids, n: int, table: ClientTable, server_round: int, rng: np.random.Generator) -> Ids:
        """Return `n` devices, drawn without replacement."""
        del table, server_round
        return ids if n >= ids.size else ids[rng.choice(ids.size, n, replace=False, shuffle=False)]
