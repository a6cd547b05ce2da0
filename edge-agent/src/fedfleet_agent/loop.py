"""One loop for all that the agent hears: sockets, signals, other threads, and time."""

import selectors
import signal
import socket
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Final

LONGEST_WAIT_S: Final = 60.0


def now() -> float:
    """Return seconds of a clock that nobody sets and that goes on while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Loop:
    """Waits for what comes next and calls who wanted to know, all in the thread that runs it.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = now) -> None:
        self.clock = clock
        self._selector = selectors.DefaultSelector()
        self._wake_read, self._wake_write = socket.socketpair()
        for end in (self._wake_read, self._wake_write):
            end.setblocking(False)
        self._selector.register(self._wake_read, selectors.EVENT_READ, lambda _: self._woken())
        self._posted: deque[Callable[[], None]] = deque()
        self._signals: dict[int, Callable[[], None]] = {}
        self._before: list[Callable[[], float | None]] = []
        self._running = False

    def watch(self, fd: int, events: int, act: Callable[[int], None]) -> None:
        """Call `act` with the events (`selectors.EVENT_READ`, `EVENT_WRITE`) that a descriptor is ready for."""
        key = self._selector.get_map().get(fd)
        if key is None:
            self._selector.register(fd, events, act)
        elif key.events != events or key.data != act:
            self._selector.modify(fd, events, act)

    def unwatch(self, fd: int) -> None:
        """Call nobody about a descriptor any more; one that is not watched, or closed, is no error."""
        with suppress(KeyError, ValueError):
            self._selector.unregister(fd)

    def post(self, act: Callable[[], None]) -> None:
        """Have `act` called by the loop soon; from any thread, and from signal handlers."""
        self._posted.append(act)
        with suppress(BlockingIOError):  # full: it will wake up anyhow
            self._wake_write.send(b"\0")

    def each_time(self, act: Callable[[], float | None]) -> None:
        """Have `act` called each time before the loop waits; it returns how many seconds to wait at most."""
        self._before.append(act)

    def on_signal(self, number: signal.Signals, act: Callable[[], None]) -> None:
        """Have `act` called by the loop after a signal; only in the main thread."""
        signal.signal(number, lambda *_: self.post(act))

    def run(self) -> None:
        """Return after `stop`."""
        self._running = True
        while self._running:
            for key, events in self._selector.select(self._patience()):
                key.data(events)
            for _ in range(len(self._posted)):  # what these post in turn waits until the sockets were looked at
                self._posted.popleft()()

    def stop(self) -> None:
        """End `run` after what is being called now; from the loop's own thread."""
        self._running = False

    def close(self) -> None:
        """Let go of all descriptors of its own."""
        self._selector.close()
        self._wake_read.close()
        self._wake_write.close()

    def _patience(self) -> float:
        waits = [wait for act in self._before if (wait := act()) is not None]
        return 0.0 if self._posted else max(0.0, min([LONGEST_WAIT_S, *waits]))

    def _woken(self) -> None:
        with suppress(BlockingIOError):
            while self._wake_read.recv(4096):
                pass
