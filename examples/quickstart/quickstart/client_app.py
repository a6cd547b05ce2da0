"""The half that runs on each device: some steps of gradient descent on the device's own points."""

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from numpy.typing import NDArray

TRUE_WEIGHTS = np.array([2.0, -1.0, 0.5])
POINTS = 200

app = ClientApp()


def own_points(context: Context) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return inputs (200 x 3, the last column is 1) and targets; each partition looks at another stretch of inputs."""
    partition = int(context.node_config["partition-id"])
    generator = np.random.default_rng(partition)
    inputs = np.column_stack([generator.normal(partition / 4, 1.0, (POINTS, 2)), np.ones(POINTS)])
    return inputs, inputs @ TRUE_WEIGHTS + generator.normal(0.0, 0.1, POINTS)


def loss_of(weights: NDArray[np.float64], inputs: NDArray[np.float64], targets: NDArray[np.float64]) -> float:
    """Return the mean squared error."""
    return float(np.mean((inputs @ weights - targets) ** 2))


@app.train()
def train(message: Message, context: Context) -> Message:
    """Improve the weights that came with the message."""
    weights = message.content.array_records["arrays"].to_numpy_ndarrays()[0]
    inputs, targets = own_points(context)
    rate = float(context.run_config["learning-rate"]) / np.linalg.norm(inputs, 2) ** 2 * POINTS
    for _ in range(int(context.run_config["local-steps"])):
        weights = weights - rate * inputs.T @ (inputs @ weights - targets) / POINTS
    metrics = MetricRecord({"loss": loss_of(weights, inputs, targets), "num-examples": POINTS})
    return Message(RecordDict({"arrays": ArrayRecord([weights]), "metrics": metrics}), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Say how well the weights fit this device's points."""
    weights = message.content.array_records["arrays"].to_numpy_ndarrays()[0]
    metrics = MetricRecord({"loss": loss_of(weights, *own_points(context)), "num-examples": POINTS})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)
