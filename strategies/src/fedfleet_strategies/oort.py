"""Oort: devices whose data teach the model most in the time they take.

Lai, Zhu, Madhyastha, Chowdhury: Oort: Efficient Federated Learning via Guided Participant Selection, OSDI 2021,
arXiv:2010.06081, algorithm 1 and equation 1. Of a cohort a share e_R is new devices; the others are drawn in proportion
to their utility from those within 95% of the one at the cut-off:

    utility_i = min(loss_i, its 95th percentile) + sqrt(0.1 log(R) / L_i), times (T / t_i)^alpha where t_i > T

R is the round, L_i the last round i took part in, t_i its time, T the preferred time, e_R = max(0.2, 0.9 0.98^R).

Departures from the paper: the loss is the mean that a device reports, not the root of the mean square over its samples
times their number. T is a percentile of the times seen, not moved by a pacer. New devices are drawn uniformly, as
nothing is known of them. There is no blacklist: a device that is drawn too often is rarely the one with the largest
loss. With `statistical=False` only times count, and losses are not looked at.
"""

import numpy as np
from numpy.typing import NDArray

from fedfleet_strategies.cohorts import Ids, Sampling, least
from fedfleet_strategies.errors import Incompatible
from fedfleet_strategies.table import ClientTable


class Oort:
    """Utility-guided selection with exploration.

    Args:
        alpha: penalty for slow devices, at least 0. preferred: percentile of the times seen that is T.
        exploration: e at round 0. decay: its factor per round. least_exploration: its least value.
        cut_off: share of the utility at the last place from which on devices are drawn.
        statistical: whether losses count. loss_key: where devices report them.
    """

    sampling: Sampling = "adaptive"

    def __init__(
        self,
        alpha: float = 2.0,
        preferred: float = 50.0,
        *,
        exploration: float = 0.9,
        decay: float = 0.98,
        least_exploration: float = 0.2,
        cut_off: float = 0.95,
        statistical: bool = True,
        loss_key: str = "train_loss",
    ) -> None:
        if not (
            alpha >= 0 and 0 <= preferred <= 100 and 0 <= least_exploration <= exploration <= 1 and 0 < cut_off <= 1
        ):
            raise Incompatible("alpha must be at least 0, preferred a percentile, shares from 0 to 1")
        self.alpha, self.preferred = alpha, preferred
        self.exploration, self.decay, self.least_exploration = exploration, decay, least_exploration
        self.cut_off, self.statistical, self.loss_key = cut_off, statistical, loss_key
        self.reads: frozenset[str] = frozenset({"seconds", "folded"} | ({"loss"} if statistical else set()))

    def choose(self, ids: Ids, n: int, table: ClientTable, server_round: int, rng: np.random.Generator) -> Ids:
        """Return `n` devices, new ones among them."""
        if n >= ids.size:
            return ids
        known = table.look("folded", ids) > 0
        new, old = ids[~known], ids[known]
        share = max(self.least_exploration, self.exploration * self.decay**server_round)
        explored = min(max(round(n * share), n - old.size), new.size)
        chosen = new[rng.choice(new.size, explored, replace=False)] if explored else new[:0]
        return np.concatenate([chosen, self._exploit(old, n - explored, table, server_round, rng)])

    def _exploit(self, ids: Ids, n: int, table: ClientTable, server_round: int, rng: np.random.Generator) -> Ids:
        if n >= ids.size:
            return ids
        utility = self._utility(ids, table, server_round)
        at_cut = -np.partition(-utility, n - 1)[n - 1] if n else np.inf
        pool = np.flatnonzero(utility >= self.cut_off * at_cut)
        # Drawing without replacement in proportion to weights: the least of exponentials over the weights (Efraimidis
        # and Spirakis 2006). numpy's own choice(p=) takes a second for a million.
        keys = rng.exponential(size=pool.size) / np.maximum(utility[pool], 1e-12)
        return ids[pool[least(keys, n)]]

    def _utility(self, ids: Ids, table: ClientTable, server_round: int) -> NDArray[np.float64]:
        if self.statistical:
            loss = np.nan_to_num(table.look("loss", ids).astype(np.float64), nan=0.0)
            utility: NDArray[np.float64] = np.clip(loss, 0.0, np.percentile(loss, 95))
        else:
            utility = np.ones(ids.size)
        last = np.maximum(table.look("folded", ids), 1)
        utility = utility + np.sqrt(0.1 * np.log(max(server_round, 1)) / last)
        seconds = table.look("seconds", ids).astype(np.float64)
        if np.isfinite(seconds).any():
            preferred = np.nanpercentile(seconds, self.preferred)
            slow = np.nan_to_num(seconds, nan=0.0) > preferred
            utility[slow] *= (preferred / seconds[slow]) ** self.alpha
        return utility
