"""Made-up devices: how fast, how well connected and how reliable they are. Nothing here waits or computes.

All that chance decides about a device follows from (seed, device), and about one of its tasks from (seed, device,
exchange), each by a hash of its own. There is no generator that is shared, so neither the order of calls nor the number
of workers changes what a device is like.
"""

import hashlib
import math
import random
import re
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from fedfleet_protocol.ids import AgentId, agent_id, flower_number

SIGMA = 0.5
"""Spread of the logarithm where none is named: nine of ten devices are within a factor of 2.3 of the median."""
MAX_DEVICES = 2**32 - 2
_SHIFT = 31
_TIMES = {"ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0}
_RATES = {
    "kbit": 1e3 / 8, "Mbit": 1e6 / 8, "Gbit": 1e9 / 8, "kB": 1e3, "MB": 1e6, "GB": 1e9,
}  # fmt: skip
_NORMAL = statistics.NormalDist()


def name_of(index: int) -> AgentId:
    """Return the id of device `index`; ids sort as devices are numbered."""
    return agent_id((index + 1).to_bytes(4, "big") + bytes(12))


def number_of(agent: AgentId) -> int:
    """Return which device has this id."""
    return (flower_number(agent) >> _SHIFT) - 1


def sampled(devices: int, count: int, *, seed: int, k: int) -> list[int]:
    """Return `count` of the devices, drawn without repeats for the `k`-th answer of a Grid, in order."""
    chosen = random.Random(f"{seed} nodes {k}").sample(range(devices), min(count, devices))
    return sorted(chosen)


@dataclass(frozen=True, slots=True)
class Spread:
    """A quantity that differs from device to device.

    Attributes:
        low: the constant value, the lognormal's median, or the uniform's lower end.
        high: nothing, the standard deviation of the logarithm, or the upper end.
    """

    kind: Literal["constant", "lognormal", "uniform"]
    low: float
    high: float = 0.0

    def at(self, fraction: float) -> float:
        """Return the quantity below which this fraction (0 to 1, both excluded) of the devices are."""
        if self.kind == "lognormal":
            return self.low * math.exp(self.high * _NORMAL.inv_cdf(fraction))
        if self.kind == "uniform":
            return self.low + (self.high - self.low) * fraction
        return self.low


@dataclass(frozen=True, slots=True)
class Pace:
    """What one device is like.

    Attributes:
        compute_s: what a call of the app takes it.
        bytes_per_s: its link, each way; infinite where none was asked for.
    """

    compute_s: float
    bytes_per_s: float

    def transfer_s(self, size: int) -> float:
        """Return what moving so many bytes takes."""
        return size / self.bytes_per_s


@dataclass(frozen=True, slots=True)
class Conditions:
    """What a simulated fleet is like.

    Attributes:
        link: bytes per second each way; None for links that take no time. compute: seconds per call.
        stragglers: a share of the devices, and by what factor their calls take longer.
        drop_out: the share of tasks that are never answered.
    """

    seed: int = 0
    link: Spread | None = None
    compute: Spread | None = None
    stragglers: tuple[float, float] = (0.0, 1.0)
    drop_out: float = 0.0

    def pace(self, index: int) -> Pace:
        """Return what device `index` is like."""
        compute_s = self.compute.at(self._fraction("compute", index)) if self.compute else 0.0
        rarely, factor = self.stragglers
        if rarely and self._fraction("straggler", index) < rarely:
            compute_s *= factor
        return Pace(compute_s, self.link.at(self._fraction("link", index)) if self.link else math.inf)

    def drops_out(self, index: int, n: int) -> bool:
        """Whether device `index` never answers its task of exchange `n`."""
        return self.drop_out > 0 and self._fraction("drop-out", index, n) < self.drop_out

    def seed_of(self, index: int, n: int) -> int:
        """Return what the global random generators begin with in this device's call for exchange `n`."""
        return self._bits("call", index, n) >> 32

    def _fraction(self, *what: object) -> float:
        return ((self._bits(*what) >> 12) + 0.5) / 2**52

    def _bits(self, *what: object) -> int:
        text = " ".join(map(str, (self.seed, *what)))
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


# --- as people write it -----------------------------------------------------------------------------------------------


def duration(text: str) -> Spread:
    """Return a time per call as written: 30s, lognormal:30s, lognormal:30s:0.8, uniform:10s:2min.

    Raises:
        ValueError: it cannot be read; the text says how it is written.
    """
    return _spread(text, lambda part: _measured(part, _TIMES, zero=True), "30s, lognormal:30s or uniform:10s:2min")


def link(text: str) -> Spread:
    """Return a speed as written, in bytes per second: 10Mbit, lognormal:10Mbit, uniform:1MB:5MB.

    Raises:
        ValueError: as `duration`.
    """
    return _spread(text, lambda part: _measured(part, _RATES), "10Mbit, lognormal:10Mbit or uniform:1Mbit:50Mbit")


def stragglers(text: str) -> tuple[float, float]:
    """Return a share and a factor as written: 0.2:5x.

    Raises:
        ValueError: as `duration`.
    """
    part, _, factor = text.partition(":")
    try:
        found = share(part), float(factor.removesuffix("x"))
        if not 0 < found[1] < math.inf:
            raise ValueError(factor)
    except ValueError as error:
        raise ValueError(f"takes a share and a factor, like 0.2:5x; not {text!r}") from error
    return found


def share(text: str) -> float:
    """Return a share from 0 to 1 as written: 0.1 or 10%.

    Raises:
        ValueError: as `duration`.
    """
    try:
        found = float(text.removesuffix("%")) / (100.0 if text.endswith("%") else 1.0)
    except ValueError:
        found = math.nan
    if not 0 <= found <= 1:
        raise ValueError(f"takes a share from 0 to 1, like 0.1 or 10%; not {text!r}")
    return found


def _spread(text: str, read: Callable[[str], float], like: str) -> Spread:
    kind, *parts = text.split(":")
    try:
        if kind == "lognormal" and 1 <= len(parts) <= 2:
            sigma = float(parts[1]) if len(parts) == 2 else SIGMA
            if not 0 <= sigma <= 10:
                raise ValueError(text)
            return Spread("lognormal", read(parts[0]), sigma)
        if kind == "uniform":
            low, high = map(read, parts)
            if low > high:
                raise ValueError(text)
            return Spread("uniform", low, high)
        return Spread("constant", read(text))
    except ValueError as error:
        raise ValueError(f"is written like {like}; not {text!r}") from error


def _measured(text: str, units: dict[str, float], *, zero: bool = False) -> float:
    found = re.fullmatch(r"(\d{1,12}(?:\.\d{1,12})?)\s*([A-Za-z]+)(?:/s)?", text.strip())
    if found is None or found[2] not in units:
        raise ValueError(text)
    value = float(found[1]) * units[found[2]]
    if value <= 0 and not zero:
        raise ValueError(text)
    return value
