"""Asynchronous strategies in virtual time: what counts how much, who trains, and what a restored one goes on with."""

import heapq
import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord

from fedfleet_flower import compat
from fedfleet_strategies import client, robust
from fedfleet_strategies.asynchronous.fedasync import FedAsync
from fedfleet_strategies.asynchronous.fedbuff import FedBuff
from fedfleet_strategies.errors import AppFault, Incompatible
from fedfleet_strategies.privacy import CentralPrivacy
from fedfleet_strategies.privacy.local import LocalPrivacy
from tests.unit.strategies.fleet import Client, Fleet, model, reply, trained


class Slow(Fleet):
    """A fleet whose devices take their time; whoever waits for a reply turns the clock."""

    def __init__(self, client: Client, seconds: dict[int, float], fails: Iterable[tuple[int, int]] = ()) -> None:
        super().__init__(client, seconds)
        self.seconds, self.fails = seconds, set(fails)
        self.now, self.count = 0.0, 0
        self.running: list[tuple[float, str, Message]] = []
        self.most = 0
        self.pushed: list[tuple[int, int]] = []

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        ids = []
        for message in messages:
            node, self.count = message.metadata.dst_node_id, self.count + 1
            told: Any = message.content["config"]
            number = int(told["server-round"])
            self.pushed.append((number, node))
            call = compat.instruction(
                message.content, run=1, node=node, message_id=str(self.count), message_type="train"
            )
            found = self.client(call, self.contexts[node])
            content = found.error if found.has_error() else found.content
            if (number, node) in self.fails:
                content = Error(1, "gone")
            heapq.heappush(self.running, (self.now + self.seconds[node], str(self.count), reply(node, content)))
            ids.append(str(self.count))
        assert len({message.metadata.src_node_id for *_, message in self.running}) == len(self.running)
        self.most = max(self.most, len(self.running))
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        wanted = set(message_ids)
        assert wanted == {message_id for _, message_id, _ in self.running}
        self.now, found = self.running[0][0], []
        while self.running and self.running[0][0] <= self.now:
            found.append(heapq.heappop(self.running)[2])
        return found


def mover(by: dict[int, float]) -> Client:
    """Return devices that each move the model by a number of their own."""

    def train(message: Message, context: Context) -> Message:
        arrays: Any = message.content["arrays"]
        return trained(context.node_id, model(arrays["a0"].numpy() + np.float32(by[context.node_id])), 7)

    def half(message: Message, context: Context) -> Message:
        return client.half(message, context, train)

    return half


def versions(strategy: Any, fleet: Fleet, rounds: int, start: float = 0.0) -> list[float]:
    """Return the model after each version."""
    x, found = model([start], dtype=np.float64), []
    for number in range(1, rounds + 1):
        list(strategy.configure_train(number, x, ConfigRecord(), fleet))
        arrays, _ = strategy.aggregate_train(number, [])
        x = x if arrays is None else arrays
        found.append(float(x["a0"].numpy()[0]))
    return found


def test_fedbuff_follows_its_equation() -> None:
    # Devices 1 and 2 take 2 seconds, 3 takes 3, 4 takes 7; the buffer holds two.
    fleet = Slow(mover({1: 1.0, 2: 2.0, 3: 4.0, 4: 8.0}), {1: 2, 2: 2, 3: 3, 4: 7})
    strategy = FedBuff(buffer=2, concurrency=4, server_learning_rate=0.5)

    def s(staleness: int) -> float:
        return 1 / math.sqrt(1 + staleness)

    first = 0.5 * (1 + 2) / 2  # at 2: devices 1 and 2
    # at 3: device 3, made for version 1 and now one version old; at 4: devices 1 and 2 together
    second = first + 0.5 * (4 * s(1) + 1 + 2) / 3
    # at 6: devices 1 and 2, which were asked at 4, and device 3, which was asked at 4, too, comes at 7
    third = second + 0.5 * (1 + 2) / 2
    # at 7: device 3, asked for version 3, and device 4, asked for version 1
    fourth = third + 0.5 * (4 * s(1) + 8 * s(3)) / 2
    np.testing.assert_allclose(versions(strategy, fleet, 4), [first, second, third, fourth], rtol=1e-6)
    assert fleet.now == 7


