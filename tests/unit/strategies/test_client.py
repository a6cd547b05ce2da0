"""The client half: what methods do on devices, and what they remember when replies are lost."""

import random
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedfleet_strategies import client, torch_steps
from fedfleet_strategies.correction import Correction, lent
from fedfleet_strategies.ditto import Ditto
from fedfleet_strategies.errors import AppFault
from fedfleet_strategies.fedavg import FedAvg
from fedfleet_strategies.feddyn import FedDyn
from fedfleet_strategies.fednova import FedNova
from fedfleet_strategies.fedprox import FedProx
from fedfleet_strategies.perfedavg import PerFedAvg
from fedfleet_strategies.personal import FedBN, FedPer, FedRep
from fedfleet_strategies.pfedme import PFedMe
from fedfleet_strategies.scaffold import Scaffold
from fedfleet_strategies.strategy import Strategy
from tests.unit.strategies.fleet import Client, Fleet, model, pulled_to

TARGETS = {1: 0.0, 2: 1.0, 3: 2.0, 4: 9.0}


def halved(app: Client) -> Client:
    return lambda message, context: client.half(message, context, app)


def stiff(curvature: dict[int, float], *, lr: float = 0.1, steps: int = 5) -> Client:
    """Return a device that minimises curvature/2 |w - target|^2: devices whose optima and curvatures both differ."""

    def train(message: Message, context: Context) -> Message:
        node = context.node_id
        arrays: Any = message.content["arrays"]
        now = {name: np.array(array.numpy(), np.float64) for name, array in arrays.items()}
        for _ in range(steps):
            gradient = {name: curvature[node] * (value - TARGETS[node]) for name, value in now.items()}
            gradient = client.correction().applied(gradient, now)
            now = {name: value - lr * gradient[name] for name, value in now.items()}
        client.done(steps=steps, lr=lr)
        made = ArrayRecord({name: Array(value.astype(arrays[name].numpy().dtype)) for name, value in now.items()})
        metrics = MetricRecord({"num-examples": 1, "w": float(now["a0"][0])})
        records: dict[str, Any] = {"metrics": metrics}
        if message.metadata.message_type == "train":
            records["arrays"] = made
        return Message(RecordDict(records), reply_to=message)

    return train


CURVATURE = {1: 0.2, 2: 1.0, 3: 3.0, 4: 0.5}
OPTIMUM = sum(CURVATURE[n] * TARGETS[n] for n in TARGETS) / sum(CURVATURE.values())


def trained_by(strategy: Strategy, fleet: Fleet, rounds: int, value: float = 5.0) -> float:
    result = strategy.start(fleet, model([value], dtype=np.float64), num_rounds=rounds)
    return float(result.arrays["a0"].numpy()[0])


def test_scaffold_finds_the_fleets_optimum_where_fedavg_drifts() -> None:
    drifted = trained_by(FedAvg(fraction_evaluate=0), Fleet(halved(stiff(CURVATURE))), 200)
    found = trained_by(Scaffold(fraction_evaluate=0), Fleet(halved(stiff(CURVATURE))), 200)
    assert abs(drifted - OPTIMUM) > 0.05
    assert found == pytest.approx(OPTIMUM, abs=1e-6)


def test_scaffolds_c_stays_the_mean_of_all_c_i_when_replies_are_lost() -> None:
    lucky = random.Random(4)
    fleet = Fleet(halved(stiff(CURVATURE)), lose=lambda server_round, node: lucky.random() < 0.3)
    strategy = Scaffold(fraction_train=0.75, fraction_evaluate=0)
    strategy.start(fleet, model([5.0], dtype=np.float64), num_rounds=25)
    own = []
    for node, context in fleet.contexts.items():
        accepted = int(strategy.table.look("folded", np.array([node], np.uint64))[0])
        own.append(client.settled(dict(context.state), "scaffold", accepted)["c"])
    assert np.abs(own).max() > 1 and np.abs(strategy.s["c"]).max() > 1e-5
    np.testing.assert_allclose(np.mean(own, axis=0), strategy.s["c"], atol=1e-8)


def test_feddyn_finds_the_fleets_optimum_also_when_replies_are_lost() -> None:
    lucky = random.Random(4)
    app = halved(stiff(CURVATURE, steps=200))
    fleet = Fleet(app, lose=lambda server_round, node: lucky.random() < 0.3)
    assert trained_by(FedDyn(alpha=0.5, fraction_evaluate=0), fleet, 200) == pytest.approx(OPTIMUM, abs=1e-3)


