"""Central differential privacy: the server clips each device's update and adds noise to the sum.

McMahan, Ramage, Talwar, Zhang: Learning Differentially Private Recurrent Language Models, ICLR 2018, arXiv:1710.06963,
algorithm 1, the estimator with a fixed denominator; n is the planned cohort:

    x <- x + (sum_i clip(delta_i, C) + N(0, (z C)^2)) / n,    clip(d, C) = d min(1, C / |d|)

Andrew, Thakkar, McMahan, Ramaswamy: Differentially Private Learning with Adaptive Clipping, NeurIPS 2021,
arXiv:1905.03871, algorithm 1; b_i is 1 if |delta_i| <= C, gamma the quantile that C shall be:

    b = (sum_i (b_i - 1/2) + N(0, s^2)) / n + 1/2,   C <- C exp(-eta (b - gamma)),   z_delta = (z^-2 - (2 s)^-2)^(-1/2)

The guarantee is for a device, with all its examples, against whoever sees the models of all rounds and no more: not
which devices were asked, and no update.

Every update weighs 1. A sum of weighted updates changes by max_i w_i C, and a denominator that depends on who replied
is one more thing that tells; both cost more noise than weights are worth. Where cohorts have a fixed size, one device
is in the place of another, the sum changes by twice C, and so the accountant is told z / 2.

Departures from the papers: s is n / 20, as published, but at least z, without which small cohorts would have no room
for it. A round that no device replied to is noise alone, as it must be for the guarantee. Integers and booleans of the
model stay as the server has them. Metrics of devices are not told, as no noise covers them.
"""

import math
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from fedfleet_strategies.errors import Incompatible, Refused
from fedfleet_strategies.privacy import noise
from fedfleet_strategies.privacy.accountant import Event, Ledger
from fedfleet_strategies.privacy.privacy import Planned, State
from fedfleet_strategies.updates import Aggregate, Update, squared_norm

if TYPE_CHECKING:
    from fedfleet_strategies.strategy import Strategy

_KEY, _LEDGER, _CLIP = "privacy.key", "privacy.ledger", "privacy.clip"
_BELOW = "privacy.below"


class CentralPrivacy:
    """Clipping by the server to a fixed norm.

    Args:
        noise_multiplier: z, standard deviation of the noise in clipping norms; at least 0.
        clipping_norm: C, above 0.
        epsilon: the budget: no round begins that would bring the account above it. None for none.
        delta: at which epsilon is told, above 0 and below 1; well below one over the number of devices.
        accounting: how the cohort is drawn, for the accountant: "poisson", "fixed", or "all" for no amplification;
            None for what the strategy's cohort says of itself.
        key: 32 bytes that noise and cohorts are drawn from, to repeat an experiment; who knows them can take the noise
            away. None for new ones, which only the run's checkpoints hold.
    """

    central = True

    def __init__(
        self,
        noise_multiplier: float,
        clipping_norm: float,
        *,
        epsilon: float | None = None,
        delta: float = 1e-5,
        accounting: Literal["poisson", "fixed", "all"] | None = None,
        key: bytes | None = None,
    ) -> None:
        wrong = [
            f"{name} is {value}, it must be {must}"
            for name, value, good, must in (
                ("noise_multiplier", noise_multiplier, 0 <= noise_multiplier < math.inf, "finite and at least 0"),
                ("clipping_norm", clipping_norm, 0 < clipping_norm < math.inf, "finite and above 0"),
                ("epsilon", epsilon, epsilon is None or epsilon > 0, "above 0"),
                ("delta", delta, 0 < delta < 1, "above 0 and below 1"),
                ("key", "of another length", key is None or len(key) == noise.KEY_BYTES, "of 32 bytes"),
            )
            if not good
        ]
        if wrong:
            raise Incompatible("; ".join(wrong))
        self.noise_multiplier, self.clipping_norm = noise_multiplier, clipping_norm
        self.epsilon, self.delta, self.accounting = epsilon, delta, accounting
        self._key = key

    def begin(self, state: State) -> None:
        """Draw the key of the run's noise."""
        key = noise.new_key() if self._key is None else np.frombuffer(self._key, np.uint8).copy()
        state |= {_KEY: key, _LEDGER: [], _CLIP: float(self.clipping_norm)}

    def refuse_round(self, state: State, planned: Planned) -> str | None:
        """Return why the round would cost too much, or None."""
        if self.epsilon is None:
            return None
        then = Ledger.of(state[_LEDGER]).epsilon(self.delta, [self.event(planned)])
        if then <= self.epsilon:
            return None
        return (
            f"round {planned.server_round} would bring epsilon to {then:.4g} at delta {self.delta:g}, "
            f"the budget is {self.epsilon:g}"
        )

    def rng(self, state: State, planned: Planned) -> np.random.Generator | None:
        """Return a generator whose cohorts nobody foresees."""
        return noise.rng(state[_KEY], "cohort", planned.server_round)

    def clip(self, update: Update, state: State) -> Update:
        """Return the update with weight 1 and a norm of at most C.

        Raises:
            Refused: it is not finite.
        """
        norm = math.sqrt(squared_norm(update.delta))
        if not math.isfinite(norm):
            raise Refused("its model holds NaN or infinity")
        bound = state[_CLIP]
        if norm > bound:
            update.delta = update.delta * update.delta.dtype.type(bound / norm * (1 - 1e-6))
        update.weight, update.count = 1.0, 1
        update.ints = np.zeros_like(update.ints)
        update.extra, update.scalars = {}, {_BELOW: 1.0 if norm <= bound else 0.0}
        return update

    def noise(self, aggregate: Aggregate, state: State, planned: Planned) -> Aggregate:
        """Return the noisy sum over the planned cohort; enter the round in the ledger."""
        delta, number = aggregate.delta, aggregate.delta.dtype.type
        delta *= number(aggregate.weight)
        deviation = self.on_updates(planned) * state[_CLIP]
        noise.add_gaussian(delta, deviation, state[_KEY], "updates", planned.server_round)
        delta /= number(planned.n)
        self.adapt(aggregate.scalars.get(_BELOW, 0.0), aggregate.count, state, planned)
        ledger = Ledger.of(state[_LEDGER])
        ledger.add(self.event(planned))
        state[_LEDGER] = ledger.entries()
        return Aggregate(delta, np.zeros_like(aggregate.ints), float(planned.n), planned.n)

    def on_updates(self, planned: Planned) -> float:
        """Return the multiplier of the noise on the sum of updates."""
        del planned
        return self.noise_multiplier

    def adapt(self, below: float, count: int, state: State, planned: Planned) -> None:
        """Set the next round's clipping norm, given how many of `count` updates were not clipped."""

    def event(self, planned: Planned) -> Event:
        """Return what the accountant is told of a round."""
        q = min(planned.n / planned.population, 1.0)
        kind = self.accounting or {"poisson": "poisson", "fixed": "fixed"}.get(planned.sampling, "all")
        if kind == "poisson":
            return Event("poisson", float(self.noise_multiplier), q)
        if kind == "fixed":
            return Event("fixed", self.noise_multiplier / 2, q)
        return Event("all", float(self.noise_multiplier))

    def metrics(self, state: State) -> dict[str, float]:
        """Return epsilon and the clipping norm of the next round."""
        found = {"fedfleet.clip": float(state[_CLIP])}
        spent = Ledger.of(state[_LEDGER]).epsilon(self.delta)
        return found | ({"fedfleet.epsilon": spent} if math.isfinite(spent) else {})

    def settings(self) -> dict[str, Any]:
        """Return nothing: devices need not know."""
        return {}

    def conflicts(self, strategy: "Strategy") -> list[str]:
        """Return what takes away the bound on one device's part in the sum."""
        name, cohort, found = "central privacy", strategy.cohort, []
        if not strategy.rule.linear:
            found.append(f"{name} needs a rule that sums, which {type(strategy.rule).__name__} does not")
        if strategy.weights == "own":
            found.append(f"{name} gives every update the weight 1, and the method is in its weights")
        if strategy.extras or strategy.scalars:
            found.append(
                f"{name} does not clip {', '.join((*strategy.extras, *strategy.scalars))}, which the method sums"
            )
        if "loss" in cohort.reads:
            found.append(
                f"{name} cannot account for {type(cohort).__name__}, which looks at losses of devices"
                + ("; Oort(statistical=False) does not" if type(cohort).__name__ == "Oort" else "")
            )
        if self.accounting in {"poisson", "fixed"} and cohort.sampling != self.accounting:
            drawn = f"{type(cohort).__name__} is {cohort.sampling}"
            found.append(f"{self.accounting} accounting needs cohorts drawn like that, and {drawn}")
        functions = ("train_metrics_aggr_fn", "evaluate_metrics_aggr_fn")
        given = [function for function in functions if getattr(strategy, function) is not None]
        return found + [f"{name} tells no metrics of devices, {function} would" for function in given]


