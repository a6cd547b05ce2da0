"""The hub's time: how long it has been up in all, and the wall clock for what people and certificates read.

Deadlines, leases and grace times count durable up-time (EXCHANGE rule 9), so a hub that was down for an hour, or whose
wall clock jumped, closes nothing that agents were still working on.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Now:
    """One instant.

    Attributes:
        up: seconds of durable up-time of this hub, all its starts together.
        wall: seconds since the epoch.
    """

    up: float
    wall: float


class UpClock:
    """Counts up-time from where the store left off.

    Args:
        before_s: up-time as last written down.
    """

    def __init__(
        self,
        before_s: float,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._monotonic = monotonic
        self._wall = wall
        self._offset = before_s - monotonic()
        self.started_up = before_s

    def now(self) -> Now:
        """Return this instant."""
        return Now(self._offset + self._monotonic(), self._wall())
