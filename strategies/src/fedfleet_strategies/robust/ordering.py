"""Order statistics of many short columns at once, by a network of comparisons between rows.

A comparison of two rows is one minimum and one maximum over thousands of columns, which numpy does at the speed of
the memory; sorting each column by itself costs five times as much. The network is Batcher's (odd-even merge sort, The
Art of Computer Programming 3, section 5.3.4), without the comparisons that no wanted row depends on.
"""

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

MOST_ROWS = 256
"""With more rows, sorting each column is quicker than the network, which grows with the square of the logarithm."""


def between(block: NDArray[Any], low: int, high: int) -> list[NDArray[Any]]:
    """Return the order statistics from `low` to below `high` of each column, as rows; the block (n, c) is used up.

    No value may be NaN.
    """
    n = len(block)
    if n > MOST_ROWS:
        return list(np.ascontiguousarray(np.sort(np.ascontiguousarray(block.T), axis=1)[:, low:high].T))
    rows = list(block)
    spare = np.empty_like(rows[0])
    for i, j, both in network(n, low, high):
        if both == "min":
            np.minimum(rows[i], rows[j], out=rows[i])
        elif both == "max":
            np.maximum(rows[i], rows[j], out=rows[j])
        else:
            np.minimum(rows[i], rows[j], out=spare)
            np.maximum(rows[i], rows[j], out=rows[j])
            rows[i], spare = spare, rows[i]
    return rows[low:high]


@lru_cache(maxsize=64)
def network(n: int, low: int, high: int) -> tuple[tuple[int, int, str], ...]:
    """Return which rows to compare, in order, so that rows `low` to below `high` become order statistics.

    Each is (i, j, what): i gets the minimum, j the maximum; "min" and "max" where nobody needs the other one.
    """
    wanted, kept = set(range(low, high)), []
    for i, j in reversed(_batcher(n)):
        if i in wanted and j in wanted:
            kept.append((i, j, "both"))
        elif i in wanted:
            kept.append((i, j, "min"))
        elif j in wanted:
            kept.append((i, j, "max"))
        else:
            continue
        wanted |= {i, j}
    return tuple(reversed(kept))


def _batcher(n: int) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    p = 1
    while p < n:
        k = p
        while k >= 1:
            for j in range(k % p, n - k, 2 * k):
                found += [
                    (i + j, i + j + k) for i in range(min(k, n - j - k)) if (i + j) // (2 * p) == (i + j + k) // (2 * p)
                ]
            k //= 2
        p *= 2
    return found
