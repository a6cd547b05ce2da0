"""The linear fold: a weighted sum that takes each update as it comes, keeps nothing of it, and merges with others.

A commutative monoid up to rounding: the bits depend on the order, so updates are added in the order of node ids.
"""

from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from fedfleet_strategies import columns
from fedfleet_strategies.errors import Refused
from fedfleet_strategies.layout import Layout, Vector, Views
from fedfleet_strategies.rules import Spool
from fedfleet_strategies.updates import Aggregate, Source, Update, pieces

_BLOCK = 1 << 15
"""Columns that a core's second memory holds several times; with fewer, calling numpy costs more than the work."""
_TOGETHER = 16
"""Updates read in one pass, if holding them takes no memory of ours: the sum is then read and written once for all."""


class Sum:
    """A running weighted sum of updates.

    Attributes:
        weight, count: the sums of both so far.
    """

    def __init__(self, d: int, k: int, dtype: np.dtype[Any]) -> None:
        self._delta, self._ints = np.zeros(d, dtype), np.zeros(k, np.float64)
        self._empty = True
        self.weight, self.count = 0.0, 0
        self._extra: dict[str, Vector] = {}
        self._scalars: dict[str, float] = {}
        self._waiting: list[tuple[float, Source]] = []

    def add(self, update: Update) -> None:
        """Add an update; nothing of it is kept when the fold is closed, merged or written."""
        weight = update.weight
        if update.source is None:
            self._settle()
            self._add_vector(weight, update.delta)
        else:
            self._waiting.append((weight, update.source))
            if len(self._waiting) == _TOGETHER or not update.source.views.borrowed:
                self._settle()
        self._ints += weight * update.ints
        self._note(weight, update.count, update.extra, update.scalars)

    def merge(self, other: "Sum") -> None:
        """Add all that another fold holds."""
        self._settle()
        other._settle()
        self._empty = self._empty and other._empty
        self._delta += other._delta
        self._ints += other._ints
        self._note(other.weight, other.count, other._extra, other._scalars)

    def aggregate(self) -> Aggregate:
        """Return the weighted mean; the fold is used up.

        Raises:
            Refused: there is no update, or the weights sum to 0.
        """
        self._settle()
        self._weigh()
        columns.over(self._delta.size, self._scale)
        extra = {name: vector / self._delta.dtype.type(self.count) for name, vector in self._extra.items()}
        return Aggregate(self._delta, self._ints / self.weight, self.weight, self.count, extra, dict(self._scalars))

    def moved(self, layout: Layout, sent: Views) -> Aggregate:
        """Return what `aggregate` does, with the model that was sent added to the delta: FedAvg's step, in one pass.

        Raises:
            Refused: there is no update, or the weights sum to 0.
        """
        self._settle()
        self._weigh()
        weight = self._delta.dtype.type(self.weight)

        def work(start: int, stop: int) -> None:
            for i, first, last in pieces(layout, start, stop):
                offset = layout.floats[i].start
                for low in range(first, last, _BLOCK):
                    here = self._delta[low : min(low + _BLOCK, last)]
                    here /= weight
                    here += sent.floats[i][low - offset : low - offset + here.size]

        columns.over(layout.d, work)
        return Aggregate(self._delta, self._ints / self.weight, self.weight, self.count)

    def _weigh(self) -> None:
        if not self.count:
            raise Refused("there is no update to aggregate")
        if not self.weight > 0:
            raise Refused(f"the weights of all {self.count} updates sum to {self.weight:g}")

    def to_records(self, name: str) -> RecordDict:
        """Return what the fold holds, as records `name` and `name.vectors`."""
        self._settle()
        vectors = ArrayRecord({"delta": Array(self._delta), "ints": Array(self._ints)})
        for key, vector in self._extra.items():
            vectors[f"extra.{key}"] = Array(vector)
        keys = sorted(self._scalars)
        numbers = ConfigRecord(
            {"weight": self.weight, "count": self.count, "keys": keys, "scalars": [self._scalars[key] for key in keys]}
        )
        return RecordDict({name: numbers, f"{name}.vectors": vectors})

    @classmethod
    def from_records(cls, records: RecordDict, name: str) -> "Sum":
        """Return the fold that `to_records` was called on."""
        vectors: Any = records[f"{name}.vectors"]
        numbers: Any = records[name]
        delta, ints = vectors["delta"].numpy(), vectors["ints"].numpy()
        made = cls(0, 0, delta.dtype)
        made._delta, made._ints, made._empty = np.array(delta), np.array(ints), False
        made.weight, made.count = float(numbers["weight"]), int(numbers["count"])
        made._scalars = dict(zip(numbers["keys"], numbers["scalars"], strict=True))
        made._extra = {
            key.removeprefix("extra."): np.array(array.numpy())
            for key, array in vectors.items()
            if key.startswith("extra.")
        }
        return made

    def _note(self, weight: float, count: int, extra: dict[str, Vector], scalars: dict[str, float]) -> None:
        self.weight += weight
        self.count += count
        for name, vector in extra.items():
            if name in self._extra:
                self._extra[name] += vector
            else:
                self._extra[name] = np.array(vector)
        for name, value in scalars.items():
            self._scalars[name] = self._scalars.get(name, 0.0) + value

    def _add_vector(self, weight: float, delta: Vector) -> None:
        self._empty = False

        def work(start: int, stop: int) -> None:
            for low in range(start, stop, _BLOCK):
                here = slice(low, min(low + _BLOCK, stop))
                self._delta[here] += delta[here] * self._delta.dtype.type(weight)

        columns.over(self._delta.size, work)

    def _settle(self) -> None:
        """Add the waiting updates, in their order, block by block."""
        if not self._waiting:
            return
        waiting, self._waiting = self._waiting, []
        layout, sent = waiting[0][1].layout, waiting[0][1].sent
        empty, self._empty = self._empty, False
        weights = [self._delta.dtype.type(weight) for weight, _ in waiting]

        def work(start: int, stop: int) -> None:
            scratch = np.empty(_BLOCK, self._delta.dtype)
            for i, first, last in pieces(layout, start, stop):
                offset = layout.floats[i].start
                for low in range(first, last, _BLOCK):
                    high = min(low + _BLOCK, last)
                    total, apart = self._delta[low:high], scratch[: high - low]
                    here = slice(low - offset, high - offset)
                    was = sent.floats[i][here]
                    for turn, (weight, (_, source)) in enumerate(zip(weights, waiting, strict=True)):
                        np.subtract(source.views.floats[i][here], was, out=apart, dtype=apart.dtype)
                        if empty and not turn:  # the zeros that it would be added to need not be read
                            np.multiply(apart, weight, out=total)
                            continue
                        np.multiply(apart, weight, out=apart)
                        np.add(total, apart, out=total)

        columns.over(layout.d, work)

    def _scale(self, start: int, stop: int) -> None:
        self._delta[start:stop] /= self._delta.dtype.type(self.weight)


class Mean:
    """The weighted mean of all updates: FedAvg's rule, and the one that all is compared with."""

    linear = True

    def open(self, d: int, k: int, dtype: np.dtype[Any], spool: Spool) -> Sum:
        """Return an empty fold."""
        del spool
        return Sum(d, k, dtype)

    def close(self, fold: Sum) -> Aggregate:
        """Return the mean.

        Raises:
            Refused: there is no update, or the weights sum to 0.
        """
        return fold.aggregate()
