"""Rules that need all updates at once: rows in files, read in blocks of columns by every core.

A rule fills in what it is about: `admit` says how many updates it needs, `select` leaves rows out by their distances,
`mix` gives each row a share, `column` makes one value of a column. Weights of the devices count only where a rule asks
for them: a robust rule does not believe what a device says about itself.

Distances come from the Gram matrix of the updates, in float64. They are centred on the model that was sent, not on the
mean of the updates: one attacker at 1e30 would move a mean, and with it the last digit of all distances among honest
devices. Integers do not count in distances; they go where the floats of their update go.
"""

import contextlib
import os
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedfleet_strategies import columns
from fedfleet_strategies.errors import NotFinite, Refused
from fedfleet_strategies.layout import Vector
from fedfleet_strategies.rules import Spool
from fedfleet_strategies.updates import Aggregate, Source, Update, pieces

_BLOCK_VALUES = 1 << 17
"""Values of a block of columns: half a MiB of float32."""
_MOST_VIEWS = 20_000
"""Mapped arrays that are held at a time; a process may have 65530 mappings."""
Matrix = NDArray[np.float64]


class Rows:
    """The updates of a round, a row each: as they lie in memory or in a file, else in one unlinked file.

    Attributes:
        nodes, weights: whose rows they are.
        ints: the integers' rows.
    """

    def __init__(self, d: int, k: int, dtype: np.dtype[Any], spool: Spool) -> None:
        self.d, self.k, self.dtype, self.spool = d, k, dtype, spool
        self.nodes: list[int] = []
        self.weights: list[float] = []
        self.ints: list[NDArray[np.float64]] = []
        self.count = 0
        self._rows: list[Source | int] = []
        self._file = -1
        self._spooled = self._views = 0

    def add(self, update: Update) -> None:
        """Take an update."""
        source = update.source
        if source is not None and source.views.borrowed and self._views < _MOST_VIEWS:
            self._rows.append(source)
            self._views += len(source.views.floats)
        else:
            self._rows.append(self._write(update.delta))
        self.nodes.append(update.node)
        self.weights.append(update.weight)
        self.ints.append(update.ints)
        self.count += update.count

    def fill(self, start: int, stop: int, rows: Sequence[int], out: Vector) -> None:
        """Write the columns from `start` to `stop` of some rows into `out` (len(rows), stop - start)."""
        where: list[tuple[int, int, int]] | None = None
        for into, i in zip(out, rows, strict=True):
            row = self._rows[i]
            if not isinstance(row, Source):
                self._read(row, start, into)
                continue
            if where is None:
                where = pieces(row.layout, start, stop)
            row.fill_pieces(where, start, into)

    def close(self) -> None:
        """Let the updates go."""
        self._rows.clear()
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _write(self, delta: Vector) -> int:
        if self._file < 0:
            self._file, path = tempfile.mkstemp(prefix="updates-", dir=self.spool.folder)
            os.unlink(path)
        data, done = np.ascontiguousarray(delta, self.dtype).view(np.uint8).data, 0
        start = self._spooled * self.d * self.dtype.itemsize
        while done < len(data):
            done += os.pwrite(self._file, data[done:], start + done)
        self._spooled += 1
        return self._spooled - 1

    def _read(self, row: int, start: int, into: Vector) -> None:
        data, done = into.view(np.uint8).data, 0
        offset = (row * self.d + start) * self.dtype.itemsize
        while done < len(data):
            got = os.preadv(self._file, [data[done:]], offset + done)
            if not got:
                raise OSError("the file with the round's updates ended early")
            done += got

    def __del__(self) -> None:
        with contextlib.suppress(OSError):
            self.close()


