"""A runner that dies at any call, before or after its effect, changes nothing about the result."""

import random
from pathlib import Path
from typing import Any

import pytest

from fedfleet_coordinator.runner.testing import MemoryHub
from tests.unit.runner.apps import STRATEGIES, device, run_to_the_end, trains, tree_device


def a_hub(name: str) -> MemoryHub:
    trees = "Xgb" in name
    return MemoryHub(tree_device if trees else device, agents=5 if name == "Bulyan" else 4, seed=7)


def an_app(name: str) -> Any:
    if "Xgb" not in name:
        return trains(STRATEGIES[name], evaluate_fn=evaluated)
    return trains(STRATEGIES[name], arrays=no_tree)


def no_tree() -> Any:
    import numpy as np
    from flwr.app import ArrayRecord

    return ArrayRecord([np.zeros(0, np.uint8)])


def evaluated(server_round: int, arrays: Any) -> Any:
    from flwr.app import MetricRecord

    return MetricRecord({"sum": float(arrays["w"].numpy().sum()), "luck": random.random()})


def undisturbed(name: str, folder: Path) -> MemoryHub:
    hub = a_hub(name)
    outcome = run_to_the_end(hub, an_app(name), folder)
    assert (outcome.state, outcome.text) == ("finished", "")
    return hub


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_stock_strategy_ends_with_the_same_model_wherever_its_runner_dies(name: str, tmp_path: Path) -> None:
    calm = undisturbed(name, tmp_path)
    assert calm.row().model is not None
    rng = random.Random(name)
    every = range(1, calm.calls)
    for die_at in every if name == "FedAvg" else rng.sample(every, 6):
        for late in (False, True):
            hub = a_hub(name)
            hub.die_at, hub.late = die_at, late
            outcome = run_to_the_end(hub, an_app(name), tmp_path)
            told = f"{name} killed at call {die_at}, {'after' if late else 'before'} its effect"
            assert outcome.state == "finished", f"{told}: {outcome.text}"
            assert hub.row().model == calm.row().model, told
            assert hub.metrics == calm.metrics, told
            assert hub.row().exchanges == calm.row().exchanges, told
