"""fedfleet's own strategies on the runner: whole again after any death of it, nothing left out of a checkpoint."""

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import Strategy

from fedfleet_coordinator.runner.testing import MemoryHub
from fedfleet_strategies import client
from fedfleet_strategies.fedadam import FedAdam
from fedfleet_strategies.fedavg import FedAvg
from fedfleet_strategies.feddyn import FedDyn
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
