"""fedfleet's own strategies on the runner: whole again after any death of it, nothing left out of a checkpoint."""

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import Result, Strategy

from fedfleet_coordinator.runner.testing import MemoryHub
from fedfleet_strategies import client
from fedfleet_strategies.asynchronous.fedasync import FedAsync
from fedfleet_strategies.asynchronous.fedbuff import FedBuff
from fedfleet_strategies.fedadam import FedAdam
from fedfleet_strategies.fedavg import FedAvg
from fedfleet_strategies.feddyn import FedDyn
from fedfleet_strategies.privacy import AdaptivePrivacy, CentralPrivacy
from fedfleet_strategies.scaffold import Scaffold
from tests.unit.runner.apps import run_to_the_end, trains


def half_device(message: Message, context: Context) -> Message:
    """Step towards a number of the device's own, corrected by the method."""

    def app(message: Message, context: Context) -> Message:
        part = int(context.node_config["partition-id"])
        records = {"metrics": MetricRecord({"num-examples": 10 + part, "loss": 0.5})}
        if message.metadata.message_type == "evaluate":
            return Message(RecordDict(dict(records)), reply_to=message)
        now = {name: array.numpy() for name, array in message.content["arrays"].items()}
        for _ in range(3):
            gradient = client.correction().applied({name: value - part for name, value in now.items()}, now)
            now = {name: np.asarray(now[name] - 0.1 * gradient[name], np.float32) for name in now}
        client.done(steps=3, lr=0.1)
        arrays = ArrayRecord({name: Array(value) for name, value in now.items()})
        return Message(RecordDict({"arrays": arrays, **records}), reply_to=message)

    return client.half(message, context, app)


OWN: dict[str, Callable[[], Strategy]] = {
    "FedAvg": lambda: FedAvg(fraction_train=0.5, fraction_evaluate=0.5),
    "FedAdam": FedAdam,
    "Scaffold": Scaffold,
    "FedDyn": FedDyn,
    "private": lambda: FedAvg(fraction_train=0.5, privacy=AdaptivePrivacy(1.0, key=bytes(32))),
    "top-k": lambda: FedAvg(fraction_evaluate=0.5, uplink="topk-0.3"),
    "four bits": lambda: FedAdam(uplink="rotated-4"),
    "eight bits both ways": lambda: FedAvg(fraction_train=0.5, uplink="int8", downlink="int8"),
    "FedBuff": lambda: FedBuff(buffer=2, concurrency=3, uplink="topk-0.5"),
    "FedAsync": lambda: FedAsync(concurrency=3),
}


@pytest.mark.parametrize("name", OWN)
def test_a_strategy_ends_with_the_same_model_wherever_its_runner_dies(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    calm = MemoryHub(half_device, agents=4, seed=7)
    outcome = run_to_the_end(calm, trains(OWN[name]), tmp_path)
    assert (outcome.state, outcome.text) == ("finished", "")
    for die_at in range(1, calm.calls, 3):
        for late in (False, True):
            hub = MemoryHub(half_device, agents=4, seed=7)
            hub.die_at, hub.late = die_at, late
            outcome = run_to_the_end(hub, trains(OWN[name]), tmp_path)
            told = f"{name} killed at call {die_at}, {'after' if late else 'before'} its effect"
            assert outcome.state == "finished", f"{told}: {outcome.text}"
            assert hub.row().model == calm.row().model, told
            assert hub.metrics == calm.metrics, told
    assert not [r for r in caplog.records if r.name == "fedfleet" and r.levelno >= logging.WARNING]


def test_a_key_nobody_gave_is_the_same_after_any_death(tmp_path: Path) -> None:
    app = trains(lambda: FedAvg(fraction_train=0.5, privacy=CentralPrivacy(1.0, 1.0)))
    calm = MemoryHub(half_device, agents=8, seed=7)
    assert run_to_the_end(calm, app, tmp_path).state == "finished"
    for die_at in range(1, calm.calls, 2):
        hub = MemoryHub(half_device, agents=8, seed=7)
        hub.die_at, hub.late = die_at, True
        outcome = run_to_the_end(hub, app, tmp_path)
        # Another key would ask other devices, which the hub takes for an app that does not repeat itself.
        assert outcome.state == "finished", f"killed at call {die_at}: {outcome.text}"


def test_a_run_that_has_spent_its_budget_finishes_with_the_model_of_its_last_round(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    results: list[Result] = []
    make = lambda: FedAvg(privacy=CentralPrivacy(5.0, 1.0, epsilon=5.0, accounting="all"))  # noqa: E731
    calm = MemoryHub(half_device, agents=4, seed=7)
    with caplog.at_level("INFO", "flwr"):
        outcome = run_to_the_end(calm, trains(make, rounds=50, seen=results), tmp_path)
    (result,) = results
    rounds = len(result.train_metrics_clientapp)
    assert outcome.state == "finished" and 1 < rounds < 50
    assert result.train_metrics_clientapp[rounds]["fedfleet.epsilon"] <= 5.0
    assert f"The run ends before round {rounds + 1}: round {rounds + 1} would bring epsilon to" in caplog.text
    model = calm.model()
    assert model is not None and model["arrays"] == result.arrays
