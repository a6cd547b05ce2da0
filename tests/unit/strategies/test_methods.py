"""Each method against its equations, computed here in float64 by hand."""

from typing import Any

import numpy as np
import pytest

from fedfleet_strategies.errors import Incompatible
from fedfleet_strategies.fedadagrad import FedAdagrad
from fedfleet_strategies.fedadam import FedAdam
from fedfleet_strategies.fedavgm import FedAvgM
from fedfleet_strategies.fednova import FedNova
from fedfleet_strategies.fedprox import FedProx
from fedfleet_strategies.fedyogi import FedYogi
from fedfleet_strategies.qfedavg import QFedAvg
from tests.unit.strategies.fleet import Fleet, aggregated, model, trained

RNG = np.random.default_rng(0)
DELTAS = RNG.normal(size=(3, 5))


def course(strategy: Any, deltas: Any) -> Any:
    """Return the models of the rounds in which all devices move by one of `deltas`."""
    x, found = model(np.zeros(5), dtype=np.float64), []
    for number, delta in enumerate(deltas, 1):
        moved = model(x["a0"].numpy() + delta, dtype=np.float64)
        x, _ = aggregated(strategy, x, [trained(1, moved), trained(2, moved)], number)
        found.append(x["a0"].numpy())
    return np.array(found)


def test_fedavgm_follows_its_equation() -> None:
    x, v, wanted = np.zeros(5), np.zeros(5), []
    for delta in DELTAS:
        v = 0.9 * v + delta
        x = x + 0.5 * v
        wanted.append(x)
    np.testing.assert_allclose(course(FedAvgM(server_learning_rate=0.5, server_momentum=0.9), DELTAS), wanted)


@pytest.mark.parametrize(
    ("strategy", "grow", "beta"),
    [
        (FedAdagrad(eta=0.1, tau=0.01), lambda v, d: v + d**2, 0.0),
        (FedAdam(eta=0.1, tau=0.01), lambda v, d: 0.99 * v + 0.01 * d**2, 0.9),
        (FedYogi(eta=0.1, tau=0.01), lambda v, d: v - 0.01 * d**2 * np.sign(v - d**2), 0.9),
    ],
)
def test_adaptive_strategies_follow_algorithm_2(strategy: Any, grow: Any, beta: float) -> None:
    x, m, v, wanted = np.zeros(5), np.zeros(5), np.full(5, 0.01**2), []
    for delta in DELTAS:
        m = beta * m + (1 - beta) * delta
        v = grow(v, delta)
        x = x + 0.1 * m / (np.sqrt(v) + 0.01)
        wanted.append(x)
    np.testing.assert_allclose(course(strategy, DELTAS), wanted)


def test_fedprox_is_fedavg_that_tells_devices_mu() -> None:
    strategy = FedProx(proximal_mu=0.5)
    from flwr.app import ConfigRecord

    message: Any = next(iter(strategy.configure_train(1, model([0.0]), ConfigRecord(), Fleet(lambda m, c: m))))
    assert message.content["config"]["proximal-mu"] == 0.5
    assert "prox" in message.content["fedfleet"]["parts"]


def test_fednova_with_equal_steps_is_fedavg_and_otherwise_normalises() -> None:
    replies = [trained(1, model([2.0]), 1, steps=1), trained(2, model([8.0]), 3, steps=4)]
    # sum p d / tau = 1/4 2/1 + 3/4 8/4 = 2; tau_eff = 1/4 1 + 3/4 4 = 3.25
    assert aggregated(FedNova(), model([0.0]), replies)[0]["a0"].numpy().tolist() == [6.5]
    alike = [trained(1, model([2.0]), 1, steps=4), trained(2, model([8.0]), 3, steps=4)]
    assert aggregated(FedNova(), model([0.0]), alike)[0]["a0"].numpy().tolist() == pytest.approx([6.5])


@pytest.mark.parametrize("tau", [1, 2, 7])
def test_fednova_knows_how_much_gradients_count_in_the_devices_optimiser(tau: int) -> None:
    rho, moved, velocity = 0.9, 0.0, 0.0
    for _ in range(tau):
        velocity = rho * velocity + 1
        moved += velocity
    assert FedNova(momentum=rho).effective(tau) == pytest.approx(moved)
    near = 0.0
    for _ in range(tau):
        near = (1 - 0.2) * near + 1
    assert FedNova(decay=0.2).effective(tau) == pytest.approx(near)


def test_qfedavg_follows_its_algorithm() -> None:
    q, lr = 2.0, 0.5
    deltas, losses = np.array([[1.0, 2.0], [3.0, -1.0]]), np.array([0.5, 2.0])
    replies = [trained(i + 1, model(deltas[i], dtype=np.float64), 10, train_loss=losses[i]) for i in (0, 1)]
    big = -deltas / lr
    h = q * losses ** (q - 1) * (big**2).sum(1) + losses**q / lr
    wanted = -(losses[:, None] ** q * big).sum(0) / h.sum()
    found, _ = aggregated(QFedAvg(lr, q), model([0.0, 0.0], dtype=np.float64), replies)
    np.testing.assert_allclose(found["a0"].numpy(), wanted, rtol=1e-8)
    plain, _ = aggregated(QFedAvg(lr, 0.0), model([0.0, 0.0], dtype=np.float64), replies)
    np.testing.assert_allclose(plain["a0"].numpy(), deltas.mean(0))


def test_a_method_that_lives_in_its_sums_refuses_a_rule_that_does_not_sum() -> None:
    from fedfleet_strategies.each import Each

    for make in (lambda: QFedAvg(0.1, rule=Each()), lambda: FedNova(rule=Each())):
        with pytest.raises(Incompatible, match="Each"):
            make()
