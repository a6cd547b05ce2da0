"""How the updates of a round become one: the interface of rules.

A *linear* rule sums (`sums.Sum`): memory for one update, however many there are. A rule that needs all of them at once
(`each.Each`) reads them in blocks of columns. Either is a slot of the strategy: `FedAvg(rule=TrimmedMean(0.2))`.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from fedfleet_strategies.layout import Vector
from fedfleet_strategies.updates import Aggregate, Update


@dataclass(slots=True)
class Spool:
    """What a rule may use in one round.

    Attributes:
        folder: for files that are unlinked as soon as they are open; None for the system's own.
        rng: the round's generator for the rule.
        reference: the server's own update (d,), for rules that compare with one.
    """

    folder: Path | None = None
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))
    reference: Vector | None = None


class Fold(Protocol):
    """Updates on their way into an aggregate."""

    def add(self, update: Update) -> None:
        """Take an update; raise `Refused` to leave it out."""
        ...


class Rule(Protocol):
    """How updates become one.

    Attributes:
        linear: whether the fold is a sum, which partial sums of parts of the fleet can be merged to.
    """

    linear: bool

    def open(self, d: int, k: int, dtype: np.dtype[Any], spool: Spool) -> Any:
        """Return an empty fold for vectors of `d` floats of `dtype` and `k` integers."""
        ...

    def close(self, fold: Any) -> Aggregate:
        """Return what the fold comes to; raise `Refused` if it comes to nothing."""
        ...
