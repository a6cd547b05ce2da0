"""How a run ends before its last round, because a limit is reached: well, with the result of the rounds so far."""

import logging
from collections.abc import Callable
from typing import Any

from flwr.app import ArrayRecord, MetricRecord
from flwr.serverapp.strategy import Result

from fedfleet_strategies.errors import Ended

_log = logging.getLogger("flwr")
EvaluateFn = Callable[[int, ArrayRecord], MetricRecord | None]


def started(told: Result, start: Callable[..., Result], *args: Any, **options: Any) -> Result:
    """Return what Flower's `start` returns; if a round raises `Ended`, what the rounds before it gave.

    Args:
        told: the strategy puts the devices' metrics there, round by round.
    """
    names = ("grid", "initial_arrays", "num_rounds", "timeout", "train_config", "evaluate_config", "evaluate_fn")
    given = dict(zip(names, args, strict=False)) | options
    evaluate: EvaluateFn | None = given.get("evaluate_fn")

    def noted(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        assert evaluate is not None
        found = evaluate(server_round, arrays)
        if found is not None:
            told.evaluate_metrics_serverapp[server_round] = found
        return found

    if evaluate is not None:
        given["evaluate_fn"] = noted
    try:
        return start(**given)
    except Ended as ended:
        _log.info("The run ends: %s", ended)
        if ended.arrays is not None:
            told.arrays = ended.arrays
        return told
