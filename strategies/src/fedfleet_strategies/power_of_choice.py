"""Power-of-choice: of a few random devices, those where the model does worst.

Cho, Wang, Joshi: Client Selection in Federated Learning: Convergence Analysis and Power-of-Choice Selection Strategies,
2020, arXiv:2010.01243, section 3, the variant rpow-d: d candidates are drawn, and those of the largest losses chosen,
by the losses they reported when they were last asked.

Departures from the paper: candidates are drawn uniformly, not by examples, which the server does not know before it
asks. A device that has not reported yet counts as the worst, so each is asked once before it can be passed over.
"""

import numpy as np

from fedfleet_strategies.cohorts import Ids, Sampling, least
from fedfleet_strategies.errors import Incompatible
from fedfleet_strategies.table import ClientTable


class PowerOfChoice:
    """Those of the largest losses among random candidates.

    Args:
        factor: how many candidates are drawn for each place, d / n, at least 1; with 1 it is a random choice.
        loss_key: where devices report their loss.
    """

    sampling: Sampling = "adaptive"
    reads: frozenset[str] = frozenset({"loss"})

    def __init__(self, factor: float = 2.0, loss_key: str = "train_loss") -> None:
        if not factor >= 1:
            raise Incompatible(f"factor is {factor}, it must be at least 1")
        self.factor, self.loss_key = factor, loss_key

    def choose(self, ids: Ids, n: int, table: ClientTable, server_round: int, rng: np.random.Generator) -> Ids:
        """Return the `n` candidates of the largest losses; among equals a random choice."""
        del server_round
        if n >= ids.size:
            return ids
        drawn = ids[rng.choice(ids.size, min(int(np.ceil(n * self.factor)), ids.size), replace=False)]
        loss = np.nan_to_num(table.look("loss", drawn).astype(np.float64), nan=np.inf)
        return drawn[least(-loss, n)]
