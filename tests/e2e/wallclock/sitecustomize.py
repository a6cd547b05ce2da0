"""Shifts the wall clock of a process by the seconds in a file, read at each look; Python imports this by itself."""

import os
import time
from pathlib import Path

if file := os.environ.get("FEDFLEET_TEST_CLOCK"):
    real_ns, shift = time.time_ns, Path(file)

    def time_ns() -> int:
        """Return what the clock shows, in nanoseconds."""
        return real_ns() + int(shift.read_text() or 0) * 1_000_000_000

    time.time_ns = time_ns
    time.time = lambda: time_ns() / 1e9
