"""Work over the columns of long vectors, on several threads where that is quicker; the bits do not depend on them."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

SEGMENT = 1 << 19
"""Columns that one thread takes at a time. Fixed: sums over segments have the same bits on every machine."""
_THREADS = min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, 8)

T = TypeVar("T")


def over(d: int, work: Callable[[int, int], T], segment: int = SEGMENT) -> list[T]:
    """Call `work(start, stop)` for each segment of `d` columns; return the results in order.

    The threads end before this returns. numpy's loops let each other run.
    """
    parts = [(start, min(start + segment, d)) for start in range(0, d, segment)]
    if len(parts) < 2 or _THREADS < 2:
        return [work(start, stop) for start, stop in parts]
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="columns") as pool:
        return list(pool.map(lambda part: work(*part), parts))
