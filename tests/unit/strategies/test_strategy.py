"""A round from end to end: who is asked, what is folded, who is left out and why, what survives."""

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg as StockFedAvg

from fedfleet_strategies.errors import AppFault, Incompatible
from fedfleet_strategies.fedadam import FedAdam
from fedfleet_strategies.fedavg import FedAvg
from fedfleet_strategies.fedavgm import FedAvgM
from tests.unit.strategies.fleet import Fleet, aggregated, model, reply, trained


def step_by_one(message: Message, context: Any) -> Message:
    arrays: Any = message.content["arrays"]
    moved = ArrayRecord({name: Array(array.numpy() + 1) for name, array in arrays.items()})
    metrics = MetricRecord({"num-examples": context.node_id, "loss": float(context.node_id)})
    if message.metadata.message_type == "evaluate":
        return Message(RecordDict({"metrics": metrics}), reply_to=message)
    return Message(RecordDict({"arrays": moved, "metrics": metrics}), reply_to=message)


def test_models_average_by_examples_as_flowers_own_fedavg_does() -> None:
    sent = model([0.0, 0.0], [[5.0]])
    replies = [trained(1, model([1, 2], [[3]]), 1, loss=2.0), trained(2, model([5, 6], [[7]]), 3, loss=4.0)]
    arrays, metrics = aggregated(FedAvg(), sent, replies)
    stock, stock_metrics = StockFedAvg().aggregate_train(1, replies)
    assert stock is not None and stock_metrics is not None
    for name in sent:
        np.testing.assert_allclose(arrays[name].numpy(), stock[name].numpy())
    assert dict(metrics) == dict(stock_metrics) == {"loss": 3.5}


def test_replies_are_folded_in_the_order_of_node_ids() -> None:
    replies = [trained(n, model([1 / n]), n) for n in range(1, 9)]
    found = {float(aggregated(FedAvg(), model([0.3]), list(order))[0]["a0"].numpy()[0])
             for order in itertools.islice(itertools.permutations(replies), 0, 40_000, 4_000)}  # fmt: skip
    assert len(found) == 1


def test_flowers_own_loop_trains() -> None:
    result = FedAvg().start(Fleet(step_by_one), model([0.0]), num_rounds=3)
    assert result.arrays["a0"].numpy().tolist() == [3.0]
    assert result.evaluate_metrics_clientapp[3]["loss"] == pytest.approx(3.0)


def test_the_same_seed_asks_the_same_devices_and_the_configuration_is_copied() -> None:
    asked, config = [], ConfigRecord({"lr": 0.1})
    for seed in (1, 1, 2):
        fleet = Fleet(step_by_one, range(1, 51))
        FedAvg(fraction_train=0.2, fraction_evaluate=0.0, seed=seed).start(fleet, model([0.0]), 3, train_config=config)
        asked.append(fleet.asked[::2])
    assert asked[0] == asked[1] != asked[2]
    assert asked[0][0] != asked[0][1] and len(asked[0][0]) == 10
    assert dict(config) == {"lr": 0.1}


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (trained(2, model([np.nan])), "NaN"),
        (trained(2, model([1.0, 2.0])), "shape"),
        (trained(2, model([1.0]), float("nan")), "num-examples is nan"),
        (trained(2, model([1.0]), -1), "at least 0"),
        (reply(2, RecordDict({"arrays": model([1.0])})), "metric records"),
        (reply(2, RecordDict({"arrays": model([1.0]), "m": MetricRecord({"n": 1})})), "weighted_by_key"),
        (reply(2, Error(1, "the battery is empty")), "the battery is empty"),
    ],
)
def test_a_reply_that_cannot_be_used_is_left_out_and_the_round_goes_on(bad: Message, why: str) -> None:
    strategy = FedAvg()
    arrays, metrics = aggregated(strategy, model([0.0]), [trained(1, model([3.0])), bad, trained(3, model([5.0]))])
    assert arrays["a0"].numpy().tolist() == [4.0]
    assert metrics["fedfleet.left-out"] == 1
    assert list(strategy.explain(1)) == [2] and why in strategy.explain(1)[2]


def test_a_device_that_replies_twice_counts_once() -> None:
    replies = [trained(1, model([2.0])), trained(1, model([200.0])), trained(2, model([4.0]))]
    assert aggregated(FedAvg(), model([0.0]), replies)[0]["a0"].numpy().tolist() == [3.0]


@pytest.mark.parametrize("replies", [[], [reply(1, Error(1, "gone"))], [trained(1, model([1.0]), 0)]])
def test_a_round_without_a_result_leaves_the_model_and_says_why(replies: list[Message]) -> None:
    strategy = FedAvg()
    assert aggregated(strategy, model([0.0]), replies) == (None, None)
    assert "round 1 has no result" in strategy.explain(1)[0]


def test_an_app_that_does_the_same_wrong_thing_everywhere_ends_the_run_with_that_text() -> None:
    with pytest.raises(AppFault, match="shape"):
        aggregated(FedAvg(), model([0.0]), [trained(n, model([1.0, 2.0])) for n in (1, 2)])


def test_weights_are_capped_by_a_number_fixed_before_the_run() -> None:
    replies = [trained(1, model([2.0]), 1), trained(2, model([8.0]), 1e9)]
    assert aggregated(FedAvg(max_weight=2), model([0.0]), replies)[0]["a0"].numpy().tolist() == [6.0]


