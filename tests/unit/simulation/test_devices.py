"""Made-up devices: what they are like depends on the seed and on nothing else, and options are read or refused."""

import statistics

import pytest

from fedfleet_coordinator.simulation.devices import (
    Conditions,
    Spread,
    duration,
    link,
    name_of,
    number_of,
    sampled,
    share,
    stragglers,
)
from fedfleet_protocol.ids import flower_number, parse_agent_id


def test_names_are_in_the_order_of_devices_and_lead_back_to_them() -> None:
    names = [name_of(i) for i in range(70_000)]
    assert names == sorted(names)
    assert [number_of(parse_agent_id(name)) for name in names] == list(range(70_000))
    assert min(flower_number(name) for name in names) > 1, "1 is the server's"


def test_a_device_is_the_same_whoever_asks_and_when() -> None:
    conditions = Conditions(
        seed=3, link=Spread("lognormal", 1e6, 0.5), stragglers=(0.5, 5.0), compute=Spread("constant", 2.0)
    )
    forwards = [conditions.pace(i) for i in range(50)]
    assert [conditions.pace(i) for i in reversed(range(50))] == forwards[::-1]
    assert [Conditions(seed=4, link=conditions.link).pace(i) for i in range(50)] != forwards


def test_a_share_of_the_devices_are_stragglers() -> None:
    conditions = Conditions(seed=1, compute=Spread("constant", 2.0), stragglers=(0.2, 5.0))
    found = [conditions.pace(i).compute_s for i in range(5000)]
    assert set(found) == {2.0, 10.0}
    assert found.count(10.0) / 5000 == pytest.approx(0.2, abs=0.02)


def test_drop_outs_are_drawn_per_device_and_exchange() -> None:
    conditions = Conditions(seed=1, drop_out=0.1)
    drawn = {(i, n): conditions.drops_out(i, n) for i in range(200) for n in range(1, 26)}
    assert sum(drawn.values()) / 5000 == pytest.approx(0.1, abs=0.015)
    per_device = [sum(drawn[i, n] for n in range(1, 26)) for i in range(200)]
    assert statistics.pstdev(per_device) > 1, "not the same devices each time"
    assert not any(Conditions(seed=1).drops_out(i, 1) for i in range(100))


def test_lognormal_has_the_median_that_was_named() -> None:
    conditions = Conditions(seed=9, link=Spread("lognormal", 1e6, 0.5))
    speeds = sorted(conditions.pace(i).bytes_per_s for i in range(4001))
    assert speeds[2000] == pytest.approx(1e6, rel=0.05)
    assert speeds[-1] > 3e6


def test_every_call_has_a_seed_of_its_own() -> None:
    seeds = {Conditions(seed=0).seed_of(i, n) for i in range(100) for n in range(100)}
    assert len(seeds) == 10_000
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_a_sample_is_sorted_without_repeats_and_another_for_each_answer() -> None:
    first, second = sampled(1_000_000, 50, seed=7, k=1), sampled(1_000_000, 50, seed=7, k=2)
    assert first == sorted(set(first))
    assert len(first) == 50
    assert first != second
    assert sampled(1_000_000, 50, seed=7, k=1) == first
    assert sampled(5, 50, seed=7, k=1) == [0, 1, 2, 3, 4]


def test_options_are_read() -> None:
    assert duration("30s") == Spread("constant", 30.0)
    assert duration("1.5min") == Spread("constant", 90.0)
    assert duration("200ms") == Spread("constant", 0.2)
    assert duration("lognormal:30s") == Spread("lognormal", 30.0, 0.5)
    assert duration("lognormal:30s:0.8") == Spread("lognormal", 30.0, 0.8)
    assert duration("uniform:10s:1h") == Spread("uniform", 10.0, 3600.0)
    assert link("10Mbit") == Spread("constant", 1.25e6)
    assert link("lognormal:256kbit") == Spread("lognormal", 32e3, 0.5)
    assert link("uniform:1MB:2MB") == Spread("uniform", 1e6, 2e6)
    assert stragglers("0.2:5x") == (0.2, 5.0)
    assert stragglers("20%:2.5") == (0.2, 2.5)
    assert share("0.1") == 0.1
    assert share("10%") == 0.1


@pytest.mark.parametrize(
    ("read", "text"),
    [
        (duration, "30"), (duration, "-3s"), (duration, "gauss:3s"), (duration, "lognormal:3s:x"),
        (duration, "uniform:3s"), (duration, "uniform:5s:3s"), (link, "10"), (link, "0Mbit"), (link, "10s"),
        (stragglers, "0.2"), (stragglers, "1.2:5x"), (stragglers, "0.2:0x"), (share, "1.5"), (share, "-1"),
        (share, "nan"), (share, "often"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_refused_with_an_example(read: object, text: str) -> None:
    with pytest.raises(ValueError, match="like"):
        read(text)  # type: ignore[operator]
