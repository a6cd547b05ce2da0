"""The half on the device: what came goes back, with its arrays made anew as a training app makes them."""

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Return the model with one number changed."""
    arrays = message.content.array_records["arrays"].to_numpy_ndarrays()
    arrays[0][0] += 1.0 + int(context.node_config["partition-id"])
    records = RecordDict({"arrays": ArrayRecord(arrays), "metrics": MetricRecord({"num-examples": 1})})
    return Message(records, reply_to=message)
