"""Central privacy: what one device can change, what is drawn, what is told, and when a run ends."""

import math
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from hypothesis import given, settings
from hypothesis import strategies as st

from fedfleet_strategies import robust
from fedfleet_strategies.cohorts import Poisson, Random, RoundRobin
from fedfleet_strategies.errors import Ended, Incompatible
from fedfleet_strategies.fedadam import FedAdam
from fedfleet_strategies.fedavg import FedAvg
from fedfleet_strategies.fednova import FedNova
from fedfleet_strategies.oort import Oort
from fedfleet_strategies.power_of_choice import PowerOfChoice
from fedfleet_strategies.privacy import AdaptivePrivacy, CentralPrivacy, Planned, noise
from fedfleet_strategies.privacy.accountant import Event, Ledger
from fedfleet_strategies.qfedavg import QFedAvg
from fedfleet_strategies.scaffold import Scaffold
from tests.unit.strategies.fleet import Fleet, aggregated, model, trained

KEY = np.arange(32, dtype=np.uint8)


def private(privacy: Any, **options: Any) -> FedAvg:
    return FedAvg(fraction_evaluate=0, privacy=privacy, **options)


def quiet(clip: float = 1.0, **options: Any) -> CentralPrivacy:
    """Return clipping without noise."""
    return CentralPrivacy(0, clip, **options)


def moved(value: Any) -> Any:
    """Return a device that moves the model by `value`."""

    def train(message: Message, context: Any) -> Message:
        arrays: Any = message.content["arrays"]
        return trained(context.node_id, model(arrays["a0"].numpy() + np.asarray(value, np.float32)), 7, train_loss=3.5)

    return train


def test_each_update_is_clipped_and_weighs_one_and_the_planned_cohort_divides() -> None:
    strategy = private(quiet(), fraction_train=0.04)  # 4 of 100 are asked
    replies = [trained(1, model([3.0, 4.0]), 1), trained(2, model([0.3, 0.4]), 1e9)]
    arrays, _ = aggregated(strategy, model([0.0, 0.0]), replies)
    np.testing.assert_allclose(arrays["a0"].numpy(), [(0.6 + 0.3) / 4, (0.8 + 0.4) / 4], rtol=1e-5)


@settings(max_examples=40, deadline=None)
@given(
    others=st.lists(st.lists(st.floats(-1024, 1024, width=32), min_size=3, max_size=3), max_size=5),
    one=st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=3, max_size=3),
    weight=st.floats(0, 1e12),
    clip=st.floats(0.01, 100),
)
def test_one_device_more_changes_the_sum_by_no_more_than_the_norm(
    others: list[list[float]], one: list[float], weight: float, clip: float
) -> None:
    def found(deltas: list[Any]) -> Any:
        replies = [trained(n, model(delta), weight) for n, delta in enumerate(deltas, 1)]
        arrays, _ = aggregated(private(quiet(clip)), model(np.zeros(3)), replies)
        return arrays["a0"].numpy().astype(np.float64) * 100

    apart = np.linalg.norm(found([*others, one]) - found(others))
    assert apart <= clip * (1 + 1e-5) + 1e-6 * (1 + clip * len(others))


def test_integers_stay_as_the_server_has_them() -> None:
    from flwr.app import Array

    def made(f: float, i: int) -> ArrayRecord:
        return ArrayRecord({"f": Array(np.full(2, f, np.float32)), "i": Array(np.array([i]))})

    arrays, _ = aggregated(private(quiet()), made(0, 10), [trained(1, made(1, 99)), trained(2, made(1, 99))])
    assert arrays["i"].numpy().tolist() == [10]


def test_an_update_that_is_not_finite_is_left_out() -> None:
    strategy = private(quiet(), fraction_train=0.02)
    arrays, metrics = aggregated(strategy, model([0.0]), [trained(1, model([np.nan])), trained(2, model([0.5]))])
    assert arrays["a0"].numpy().tolist() == [0.25] and metrics["fedfleet.left-out"] == 1


def test_noise_has_the_deviation_that_was_asked_for_and_the_same_bits_again() -> None:
    strategy = private(CentralPrivacy(2.0, 3.0), fraction_train=0.04)
    arrays, _ = aggregated(strategy, model(np.zeros(200_000)), [trained(1, model(np.zeros(200_000)))])
    values = arrays["a0"].numpy()
    assert values.std() == pytest.approx(2.0 * 3.0 / 4, rel=0.01)
    assert abs(values.mean()) < 5 * 1.5 / math.sqrt(values.size)
    again = private(CentralPrivacy(2.0, 3.0), fraction_train=0.04)
    aggregated(again, model(np.zeros(200_000)), [trained(1, model(np.zeros(200_000)))])
    key, ledger = strategy.s["privacy.key"], again.s["privacy.ledger"]
    assert not np.array_equal(key, again.s["privacy.key"])
    again.s |= {"privacy.key": key, "privacy.ledger": ledger}
    found, _ = aggregated(again, model(np.zeros(200_000)), [trained(1, model(np.zeros(200_000)))])
    assert np.array_equal(found["a0"].numpy(), values)


