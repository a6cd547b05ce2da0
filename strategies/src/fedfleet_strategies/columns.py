"""Work over the columns of long vectors, on several threads where that is quicker; the bits do not depend on them."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

SEGMENT = 1 << 19
"""Columns that one thread takes at a time. Fixed: sums over segments have the same bits on every machine."""
_THREADS = min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, 8)

T = TypeVar("T")
U = TypeVar("U")


def over(d: int, work: Callable[[int, int], T], segment: int = SEGMENT) -> list[T]:
    """Call `work(start, stop)` for each segment of `d` columns; return the results in order.

    The threads end before this returns. numpy's loops let each other run.
    """
    parts = [(start, min(start + segment, d)) for start in range(0, d, segment)]

    def quiet(part: tuple[int, int]) -> T:
        # What overflows is found by who looks for it. A thread does not inherit this from its caller.
        with np.errstate(over="ignore", invalid="ignore"):
            return work(*part)

    if len(parts) < 2 or _THREADS < 2:
        return [quiet(part) for part in parts]
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="columns") as pool:
        return list(pool.map(quiet, parts))


def each(items: Sequence[U], work: Callable[[U], T], size: int) -> list[T]:
    """Call `work` for each item, on several threads if they are a segment together; return the results in order.

    Args:
        size: columns of all items together.
    """
    if size < SEGMENT or len(items) < 2 or _THREADS < 2:
        return [work(item) for item in items]
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="columns") as pool:
        return list(pool.map(work, items))


def add(x: NDArray[Any], y: NDArray[Any], factor: float = 1.0) -> NDArray[Any]:
    """Add `factor` times `y` to `x`, in place; return `x`."""
    number = x.dtype.type(factor)

    def work(start: int, stop: int) -> None:
        for low in range(start, stop, 1 << 15):
            here = slice(low, min(low + (1 << 15), stop))
            x[here] += y[here] if factor == 1.0 else y[here] * number

    over(x.size, work)
    return x
