"""Local privacy: what leaves a device is clipped, noisy and nothing else."""

import math
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict

from fedfleet_strategies import client
from fedfleet_strategies.errors import Incompatible
from fedfleet_strategies.fedavg import FedAvg
from fedfleet_strategies.privacy.accountant import Event, Ledger
from fedfleet_strategies.privacy.local import LocalPrivacy, mod, protected
from fedfleet_strategies.scaffold import Scaffold
from tests.unit.strategies.fleet import Client, Fleet, model

D = 20_000


def mover(by: float) -> Client:
    """Return a device that moves every value by `by` and says much about itself."""

    def train(message: Message, context: Context) -> Message:
        arrays: Any = message.content["arrays"]
        made = ArrayRecord({name: model(array.numpy() + np.float32(by))["a0"] for name, array in arrays.items()})
        told = MetricRecord({"num-examples": 1234 + context.node_id, "train_loss": 0.25})
        return Message(RecordDict({"arrays": made, "metrics": told}), reply_to=message)

    return train


def halved(app: Client, seen: list[Message]) -> Client:
    def call(message: Message, context: Context) -> Message:
        seen.append(client.half(message, context, app))
        return seen[-1]

    return call


def test_what_leaves_a_device_is_clipped_and_noisy_and_tells_nothing_else() -> None:
    seen: list[Message] = []
    strategy = FedAvg(fraction_evaluate=0, privacy=LocalPrivacy(2.0, 3.0))
    result = strategy.start(Fleet(halved(mover(5.0), seen)), model(np.zeros(D)), num_rounds=1)
    contents: list[Any] = [reply.content for reply in seen]
    updates = [content["arrays"]["a0"].numpy() for content in contents]
    for update in updates:
        # A clipped update of norm 3 has 3 / sqrt(D) in each value; what else is there is noise of 2 times 3.
        assert update.std() == pytest.approx(6.0, rel=0.03) and abs(update.mean()) < 0.3
    assert abs(np.corrcoef(updates[0], updates[1])[0, 1]) < 0.05
    for content in contents:
        assert dict(content["metrics"]) == {"num-examples": 1}
        assert list(content["fedfleet"]) == ["seconds"]
    np.testing.assert_allclose(result.arrays["a0"].numpy(), np.mean(updates, axis=0), atol=1e-5)
    metrics = dict(result.train_metrics_clientapp[1])
    assert metrics == {"fedfleet.epsilon": pytest.approx(Ledger([Event("all", 1.0)]).epsilon(1e-5))}


def test_a_run_ends_before_a_device_has_spent_its_budget() -> None:
    spent = Ledger([Event("all", 2.0, 1.0, 3)]).epsilon(1e-5)
    strategy = FedAvg(fraction_evaluate=0, privacy=LocalPrivacy(4.0, 1.0, epsilon=spent * 1.01))
    result = strategy.start(Fleet(halved(mover(1.0), [])), model([0.0]), num_rounds=9)
    assert list(result.train_metrics_clientapp) == [1, 2, 3]


def test_a_device_may_protect_itself_with_a_mod_whatever_the_server_runs() -> None:
    protect, app = mod(2.0, 3.0), mover(5.0)
    fleet = Fleet(lambda message, context: protect(message, context, app))
    result = FedAvg(fraction_evaluate=0).start(fleet, model(np.zeros(D)), num_rounds=1)
    assert result.arrays["a0"].numpy().std() == pytest.approx(6.0 / math.sqrt(4), rel=0.03)
    assert not dict(result.train_metrics_clientapp[1])


def test_the_mod_answers_no_evaluation() -> None:
    protect = mod(2.0, 3.0)
    fleet = Fleet(lambda message, context: protect(message, context, mover(5.0)))
    with pytest.raises(ValueError, match="only trains"):
        FedAvg().start(fleet, model([0.0]), num_rounds=1)


def test_without_noise_the_update_is_clipped_to_its_norm() -> None:
    np.testing.assert_allclose(protected(np.array([3.0, 4.0]), 0.0, 1.0), [0.6, 0.8], rtol=1e-5)
    assert protected(np.array([0.3, 0.4]), 0.0, 1.0).tolist() == [0.3, 0.4]


def test_two_protections_of_one_update_have_noise_of_their_own() -> None:
    delta = np.zeros(1000)
    assert abs(np.corrcoef(protected(delta, 1.0, 1.0), protected(delta, 1.0, 1.0))[0, 1]) < 0.2
    assert not delta.any()


def test_what_is_not_finite_is_not_sent() -> None:
    with pytest.raises(ValueError, match="NaN"):
        protected(np.array([1.0, np.nan]), 1.0, 1.0)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: FedAvg(privacy=LocalPrivacy(1, 1)), "fraction_evaluate=0"),
        (lambda: Scaffold(fraction_evaluate=0, privacy=LocalPrivacy(1, 1)), "does not cover c"),
        (lambda: LocalPrivacy(-1, 1), "noise_multiplier is -1"),
        (lambda: LocalPrivacy(1, 1, delta=0), "delta is 0"),
        (lambda: mod(1, 0), "clipping_norm 0"),
    ],
)
def test_what_leaves_a_device_without_noise_is_refused_before_the_run(make: Any, match: str) -> None:
    with pytest.raises(Incompatible, match=match):
        make()