def test_integers_and_zero_dimensions_are_averaged_and_keep_their_types() -> None:
    def made(f: float, i: int) -> ArrayRecord:
        return ArrayRecord({"f": Array(np.asarray(f, np.float32)), "i": Array(np.asarray(i, np.int64))})

    arrays, _ = aggregated(FedAvg(), made(0, 10), [trained(1, made(1, 13)), trained(2, made(2, 14))])
    assert arrays["f"].numpy() == np.float32(1.5) and arrays["f"].shape == ()
    assert arrays["i"].numpy() == 14 and arrays["i"].numpy().dtype == np.int64


def test_a_half_precision_model_moves_by_less_than_its_own_digits() -> None:
    strategy, arrays = FedAvgM(server_learning_rate=1e-4), model([1.0], dtype=np.float16)
    for number in range(1, 101):
        up = model([float(arrays["a0"].numpy()[0]) + 0.25], dtype=np.float16)
        arrays, _ = aggregated(strategy, arrays, [trained(1, up), trained(2, up)], number)
        assert arrays["a0"].numpy().dtype == np.float16
    assert float(arrays["a0"].numpy()[0]) == pytest.approx(1.0025, abs=1e-3)


class _Once:
    """Replies that can be gone through once; asks whether one is let go before the next."""

    def __init__(self, count: int) -> None:
        self.count, self.alive, self.most = count, 0, 0

    def __iter__(self) -> Iterator[Message]:
        import weakref

        for node in range(1, self.count + 1):
            message = trained(node, model(np.ones(1000)))
            self.alive += 1
            self.most = max(self.most, self.alive)
            weakref.finalize(message, self._gone)
            yield message
            del message

    def _gone(self) -> None:
        self.alive -= 1


def test_each_reply_is_let_go_before_the_next_but_one_is_asked_for() -> None:
    replies = _Once(30)
    arrays, _ = aggregated(FedAvg(), model(np.zeros(1000)), replies)
    assert arrays["a0"].numpy().tolist() == [1.0] * 1000 and replies.most <= 2


def test_a_strategy_restored_in_the_middle_ends_with_the_same_bits() -> None:
    def make() -> FedAdam:
        return FedAdam(eta=0.1, fraction_train=0.5, fraction_evaluate=0.0, seed=3)

    fleet, strategy, arrays = Fleet(step_by_one, range(1, 21)), make(), model([0.0, 1.0])
    whole: list[Any] = []
    saved, at_four = strategy.state(), arrays
    for number in range(1, 7):
        if number == 4:
            saved, at_four = strategy.state(), arrays
        messages = strategy.configure_train(number, arrays, ConfigRecord(), fleet)
        arrays, _ = strategy.aggregate_train(number, fleet.send_and_receive(messages))  # type: ignore[assignment]
        whole.append(arrays["a0"].numpy().tolist())
    again = make()
    again.restore(saved)
    arrays = at_four
    for number in range(4, 7):
        messages = again.configure_train(number, arrays, ConfigRecord(), fleet)
        arrays, _ = again.aggregate_train(number, fleet.send_and_receive(messages))  # type: ignore[assignment]
    assert arrays["a0"].numpy().tolist() == whole[-1]
    assert fleet.asked[3:6] == fleet.asked[6:9]


def test_an_attribute_set_after_the_first_round_is_refused_because_no_checkpoint_keeps_it() -> None:
    strategy = FedAvg()
    aggregated(strategy, model([0.0]), [trained(1, model([1.0]))])
    with pytest.raises(AttributeError, match=r"self\.s\['momentum'\]"):
        strategy.momentum = 1


def test_a_constructor_names_every_conflict_at_once() -> None:
    with pytest.raises(Incompatible, match=r"fraction_train is 2.*tau is 0.*beta_1 is 1"):
        FedAdam(fraction_train=2, tau=0, beta_1=1)


def test_a_function_for_metrics_sees_replies_without_their_arrays() -> None:
    def mine(reports: list[RecordDict], key: str) -> MetricRecord:
        assert all(list(one) == ["metrics"] for one in reports) and key == "num-examples"
        return MetricRecord({"reports": len(reports)})

    replies = [trained(n, model([1.0])) for n in (1, 2)]
    assert dict(aggregated(FedAvg(train_metrics_aggr_fn=mine), model([0.0]), replies)[1]) == {"reports": 2}


class Careful(FedAvg):
    """FedAvg by the general way: its step is its own."""

    def step(self, x: Any, aggregate: Any, server_round: int) -> Any:
        return x + aggregate.delta


def test_the_quick_way_of_fedavg_gives_the_bits_of_the_general_one() -> None:
    rng = np.random.default_rng(4)
    sent, *models = [model(rng.normal(size=(300, 7)), rng.normal(size=70_000), rng.normal()) for _ in range(24)]
    replies = [trained(n, one, 10 * n) for n, one in enumerate(models, 1)]
    quick, general = (aggregated(make(), sent, replies)[0] for make in (FedAvg, Careful))
    assert all(quick[name].data == general[name].data for name in sent)


def test_a_sum_that_is_too_large_for_a_float_is_no_result() -> None:
    for make in (FedAvg, Careful):
        strategy, huge = make(), model([3e38])
        assert aggregated(strategy, model([-3e38]), [trained(1, huge), trained(2, huge)]) == (None, None)
        assert "no result" in strategy.explain(1)[0]


def test_a_method_that_keeps_the_model_it_returned_cannot_change_it_later() -> None:
    class Keeping(FedAvg):
        def step(self, x: Any, aggregate: Any, server_round: int) -> Any:
            self.s.setdefault("x", np.zeros_like(x))
            self.s["x"] += aggregate.delta
            return self.s["x"]

    strategy = Keeping()
    first, _ = aggregated(strategy, model([0.0]), [trained(1, model([1.0]))])
    aggregated(strategy, first, [trained(1, model([5.0]))], 2)
    assert first["a0"].numpy().tolist() == [1.0]
