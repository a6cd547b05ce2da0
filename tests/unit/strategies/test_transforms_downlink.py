"""Models as differences to what devices have: what travels, and what happens to devices that lack some."""

import itertools
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict

from fedfleet_strategies import client
from fedfleet_strategies.asynchronous.fedbuff import FedBuff
from fedfleet_strategies.errors import Incompatible
from fedfleet_strategies.fedavg import FedAvg
from fedfleet_strategies.fedavgm import FedAvgM
from fedfleet_strategies.personal import FedBN
from fedfleet_strategies.strategy import Strategy
from fedfleet_strategies.transforms.downlink import RECORD, Downlink
from tests.unit.strategies.fleet import Client, Fleet, model

D = 5000
GOALS = np.random.default_rng(3).normal(size=(6, D)).astype(np.float32)


class Seen(Fleet):
    """A fleet that notes what it was sent: bytes per node and round, and the model each device began with."""

    def __init__(self, app: Client, nodes: Any = range(1, 5), lose: Any = None) -> None:
        super().__init__(self.called, nodes, lose)
        self.app = app
        self.bytes: dict[tuple[int, int], int] = {}
        self.began: dict[tuple[int, int], Any] = {}

    def called(self, message: Message, context: Context) -> Message:
        told: Any = message.content["config"]
        place = int(told["server-round"]), context.node_id
        sent: list[Any] = [record for record in message.content.values() if isinstance(record, ArrayRecord)]
        self.bytes[place] = sum(len(array.data) for record in sent for array in record.values())

        def app(message: Message, context: Context) -> Message:
            arrays: Any = message.content["arrays"]
            self.began[place] = arrays["a0"].numpy()
            return self.app(message, context)

        return client.half(message, context, app)


def to_goal(message: Message, context: Context) -> Message:
    """Go a part of the way to a goal of the device's own."""
    arrays: Any = message.content["arrays"]
    x = arrays["a0"].numpy()
    made = ArrayRecord({name: Array(np.array(array.numpy())) for name, array in arrays.items()})
    goal = GOALS[context.node_id - 1][: x.size].reshape(x.shape)
    made["a0"] = Array((x + 0.1 * (goal - x)).astype(x.dtype))
    if "n" in arrays:
        made["n"] = Array(arrays["n"].numpy() + 1)
    return Message(RecordDict({"arrays": made, "metrics": MetricRecord({"num-examples": 1})}), reply_to=message)


def trained(strategy: Strategy, fleet: Seen, rounds: int, start: ArrayRecord | None = None) -> Any:
    return strategy.start(fleet, model(np.zeros(D)) if start is None else start, num_rounds=rounds).arrays


def test_after_the_first_download_an_eighth_of_the_bytes_leads_to_the_same_model() -> None:
    fleet = Seen(to_goal)
    strategy = FedAvg(downlink="rotated-4", uplink="rotated-4", fraction_evaluate=0)
    found = trained(strategy, fleet, 80)["a0"].numpy()
    wanted = GOALS[:4].mean(axis=0)
    assert np.linalg.norm(found - wanted) < 0.06 * np.linalg.norm(wanted)
    assert min(fleet.bytes[1, node] for node in fleet.nodes) >= 4 * D
    later = [size for (number, _), size in fleet.bytes.items() if number > 1]
    assert max(later) / (4 * D) < 0.17  # 0.13 of a large model; headers are the rest


def test_all_devices_begin_a_round_with_the_same_bits_which_are_the_servers() -> None:
    fleet = Seen(to_goal)
    strategy = FedAvgM(downlink="int8", fraction_evaluate=0)
    trained(strategy, fleet, 5)
    for number in range(1, 6):
        for node in (2, 3, 4):
            assert np.array_equal(fleet.began[number, 1], fleet.began[number, node])
    assert np.array_equal(fleet.began[5, 1], strategy.s["downlink.x"])


def test_what_a_code_leaves_out_is_in_the_next_one() -> None:
    def stay(message: Message, context: Context) -> Message:
        arrays: Any = message.content["arrays"]
        made = ArrayRecord({"a0": Array(np.array(arrays["a0"].numpy()))})
        return Message(RecordDict({"arrays": made, "metrics": MetricRecord({"num-examples": 1})}), reply_to=message)

    fleet, strategy = Seen(stay), FedAvg(downlink="rotated-2", fraction_evaluate=0)
    x = model(np.zeros(D))
    fleet.send_and_receive(strategy.configure_train(1, x, ConfigRecord(), fleet))
    strategy.aggregate_train(1, [])
    goal = GOALS[0]
    apart = []
    for number in range(2, 8):
        replies = fleet.send_and_receive(strategy.configure_train(number, model(goal), ConfigRecord(), fleet))
        strategy.aggregate_train(number, replies)
        apart.append(float(np.linalg.norm(fleet.began[number, 1] - goal)))
    assert all(later < 0.5 * earlier for earlier, later in itertools.pairwise(apart))