class Each:
    """A rule over all updates of a round; subclasses fill in what they need of the four methods."""

    linear = False

    def admit(self, n: int) -> str | None:
        """Return why `n` updates are too few, or None."""
        del n
        return None

    def select(self, squared_distances: Matrix) -> dict[int, str]:
        """Return which rows are left out and why, from all squared distances (n, n)."""
        del squared_distances
        return {}

    def mix(self, gram: Matrix, weights: NDArray[np.float64]) -> tuple[NDArray[np.float64], dict[int, str]]:
        """Return the share of each row (n,) in the aggregate and which rows were left out and why.

        Args:
            gram: inner products of all rows (n, n); the server's own update is one row more, if there is one.
            weights: what the devices say they weigh (n,).
        """
        raise NotImplementedError

    def column(self, block: NDArray[Any]) -> Vector:
        """Return one value for each column of the selected rows (n, c); may change the block."""
        return mean_of(list(block))

    def open(self, d: int, k: int, dtype: np.dtype[Any], spool: Spool) -> Any:
        """Return an empty fold."""
        return Rows(d, k, dtype, spool)

    def close(self, fold: Rows) -> Aggregate:
        """Return what the updates come to.

        Raises:
            Refused: there are too few of them, or all were left out.
        """
        try:
            return self.fold_of(fold)
        finally:
            fold.close()

    def fold_of(self, rows: Rows) -> Aggregate:
        """Return what these rows come to; they stay.

        Raises:
            Refused: there are too few of them, or all were left out.
        """
        n = len(rows.nodes)
        if not n:
            raise Refused("there is no update to aggregate")
        if (why := self.admit(n)) is not None:
            raise Refused(why)
        kind = type(self)
        if kind.mix is not Each.mix:
            shares, left = self.mix(gram(rows), np.asarray(rows.weights))
            delta, ints = mixed(rows, shares)
            return self._made(rows, delta, ints, left)
        left = {}
        if kind.select is not Each.select:
            left = self.select(squared_distances(gram(rows)))
        kept = [i for i in range(n) if i not in left]
        if not kept:
            raise Refused(f"{kind.__name__} left out all {n} updates")
        delta = by_column(rows, kept, self.column)
        ints = np.asarray(self.column(np.array([rows.ints[i] for i in kept])), np.float64)
        return self._made(rows, delta, ints, left)

    @staticmethod
    def _made(rows: Rows, delta: Vector, ints: NDArray[np.float64], left: dict[int, str]) -> Aggregate:
        kept = [weight for i, weight in enumerate(rows.weights) if i not in left]
        left_out = {rows.nodes[i]: why for i, why in left.items()}
        return Aggregate(delta, ints, float(sum(kept)), len(kept), left_out=left_out)


def mean_of(rows: Sequence[Vector]) -> Vector:
    """Return the mean of some rows; the first one is used up. Adding whole rows is quicker than numpy's mean."""
    total = rows[0]
    for row in rows[1:]:
        total += row
    total *= total.dtype.type(1 / len(rows))
    return total


def by_column(rows: Rows, kept: Sequence[int], column: Any) -> Vector:
    """Return `column` of each block of columns of some rows, put together, (d,)."""
    out = np.empty(rows.d, rows.dtype)
    width = max(_BLOCK_VALUES // len(kept), 64)

    def work(start: int, stop: int) -> None:
        buffer = np.empty((len(kept), width), rows.dtype)
        for low in range(start, stop, width):
            high = min(low + width, stop)
            block = buffer if high - low == width else np.empty((len(kept), high - low), rows.dtype)
            rows.fill(low, high, kept, block)
            out[low:high] = column(block)

    columns.over(rows.d, work)
    return out


def gram(rows: Rows) -> Matrix:
    """Return the inner products of all rows, and of the reference as the last one, in float64.

    Raises:
        NotFinite: a row holds NaN or infinity.
    """
    n = len(rows.nodes)
    reference = rows.spool.reference
    m = n + (reference is not None)
    width = max(_BLOCK_VALUES // m, 64)

    def work(start: int, stop: int) -> Matrix:
        total = np.zeros((m, m))
        buffer, wide = np.empty((n, width), rows.dtype), np.empty((m, width))
        for low in range(start, stop, width):
            high = min(low + width, stop)
            block = buffer if high - low == width else np.empty((n, high - low), rows.dtype)
            rows.fill(low, high, range(n), block)
            here = wide[:, : high - low]
            here[:n] = block
            if reference is not None:
                here[n] = reference[low:high]
            total += here @ here.T
        return total

    with np.errstate(over="ignore", invalid="ignore"):
        found: Matrix = sum(columns.over(rows.d, work), np.zeros((m, m)))
    if not np.isfinite(found).all():
        raise NotFinite("an update holds NaN or infinity")
    return found


def squared_distances(products: Matrix) -> Matrix:
    """Return all squared distances from all inner products."""
    own = np.diag(products)
    apart = np.maximum(own[:, None] + own[None, :] - 2.0 * products, 0.0)
    np.fill_diagonal(apart, 0.0)
    return apart


def mixed(rows: Rows, shares: NDArray[np.float64]) -> tuple[Vector, NDArray[np.float64]]:
    """Return the sum of all rows times their shares: floats (d,) and integers (k,)."""
    kept = [i for i in range(len(rows.nodes)) if shares[i] != 0.0]
    if not kept:
        return np.zeros(rows.d, rows.dtype), np.zeros(rows.k)
    share = shares[kept]
    narrow = share.astype(rows.dtype)
    delta = by_column(rows, kept, lambda block: narrow @ block)
    return delta, np.asarray(share @ np.array([rows.ints[i] for i in kept]), np.float64)
