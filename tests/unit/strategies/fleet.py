"""A fleet in memory: a Grid whose devices answer at once, by calling a ClientApp."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid

from fedfleet_flower import compat

Client = Callable[[Message, Context], Message]


class Fleet(Grid):
    """Devices with states of their own.

    Args:
        client: called for each message, as a ClientApp is.
        nodes: ids of the devices.
        lose: told round and node; the reply is lost where it says so, and the device keeps the state it had then.
    """

    def __init__(
        self, client: Client, nodes: Iterable[int] = range(1, 5), lose: Callable[[int, int], bool] | None = None
    ) -> None:
        compat.identify(run=1, node=compat.SERVER_NODE)
        self.client, self.nodes, self.lose = client, sorted(nodes), lose
        self.contexts = {
            node: Context(1, node, {"partition-id": i}, RecordDict(), {}) for i, node in enumerate(self.nodes)
        }
        self.asked: list[list[int]] = []

    def set_run(self, run: Any) -> None: ...

    @property
    def run(self) -> Any:
        return None

    def create_message(self, *args: Any, **options: Any) -> Message:
        return Message(*args, **options)

    def get_node_ids(self) -> Iterable[int]:
        return list(self.nodes)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        raise NotImplementedError

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        raise NotImplementedError

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        replies: list[Message] = []
        asked: list[int] = []
        for number, message in enumerate(messages):
            node = message.metadata.dst_node_id
            asked.append(node)
            call = compat.instruction(
                message.content, run=1, node=node, message_id=f"{len(self.asked)}.{number}",
                message_type=message.metadata.message_type,
            )  # fmt: skip
            config: Any = message.content.get("config", {})
            answer = self.client(call, self.contexts[node])
            if self.lose is None or not self.lose(int(config.get("server-round", 0)), node):
                content = answer.error if answer.has_error() else answer.content
                replies.append(reply(node, content))
        self.asked.append(asked)
        return replies


def reply(node: int, content: RecordDict | Error) -> Message:
    return compat.reply(content, run=1, node=node, message_id=f"r{node}", reply_to="m", message_type="train")


def model(*values: Any, dtype: Any = np.float32) -> ArrayRecord:
    """Return a model of one array for each argument."""
    return ArrayRecord({f"a{i}": Array(np.asarray(value, dtype)) for i, value in enumerate(values)})


def trained(node: int, arrays: ArrayRecord, examples: float = 1, **metrics: Any) -> Message:
    """Return the reply of a device that trained."""
    return reply(node, RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": examples, **metrics})}))


def aggregated(strategy: Any, sent: ArrayRecord, replies: Iterable[Message], server_round: int = 1) -> Any:
    """Return what a strategy makes of replies to a round's messages."""
    fleet = Fleet(lambda message, context: message, range(1, 101))
    list(strategy.configure_train(server_round, sent, ConfigRecord(), fleet))
    return strategy.aggregate_train(server_round, replies)


def pulled_to(target: dict[int, float], *, lr: float = 0.5, steps: int = 1) -> Client:
    """Return a device that takes steps of gradient descent to a number of its own, with what a method corrects."""
    from fedfleet_strategies import client

    def train(message: Message, context: Context) -> Message:
        metrics = MetricRecord({"num-examples": 1, "train_loss": 1.0})
        if message.metadata.message_type == "evaluate":
            return Message(RecordDict({"metrics": metrics}), reply_to=message)
        arrays: Any = message.content["arrays"]
        now = {name: np.array(array.numpy(), np.float64) for name, array in arrays.items()}
        for _ in range(steps):
            gradient = {name: value - target[context.node_id] for name, value in now.items()}
            gradient = client.correction().applied(gradient, now)
            now = {name: value - lr * gradient[name] for name, value in now.items()}
        client.done(steps=steps, lr=lr)
        made = ArrayRecord({name: Array(value.astype(arrays[name].dtype)) for name, value in now.items()})
        return Message(RecordDict({"arrays": made, "metrics": metrics}), reply_to=message)

    return train