def test_fedasync_mixes_models_one_after_the_other() -> None:
    fleet = Slow(mover({1: 1.0, 2: 2.0, 3: 10.0}), {1: 2, 2: 2, 3: 3})
    strategy = FedAsync(concurrency=3, alpha=0.5, exponent=1.0)
    first = 0.5 * (0.5 * 0 + 0.5 * 1.0) + 0.5 * 2.0
    second = 0.75 * first + 0.25 * 10.0  # made for version 1: y is 10, its share 0.5 / 2
    np.testing.assert_allclose(versions(strategy, fleet, 2), [first, second], rtol=1e-6)


def test_no_more_devices_train_than_concurrency_says_and_none_twice_at_a_time() -> None:
    seconds = {node: 1.0 + node % 5 for node in range(1, 41)}
    fleet = Slow(mover(dict.fromkeys(seconds, 1.0)), seconds)
    versions(FedBuff(buffer=4, concurrency=12, seed=3), fleet, 20)
    assert fleet.most == 12 and len(fleet.running) <= 12
    assert len(set(fleet.pushed)) == len(fleet.pushed)


def test_slow_devices_do_not_hold_fast_ones_up() -> None:
    seconds = dict.fromkeys(range(1, 9), 1.0) | dict.fromkeys(range(9, 17), 4.0)
    fleet = Slow(mover(dict.fromkeys(seconds, 1.0)), seconds)
    strategy = FedBuff(buffer=1, concurrency=16)
    versions(strategy, fleet, 41)
    # In 4 seconds a fast device replies four times and a slow one once: 40 updates, where rounds would give 16.
    updates = len(fleet.pushed) - len(fleet.running)
    assert updates / fleet.now == pytest.approx(10, rel=0.1)


def test_a_failed_device_gives_its_place_to_another_and_is_told_apart() -> None:
    fleet = Slow(mover(dict.fromkeys(range(1, 6), 1.0)), dict.fromkeys(range(1, 6), 1.0), fails={(1, 1), (1, 2)})
    strategy = FedBuff(buffer=4, concurrency=4, seed=1)
    versions(strategy, fleet, 1)
    failed = {node for number, node in fleet.pushed if (number, node) in fleet.fails}
    assert set(strategy.explain(1)) == failed
    assert len(fleet.pushed) == 5


def test_a_version_makes_do_with_what_it_has_if_nobody_is_left() -> None:
    fleet = Slow(mover({1: 1.0, 2: 3.0}), {1: 1, 2: 1}, fails={(2, 1), (2, 2)})
    strategy = FedBuff(buffer=10, concurrency=10)
    assert versions(strategy, fleet, 3) == [2.0, 2.0, 4.0]
    assert "no result" in strategy.explain(2)[0]


def test_flowers_own_start_runs_it_to_the_end_and_tells_the_staleness() -> None:
    seen: list[int] = []

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        seen.append(server_round)
        return MetricRecord({"x": float(arrays["a0"].numpy()[0])})

    fleet = Slow(mover({1: 1.0, 2: 1.0, 3: 1.0}), {1: 1, 2: 1, 3: 2.5})
    result = FedBuff(buffer=2, concurrency=3).start(fleet, model([0.0]), num_rounds=4, evaluate_fn=evaluate)
    assert seen == [0, 1, 2, 3, 4]
    told = [record["fedfleet.staleness"] for record in result.train_metrics_clientapp.values()]
    assert told == pytest.approx([0, 0, 2 / 3, 0])


