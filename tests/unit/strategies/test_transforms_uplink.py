"""Encoded updates from device to server, through the client half and the strategy."""

from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict

from fedfleet_strategies import client, robust
from fedfleet_strategies.errors import AppFault, Incompatible
from fedfleet_strategies.fedadam import FedAdam
from fedfleet_strategies.fedavg import FedAvg
from fedfleet_strategies.personal import FedBN
from fedfleet_strategies.privacy import CentralPrivacy
from fedfleet_strategies.privacy.local import LocalPrivacy
from fedfleet_strategies.scaffold import Scaffold
from fedfleet_strategies.transforms import Call, named
from fedfleet_strategies.transforms.uplink import RECORD
from tests.unit.strategies.fleet import Client, Fleet, aggregated, model, reply, trained

NAMES = ["plain", "bfloat16", "int8", "rotated-1", "rotated-4", "topk-0.25"]
GOALS = np.random.default_rng(3).normal(size=(4, 3000)).astype(np.float32)


def halved(app: Client, seen: list[Message] | None = None) -> Client:
    def call(message: Message, context: Context) -> Message:
        found = client.half(message, context, app)
        if seen is not None:
            seen.append(found)
        return found

    return call


def to_goal(rate: float = 0.5) -> Client:
    """Return a device that goes part of the way to a goal of its own, and counts in an integer."""

    def train(message: Message, context: Context) -> Message:
        arrays: Any = message.content["arrays"]
        x = arrays["a0"].numpy()
        goal = GOALS[context.node_id - 1][: x.size].reshape(x.shape)
        made = ArrayRecord({"a0": Array((x + rate * (goal - x)).astype(x.dtype))})
        if "n" in arrays:
            made["n"] = Array(arrays["n"].numpy() + context.node_id)
        metrics = MetricRecord({"num-examples": 1})
        content = RecordDict({"metrics": metrics})
        if message.metadata.message_type == "train":
            content["arrays"] = made
        return Message(content, reply_to=message)

    return train


@pytest.mark.parametrize("name", NAMES)
def test_encoded_updates_come_to_the_same_model(name: str) -> None:
    rounds, rate = (120, 0.1) if name.startswith("topk") else (60, 0.1)
    result = FedAvg(uplink=name).start(Fleet(halved(to_goal(rate))), model(np.zeros(3000)), num_rounds=rounds)
    wanted = GOALS.mean(axis=0)
    apart = float(np.linalg.norm(result.arrays["a0"].numpy() - wanted) / np.linalg.norm(wanted))
    # Devices keep pulling to their own goals, and what is lost of that in a code is noise on the mean.
    assert apart < {"rotated-1": 0.3, "topk-0.25": 0.2, "rotated-4": 0.05}.get(name, 0.02)


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_gives_the_same_model(name: str) -> None:
    def found(seed: int) -> Any:
        strategy = FedAvg(uplink=name, seed=seed, fraction_evaluate=0)
        return strategy.start(Fleet(halved(to_goal())), model(np.zeros(100)), num_rounds=2).arrays["a0"].numpy()

    assert np.array_equal(found(1), found(1))
    assert name == "plain" or name.startswith("topk") or not np.array_equal(found(1), found(2))


def test_a_reply_holds_the_code_and_no_model() -> None:
    seen: list[Message] = []
    start = ArrayRecord({**model(np.zeros((50, 60))), "n": Array(np.array([7]))})
    strategy = FedAvg(uplink="rotated-4", fraction_evaluate=0)
    result = strategy.start(Fleet(halved(to_goal(), seen)), start, num_rounds=1)
    contents: list[Any] = [one.content for one in seen]
    for content in contents:
        assert sorted(content) == ["fedfleet", RECORD, "metrics"]
        assert sum(len(array.data) for array in content[RECORD].values()) < 3000 * 4 * 0.21
    assert result.arrays["a0"].numpy().shape == (50, 60)
    assert result.arrays["n"].numpy().tolist() == [10]  # 7 + the mean of 1, 2, 3, 4, to even


def test_double_precision_models_and_methods_of_the_server_take_a_code() -> None:
    strategy = FedAdam(uplink="int8", eta=0.1, fraction_evaluate=0)
    result = strategy.start(Fleet(halved(to_goal())), model(np.zeros(100), dtype=np.float64), num_rounds=2)
    assert result.arrays["a0"].numpy().dtype == np.float64 and result.arrays["a0"].numpy().any()


def test_what_top_k_keeps_survives_on_the_device_and_is_as_before_if_a_reply_was_lost() -> None:
    lost = {(2, 1)}
    fleet = Fleet(halved(to_goal()), nodes=[1, 2], lose=lambda number, node: (number, node) in lost)
    strategy = FedAvg(uplink="topk-0.1", fraction_evaluate=0)
    x, rests = model(np.zeros(100)), {}
    for number in (1, 2, 3):
        before = x["a0"].numpy()
        replies = fleet.send_and_receive(strategy.configure_train(number, x, ConfigRecord(), fleet))
        x, _ = strategy.aggregate_train(number, replies)  # type: ignore[assignment]
        accepted = int(strategy.table.look("folded", np.array([1], np.uint64))[0])
        rests[number] = client.settled(dict(fleet.contexts[1].state), "encode", accepted)["rest"]
        if number == 1:
            update = 0.5 * (GOALS[0][:100] - before)
            assert np.count_nonzero(rests[1]) == 90
            assert set(rests[1][rests[1] != 0].tolist()) <= set(update.astype(np.float32).tolist())
    assert np.array_equal(rests[2], rests[1]) and not np.array_equal(rests[3], rests[1])


