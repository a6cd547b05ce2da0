"""The half that runs on each device: it trains on the device's own digits."""

from functools import cache
from pathlib import Path

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from digits import data, model

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the model that came with the message on nine tenths of this device's digits."""
    images, labels = _own(context)
    held_out = len(labels) // 10
    config, network = context.run_config, model.new_model(0)
    network.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
    server_round = int(message.content.config_records["config"]["server-round"])
    loss = model.train(
        network,
        images[held_out:],
        labels[held_out:],
        epochs=int(config["local-epochs"]),
        batch=int(config["batch-size"]),
        rate=float(config["learning-rate"]),
        seed=int(config["seed"]) * 1_000_003 + server_round * 1009 + int(context.node_config.get("partition-id", 0)),
    )
    metrics = MetricRecord({"loss": loss, "num-examples": len(labels) - held_out})
    records = RecordDict({"arrays": ArrayRecord(network.state_dict()), "metrics": metrics})
    return Message(records, reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Say how many of the digits that were held out are recognised."""
    images, labels = _own(context)
    held_out = max(len(labels) // 10, 1)
    network = model.new_model(0)
    network.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
    loss, accuracy = model.test(network, images[:held_out], labels[:held_out])
    metrics = MetricRecord({"loss": loss, "accuracy": accuracy, "num-examples": held_out})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)


def _own(context: Context) -> data.Split:
    """Return this device's shard: from the folder named `data` in its node_config, or cut here if there is none."""
    folder = context.node_config.get("data")
    if folder:
        return _read(str(folder))
    return _cut(int(context.node_config["num-partitions"]))[int(context.node_config["partition-id"])]


_read = cache(lambda folder: data.read(Path(folder)))
_cut = cache(data.shards)
