"""Bucketing: robust rules for devices whose data differ.

Karimireddy, He, Jaggi: Byzantine-Robust Learning on Heterogeneous Datasets via Bucketing, ICLR 2022,
arXiv:2006.09365, algorithm 1: the updates are shuffled, averaged in buckets of s, and the rule sees the averages.
Honest averages differ by less than honest updates; a bucket with a liar in it lies.

Departures from the paper: none. The shuffle comes from the strategy's seed and the round, so that a round that runs
again has the same buckets. If the rule leaves out a bucket, all its devices are told so.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedfleet_strategies.each import Each, Rows
from fedfleet_strategies.errors import Incompatible, Refused
from fedfleet_strategies.layout import Vector
from fedfleet_strategies.updates import Aggregate


class Bucketing(Each):
    """Another rule over the averages of random buckets.

    Args:
        rule: any rule of this package that is not a sum. It must hold against as many liars among ceil(n / s) averages.
        size: s, at least 1.
    """

    def __init__(self, rule: Each, size: int = 2) -> None:
        if size < 1 or rule.linear:
            raise Incompatible(f"size is {size} and must be at least 1; {type(rule).__name__} must not be linear")
        self.rule, self.size = rule, size

    def close(self, fold: Rows) -> Aggregate:
        """Return what the rule makes of the buckets.

        Raises:
            Refused: there are too few of them, or all were left out.
        """
        n = len(fold.nodes)
        if not n:
            raise Refused("there is no update to aggregate")
        order = fold.spool.rng.permutation(n).tolist()
        members = [order[start : start + self.size] for start in range(0, n, self.size)]
        try:
            found = self.rule.fold_of(_Buckets(fold, members))
        finally:
            fold.close()
        left = {fold.nodes[i]: f"in its bucket: {why}" for b, why in found.left_out.items() for i in members[b]}
        found.left_out = left
        found.count = n - len(left)
        found.weight = float(sum(w for w, node in zip(fold.weights, fold.nodes, strict=True) if node not in left))
        return found


class _Buckets(Rows):
    """Averages of some rows as rows."""

    def __init__(self, rows: Rows, members: list[list[int]]) -> None:
        super().__init__(rows.d, rows.k, rows.dtype, rows.spool)
        self._inner, self._members = rows, members
        self.nodes = list(range(len(members)))
        self.weights = [1.0] * len(members)
        self.ints = [np.mean([rows.ints[i] for i in bucket], axis=0) for bucket in members]

    def fill(self, start: int, stop: int, rows: Sequence[int], out: Vector) -> None:
        for into, b in zip(out, rows, strict=True):
            members: NDArray[Any] = np.empty((len(self._members[b]), stop - start), self.dtype)
            self._inner.fill(start, stop, self._members[b], members)
            np.mean(members, axis=0, out=into)
