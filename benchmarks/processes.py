"""What processes cost: memory of a process or of many, read from the kernel."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Self

MIB = 1 << 20


def memory(pid: int, field: str = "RssAnon") -> int:
    """Return a memory field of /proc/PID/status in bytes: VmRSS, RssAnon, VmHWM; 0 if the process is gone."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
    return 0


def proportional(pid: int) -> int:
    """Return the memory of a process with what it shares counted in part (Pss), in bytes."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


class Peak:
    """Samples a number while the block runs; `most` is the largest seen."""

    def __init__(self, sample: Callable[[], int], every_s: float = 0.05) -> None:
        self._sample, self._every_s = sample, every_s
        self._over = threading.Event()
        self.most = 0
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(self._every_s):
            self.most = max(self.most, self._sample())


def total(pids: Iterable[int], field: str = "VmRSS") -> int:
    """Return the sum of a memory field over processes, in bytes."""
    return sum(memory(pid, field) for pid in pids)


def wait_until(done: Callable[[], bool], timeout_s: float) -> None:
    """Return when `done()`; TimeoutError after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not done():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not done after {timeout_s} s")
        time.sleep(0.02)