def test_an_app_that_does_not_say_what_it_did_is_told_by_scaffold() -> None:
    def silent(message: Message, context: Context) -> Message:
        records = {"arrays": message.content["arrays"], "metrics": MetricRecord({"num-examples": 1})}
        return Message(RecordDict(records), reply_to=message)

    strategy = Scaffold(fraction_evaluate=0)
    strategy.start(Fleet(halved(silent)), model([0.0]), num_rounds=1)
    assert "done(steps=..., lr=...)" in strategy.explain(1)[1]


def test_a_run_whose_app_has_no_half_ends_with_a_sentence() -> None:
    with pytest.raises(AppFault, match=r"runs without fedfleet_strategies\.client\.half"):
        Scaffold(fraction_evaluate=0).start(Fleet(pulled_to(TARGETS)), model([0.0]), num_rounds=1)


def test_a_message_of_another_strategy_passes_untouched() -> None:
    seen: list[Any] = []

    def app(message: Message, context: Context) -> Message:
        seen.append((dict(message.content), dict(context.state)))
        return pulled_to(TARGETS)(message, context)

    FedAvg(fraction_evaluate=0).start(Fleet(halved(app)), model([0.0]), num_rounds=1)
    assert all(list(content) == ["arrays", "config"] and not state for content, state in seen)


def test_the_app_sees_neither_our_records_nor_our_memory_and_keeps_its_own() -> None:
    def app(message: Message, context: Context) -> Message:
        assert list(message.content) == ["arrays", "config"]
        times: Any = context.state.get("mine", {"times": 0})
        assert not [name for name in context.state if name.startswith("fedfleet")]
        context.state["mine"] = ConfigRecord({"times": times["times"] + 1})
        return pulled_to(TARGETS)(message, context)

    fleet = Fleet(halved(halved(app)))
    Scaffold(fraction_evaluate=0).start(fleet, model([0.0]), num_rounds=3)
    assert all(context.state["mine"]["times"] == 3 for context in fleet.contexts.values())
    assert all("fedfleet.scaffold.folded" in context.state for context in fleet.contexts.values())


@pytest.mark.parametrize("ends", ["returns", "raises"])
def test_what_was_lent_is_taken_back_and_memory_is_put_back_however_the_app_ends(ends: str) -> None:
    fleet, strategy = Fleet(halved(pulled_to(TARGETS))), Scaffold(fraction_evaluate=0)
    strategy.start(fleet, model([0.0]), num_rounds=1)

    def app(message: Message, context: Context) -> Message:
        assert client.correction()
        if ends == "raises":
            raise RuntimeError("out of memory")
        return pulled_to(TARGETS)(message, context)

    fleet.client = halved(app)
    before = dict(fleet.contexts[1].state)
    if ends == "raises":
        with pytest.raises(RuntimeError):
            strategy.start(fleet, model([0.0]), num_rounds=1)
        assert dict(fleet.contexts[1].state) == before
    else:
        strategy.start(fleet, model([0.0]), num_rounds=1)
    assert not client.correction()


def test_the_half_is_a_mod_of_any_flower_client_app() -> None:
    app = ClientApp(mods=[client.half])
    app.train()(pulled_to(TARGETS))
    assert trained_by(Scaffold(fraction_evaluate=0), Fleet(app), 30) == pytest.approx(3.0, abs=1e-3)


def test_fedprox_holds_devices_near_what_was_sent() -> None:
    one = trained_by(
        FedProx(proximal_mu=1.0, fraction_evaluate=0), Fleet(halved(pulled_to(TARGETS, lr=0.1, steps=500))), 1
    )
    # argmin 1/2 (w - t)^2 + 1/2 (w - 5)^2 = (t + 5) / 2, and the targets' mean is 3
    assert one == pytest.approx(4.0, abs=1e-6)


def test_fednova_takes_the_steps_from_the_half() -> None:
    assert trained_by(FedNova(fraction_evaluate=0), Fleet(halved(pulled_to(TARGETS, steps=3))), 40) == pytest.approx(
        3.0
    )


def test_dittos_personal_models_are_the_closed_form() -> None:
    lam = 0.5
    fleet = Fleet(halved(pulled_to(TARGETS, lr=0.2, steps=300)))
    assert trained_by(Ditto(lam=lam, fraction_evaluate=0), fleet, 3) == pytest.approx(3.0)
    for node, target in TARGETS.items():
        personal = client.settled(dict(fleet.contexts[node].state), "ditto", 3)["v"][0]
        assert personal == pytest.approx((target + lam * 3.0) / (1 + lam), abs=1e-6)


