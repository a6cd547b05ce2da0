"""Waiting for agents: what an app that asks who is there may wait for, and for how long.

Flower's `sample_nodes` asks every second until enough nodes are there, for ever. Each answer is recorded and given
again when the app runs again, and so is the second of sleep in between; so answers in a row that say the same are held
back, longer each time, until something changed or the time for waiting is over.
"""

import logging
import time
from collections.abc import Callable

from fedfleet_coordinator.errors import TooFewAgents
from fedfleet_coordinator.runner.hub import Hub
from fedfleet_protocol.ids import AgentId

_NAP_S = 0.5
_ASK_AGAIN_S = 0.25
_LONGEST_HOLD_S = 30.0
_MOST_ASKED = 20
_log = logging.getLogger("fedfleet")


class Patience:
    """Answers who is there.

    Args:
        at_least: with fewer agents nothing is answered.
        limit_s: how long an app may wait for agents in all, before its run ends.

    Attributes:
        needs: with fewer agents the app asks again, as far as its strategy says; 0 if that is not known.
    """

    def __init__(
        self,
        hub: Hub,
        *,
        at_least: int,
        limit_s: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._hub, self._at_least, self._limit_s = hub, at_least, limit_s
        self._clock, self._sleep = clock, sleep
        self.needs = 0
        self._last: list[AgentId] | None = None
        self._answered_at = 0.0
        self._asked = 0
        self._naps = 0
        self._waited_s = 0.0

    def moved_on(self) -> None:
        """Note that the app did something else: it does not wait for agents any more."""
        self._last, self._asked, self._naps, self._waited_s = None, 0, 0, 0.0

    def agents(self, k: int) -> list[AgentId]:
        """Return the agents that are there, as the recorded `k`-th answer.

        Raises:
            TooFewAgents: the time for waiting is over.
        """
        hold_s = self._hold()
        held_s = 0.0
        while True:
            unlike = self._last if held_s < hold_s else None
            agents, recorded = self._hub.nodes(k, at_least=self._at_least, unlike=unlike, needs=self.needs)
            if recorded:
                break
            if self._waited_s >= self._limit_s:
                raise TooFewAgents(self._told(agents))
            if held_s == 0.0 and len(agents) < self._at_least:
                _log.info("waiting for agents: %d of at least %d are there", len(agents), self._at_least)
            self._sleep(_ASK_AGAIN_S)
            held_s += _ASK_AGAIN_S
            self._waited_s += _ASK_AGAIN_S
        if agents != self._last:
            self._naps = 0
        self._last, self._answered_at = agents, self._clock()
        return agents

    def _hold(self) -> float:
        """Return for how long an answer that says the same as the last one is held back.

        Raises:
            TooFewAgents: the app has waited for long enough.
        """
        self._asked += 1
        if self._last is None:
            return 0.0
        # What the app sleeps between two questions counts as waiting; a coordinator that was away does not.
        nap_s = min(self._clock() - self._answered_at, 5.0)
        if nap_s < _NAP_S and self._asked <= _MOST_ASKED:
            return 0.0
        self._waited_s += nap_s
        self._naps += 1
        if self._waited_s >= self._limit_s:
            raise TooFewAgents(self._told(self._last))
        return min(_LONGEST_HOLD_S, 2.0 ** min(self._naps - 1, 8) - 1.0, self._limit_s - self._waited_s)

    def _told(self, agents: list[AgentId]) -> str:
        need = (
            f"the run needs {self._at_least}"
            if len(agents) < self._at_least
            else f"the app waits for {self.needs or 'more'}"
        )
        return (
            f"{len(agents)} of the run's agents are there and {need}; the {self._limit_s:g} s for waiting are over. "
            f" fedfleet agents shows who is there, fedfleet explain AGENT why one is not"
        )
