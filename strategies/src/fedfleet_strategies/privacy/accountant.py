"""How much privacy the rounds so far have cost.

Each round adds Gaussian noise to a sum of which one device is a bounded part: an `Event`. Its Rényi divergence is known
for each order, orders add over the rounds, and the sum is converted to (epsilon, delta) at the end. So a ledger keeps
events and no epsilon.

    poisson   each device takes part with chance q, on its own. One device more or less.
              Mironov, Talwar, Zhang: Rényi Differential Privacy of the Sampled Gaussian Mechanism, arXiv:1908.10530,
              theorem 5 and equation 9:  A(a) = E_z[(1 - q + q exp((2 z - 1) / (2 sigma^2)))^a],  z ~ N(0, sigma^2)
    fixed     n of N devices take part, drawn without replacement; q = n / N. One device in the place of another.
              Wang, Balle, Kasiviswanathan: Subsampled Rényi Differential Privacy and Analytical Moments Accountant,
              AISTATS 2019, arXiv:1808.00087, theorem 27, for whole orders; log A is convex between them.
    all       the choice is not random, or depends on the devices: no amplification. One device more or less.
              Mironov: Rényi Differential Privacy, CSF 2017, arXiv:1702.07476, proposition 7: a / (2 sigma^2)

    epsilon   Canonne, Kamath, Steinke: The Discrete Gaussian for Differential Privacy, NeurIPS 2020, arXiv:2004.00010,
              proposition 12:  min over a of  R(a) + log(1 - 1/a) - log(delta a) / (a - 1)

Departures from the papers: none in what is bounded. Expectations are trapezoidal sums over z: the integrands are
analytic, and the sum is exact to rounding for all orders, where the published series cancel.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Sampling = Literal["poisson", "fixed", "all"]
Floats = NDArray[np.float64]

ORDERS: Floats = np.array([*(1 + x / 10 for x in range(1, 100)), *range(11, 65), 80, 96, 128, 192, 256, 512, 1024.0])
"""Orders of the divergence: any of them gives a valid epsilon, the least is taken."""
_REACH = 12.0
"""Standard deviations of the normal that are summed; what lies beyond is below a float64's last digit."""
_STEP = 1 / 4
"""Of sigma, or of its square if that is less: the sum is then off by less than exp(-60)."""
_LEAST = 0.2
"""Less noise than this has so little privacy that sampling is not looked at."""


@dataclass(frozen=True, slots=True)
class Event:
    """A round, or several alike.

    Attributes:
        sampling: how the cohort was drawn.
        sigma: standard deviation of the noise over the most that the sum can change; 0 for no noise. For `fixed`, where
            one device is in the place of another, the sum can change by twice the clipping norm.
        q: chance of a device to take part, above 0 and at most 1; 1 for `all`.
        count: how many such rounds.
    """

    sampling: Sampling
    sigma: float
    q: float = 1.0
    count: int = 1

    def __post_init__(self) -> None:
        if not self.sigma >= 0 or not 0 < self.q <= 1 or self.count < 0:
            raise ValueError(f"no round has noise {self.sigma}, sampling {self.q} and count {self.count}")


def divergence(event: Event) -> Floats:
    """Return the Rényi divergence at each of `ORDERS`, infinite without noise."""
    if not event.count:
        return np.zeros(ORDERS.size)
    return event.count * _one(event.sampling, event.sigma, event.q)


def epsilon(divergences: Floats, delta: float) -> float:
    """Return the least epsilon for which divergences at `ORDERS` give (epsilon, delta)-differential privacy.

    Args:
        delta: above 0 and below 1.
    """
    if not 0 < delta < 1:
        raise ValueError(f"delta is {delta}, it must be above 0 and below 1")
    if bool(np.any(-np.expm1(-divergences) <= delta**2)):
        return 0.0  # delta <= sqrt(1 - exp(-R)), by way of the Kullback-Leibler divergence
    found = divergences + np.log1p(-1 / ORDERS) - np.log(delta * ORDERS) / (ORDERS - 1)
    return max(0.0, float(found.min()))


