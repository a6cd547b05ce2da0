"""Flower's round loop, with a commit at the end of each round; apps call it as `strategy.start(...)`.

The loop does, logs and returns what `flwr.serverapp.strategy.Strategy.start` does. A round that a runner did not
complete is run again from the state before it, over the replies that are kept.
"""

import contextlib
import gc
import io
import time
from collections.abc import Callable, Iterator
from logging import INFO
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord
from flwr.common import log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from fedfleet_coordinator.runner.checkpoints import Checkpoints, Course
from fedfleet_flower.arrays import split
from fedfleet_strategies.errors import Ended

EvaluateFn = Callable[[int, ArrayRecord], MetricRecord | None]


@contextlib.contextmanager
def durable(checkpoints: Checkpoints) -> Iterator[None]:
    """Let every strategy's `start` be durable, as long as the context lasts."""
    stock = Strategy.start

    def start(
        self: Strategy,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: EvaluateFn | None = None,
    ) -> Result:
        loop = _Loop(checkpoints, self, grid, num_rounds, timeout, evaluate_fn)
        return loop.run(initial_arrays, train_config, evaluate_config)

    start.__doc__ = stock.__doc__
    Strategy.start = start  # type: ignore[method-assign]
    try:
        yield
    finally:
        Strategy.start = stock  # type: ignore[method-assign]


class _Loop:
    """One call of `start`."""

    def __init__(
        self,
        checkpoints: Checkpoints,
        strategy: Strategy,
        grid: Grid,
        num_rounds: int,
        timeout: float,
        evaluate_fn: EvaluateFn | None,
    ) -> None:
        self._checkpoints, self._strategy, self._grid = checkpoints, strategy, grid
        self._num_rounds, self._timeout, self._evaluate_fn = num_rounds, timeout, evaluate_fn

    def run(
        self, initial_arrays: ArrayRecord, train_config: ConfigRecord | None, evaluate_config: ConfigRecord | None
    ) -> Result:
        log(INFO, "Starting %s strategy:", type(self._strategy).__name__)
        _log_start(self._num_rounds, initial_arrays, train_config, evaluate_config)
        self._strategy.summary()
        log(INFO, "")
        began = time.time()
        train_config = ConfigRecord() if train_config is None else train_config
        evaluate_config = ConfigRecord() if evaluate_config is None else evaluate_config
        course = self._checkpoints.course(self._strategy, initial_arrays, train_config, evaluate_config)
        sender = self._checkpoints.grid.sender
        sender.weighted_by = weight_key(self._strategy)
        needs = getattr(self._strategy, "min_available_nodes", 0)
        self._checkpoints.grid.expect(needs if isinstance(needs, int) else 0)
        if course.server_round:
            log(INFO, "Continuing after round %s of %s", course.server_round, self._num_rounds)
        else:
            self._begin(course)
        try:
            for server_round in range(course.server_round + 1, self._num_rounds + 1):
                sender.round_label = f"round {server_round}"
                try:
                    self._round(course, server_round)
                except Ended as ended:
                    log(INFO, "The run ends before round %s: %s", server_round, ended)
                    break
                self._commit(course, server_round)
        finally:
            sender.weighted_by, sender.round_label = None, ""
            self._checkpoints.grid.expect(0)
        _log_end(course.result, time.time() - began)
        return course.result

    def _begin(self, course: Course) -> None:
        self._tell(0, "server", self._evaluate(course, 0) or MetricRecord())
        if getattr(self._strategy, "privacy", None) is not None:
            # Its key must be the same after a kill: a second draw of noise for the same round could be averaged out.
            self._commit(course, 0)

    def _round(self, course: Course, server_round: int) -> None:
        strategy, grid, result = self._strategy, self._grid, course.result
        log(INFO, "")
        log(INFO, "[ROUND %s/%s]", server_round, self._num_rounds)
        arrays, metrics = strategy.aggregate_train(
            server_round,
            grid.send_and_receive(
                messages=strategy.configure_train(server_round, course.arrays, course.train_config, grid),
                timeout=self._timeout,
            ),
        )
        if arrays is not None:
            result.arrays = course.arrays = arrays
            course.aggregated = True
        if metrics is not None:
            log(INFO, "\t└──> Aggregated MetricRecord: %s", metrics)
            result.train_metrics_clientapp[server_round] = metrics
        metrics = strategy.aggregate_evaluate(
            server_round,
            grid.send_and_receive(
                messages=strategy.configure_evaluate(server_round, course.arrays, course.evaluate_config, grid),
                timeout=self._timeout,
            ),
        )
        if metrics is not None:
            log(INFO, "\t└──> Aggregated MetricRecord: %s", metrics)
            result.evaluate_metrics_clientapp[server_round] = metrics
        self._evaluate(course, server_round)

    def _evaluate(self, course: Course, server_round: int) -> MetricRecord | None:
        """Evaluate the global arrays here, if the app has a function for it."""
        if self._evaluate_fn is None:
            return None
        if server_round:
            log(INFO, "Global evaluation")
        metrics = self._evaluate_fn(server_round, course.arrays)
        log(INFO, "\t└──> MetricRecord: %s" if server_round else "Initial global evaluation results: %s", metrics)
        if metrics is not None:
            course.result.evaluate_metrics_serverapp[server_round] = metrics
        return metrics

    def _commit(self, course: Course, server_round: int) -> None:
        # Metrics before the commit: told twice they are the same, told after it they might never be.
        result = course.result
        for kind, found in (
            ("train", result.train_metrics_clientapp),
            ("evaluate", result.evaluate_metrics_clientapp),
            ("server", result.evaluate_metrics_serverapp),
        ):
            if server_round in found:
                self._tell(server_round, kind, found[server_round])
        course.server_round = server_round
        self._checkpoints.commit(course)
        # Flower's `.array_records` makes cycles, which would hold the replies' files for long.
        gc.collect()

    def _tell(self, server_round: int, kind: str, metrics: MetricRecord) -> None:
        values = {name: _plain(value) for name, value in metrics.items()}
        self._checkpoints.hub.tell_metrics(server_round, kind, values, self._num_rounds)


