"""fedfleet's own strategies on the runner: whole again after any death of it, nothing left out of a checkpoint."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from flwr.serverapp.strategy import Strategy

from fedfleet_coordinator.runner.testing import MemoryHub
from fedfleet_strategies.fedadam import FedAdam
from fedfleet_strategies.fedavg import FedAvg
from tests.unit.runner.apps import device, run_to_the_end, trains

OWN: dict[str, Callable[[], Strategy]] = {
    "FedAvg": lambda: FedAvg(fraction_train=0.5, fraction_evaluate=0.5),
    "FedAdam": FedAdam,
}


@pytest.mark.parametrize("name", OWN)
def test_a_strategy_ends_with_the_same_model_wherever_its_runner_dies(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    calm = MemoryHub(device, agents=4, seed=7)
    outcome = run_to_the_end(calm, trains(OWN[name]), tmp_path)
    assert (outcome.state, outcome.text) == ("finished", "")
    for die_at in range(1, calm.calls, 2):
        for late in (False, True):
            hub = MemoryHub(device, agents=4, seed=7)
            hub.die_at, hub.late = die_at, late
            outcome = run_to_the_end(hub, trains(OWN[name]), tmp_path)
            told = f"{name} killed at call {die_at}, {'after' if late else 'before'} its effect"
            assert outcome.state == "finished", f"{told}: {outcome.text}"
            assert hub.row().model == calm.row().model, told
            assert hub.metrics == calm.metrics, told
    assert not [r for r in caplog.records if r.name == "fedfleet" and r.levelno >= logging.WARNING]