class AdaptivePrivacy(CentralPrivacy):
    """Clipping by the server to a norm that follows a quantile of the updates' norms.

    Args:
        noise_multiplier: z of the whole round, sum and count together; above 0.
        clipping_norm: C of the first round.
        quantile: gamma, the share of updates that is not to be clipped, from 0 to 1.
        learning_rate: eta, at least 0.
        count_noise: s, standard deviation of the noise on the count; above z / 2. None for the larger of n / 20 and z.
    """

    def __init__(
        self,
        noise_multiplier: float,
        clipping_norm: float = 0.1,
        *,
        quantile: float = 0.5,
        learning_rate: float = 0.2,
        count_noise: float | None = None,
        **options: Any,
    ) -> None:
        super().__init__(noise_multiplier, clipping_norm, **options)
        if not noise_multiplier > 0:
            raise Incompatible(f"noise_multiplier is {noise_multiplier}, it must be above 0 where the clip adapts")
        if not 0 <= quantile <= 1 or not learning_rate >= 0:
            raise Incompatible(
                f"quantile is {quantile}, it must be from 0 to 1; learning_rate is {learning_rate}, at least 0"
            )
        if count_noise is not None and not count_noise > noise_multiplier / 2:
            raise Incompatible(
                f"count_noise is {count_noise}; it must be above half of noise_multiplier, {noise_multiplier / 2:g}, "
                f"or the count alone costs more than the round"
            )
        self.quantile, self.learning_rate, self.count_noise = quantile, learning_rate, count_noise

    def on_updates(self, planned: Planned) -> float:
        """Return z_delta."""
        return float((self.noise_multiplier**-2 - (2 * self._on_count(planned)) ** -2) ** -0.5)

    def adapt(self, below: float, count: int, state: State, planned: Planned) -> None:
        """Move the norm towards the quantile."""
        told = np.array([below - count / 2])
        noise.add_gaussian(told, self._on_count(planned), state[_KEY], "count", planned.server_round)
        share = float(told[0]) / planned.n + 0.5
        state[_CLIP] = float(state[_CLIP] * math.exp(-self.learning_rate * (share - self.quantile)))

    def _on_count(self, planned: Planned) -> float:
        return max(planned.n / 20, self.noise_multiplier) if self.count_noise is None else self.count_noise
