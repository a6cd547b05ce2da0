"""What goes into a rule, and what comes out of it."""

from bisect import bisect_right
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flwr.app import MetricRecord
from numpy.typing import NDArray

from fedfleet_strategies import columns
from fedfleet_strategies.layout import Layout, Vector, Views


class Update:
    """What one device wants to change.

    Its difference to the model that was sent is computed when somebody asks for it: a rule that sums reads the arrays
    as they lie in their file.

    Attributes:
        node: who sent it.
        weight: finite and at least 0.
        ints: the difference of the integers, (k,) float64.
        extra: further vectors of the method, by name. scalars: its numbers, by name.
        metrics: what the app reported. count: how many devices it stands for. staleness: in versions of the model.
    """

    def __init__(
        self,
        node: int,
        weight: float,
        *,
        delta: Vector | None = None,
        ints: NDArray[np.float64] | None = None,
        source: "Source | None" = None,
        extra: dict[str, Vector] | None = None,
        scalars: dict[str, float] | None = None,
        metrics: MetricRecord | None = None,
        count: int = 1,
        staleness: int = 0,
    ) -> None:
        if delta is None and source is None:
            raise ValueError("an update has a delta, or a source to compute it from")
        self.node, self.weight, self.count, self.staleness = node, weight, count, staleness
        self._delta, self._source = delta, source
        if ints is None:
            ints = source.ints if source is not None else np.zeros(0)
        self.ints: NDArray[np.float64] = ints
        self.extra = {} if extra is None else extra
        self.scalars = {} if scalars is None else scalars
        self.metrics = MetricRecord() if metrics is None else metrics

    @property
    def source(self) -> "Source | None":
        """The arrays it is computed from, until somebody has asked for the delta and may have changed it."""
        return self._source

    @property
    def delta(self) -> Vector:
        """The difference of the floats to what was sent, (d,); may be changed in place."""
        if self._delta is None:
            assert self._source is not None
            self._delta = self._source.delta()
            self._source = None
        return self._delta

    @delta.setter
    def delta(self, value: Vector) -> None:
        self._delta, self._source = value, None

    @property
    def finite(self) -> bool:
        """Whether no value is NaN or infinite."""
        vectors = [*self.extra.values(), self.ints]
        vectors += self._source.views.floats if self._source is not None else [self.delta]
        numbers = [self.weight, *self.scalars.values()]
        return bool(np.isfinite(numbers).all()) and all(finite(one) for one in vectors)


class Source:
    """A reply's arrays beside those that were sent.

    Attributes:
        ints: the difference of the integers.
    """

    def __init__(self, layout: Layout, views: Views, sent: Views) -> None:
        self.layout, self.views, self.sent = layout, views, sent
        self.ints: NDArray[np.float64] = views.ints - sent.ints

    def delta(self) -> Vector:
        """Return the difference of the floats, (d,), new."""
        out = np.empty(self.layout.d, self.layout.dtype)
        self.fill(0, self.layout.d, out)
        return out

    def fill(self, start: int, stop: int, out: Vector) -> None:
        """Write the columns from `start` to `stop` of the difference into `out`."""
        with np.errstate(over="ignore", invalid="ignore"):
            self.fill_pieces(pieces(self.layout, start, stop), start, out)

    def fill_pieces(self, where: list[tuple[int, int, int]], start: int, out: Vector) -> None:
        """Write the columns that `pieces` found from `start` on into `out`."""
        starts, floats, sent = self.layout.starts, self.views.floats, self.sent.floats
        for i, low, high in where:
            into, here = out[low - start : high - start], slice(low - starts[i], high - starts[i])
            np.subtract(floats[i][here], sent[i][here], out=into, dtype=into.dtype)


def pieces(layout: Layout, start: int, stop: int) -> list[tuple[int, int, int]]:
    """Return which arrays the columns from `start` to `stop` lie in: (array, from column, to column)."""
    found = []
    for i in range(max(bisect_right(layout.starts, start) - 1, 0), len(layout.starts)):
        slot = layout.floats[i]
        if slot.start >= stop:
            break
        low, high = max(slot.start, start), min(slot.stop, stop)
        if low < high:
            found.append((i, low, high))
    return found


def finite(vector: NDArray[Any]) -> bool:
    """Return whether no value is NaN or infinite, without a copy of the whole."""
    flat = vector.reshape(-1)

    def work(start: int, stop: int) -> bool:
        for low in range(start, stop, 1 << 15):
            block = flat[low : min(low + (1 << 15), stop)]
            # A finite sum has finite terms, and costs a third of asking each; one that overflows says nothing.
            if not np.isfinite(block.sum()) and not np.isfinite(block).all():
                return False
        return True

    return all(columns.over(flat.size, work))


def squared_norm(vector: Vector) -> float:
    """Return the squared L2 norm, summed in float64."""
    total = 0.0
    for start in range(0, vector.size, 1 << 16):
        block = vector[start : start + (1 << 16)].astype(np.float64)
        total += float(block @ block)
    return total


@dataclass(slots=True)
class Aggregate:
    """What a round's updates come to.

    Attributes:
        delta: (d,), to be added to the model. ints: (k,) float64, to be added to the integers.
        weight, count: the sums over the updates in it.
        extra: the mean per device, by name. scalars: the sum over the devices, by name.
        left_out: whom the rule left out, and why.
    """

    delta: Vector
    ints: NDArray[np.float64]
    weight: float
    count: int
    extra: dict[str, Vector] = field(default_factory=dict)
    scalars: dict[str, float] = field(default_factory=dict)
    left_out: dict[int, str] = field(default_factory=dict)