def test_normal_values_are_normal_and_of_their_own_for_each_round_purpose_and_segment() -> None:
    values = noise.standard(KEY, "updates", 3, 0, 1 << 18)
    assert abs(values.mean()) < 0.01 and values.std() == pytest.approx(1, abs=0.01)
    for limit in (1.0, 2.0, 3.0):
        share = math.erfc(limit / math.sqrt(2))
        assert np.mean(np.abs(values) > limit) == pytest.approx(share, rel=0.1)
    assert abs(np.mean(values**4) - 3) < 0.1
    for other in (("updates", 4, 0), ("count", 3, 0), ("updates", 3, 1)):
        assert abs(np.corrcoef(values, noise.standard(KEY, *other, 1 << 18))[0, 1]) < 0.02
    assert np.array_equal(values[:5], noise.standard(KEY, "updates", 3, 0, 1 << 18)[:5])


def test_what_is_noisy_lies_on_a_grid_that_hides_the_last_bits() -> None:
    vector = np.random.default_rng(0).normal(size=1000)
    noise.add_gaussian(vector, 0.7, KEY, "updates", 1)
    assert np.array_equal(vector, np.rint(vector * 2**17) / 2**17)


def test_a_key_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        noise.standard(KEY[:16], "updates", 1, 0, 4)


def test_cohorts_are_drawn_from_the_secret_and_not_from_the_seed() -> None:
    def asked(strategy: FedAvg) -> list[int]:
        fleet = Fleet(moved(0.0), range(1, 101))
        sent = strategy.configure_train(1, model([0.0]), ConfigRecord(), fleet)
        return [message.metadata.dst_node_id for message in sent]

    assert asked(FedAvg(fraction_train=0.2)) == asked(FedAvg(fraction_train=0.2))
    first = private(quiet(), fraction_train=0.2)
    assert asked(first) == asked(first)
    assert asked(first) != asked(private(quiet(), fraction_train=0.2))


@pytest.mark.parametrize(
    ("cohort", "accounting", "event"),
    [
        (Poisson(), None, Event("poisson", 1.5, 0.1)),
        (Random(), None, Event("fixed", 0.75, 0.1)),  # one device in the place of another changes twice as much
        (RoundRobin(), None, Event("all", 1.5)),
        (Random(), "all", Event("all", 1.5)),
    ],
)
def test_the_ledger_enters_each_round_as_the_cohort_was_drawn(cohort: Any, accounting: Any, event: Event) -> None:
    strategy = private(CentralPrivacy(1.5, 1.0, accounting=accounting), fraction_train=0.1, cohort=cohort)
    for number in (1, 2):
        _, metrics = aggregated(strategy, model([0.0]), [trained(1, model([1.0]))], number)
        assert strategy.s["privacy.ledger"] == [[event.sampling, event.sigma, event.q, number]]
        assert metrics["fedfleet.epsilon"] == pytest.approx(Ledger([event] * number).epsilon(1e-5))
    again = private(CentralPrivacy(1.5, 1.0, accounting=accounting), fraction_train=0.1, cohort=cohort)
    again.restore(strategy.state())
    assert again.s["privacy.ledger"] == strategy.s["privacy.ledger"]
    assert np.array_equal(again.s["privacy.key"], strategy.s["privacy.key"])


def test_a_run_ends_before_the_round_that_would_exceed_its_budget_with_what_it_has(caplog: Any) -> None:
    seen: list[int] = []

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        seen.append(server_round)
        return MetricRecord({"x": float(arrays["a0"].numpy()[0])})

    privacy = CentralPrivacy(1.0, 1.0, epsilon=9.0)
    fleet = Fleet(moved(1.0), range(1, 101))
    with caplog.at_level("INFO", "flwr"):
        strategy = private(privacy, fraction_train=0.1, cohort=Poisson())
        result = strategy.start(fleet, model([0.0]), num_rounds=500, evaluate_fn=evaluate)
    rounds = len(result.train_metrics_clientapp)
    event = Event("poisson", 1.0, 0.1)
    assert Ledger([event] * rounds).epsilon(1e-5) <= 9.0 < Ledger([event] * (rounds + 1)).epsilon(1e-5)
    assert seen == list(range(rounds + 1)) == list(result.evaluate_metrics_serverapp)
    assert result.arrays["a0"].numpy()[0] == result.evaluate_metrics_serverapp[rounds]["x"]
    assert f"round {rounds + 1} would bring epsilon to" in caplog.text
    assert "the budget is 9" in caplog.text