def test_a_strategy_that_is_restored_goes_on_with_the_tasks_that_are_open() -> None:
    def make() -> tuple[FedBuff, Slow]:
        seconds = {node: 1.0 + node % 3 for node in range(1, 9)}
        return FedBuff(buffer=2, concurrency=6, seed=5), Slow(mover({n: float(n) for n in seconds}), seconds)

    strategy, fleet = make()
    whole = versions(strategy, fleet, 8)
    strategy, fleet = make()
    half = versions(strategy, fleet, 4)
    again, _ = make()
    again.restore(strategy.state())
    x = model([half[-1]], dtype=np.float64)
    for number in range(5, 9):
        list(again.configure_train(number, x, ConfigRecord(), fleet))
        x, _ = again.aggregate_train(number, [])  # type: ignore[assignment]
    assert float(x["a0"].numpy()[0]) == whole[-1]


def test_what_top_k_keeps_holds_though_replies_are_used_in_a_later_version() -> None:
    def train(message: Message, context: Context) -> Message:
        arrays: Any = message.content["arrays"]
        went[context.node_id] = went.get(context.node_id, 0.0) + MOVES
        return trained(context.node_id, model(arrays["a0"].numpy() + MOVES))

    went: dict[int, Any] = {}
    fleet = Slow(lambda message, context: client.half(message, context, train), {1: 1.0, 2: 2.5, 3: 4.0})
    strategy = FedBuff(buffer=1, concurrency=3, uplink="topk-0.25", exponent=0.0)
    x = model(np.zeros(8), dtype=np.float64)
    came = np.zeros(8)
    for number in range(1, 13):
        list(strategy.configure_train(number, x, ConfigRecord(), fleet))
        arrays, _ = strategy.aggregate_train(number, [])
        assert arrays is not None
        used = sum(1 for node in fleet.nodes if strategy._staleness.get(node) is not None)
        came += (arrays["a0"].numpy() - x["a0"].numpy()) * used
        x = arrays
    running = {message.metadata.src_node_id: message for *_, message in fleet.running}
    kept = np.zeros(8)
    for node in fleet.nodes:
        accepted = int(strategy.table.look("folded", np.array([node], np.uint64))[0])
        memory = client.settled(dict(fleet.contexts[node].state), "encode", accepted)
        kept += memory.get("rest", 0.0)
        if node in running:  # it trained, and its reply is on its way
            went[node] = went[node] - MOVES
    np.testing.assert_allclose(came + kept, sum(went.values()), atol=1e-6)


MOVES = np.array([8, 1, 2, 3, 4, 5, 6, 7], np.float32)


def test_versions_count_for_local_privacy_and_a_spent_budget_ends_the_run() -> None:
    spent = LocalPrivacy(4.0, 1.0).spent(3)
    strategy = FedBuff(buffer=2, concurrency=2, privacy=LocalPrivacy(4.0, 1.0, epsilon=spent * 1.01))
    result = strategy.start(Slow(mover({1: 1.0, 2: 1.0}), {1: 1, 2: 1}), model([0.0]), num_rounds=9)
    told = [record["fedfleet.epsilon"] for record in result.train_metrics_clientapp.values()]
    assert len(told) == 3 and told[-1] == pytest.approx(spent)


def test_an_app_without_the_client_half_is_told_so() -> None:
    fleet = Slow(lambda message, context: trained(context.node_id, model([1.0])), {1: 1.0, 2: 1.0})
    with pytest.raises(AppFault, match=r"client\.half"):
        versions(FedBuff(buffer=2, concurrency=2), fleet, 1)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: FedBuff(buffer=0, concurrency=0), "buffer is 0.*concurrency is 0"),
        (lambda: FedBuff(uplink=None), "old models"),
        (lambda: FedBuff(rule=robust.Median()), "versions are mixed"),
        (lambda: FedBuff(privacy=CentralPrivacy(1, 1)), "reply when they can"),
        (lambda: FedAsync(alpha=0), "alpha is 0"),
        (lambda: FedAsync(uplink="int8"), "mixes models"),
    ],
)
def test_what_does_not_go_with_waiting_for_nobody_is_refused(make: Any, match: str) -> None:
    with pytest.raises(Incompatible, match=match):
        make()
