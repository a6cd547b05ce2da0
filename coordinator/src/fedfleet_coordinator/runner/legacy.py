"""Apps written for `server_fn`: Flower's server loop asks each client from a thread of its own, in any order.

Here all clients of a round are one exchange, and their results come in the order of node ids: the same on every run,
so that such an app, too, can run again over the replies it was given before. There is no commit after each round:
Flower's `Server` keeps its state where nobody can put it back.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import flwr.server.server
from flwr.app import Message
from flwr.server.client_proxy import ClientProxy

from fedfleet_coordinator.runner.grid import FleetGrid

Instructions = Sequence[tuple[ClientProxy, Any]]
Outcome = tuple[list[tuple[ClientProxy, Any]], list[Any]]


class _Collected(BaseException):
    """Carries what a client proxy would have sent."""

    def __init__(self, message: Message) -> None:
        super().__init__()
        self.message = message


class _Collector:
    """Stands for a client's Grid while its message is written."""

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        raise _Collected(next(iter(messages)))


class _Given:
    """Stands for a client's Grid while its reply is read."""

    def __init__(self, replies: list[Message]) -> None:
        self._replies = replies

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        return self._replies


@contextlib.contextmanager
def batched(grid: FleetGrid) -> Iterator[None]:
    """Let Flower's server loop use one exchange for all clients of a round, as long as the context lasts."""
    module: Any = flwr.server.server
    stock = module.fit_clients, module.evaluate_clients

    def fit_clients(
        client_instructions: Instructions, max_workers: int | None, timeout: float | None, group_id: int
    ) -> Outcome:
        def ask(client: Any, ins: Any) -> Any:
            return client.fit(ins, timeout=timeout, group_id=group_id)

        return _ask_all(grid, client_instructions, ask, timeout)

    def evaluate_clients(
        client_instructions: Instructions, max_workers: int | None, timeout: float | None, group_id: int
    ) -> Outcome:
        def ask(client: Any, ins: Any) -> Any:
            return client.evaluate(ins, timeout=timeout, group_id=group_id)

        return _ask_all(grid, client_instructions, ask, timeout)

    module.fit_clients, module.evaluate_clients = fit_clients, evaluate_clients
    try:
        yield
    finally:
        module.fit_clients, module.evaluate_clients = stock


def _ask_all(
    grid: FleetGrid, instructions: Instructions, ask: Callable[[Any, Any], Any], timeout: float | None
) -> Outcome:
    ordered = sorted(instructions, key=lambda pair: int(pair[0].cid))
    replies = grid.send_and_receive((_message(client, ins, ask) for client, ins in ordered), timeout=timeout)
    by_node = {reply.metadata.src_node_id: reply for reply in replies}
    results: list[tuple[ClientProxy, Any]] = []
    failures: list[Any] = []
    for client, ins in ordered:
        reply = by_node.get(int(client.cid))
        try:
            with _grid(client, _Given([] if reply is None else [reply])):
                answer = client, ask(client, ins)
        except Exception as error:  # Flower's loop hands failures to the strategy, whatever they are
            failures.append(error)
            continue
        (results if answer[1].status.code.value == 0 else failures).append(answer)
    return results, failures


def _message(client: Any, ins: Any, ask: Callable[[Any, Any], Any]) -> Message:
    with _grid(client, _Collector()):
        try:
            ask(client, ins)
        except _Collected as collected:
            return collected.message
    raise TypeError(f"client {client.cid} sent nothing")


@contextlib.contextmanager
def _grid(client: Any, grid: Any) -> Iterator[None]:
    own = client.grid
    client.grid = grid
    try:
        yield
    finally:
        client.grid = own
