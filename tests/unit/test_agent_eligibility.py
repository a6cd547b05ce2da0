"""Whether a device may train: each rule, its reason, and hours that pass midnight."""

from datetime import datetime

import pytest

from fedfleet_agent.eligibility import Eligible, Ineligible, Readings, Rules, judge, parse_window
from fedfleet_protocol import reasons

MONDAY_NOON = datetime(2024, 1, 1, 12, 0)
FINE = Readings(battery_percent=80, on_mains=True, load=0.1, memory_mb=4000, disk_mb=9000, interface="eth0")


def at(day: int, hour: int, minute: int = 0) -> datetime:
    """Return a time on a day of the week of 1 January 2024, a Monday: 0 is Monday."""
    return datetime(2024, 1, 1 + day, hour, minute)


def test_a_device_without_rules_may_train() -> None:
    assert judge(Rules(), FINE, MONDAY_NOON) == Eligible()


def test_a_device_that_has_no_battery_passes_a_rule_about_batteries() -> None:
    assert judge(Rules(battery_min_percent=50, mains_only=True), Readings(), MONDAY_NOON) == Eligible()


@pytest.mark.parametrize(
    ("rules", "readings", "code", "text"),
    [
        (Rules(battery_min_percent=20), Readings(battery_percent=11), "battery", "battery 11% < 20%"),
        (Rules(mains_only=True), Readings(on_mains=False), "mains", "on battery"),
        (Rules(load_max=0.5), Readings(load=0.75), "load", "load 0.75 per CPU >= 0.5"),
        (Rules(memory_min_mb=500), Readings(memory_mb=499), "memory", "available memory 499 MB < 500 MB"),
        (Rules(disk_min_mb=500), Readings(disk_mb=0), "disk", "free disk space 0 MB < 500 MB"),
        (Rules(unmetered_only=True), Readings(interface="wwan0"), "metered", "wwan0, which is metered"),
        (
            Rules(windows=("sat 10:00-12:00",)),
            FINE,
            "window",
            "mon 12:00 is outside the owner's windows: sat 10:00-12:00",
        ),
    ],
)
def test_each_rule_gives_its_reason(rules: Rules, readings: Readings, code: str, text: str) -> None:
    verdict = judge(rules, readings, MONDAY_NOON)
    assert isinstance(verdict, Ineligible)
    assert verdict.code == code
    assert code in reasons.DECLINE
    assert text in verdict.text


def test_a_paused_agent_says_how_to_resume() -> None:
    verdict = judge(Rules(), FINE, MONDAY_NOON, paused=True)
    assert isinstance(verdict, Ineligible)
    assert (verdict.code, "fedfleet-agent resume" in verdict.text) == ("paused", True)


def test_an_interface_is_metered_only_by_its_whole_name_unless_the_pattern_ends_in_a_star() -> None:
    rules = Rules(unmetered_only=True, metered_interfaces=("eth1",))
    assert judge(rules, Readings(interface="eth10"), MONDAY_NOON) == Eligible()
    assert judge(rules, Readings(interface="eth1"), MONDAY_NOON) != Eligible()


def test_a_window_that_passes_midnight_belongs_to_the_day_it_begins_on() -> None:
    window = parse_window("mon-fri 22:00-06:00")
    assert window.holds(at(0, 22))
    assert window.holds(at(1, 5, 59))
    assert not window.holds(at(1, 6))
    assert not window.holds(at(0, 3))  # Monday before dawn belongs to Sunday's window, and there is none
    assert window.holds(at(5, 3))  # Saturday before dawn belongs to Friday's
    assert not window.holds(at(5, 22))


def test_days_may_wrap_be_listed_or_be_left_out() -> None:
    assert parse_window("sat-mon 00:00-24:00").days == {5, 6, 0}
    assert parse_window("tue, thu 08:00-09:30").days == {1, 3}
    assert parse_window("08:00-09:30").days == set(range(7))
    assert parse_window("mon 00:00-24:00").holds(at(0, 23, 59))
    assert not parse_window("mon 00:00-24:00").holds(at(1, 0))


@pytest.mark.parametrize(
    "text", ["", "mon", "mon 22:00", "mon 22-06", "xyz 22:00-06:00", "mon 24:01-02:00", "1:60-2:00"]
)
def test_what_is_no_window_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a"):
        parse_window(text)