def test_a_device_that_missed_rounds_gets_all_it_lacks_and_one_that_missed_more_the_whole() -> None:
    fleet, strategy = Seen(to_goal), FedAvg(downlink=Downlink("rotated-4", history=3), fraction_evaluate=0)
    x = model(np.zeros(D))
    cohorts = {1: [1, 2, 3, 4], 2: [1], 3: [1, 2], 4: [1], 5: [1], 6: [1, 2, 3, 4]}

    class Listed:
        sampling, reads = "adaptive", frozenset[str]()

        def choose(self, ids: Any, n: int, table: Any, server_round: int, rng: Any) -> Any:
            return np.array(cohorts[server_round], np.uint64)

    strategy = FedAvg(
        downlink=Downlink("rotated-4", history=3),
        fraction_evaluate=0,
        cohort=Listed(),  # type: ignore[arg-type]
    )
    for number in range(1, 7):
        replies = fleet.send_and_receive(strategy.configure_train(number, x, ConfigRecord(), fleet))
        x, _ = strategy.aggregate_train(number, replies)  # type: ignore[assignment]
    one = fleet.bytes[2, 1]
    assert fleet.bytes[3, 2] == pytest.approx(2 * one, rel=0.2)
    assert fleet.bytes[6, 2] == pytest.approx(3 * one, rel=0.2)
    assert fleet.bytes[6, 3] >= 4 * D
    assert all(np.array_equal(fleet.began[6, 1], fleet.began[6, node]) for node in (2, 3, 4))


def test_a_device_whose_reply_was_lost_gets_the_whole_model() -> None:
    fleet = Seen(to_goal, lose=lambda number, node: (number, node) == (2, 3))
    trained(FedAvg(downlink="rotated-4", fraction_evaluate=0), fleet, 4)
    assert fleet.bytes[3, 3] >= 4 * D > 4 * fleet.bytes[3, 1]
    assert fleet.bytes[4, 3] == fleet.bytes[4, 1]


def test_a_device_that_lost_its_state_fails_once_and_gets_the_whole_model() -> None:
    fleet, strategy, x = Seen(to_goal), FedAvg(downlink="rotated-4", fraction_evaluate=0), model(np.zeros(D))
    for number in range(1, 5):
        if number == 3:
            fleet.contexts[2].state.clear()
        replies = fleet.send_and_receive(strategy.configure_train(number, x, ConfigRecord(), fleet))
        x, _ = strategy.aggregate_train(number, replies)  # type: ignore[assignment]
    assert "has the model of round 0" in strategy.explain(3)[2]
    assert not strategy.explain(4) and fleet.bytes[4, 2] >= 4 * D


def test_integers_and_arrays_that_stay_come_down_too() -> None:
    fleet = Seen(to_goal)
    start = ArrayRecord({**model(np.zeros((50, 100))), "n": Array(np.array([7])), "bn": Array(np.ones(3, np.float32))})
    found = trained(FedBN(local=("bn",), downlink="int8", fraction_evaluate=0), fleet, 4, start)
    assert found["a0"].numpy().shape == (50, 100)
    assert found["n"].numpy().tolist() == [11] and found["bn"].numpy().tolist() == [1, 1, 1]


def test_a_strategy_restored_in_the_middle_sends_the_same() -> None:
    def make() -> FedAvg:
        return FedAvg(downlink=Downlink("rotated-3", history=2), fraction_evaluate=0, fraction_train=0.5)

    fleet, strategy, x = Seen(to_goal, range(1, 7)), make(), model(np.zeros(D))
    saved, at_four = strategy.state(), x
    for number in range(1, 7):
        if number == 4:
            saved, at_four = strategy.state(), x
        replies = fleet.send_and_receive(strategy.configure_train(number, x, ConfigRecord(), fleet))
        x, _ = strategy.aggregate_train(number, replies)  # type: ignore[assignment]
    again = make()
    again.restore(saved)
    told = [RecordDict(dict(m.content)) for m in again.configure_train(4, at_four, ConfigRecord(), fleet)]
    first = make()
    first.restore(saved)
    wanted = [RecordDict(dict(m.content)) for m in first.configure_train(4, at_four, ConfigRecord(), fleet)]
    assert told == wanted and any(RECORD in content for content in told)
    assert len([name for name in strategy.s if name.startswith("downlink.")]) == 2 + 2 * 3


def test_a_half_precision_model_travels_whole() -> None:
    fleet = Seen(to_goal)
    trained(FedAvg(downlink="int8", fraction_evaluate=0), fleet, 3, model(np.zeros(D), dtype=np.float16))
    assert min(fleet.bytes.values()) >= 2 * D


def test_an_app_without_the_client_half_gets_the_model() -> None:
    fleet = Fleet(to_goal)
    result = FedAvg(downlink="int8", fraction_evaluate=0).start(fleet, model(np.zeros(D)), num_rounds=3)
    assert result.arrays["a0"].numpy().any()


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: FedAvg(downlink="topk-0.1"), "keeps what it leaves out"),
        (lambda: Downlink("int8", history=0), "history is 0"),
        (lambda: FedBuff(downlink="int8"), "devices are at many"),
    ],
)
def test_what_a_downlink_cannot_do_is_refused_before_the_run(make: Any, match: str) -> None:
    with pytest.raises(Incompatible, match=match):
        make()
