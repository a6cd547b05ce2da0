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
        settling: the hub has just started, and nothing is closed because its time is over: those who were at work
            while it was away come first.
    """

    up: float
    wall: float
    settling: bool = False


class UpClock:
    """Counts up-time from where the store left off, once the settle time is over.

    Args:
        before_s: up-time as last written down.
        settle_s: for so long after the start it stands still.
    """

    def __init__(
        self,
        before_s: float,
        *,
        settle_s: float = 0.0,
        monotonic: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._monotonic = monotonic
        self._wall = wall
        self._before_s = before_s
        self._settled_at = monotonic() + settle_s
        self.started_up = before_s

    def now(self) -> Now:
        """Return this instant."""
        since_s = self._monotonic() - self._settled_at
        return Now(self._before_s + max(0.0, since_s), self._wall(), settling=since_s < 0)
