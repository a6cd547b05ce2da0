"""Apps for the runner's tests: a device that trains by a formula, and ServerApps around each stock strategy."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp import strategy as stock
from flwr.serverapp.strategy import Result, Strategy

from fedfleet_coordinator.runner.execution import App, Outcome, execute
from fedfleet_coordinator.runner.scratch import Scratch
from fedfleet_coordinator.runner.testing import Killed, MemoryHub

ROUNDS = 3


def device(message: Message, context: Context) -> Message:
    """Move the model towards a number of the device's own; remember how often that was."""
    part = int(context.node_config["partition-id"])
    before: Any = context.state.get("seen")
    seen = int(before["times"]) if before is not None else 0
    context.state["seen"] = ConfigRecord({"times": seen + 1})
    metrics: dict[str, Any] = {
        "num-examples": 10 + part,
        "loss": 1.0 / (part + 2),
        "train_loss": 0.5 + part,
        "norm-bit": part % 2,
    }
    if message.metadata.message_type == "evaluate":
        return Message(RecordDict({"metrics": MetricRecord(metrics)}), reply_to=message)
    arrays = message.content["arrays"]
    assert isinstance(arrays, ArrayRecord)
    moved = ArrayRecord()
    for name, array in arrays.items():
        value = array.numpy()
        moved[name] = Array(np.asarray(value + np.float32(0.1) * (np.float32(part + seen) - value), value.dtype))
    metrics["norm_bit"] = part % 2
    return Message(RecordDict({"arrays": moved, "metrics": MetricRecord(metrics)}), reply_to=message)


def tree_device(message: Message, context: Context) -> Message:
    """Grow a tree, in the JSON that xgboost writes."""
    part = int(context.node_config["partition-id"])
    metrics = MetricRecord({"num-examples": 10 + part, "loss": 0.5})
    if message.metadata.message_type == "evaluate":
        return Message(RecordDict({"metrics": metrics}), reply_to=message)
    tree = {"id": 0, "leaf": part}
    model = {"gbtree_model_param": {"num_trees": "1", "num_parallel_tree": "1"}, "iteration_indptr": [0, 1],
             "trees": [tree], "tree_info": [0]}  # fmt: skip
    raw = json.dumps({"learner": {"gradient_booster": {"model": model}}}).encode()
    arrays = ArrayRecord([np.frombuffer(raw, np.uint8)])
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)


def initial() -> ArrayRecord:
    """Return a small model, drawn from the generator that the runner seeds."""
    drawn = np.random.normal(size=(3, 4)).astype(np.float32)  # noqa: NPY002
    return ArrayRecord({"w": Array(drawn), "b": Array(np.zeros(4, np.float32)), "s": Array(np.ones((), np.float32))})


def trains(
    make: Callable[[], Strategy],
    *,
    rounds: int = ROUNDS,
    seen: list[Result] | None = None,
    arrays: Callable[[], ArrayRecord] = initial,
    **start: Any,
) -> App:
    """Return an app that trains with the strategy that `make` returns."""

    def app(grid: Grid, context: Context) -> None:
        result = make().start(grid, arrays(), num_rounds=rounds, **start)
        if seen is not None:
            seen.append(result)

    return app


def wrapped(wrapper: type, **options: Any) -> Callable[[], Strategy]:
    return lambda: wrapper(stock.FedAvg(), num_sampled_clients=2, **options)


STRATEGIES: dict[str, Callable[[], Strategy]] = {
    "FedAvg": lambda: stock.FedAvg(fraction_train=0.5, fraction_evaluate=0.5),
    "FedAvgM": lambda: stock.FedAvgM(server_momentum=0.9, server_learning_rate=0.5),
    "FedAdam": stock.FedAdam,
    "FedAdagrad": stock.FedAdagrad,
    "FedYogi": stock.FedYogi,
    "FedProx": lambda: stock.FedProx(proximal_mu=0.1),
    "QFedAvg": lambda: stock.QFedAvg(client_learning_rate=0.1),
    "FedMedian": stock.FedMedian,
    "FedTrimmedAvg": stock.FedTrimmedAvg,
    "Krum": lambda: stock.Krum(num_malicious_nodes=0),
    "MultiKrum": lambda: stock.MultiKrum(num_malicious_nodes=0, num_nodes_to_select=2),
    "Bulyan": lambda: stock.Bulyan(num_malicious_nodes=0),
    "FedXgbBagging": stock.FedXgbBagging,
    "FedXgbCyclic": stock.FedXgbCyclic,
    "DPServerFixed": wrapped(stock.DifferentialPrivacyServerSideFixedClipping, noise_multiplier=0.1, clipping_norm=1.0),
    "DPClientFixed": wrapped(stock.DifferentialPrivacyClientSideFixedClipping, noise_multiplier=0.1, clipping_norm=1.0),
    "DPServerAdaptive": wrapped(stock.DifferentialPrivacyServerSideAdaptiveClipping, noise_multiplier=0.1),
    "DPClientAdaptive": wrapped(stock.DifferentialPrivacyClientSideAdaptiveClipping, noise_multiplier=0.1),
}


def run_once(hub: MemoryHub, app: App, folder: Path, **options: Any) -> Outcome:
    """Run one runner to its end; it dies if the hub says so."""
    run, position = hub.look()
    outcome = execute(app, hub, run, position, scratch=Scratch(folder), run_config={}, **options)
    hub.end(outcome.state, outcome.reason, outcome.text, outcome.model)
    return outcome


def run_to_the_end(hub: MemoryHub, app: App, folder: Path, **options: Any) -> Outcome:
    """Run one runner after the other until one gets to the end."""
    for _ in range(20):
        try:
            return run_once(hub, app, folder, **options)
        except Killed:
            if not hub.row().live:
                row = hub.row()
                assert row.state in {"finished", "failed"}
                return Outcome(row.state, row.reason, row.text)
            hub.relaunch()
    raise AssertionError("no runner gets to the end")