def test_arrays_that_stay_on_the_device_are_not_in_the_code() -> None:
    seen: list[Message] = []

    def both(message: Message, context: Context) -> Message:
        arrays: Any = message.content["arrays"]
        made = ArrayRecord({name: Array(array.numpy() + np.float32(1)) for name, array in arrays.items()})
        return Message(RecordDict({"arrays": made, "metrics": MetricRecord({"num-examples": 1})}), reply_to=message)

    strategy = FedBN(local=("a1",), uplink="topk-1.0", fraction_evaluate=0)
    result = strategy.start(Fleet(halved(both, seen)), model(np.zeros(10), np.zeros(5)), num_rounds=2)
    assert result.arrays["a0"].numpy().tolist() == [2.0] * 10 and result.arrays["a1"].numpy().tolist() == [0.0] * 5
    content: Any = seen[-1].content
    assert content[RECORD]["values"].numpy().size == 10


def test_both_kinds_of_privacy_go_together_with_a_code() -> None:
    for privacy in (CentralPrivacy(0, 1.0), LocalPrivacy(0, 1.0)):
        strategy = FedAvg(uplink="int8", privacy=privacy, fraction_evaluate=0)
        result = strategy.start(Fleet(halved(to_goal())), model(np.zeros(3000)), num_rounds=1)
        assert 0 < np.linalg.norm(result.arrays["a0"].numpy()) <= 1.01


def test_scaffold_sends_its_variates_whole_beside_the_code() -> None:
    def steps(message: Message, context: Context) -> Message:
        found = to_goal(0.5)(message, context)
        client.done(steps=5, lr=0.1)
        return found

    strategy = Scaffold(uplink="int8", fraction_evaluate=0)
    result = strategy.start(Fleet(halved(steps)), model(np.zeros(3000)), num_rounds=2)
    assert result.arrays["a0"].numpy().any() and strategy.s["c"].any()


def test_an_app_without_the_client_half_is_told_so() -> None:
    replies = [trained(n, model([1.0])) for n in (1, 2)]
    with pytest.raises(AppFault, match=r"client\.half"):
        aggregated(FedAvg(uplink="int8"), model([0.0]), replies)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_update_that_cannot_be_encoded_is_left_out(value: float) -> None:
    def train(message: Message, context: Context) -> Message:
        moved = [value if context.node_id == 2 else 1.0]
        metrics = MetricRecord({"num-examples": 1})
        return Message(RecordDict({"arrays": model(moved), "metrics": metrics}), reply_to=message)

    strategy = FedAvg(uplink="int8", fraction_evaluate=0)
    result = strategy.start(Fleet(halved(train)), model([0.0]), num_rounds=1)
    assert result.arrays["a0"].numpy().tolist() == [1.0]
    assert "cannot be encoded" in strategy.explain(1)[2]


def test_a_code_of_something_else_is_left_out() -> None:
    def coded(node: int, name: str, ints: Any) -> Message:
        code = named(name).encode(np.ones(4, np.float32), Call(np.random.default_rng(0)))
        arrays = ArrayRecord({key: Array(value) for key, value in code.items()} | {"ints": Array(np.asarray(ints))})
        return reply(node, RecordDict({RECORD: arrays, "metrics": MetricRecord({"num-examples": 1})}))

    strategy = FedAvg(uplink="int8")
    replies = [coded(1, "int8", np.zeros(0)), coded(2, "bfloat16", np.zeros(0)), coded(3, "int8", [np.nan])]
    arrays, metrics = aggregated(strategy, model(np.zeros(4)), replies)
    np.testing.assert_allclose(arrays["a0"].numpy(), 1, rtol=1e-5)
    assert metrics["fedfleet.left-out"] == 2
    assert "code" in strategy.explain(1)[2] and "integers" in strategy.explain(1)[3]


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: FedAvg(uplink="topk-0.1", rule=robust.Median()), "compares updates"),
        (lambda: Scaffold(uplink="topk-0.1"), "sums c with the model"),
        (lambda: FedAvg(uplink="zip"), "no transform 'zip'"),
    ],
)
def test_what_a_biased_code_spoils_is_refused_before_the_run(make: Any, match: str) -> None:
    with pytest.raises(Incompatible, match=match):
        make()


def test_a_robust_rule_takes_an_unbiased_code() -> None:
    strategy = FedAvg(uplink="int8", rule=robust.Median(), fraction_evaluate=0)
    result = strategy.start(Fleet(halved(to_goal())), model(np.zeros(100)), num_rounds=1)
    np.testing.assert_allclose(result.arrays["a0"].numpy(), np.median(GOALS[:, :100], axis=0) / 2, atol=0.03)
