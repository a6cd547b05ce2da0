"""Renews the lease of the task at hand while its work shows progress, in a thread of its own.

What counts as progress is bytes of a transfer and processor time of the trainer, not that this process is alive: a
trainer that hangs must lose its lease. The thread is its own so that a loop that is busy with a slow disk cannot
starve it.
"""

import threading
from collections.abc import Callable

from fedfleet_protocol.messages import Notice, Progress

_SHARE = 3.0
"""Progress is told this many times per lease: two of the messages may be lost."""


class LeaseKeeper:
    """Tells the coordinator of progress.

    Args:
        say: sends the message; called from the keeper's thread.
    """

    def __init__(self, say: Callable[[Progress], object]) -> None:
        self._say = say
        self._changed = threading.Condition()
        self._notice: Notice | None = None
        self._moved = False
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def hold(self, notice: Notice) -> None:
        """Keep the lease of this task from now on; what is said bears its newest attempt."""
        with self._changed:
            new = self._notice is None or self._notice.order != notice.order
            self._notice = notice
            if new:
                self._moved = False
                self._changed.notify()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="lease", daemon=True)
                self._thread.start()

    def moved(self) -> None:
        """Take note that the work went on; from any thread."""
        self._moved = True

    def drop(self) -> None:
        """Keep no lease any more."""
        with self._changed:
            self._notice = None
            self._changed.notify()

    def close(self) -> None:
        """End the thread."""
        with self._changed:
            self._closed.set()
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(5.0)

    def _run(self) -> None:
        while True:
            with self._changed:
                if self._closed.is_set():
                    return
                notice = self._notice
                told = self._changed.wait(notice.lease_s / _SHARE if notice else None)
                if told or self._closed.is_set() or self._notice is None or not self._moved:
                    continue
                self._moved = False
                notice = self._notice
            self._say(Progress(order=notice.order, run=notice.run, n=notice.n, attempt=notice.attempt))
