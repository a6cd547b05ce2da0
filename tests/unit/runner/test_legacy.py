"""Apps written for `server_fn` run, on one exchange per round, and run again to the same numbers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Message
from flwr.client import NumPyClient
from flwr.clientapp import ClientApp
from flwr.common import ndarrays_to_parameters, parameters_to_ndarrays
from flwr.server import ServerAppComponents, ServerConfig
from flwr.server.strategy import FedAvg
from flwr.serverapp import ServerApp

from fedfleet_coordinator.runner.testing import MemoryHub
from tests.unit.runner.apps import run_to_the_end

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    # Flower's thread that polls the nodes outlives a runner that is killed in the test's own process.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),
]


class OldClient(NumPyClient):
    def __init__(self, part: int) -> None:
        self.part = part

    def fit(self, parameters: Any, config: Any) -> Any:
        return [np.asarray(p + np.float32(0.1 * (self.part + 1) / 3)) for p in parameters], 10 + self.part, {"a": 0.5}

    def evaluate(self, parameters: Any, config: Any) -> Any:
        if self.part == 2:
            raise ValueError("no test data")
        return float(parameters[0].sum()) / (self.part + 1), 5, {"accuracy": 0.1 * self.part}


def device(message: Message, context: Context) -> Message:
    app = ClientApp(client_fn=lambda context: OldClient(int(context.node_config["partition-id"])).to_client())
    return app(message, context)


def an_app(seen: list[Any]) -> ServerApp:
    class Keeping(FedAvg):
        def aggregate_fit(self, server_round: int, results: Any, failures: Any) -> Any:
            parameters, metrics = super().aggregate_fit(server_round, results, failures)
            assert parameters is not None
            seen.append((server_round, [a.tolist() for a in parameters_to_ndarrays(parameters)], len(results)))
            return parameters, metrics

        def aggregate_evaluate(self, server_round: int, results: Any, failures: Any) -> Any:
            seen.append((server_round, len(results), [type(f).__name__ for f in failures]))
            return super().aggregate_evaluate(server_round, results, failures)

    def server_fn(context: Context) -> ServerAppComponents:
        initial = ndarrays_to_parameters([np.zeros(3, np.float32), np.ones(2, np.float32)])
        strategy = Keeping(initial_parameters=initial, fraction_fit=0.5, min_fit_clients=2, min_available_clients=3)
        return ServerAppComponents(strategy=strategy, config=ServerConfig(num_rounds=2))

    return ServerApp(server_fn=server_fn)


def test_a_legacy_app_trains_with_one_exchange_per_round(tmp_path: Path) -> None:
    hub, seen = MemoryHub(device, agents=3), list[Any]()
    outcome = run_to_the_end(hub, an_app(seen), tmp_path)
    assert (outcome.state, outcome.text) == ("finished", "")
    assert hub.row().exchanges == 4
    assert [one[2] for one in seen if isinstance(one[2], int)] == [2, 2]
    assert [one[2] for one in seen if isinstance(one[2], list)] == [["ValueError"]] * 2


def test_a_legacy_app_ends_with_the_same_numbers_wherever_its_runner_dies(tmp_path: Path) -> None:
    calm, seen = MemoryHub(device, agents=3), list[Any]()
    run_to_the_end(calm, an_app(seen), tmp_path)
    for die_at in range(1, calm.calls, 2):
        hub, again = MemoryHub(device, agents=3), list[Any]()
        hub.die_at, hub.late = die_at, True
        outcome = run_to_the_end(hub, an_app(again), tmp_path)
        assert outcome.state == "finished", f"killed at {die_at}: {outcome.text}"
        assert again[-4:] == seen