class Ledger:
    """The rounds so far, as events; rounds alike are one event with a count.

    Attributes:
        events: in the order they came.
    """

    def __init__(self, events: Iterable[Event] = ()) -> None:
        self.events: list[Event] = []
        for event in events:
            self.add(event)

    def add(self, event: Event) -> None:
        """Enter a round."""
        last = self.events[-1] if self.events else None
        if last is not None and (last.sampling, last.sigma, last.q) == (event.sampling, event.sigma, event.q):
            self.events[-1] = Event(event.sampling, event.sigma, event.q, last.count + event.count)
        else:
            self.events.append(event)

    def epsilon(self, delta: float, more: Sequence[Event] = ()) -> float:
        """Return the epsilon spent, after these rounds too.

        Raises:
            ValueError: rounds that compare with one device less and rounds that compare with another one in its place
                do not add up; make two ledgers.
        """
        events = [*self.events, *more]
        if len({event.sampling == "fixed" for event in events}) > 1:
            raise ValueError("a ledger holds fixed cohorts and others: their guarantees are about different neighbours")
        total = np.zeros(ORDERS.size)
        for event in events:
            total += divergence(event)
        return epsilon(total, delta)

    def entries(self) -> list[list[Any]]:
        """Return the events as lists of a text and numbers."""
        return [[event.sampling, event.sigma, event.q, event.count] for event in self.events]

    @classmethod
    def of(cls, entries: Iterable[Sequence[Any]]) -> "Ledger":
        """Return the ledger that `entries` was called on."""
        return cls(Event(sampling, float(sigma), float(q), int(count)) for sampling, sigma, q, count in entries)


@lru_cache(maxsize=256)
def _one(sampling: Sampling, sigma: float, q: float) -> Floats:
    if sigma == 0:
        return np.full(ORDERS.size, np.inf)
    found: Floats = ORDERS / (2 * sigma**2)
    if sampling != "all" and q < 1 and sigma >= _LEAST:
        log_a = np.array([_poisson(order, sigma, q) for order in ORDERS]) if sampling == "poisson" else _fixed(sigma, q)
        # A sample never tells more than the whole does; where its bound says so, the bound is loose.
        found = np.minimum(np.maximum(log_a, 0.0) / (ORDERS - 1), found)
    found.setflags(write=False)
    return found


def _poisson(order: float, sigma: float, q: float) -> float:
    """Return log A."""
    loss, density = _line(sigma, order)
    return _log_sum(density + order * np.logaddexp(math.log1p(-q), math.log(q) + loss))


def _fixed(sigma: float, q: float) -> Floats:
    """Return log A at each order: by theorem 27 at whole ones, and on the line between two of them."""
    highest = int(ORDERS.max())
    loss, density = _line(sigma, highest + 2)
    # log E|exp(loss) - 1|^l for even l; the theorem takes the geometric mean of the even neighbours of an odd one.
    with np.errstate(divide="ignore"):
        large = loss + np.log1p(-np.exp(-np.abs(loss)))
        apart = np.where(loss > 1, large, np.log(np.abs(np.expm1(np.minimum(loss, 1.0)))))
    even = np.array([0.0, *(_log_sum(density + 2 * half * apart) for half in range(1, highest // 2 + 2))])
    i = np.arange(2, highest + 1)
    near = math.log(4) + (even[i // 2] + even[(i + 1) // 2]) / 2
    terms = np.minimum(near, math.log(2) + i * (i - 1) / (2 * sigma**2)) + i * math.log(q)
    factorials = np.array([math.lgamma(k + 1) for k in range(highest + 1)])

    def whole(order: int) -> float:
        k = i[: order - 1]
        if not k.size:
            return 0.0
        ways = factorials[order] - factorials[k] - factorials[order - k]
        return float(np.logaddexp(0.0, _log_sum(terms[: order - 1] + ways)))

    found = []
    for order in ORDERS.tolist():
        low = math.floor(order)
        part = order - low
        found.append((1 - part) * whole(low) + (part * whole(low + 1) if part else 0.0))
    return np.array(found)


def _line(sigma: float, highest: float) -> tuple[Floats, Floats]:
    """Return (2 z - 1) / (2 sigma^2) on a line of z, and the log of the normal's mass there.

    The line holds all of a mixture of normals with centres between 0 and `highest`.
    """
    step = _STEP * min(sigma, sigma**2)
    z = np.arange(-_REACH * sigma, highest + _REACH * sigma, step)
    mass = -(z**2) / (2 * sigma**2) + math.log(step / (sigma * math.sqrt(2 * math.pi)))
    return (2 * z - 1) / (2 * sigma**2), mass


def _log_sum(logs: Floats) -> float:
    most = float(logs.max())
    return most + math.log(float(np.exp(logs - most).sum()))
