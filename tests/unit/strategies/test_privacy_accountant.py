"""The accountant against Google's dp-accounting 0.6.0, whose numbers stand here, and against closed forms."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedfleet_strategies.privacy import accountant
from fedfleet_strategies.privacy.accountant import ORDERS, Event, Ledger, Sampling, divergence, epsilon

DELTA = 1e-5
# q, sigma, rounds; RdpAccountant; PLDAccountant, the truth to within its grid, which divergences never get below.
POISSON = [
    (0.04, 1.5, 2250, 7.329334702, 6.769478652),
    (0.1, 1.0, 100, 7.903850224, 7.046628943),
    (0.01, 0.6, 500, 6.952161978, 5.800365339),
    (1.0, 5.0, 10, 2.813653247, 2.594389735),
    (0.001, 0.8, 10_000, 1.383821801, 0.795761712),
    (0.5, 2.0, 50, 10.287808094, 9.473606307),
]
# n, N, sigma, rounds; RdpAccountant, one record in the place of another.
FIXED = [
    (50, 1000, 1.0, 100, 6.466584880743369),
    (50, 1000, 2.0, 1000, 9.022236236542309),
    (10, 100, 3.0, 200, 4.729870180005502),
    (100, 10_000, 0.8, 1000, 5.356566637489464),
    (5, 1_000_000, 1.0, 100_000, 0.32036950346022575),
]


@pytest.mark.parametrize(("q", "sigma", "rounds", "reference", "lower"), POISSON)
def test_poisson_cohorts_cost_what_dp_accounting_says(
    q: float, sigma: float, rounds: int, reference: float, lower: float
) -> None:
    found = epsilon(divergence(Event("poisson", sigma, q, rounds)), DELTA)
    # Its series for orders between whole ones ends early, 0.2% above the integral at worst.
    assert lower < found <= reference * (1 + 1e-9)
    assert found == pytest.approx(reference, rel=2e-3)


@pytest.mark.parametrize(("n", "devices", "sigma", "rounds", "reference"), FIXED)
def test_fixed_cohorts_cost_what_dp_accounting_says(
    n: int, devices: int, sigma: float, rounds: int, reference: float
) -> None:
    assert epsilon(divergence(Event("fixed", sigma, n / devices, rounds)), DELTA) == pytest.approx(reference, rel=1e-9)


@given(q=st.floats(1e-5, 0.999), sigma=st.floats(0.3, 20), order=st.integers(2, 64))
def test_whole_orders_are_the_binomial_sum_of_the_paper(q: float, sigma: float, order: int) -> None:
    terms = [
        math.lgamma(order + 1) - math.lgamma(k + 1) - math.lgamma(order - k + 1)
        + (order - k) * math.log1p(-q) + k * math.log(q) + k * (k - 1) / (2 * sigma**2)
        for k in range(order + 1)
    ]  # fmt: skip
    most = max(terms)
    wanted = most + math.log(math.fsum(math.exp(one - most) for one in terms))
    assert accountant._poisson(order, sigma, q) == pytest.approx(wanted, rel=1e-9, abs=1e-11)


@settings(max_examples=30)
@given(
    sampling=st.sampled_from(["poisson", "fixed"]),
    q=st.floats(1e-4, 1),
    sigma=st.floats(0.05, 10),
    rounds=st.integers(1, 1000),
)
def test_sampling_never_costs_and_more_rounds_or_less_noise_never_gain(
    sampling: Sampling, q: float, sigma: float, rounds: int
) -> None:
    spent = epsilon(divergence(Event(sampling, sigma, q, rounds)), DELTA)
    assert spent <= epsilon(divergence(Event("all", sigma, 1, rounds)), DELTA)
    assert spent <= epsilon(divergence(Event(sampling, sigma, q, rounds + 1)), DELTA)
    assert spent <= epsilon(divergence(Event(sampling, sigma * 0.9, q, rounds)), DELTA) * (1 + 1e-9)


def test_a_round_without_noise_costs_everything_and_no_round_costs_nothing() -> None:
    assert epsilon(divergence(Event("poisson", 0.0, 0.1)), DELTA) == math.inf
    assert epsilon(np.zeros(ORDERS.size), DELTA) == 0.0
    assert Ledger().epsilon(DELTA) == 0.0


def test_a_ledger_joins_rounds_alike_and_comes_back_from_its_entries() -> None:
    ledger = Ledger([Event("poisson", 1.0, 0.1)] * 60 + [Event("poisson", 1.0, 0.1, 40), Event("all", 30.0)])
    assert ledger.entries() == [["poisson", 1.0, 0.1, 100], ["all", 30.0, 1.0, 1]]
    again = Ledger.of(ledger.entries())
    assert again.epsilon(DELTA) == ledger.epsilon(DELTA) > 7.89
    assert ledger.epsilon(DELTA, [Event("poisson", 1.0, 0.1)]) > ledger.epsilon(DELTA)


def test_guarantees_about_different_neighbours_are_not_added_up() -> None:
    with pytest.raises(ValueError, match="different neighbours"):
        Ledger([Event("poisson", 1.0, 0.1), Event("fixed", 1.0, 0.1)]).epsilon(DELTA)


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5])
def test_a_delta_that_is_no_probability_is_refused(delta: float) -> None:
    with pytest.raises(ValueError, match="delta"):
        epsilon(np.ones(ORDERS.size), delta)


@pytest.mark.parametrize(
    "event", [("poisson", -1.0, 0.1), ("poisson", 1.0, 0.0), ("fixed", 1.0, 1.5), ("all", math.nan)]
)
def test_an_event_that_cannot_be_is_refused(event: tuple[Sampling, float, float]) -> None:
    with pytest.raises(ValueError, match="no round has"):
        Event(*event)
