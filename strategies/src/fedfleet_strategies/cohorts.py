"""Whom a round asks. A cohort policy is a slot of the strategy: `FedAvg(cohort=RoundRobin())`.

All choose among a million devices in well under a second, and all from the round's own generator: a round that runs
again asks the same devices.
"""

import math
from collections.abc import Mapping
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from fedfleet_strategies.errors import Incompatible
from fedfleet_strategies.table import ClientTable

Ids = NDArray[np.uint64]
Sampling = Literal["fixed", "poisson", "adaptive"]


class Cohort(Protocol):
    """Whom a round asks.

    Attributes:
        sampling: what an accountant of privacy may assume: as many as planned, each with the same chance, neither.
        reads: columns of the table it looks at.
    """

    sampling: Sampling
    reads: frozenset[str]

    def choose(self, ids: Ids, n: int, table: ClientTable, server_round: int, rng: np.random.Generator) -> Ids:
        """Return at most `n` of the sorted `ids`."""
        ...


class Random:
    """Every device with the same chance, `n` of them."""

    sampling: Sampling = "fixed"
    reads: frozenset[str] = frozenset()

    def choose(self, ids: Ids, n: int, table: ClientTable, server_round: int, rng: np.random.Generator) -> Ids:
        """Return `n` devices, drawn without replacement."""
        del table, server_round
        return ids if n >= ids.size else ids[rng.choice(ids.size, n, replace=False, shuffle=False)]


class Poisson:
    """Every device by itself with the chance n / all: what accountants of privacy like best. May choose nobody."""

    sampling: Sampling = "poisson"
    reads: frozenset[str] = frozenset()

    def choose(self, ids: Ids, n: int, table: ClientTable, server_round: int, rng: np.random.Generator) -> Ids:
        """Return about `n` devices."""
        del table, server_round
        return ids[rng.random(ids.size) < n / max(ids.size, 1)]


class RoundRobin:
    """Those that were asked longest ago, or never, so everybody has a turn before a second; among equals by chance."""

    sampling: Sampling = "adaptive"
    reads: frozenset[str] = frozenset({"asked"})

    def choose(self, ids: Ids, n: int, table: ClientTable, server_round: int, rng: np.random.Generator) -> Ids:
        """Return the `n` devices that waited longest."""
        del server_round
        return ids[least(table.look("asked", ids) + rng.random(ids.size), n)]


class LabelQuotas:
    """Shares of the cohort by label, as of site or kind of device; a random choice within each.

    Args:
        labels: of devices, by node id; those that are missing have the label "".
        quotas: share of the cohort by label, at most 1 together. What a label cannot fill, and what no quota asks for,
            is filled from all others.
    """

    sampling: Sampling = "adaptive"
    reads: frozenset[str] = frozenset()

    def __init__(self, labels: Mapping[int, str], quotas: Mapping[str, float]) -> None:
        if not quotas or min(quotas.values()) < 0 or sum(quotas.values()) > 1 + 1e-9:
            raise Incompatible(f"quotas are {dict(quotas)}; shares must be at least 0, and at most 1 together")
        self.labels, self.quotas = dict(labels), dict(quotas)
        codes = {name: code for code, name in enumerate(self.quotas)}
        self._ids = np.array(sorted(self.labels), np.uint64)
        self._codes = np.array([codes.get(self.labels[node], -1) for node in sorted(self.labels)], np.int64)

    def choose(self, ids: Ids, n: int, table: ClientTable, server_round: int, rng: np.random.Generator) -> Ids:
        """Return `n` devices with the shares asked for, rounded by the largest remainder."""
        del table, server_round
        n = min(n, ids.size)
        names = list(self.quotas)
        wanted = np.array([self.quotas[name] * n for name in names])
        places = np.floor(wanted + 1e-9).astype(int)
        short = min(round(float(wanted.sum())), n) - int(places.sum())
        places[np.argsort(places - wanted, kind="stable")[: max(short, 0)]] += 1
        order = rng.permutation(ids.size)
        code_of = self._code_of(ids)[order]
        taken = np.zeros(ids.size, bool)
        for code, count in enumerate(places.tolist()):
            taken[np.flatnonzero(code_of == code)[:count]] = True
        taken[np.flatnonzero(~taken)[: n - int(taken.sum())]] = True
        return ids[order[taken]]

    def _code_of(self, ids: Ids) -> NDArray[np.int64]:
        """Return the number of each device's quota, -1 for those without one."""
        if not self._ids.size:
            return np.full(ids.size, -1)
        at = np.minimum(np.searchsorted(self._ids, ids), self._ids.size - 1)
        found: NDArray[np.int64] = np.where(self._ids[at] == ids, self._codes[at], -1)
        return found


class OverSelection:
    """Another policy's choice, but of more devices, because some will not reply.

    The round is over once enough have: on fedfleet the run's quorum says when. Another runtime waits for all.

    Args:
        cohort: the policy. factor: how many devices are asked for each that is needed, at least 1.
    """

    def __init__(self, cohort: Cohort, factor: float = 1.3) -> None:
        if not factor >= 1:
            raise Incompatible(f"factor is {factor}, it must be at least 1")
        self.cohort, self.factor = cohort, factor
        self.sampling: Sampling = "adaptive"
        self.reads = cohort.reads

    def choose(self, ids: Ids, n: int, table: ClientTable, server_round: int, rng: np.random.Generator) -> Ids:
        """Return `factor` times `n` devices, rounded up."""
        more = math.ceil(n * self.factor - 1e-9)
        return self.cohort.choose(ids, more, table, server_round, rng)


def least(values: NDArray[Any], n: int) -> NDArray[np.intp]:
    """Return where the `n` least values are, in any order; all if there are not so many."""
    if n >= values.size:
        return np.arange(values.size)
    return np.argpartition(values, n)[:n]