def test_the_refused_round_asks_nobody() -> None:
    strategy = private(CentralPrivacy(0.5, 1.0, epsilon=0.1))
    with pytest.raises(Ended, match="round 1 would bring"):
        strategy.configure_train(1, model([0.0]), ConfigRecord(), Fleet(moved(0.0)))


def test_a_round_that_nobody_replied_to_is_noise_alone() -> None:
    strategy = private(CentralPrivacy(1.0, 1.0), fraction_train=0.1)
    arrays, metrics = aggregated(strategy, model(np.zeros(10_000)), [])
    assert arrays["a0"].numpy().std() == pytest.approx(0.1, rel=0.1)
    assert metrics["fedfleet.epsilon"] > 0


def test_metrics_of_devices_are_not_told_and_nobody_is_asked_to_evaluate() -> None:
    strategy = FedAvg(privacy=quiet())
    fleet = Fleet(moved(0.5), range(1, 5))
    result = strategy.start(fleet, model([0.0]), num_rounds=1)
    assert dict(result.train_metrics_clientapp[1]) == {"fedfleet.clip": 1.0}
    assert not result.evaluate_metrics_clientapp and fleet.asked[1] == []


def test_the_adaptive_norm_finds_the_quantile() -> None:
    norms = np.arange(1, 101) / 10
    strategy = private(AdaptivePrivacy(0.01, 0.1, quantile=0.8, learning_rate=1.0, count_noise=0.5))
    for number in range(1, 61):
        aggregated(strategy, model([0.0]), [trained(n, model([norm])) for n, norm in enumerate(norms, 1)], number)
    assert strategy.s["privacy.clip"] == pytest.approx(8.0, rel=0.05)


def test_the_adaptive_norm_splits_the_noise_between_sum_and_count() -> None:
    privacy = AdaptivePrivacy(1.0, 1.0)
    for n, s in ((1000, 50.0), (40, 2.0), (4, 1.0)):
        planned = Planned(1, n, 10_000, "poisson")
        z = privacy.on_updates(planned)
        assert z == pytest.approx((1.0 - (2 * s) ** -2) ** -0.5)
        assert privacy.event(planned).sigma == 1.0


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda p: FedAvg(privacy=p, rule=robust.Median()), "needs a rule that sums"),
        (lambda p: QFedAvg(client_learning_rate=0.1, privacy=p), "weight 1"),
        (lambda p: Scaffold(privacy=p), "does not clip c"),
        (lambda p: FedNova(privacy=p), "does not clip steps"),
        (lambda p: FedAvg(privacy=p, cohort=Oort()), r"Oort\(statistical=False\) does not"),
        (lambda p: FedAvg(privacy=p, cohort=PowerOfChoice(20)), "looks at losses"),
        (lambda p: FedAvg(privacy=p, train_metrics_aggr_fn=lambda r, k: MetricRecord()), "train_metrics_aggr_fn"),
        (lambda p: FedAvg(privacy=CentralPrivacy(1, 1, accounting="poisson")), "Random is fixed"),
        (lambda p: FedAvg(privacy=CentralPrivacy(1, 1, accounting="fixed"), cohort=Poisson()), "Poisson is poisson"),
        (lambda p: CentralPrivacy(-1, 0, epsilon=0, delta=1), "noise_multiplier.*clipping_norm.*epsilon.*delta"),
        (lambda p: AdaptivePrivacy(0), "above 0 where the clip adapts"),
        (lambda p: AdaptivePrivacy(1, quantile=2), "quantile is 2"),
        (lambda p: AdaptivePrivacy(1, count_noise=0.5), "costs more than the round"),
    ],
)
def test_what_takes_the_bound_away_is_refused_before_the_run(make: Any, match: str) -> None:
    with pytest.raises(Incompatible, match=match):
        make(quiet())


def test_oort_without_losses_and_methods_of_the_server_go_together_with_privacy() -> None:
    FedAvg(privacy=quiet(), cohort=Oort(statistical=False))
    arrays, _ = aggregated(FedAdam(privacy=quiet(), eta=0.1), model([0.0]), [trained(1, model([9.0]))])
    assert 0 < arrays["a0"].numpy()[0] <= 0.1 / 1e-3
