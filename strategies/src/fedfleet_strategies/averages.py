"""Weighted means of what devices report, one report at a time."""

from collections.abc import Mapping
from typing import Any

from flwr.app import MetricRecord


class Averages:
    """Running weighted means of numbers and of lists of numbers.

    Departures from Flower's `aggregate_metricrecords`: a key that not all devices report is the mean over those that
    do; a list whose length differs from the first one's is left out; weights that sum to 0 give the plain mean.
    """

    def __init__(self, weighted_by_key: str) -> None:
        self._key = weighted_by_key
        self._sums: dict[str, tuple[list[float], list[float], float, int, bool]] = {}

    def add(self, metrics: Mapping[str, Any], weight: float) -> None:
        """Take one report."""
        for name, value in metrics.items():
            if name == self._key:
                continue
            values = list(value) if isinstance(value, list) else [value]
            listed = isinstance(value, list)
            if name not in self._sums:
                self._sums[name] = ([0.0] * len(values), [0.0] * len(values), 0.0, 0, listed)
            weighted, plain, total, count, was = self._sums[name]
            if len(weighted) != len(values) or was != listed:
                continue
            for i, one in enumerate(values):
                weighted[i] += weight * one
                plain[i] += one
            self._sums[name] = weighted, plain, total + weight, count + 1, was

    def record(self) -> MetricRecord:
        """Return the means."""
        made = MetricRecord()
        for name, (weighted, plain, total, count, listed) in self._sums.items():
            means = [one / total for one in weighted] if total > 0 else [one / count for one in plain]
            made[name] = means if listed else means[0]
        return made