def test_devices_evaluate_their_personal_model() -> None:
    seen: dict[int, float] = {}

    def app(message: Message, context: Context) -> Message:
        if message.metadata.message_type == "evaluate":
            arrays: Any = message.content["arrays"]
            seen[context.node_id] = float(arrays["a0"].numpy()[0])
        return pulled_to(TARGETS, lr=0.2, steps=300)(message, context)

    Ditto(lam=0.0).start(Fleet(halved(app)), model([5.0], dtype=np.float64), num_rounds=1)
    assert seen == pytest.approx(TARGETS)
    Ditto(lam=0.0, evaluate="global").start(Fleet(halved(app)), model([5.0], dtype=np.float64), num_rounds=1)
    assert seen == pytest.approx(dict.fromkeys(TARGETS, 3.0))


def test_pfedme_follows_its_algorithm() -> None:
    lam, eta, beta, rounds = 2.0, 0.1, 0.5, 3
    strategy = PFedMe(lam=lam, eta=eta, beta=beta, local_rounds=rounds, fraction_evaluate=0)
    found = trained_by(strategy, Fleet(halved(pulled_to(TARGETS, lr=0.1, steps=400))), 1)
    ends = []
    for target in TARGETS.values():
        w = 5.0
        for _ in range(rounds):
            theta = (target + lam * w) / (1 + lam)
            w = w - eta * lam * (w - theta)
        ends.append(w)
    assert found == pytest.approx(0.5 * 5.0 + 0.5 * float(np.mean(ends)), abs=1e-6)


def test_perfedavg_moves_by_the_gradient_after_adapting() -> None:
    alpha = 0.1
    strategy = PerFedAvg(ratio=0.5, local_rounds=2, fraction_evaluate=0)
    found = trained_by(strategy, Fleet(halved(pulled_to(TARGETS, lr=alpha))), 1)
    ends = []
    for target in TARGETS.values():
        w = 5.0
        for _ in range(2):
            adapted = w - alpha * (w - target)
            w = w - 0.5 * alpha * (adapted - target)
        ends.append(w)
    assert found == pytest.approx(float(np.mean(ends)))


def two_parts(message: Message, context: Context) -> Message:
    """Train body and head, each towards the device's number."""
    return pulled_to(TARGETS, lr=0.5)(message, context)


@pytest.mark.parametrize("strategy", [FedPer("head"), FedBN(local=("head",)), FedRep("head")])
def test_arrays_that_stay_differ_by_device_and_never_travel_up(strategy: Strategy) -> None:
    sent = ArrayRecord({"body": Array(np.array([5.0])), "head": Array(np.array([5.0]))})
    seen: list[Any] = []
    fleet = Fleet(halved(two_parts))
    inner = fleet.send_and_receive

    def watched(messages: Any, *, timeout: float | None = None) -> Any:
        replies = inner(messages, timeout=timeout)
        seen.extend(list(reply.content["arrays"]) for reply in replies if "arrays" in reply.content)
        return replies

    fleet.send_and_receive = watched  # type: ignore[method-assign]
    result = strategy.start(fleet, sent, num_rounds=20)
    assert seen and all(names == ["body"] for names in seen)
    assert result.arrays["body"].numpy()[0] == pytest.approx(3.0, abs=1e-4)
    assert result.arrays["head"].numpy()[0] == 5.0
    for node, context in fleet.contexts.items():
        assert client.settled(dict(context.state), "local", 20)["head"][0] == pytest.approx(TARGETS[node], abs=1e-4)


def test_an_older_device_says_that_it_does_not_know_a_part() -> None:
    class Newer(Strategy):
        halves = ("newer",)

    strategy = Newer(fraction_evaluate=0)
    strategy.start(Fleet(halved(pulled_to(TARGETS))), model([0.0]), num_rounds=1)
    assert "knows no part 'newer'" in strategy.explain(1)[1]


def test_a_torch_client_needs_one_line() -> None:
    torch = pytest.importorskip("torch")
    net = torch.nn.Linear(2, 1)
    start = {name: value.detach().numpy().copy() for name, value in net.named_parameters()}
    ones = {name: np.ones_like(value) for name, value in start.items()}
    away = {name: value - 1 for name, value in start.items()}
    net(torch.ones(1, 2)).sum().backward()
    with lent(Correction(linear=ones, mu=0.5, anchor=away, frozen=frozenset({"bias"}))):
        torch_steps.correct(net)
    np.testing.assert_allclose(net.weight.grad.numpy(), np.full((1, 2), 1 + 1 + 0.5))
    assert net.bias.grad is None
