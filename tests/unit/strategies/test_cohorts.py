"""Whom a round asks: what each policy promises, the same choice for the same round, and a million candidates."""

import time
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedfleet_strategies import chance, cohorts
from fedfleet_strategies.cohorts import LabelQuotas, OverSelection, RoundRobin
from fedfleet_strategies.errors import Incompatible
from fedfleet_strategies.fedavg import FedAvg
from fedfleet_strategies.oort import Oort
from fedfleet_strategies.power_of_choice import PowerOfChoice
from fedfleet_strategies.table import ClientTable
from tests.unit.strategies.fleet import Fleet, model, pulled_to

LABELS = {node: "ab"[node % 2] for node in range(1, 2001)}
POLICIES: dict[str, Any] = {
    "Random": cohorts.Random(),
    "RoundRobin": RoundRobin(),
    "PowerOfChoice": PowerOfChoice(3),
    "Oort": Oort(),
    "Oort by time": Oort(statistical=False),
    "LabelQuotas": LabelQuotas(LABELS, {"a": 0.5}),
    "OverSelection": OverSelection(cohorts.Random(), 1.0),
}


def known(ids: Any, seed: int = 0) -> ClientTable:
    """Return a table in which half of the devices have taken part."""
    rng = np.random.default_rng(seed)
    table = ClientTable()
    some = ids[rng.random(ids.size) < 0.5]
    table.note("asked", some, rng.integers(1, 50, some.size))
    table.note("folded", some, rng.integers(1, 50, some.size))
    table.note("loss", some, rng.random(some.size))
    table.note("seconds", some, rng.random(some.size) + 1)
    return table


@pytest.mark.parametrize("name", POLICIES)
@settings(max_examples=25, deadline=None)
@given(all_=st.sets(st.integers(1, 2**64 - 1), min_size=1, max_size=60), n=st.integers(1, 80), seed=st.integers(0, 99))
def test_a_policy_chooses_n_different_candidates_and_the_same_again(
    name: str, all_: set[int], n: int, seed: int
) -> None:
    ids = np.array(sorted(all_), np.uint64)
    table = known(ids, seed)
    first, second = (POLICIES[name].choose(ids, n, table, 7, chance.rng(seed, 7, "cohort")) for _ in range(2))
    assert first.tolist() == second.tolist()
    assert len(set(first.tolist())) == first.size == min(n, ids.size) and set(first.tolist()) <= all_


@pytest.fixture(scope="module")
def million() -> Any:
    ids = np.sort(np.random.default_rng(1).integers(1, 2**63, 1_000_000).astype(np.uint64))
    return ids, known(ids)


@pytest.mark.parametrize("name", POLICIES)
def test_a_million_candidates_take_less_than_half_a_second_of_a_core(name: str, million: Any) -> None:
    ids, table = million
    least_s = 9.0
    for server_round in range(3):
        began = time.thread_time()
        POLICIES[name].choose(ids, 1000, table, server_round + 1, chance.rng(0, server_round, "cohort"))
        least_s = min(least_s, time.thread_time() - began)
    assert least_s < 0.5


def test_round_robin_gives_everybody_a_turn_before_a_second() -> None:
    fleet = Fleet(pulled_to(dict.fromkeys(range(1, 13), 0.0)), range(1, 13))
    FedAvg(fraction_train=0.25, fraction_evaluate=0, cohort=RoundRobin()).start(fleet, model([0.0]), num_rounds=8)
    turns = [node for asked in fleet.asked if asked for node in asked]
    assert Counter(turns[:12]) == Counter(range(1, 13)) and Counter(turns) == Counter(list(range(1, 13)) * 2)


def test_power_of_choice_asks_where_the_loss_is_largest_and_the_unknown_first() -> None:
    ids = np.arange(1, 101, dtype=np.uint64)
    table = ClientTable()
    table.note("loss", ids[:90], np.arange(90))
    found = PowerOfChoice(100).choose(ids, 12, table, 1, chance.rng(0, 1, "cohort"))
    assert sorted(found.tolist()) == [89, 90, *range(91, 101)]


def test_oort_explores_less_as_rounds_go_by_and_prefers_useful_and_fast_devices() -> None:
    ids = np.arange(1, 2001, dtype=np.uint64)
    table = ClientTable()
    table.note("folded", ids[:1000], 1)
    table.note("loss", ids[:1000], np.where(np.arange(1000) < 300, 5.0, 0.01))
    table.note("seconds", ids[:1000], np.where(np.arange(1000) % 2, 1.0, 50.0))
    early, late = (Oort().choose(ids, 100, table, r, chance.rng(0, r, "cohort")) for r in (1, 200))
    assert [int((one > 1000).sum()) for one in (early, late)] == [88, 20]
    exploited = late[late <= 1000]
    assert (exploited <= 300).mean() > 0.9 and (exploited % 2 == 0).mean() > 0.9


def test_oort_learns_losses_from_replies_and_a_random_choice_does_not_keep_them() -> None:
    for cohort, keeps in ((Oort(), True), (cohorts.Random(), False)):
        strategy = FedAvg(fraction_evaluate=0, cohort=cohort)
        strategy.start(Fleet(pulled_to(dict.fromkeys(range(1, 5), 0.0))), model([0.0]), num_rounds=1)
        assert bool(np.isfinite(strategy.table.loss).all()) == keeps


def test_quotas_are_kept_and_what_a_label_cannot_fill_is_filled_by_others() -> None:
    ids = np.arange(1, 2001, dtype=np.uint64)
    found = LabelQuotas(LABELS, {"a": 0.25, "b": 0.75}).choose(ids, 100, ClientTable(), 1, chance.rng(0, 1, "c"))
    assert Counter(LABELS[node] for node in found.tolist()) == {"a": 25, "b": 75}
    rare = LabelQuotas({1: "rare"}, {"rare": 0.5}).choose(ids, 100, ClientTable(), 1, chance.rng(0, 1, "c"))
    assert rare.size == 100 and 1 in rare.tolist()
    thirds = LabelQuotas(LABELS, {"a": 1 / 3, "b": 2 / 3}).choose(ids, 10, ClientTable(), 1, chance.rng(0, 1, "c"))
    assert Counter(LABELS[node] for node in thirds.tolist()) == {"a": 3, "b": 7}


def test_over_selection_asks_more_than_are_needed() -> None:
    ids = np.arange(1, 101, dtype=np.uint64)
    found = OverSelection(cohorts.Random(), 1.25).choose(ids, 10, ClientTable(), 1, chance.rng(0, 1, "c"))
    assert found.size == 13


def test_options_out_of_range_are_refused() -> None:
    for make in (
        lambda: OverSelection(cohorts.Random(), 0.5), lambda: PowerOfChoice(0.5), lambda: Oort(alpha=-1),
        lambda: LabelQuotas({}, {"a": 2.0}),
    ):  # fmt: skip
        with pytest.raises(Incompatible):
            make()


def test_a_table_keeps_rows_sorted_and_survives_its_record() -> None:
    table = ClientTable()
    table.note("loss", [5, 1], [0.5, 0.1])
    table.note("asked", [3, 5], 7)
    again = ClientTable()
    again.restore(table.record())
    assert again.ids.tolist() == [1, 3, 5] and again.asked.tolist() == [0, 7, 7]
    assert again.loss.tolist()[2] == 0.5 and np.isnan(again.loss[1])
    assert again.look("asked", np.array([2, 5], np.uint64)).tolist() == [0, 7]