def weight_key(strategy: Any) -> str | None:
    """Return the key by which a strategy, or the one it wraps, weighs replies; None if it does not say."""
    for _ in range(8):
        key = getattr(strategy, "weighted_by_key", None)
        if isinstance(key, str):
            return key
        strategy = getattr(strategy, "strategy", None)
        if strategy is None:
            return None
    return None


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return int(value) if isinstance(value, int) else float(value)


def _log_start(
    num_rounds: int, arrays: ArrayRecord, train_config: ConfigRecord | None, evaluate_config: ConfigRecord | None
) -> None:
    megabytes = sum(sum(map(len, split(array))) for array in arrays.values()) / (1 << 20)
    log(INFO, "\t├── Number of rounds: %d", num_rounds)
    log(INFO, "\t├── ArrayRecord (%.2f MB)", megabytes)
    log(INFO, "\t├── ConfigRecord (train): %s", _spelled(train_config))
    log(INFO, "\t├── ConfigRecord (evaluate): %s", _spelled(evaluate_config))


def _spelled(config: ConfigRecord | None) -> str:
    if not config:
        return "(empty!)"
    told = (f"'{name}': {'<bytes>' if isinstance(value, bytes) else value}" for name, value in config.items())
    return "{" + ", ".join(told) + "}"


def _log_end(result: Result, seconds: float) -> None:
    log(INFO, "")
    log(INFO, "Strategy execution finished in %.2fs", seconds)
    log(INFO, "")
    log(INFO, "Final results:")
    log(INFO, "")
    for line in io.StringIO(str(result)):
        log(INFO, "\t%s", line.strip("\n"))
    log(INFO, "")
