"""Virtual time: things happen in the order of their instants, and at the same one in the order they were planned."""

import heapq
import itertools
from collections.abc import Callable


class Timeline:
    """A clock that jumps from one planned event to the next."""

    def __init__(self) -> None:
        self.now = 0.0
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._count = itertools.count()

    def after(self, delay: float, act: Callable[[], None]) -> None:
        """Plan `act` for `delay` seconds from now."""
        heapq.heappush(self._heap, (self.now + delay, next(self._count), act))

    def run(self, until: Callable[[], bool], limit: float) -> bool:
        """Let events happen until `until()` holds; return whether it did before `limit` seconds or the last event."""
        while not until():
            if not self._heap or self._heap[0][0] > limit:
                return False
            self.now, _, act = heapq.heappop(self._heap)
            act()
        return True
