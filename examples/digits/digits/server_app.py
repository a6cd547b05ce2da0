"""The half that runs at the hub: federated averaging, and a test on digits that no device has."""

import numpy as np
from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from digits import data, model

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train with all devices in each round."""
    config = context.run_config
    nodes = int(config["min-nodes"])
    strategy = FedAvg(min_available_nodes=nodes, min_train_nodes=nodes, min_evaluate_nodes=nodes)
    result = strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(model.new_model(int(config["seed"])).state_dict()),
        num_rounds=int(config["num-server-rounds"]),
        evaluate_fn=_evaluate,
    )
    if config["save"]:
        np.savez(str(config["save"]), **{name: array.numpy() for name, array in result.arrays.items()})


def _evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
    network = model.new_model(0)
    network.load_state_dict(arrays.to_torch_state_dict())
    loss, accuracy = model.test(network, *data.test_split())
    print(f"round {server_round}: {accuracy:.1%} of the test digits recognised")
    return MetricRecord({"loss": loss, "accuracy": accuracy})
