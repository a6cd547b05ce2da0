"""The slot of a strategy for privacy, and what cannot be combined with it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from fedfleet_strategies.cohorts import Sampling
from fedfleet_strategies.layout import Layout
from fedfleet_strategies.updates import Aggregate, Update

if TYPE_CHECKING:
    from fedfleet_strategies.receiving import Tally
    from fedfleet_strategies.strategy import Strategy

State = dict[str, Any]
Accounting = Literal["poisson", "fixed", "all"]


@dataclass(frozen=True, slots=True)
class Planned:
    """A round before anything of it is known.

    Attributes:
        n: how many devices are asked; on average, if each is drawn on its own.
        population: of how many. sampling: how.
    """

    server_round: int
    n: int
    population: int
    sampling: Sampling


class Privacy(Protocol):
    """What protects the devices of a run from those who see its models.

    Attributes:
        central: whether the server adds the noise, and sees each update; else each device does.
    """

    central: bool

    def begin(self, state: State) -> None:
        """Put into the strategy's state what the first round needs."""
        ...

    def refuse_round(self, state: State, planned: Planned) -> str | None:
        """Return why the round must not begin, or None."""
        ...

    def rng(self, state: State, planned: Planned) -> np.random.Generator | None:
        """Return the generator the cohort is drawn from; None for the strategy's own."""
        ...

    def clip(self, update: Update, state: State) -> Update:
        """Return the update as the fold may see it; raise `Refused` to leave it out."""
        ...

    def noise(self, aggregate: Aggregate, state: State, planned: Planned) -> Aggregate:
        """Return what the model may be changed by, and enter the round in the account."""
        ...

    def metrics(self, state: State) -> dict[str, float]:
        """Return what the run's metrics tell of it."""
        ...

    def settings(self) -> dict[str, Any]:
        """Return what devices must know."""
        ...

    def conflicts(self, strategy: "Strategy") -> list[str]:
        """Return which of a strategy's options cannot go together with it, a clause each."""
        ...


def protected(strategy: "Strategy", layout: Layout, tally: "Tally") -> Aggregate | None:
    """Return what the model may be changed by; None if that is nothing."""
    aggregate, planned = tally.aggregate, strategy._planned
    if aggregate is None and strategy.central and not tally.nodes:
        # Noise alone: who looks at the models must not learn that nobody was there.
        aggregate = Aggregate(np.zeros(layout.d, layout.dtype), np.zeros(layout.k), 0.0, 0)
    if aggregate is None or strategy.privacy is None or planned is None:
        return aggregate
    return strategy.privacy.noise(aggregate, strategy.s, planned)
