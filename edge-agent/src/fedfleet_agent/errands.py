"""What would keep the loop waiting, disk and network, is done in threads of their own, and the loop hears of the end.

An idle agent has none. One that was given up may still sit in a system call for a while; it holds up nobody.
"""

import logging
import threading
import time
from collections.abc import Callable

_log = logging.getLogger(__name__)


class Errands:
    """Starts threads and knows which are still there."""

    def __init__(self) -> None:
        self._threads: set[threading.Thread] = set()

    def send(self, name: str, job: Callable[[], None]) -> None:
        """Have `job` done in a thread called `name`; it says itself what came of it."""
        self._threads = {thread for thread in self._threads if thread.is_alive()}
        thread = threading.Thread(target=_guarded, args=(name, job), name=name, daemon=True)
        self._threads.add(thread)
        thread.start()

    def close(self, timeout_s: float) -> None:
        """Wait for those under way, together no longer than `timeout_s`."""
        until = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))


def _guarded(name: str, job: Callable[[], None]) -> None:
    try:
        job()
    except Exception:  # a bug; the loop goes on, and the log has its place
        _log.exception("the errand %s failed", name)
