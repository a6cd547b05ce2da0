"""The half that runs at the hub: three rounds of federated averaging."""

import numpy as np
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Start at zero and average what the devices make of it."""
    config = context.run_config
    nodes = int(config["min-nodes"])
    strategy = FedAvg(min_available_nodes=nodes, min_train_nodes=nodes, min_evaluate_nodes=nodes)
    result = strategy.start(
        grid=grid, initial_arrays=ArrayRecord([np.zeros(3)]), num_rounds=int(config["num-server-rounds"])
    )
    weights = result.arrays.to_numpy_ndarrays()[0]
    print(f"weights: {weights.round(3).tolist()}, made with 2, -1 and 0.5")
    if config["save"]:
        np.savez(str(config["save"]), weights)
