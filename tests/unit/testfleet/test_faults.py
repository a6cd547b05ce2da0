"""What a person asks to be done to a fleet, in words."""

import pytest

from fedfleet_testfleet.errors import BadInput
from fedfleet_testfleet.fault import Action, Fault, parse, seconds


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("stop agent-3 for 10s", Fault(Action.STOP, "agent-3", 10.0)),
        ("kill coordinator", Fault(Action.KILL, "coordinator")),
        ("cut agent-0 for 1.5m", Fault(Action.CUT, "agent-0", 90.0)),
        ("api-down for 500ms", Fault(Action.API_DOWN, "", 0.5)),
        ("api-up", Fault(Action.API_UP)),
    ],
)
def test_a_fault_is_read_and_spelled_the_same(text: str, fault: Fault) -> None:
    assert parse(text) == fault
    assert parse(str(fault)) == fault


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("explode agent-1", "stop, start, cut, heal, slow, kill, api-down, api-up"),
        ("stop", "stop agent-0"),
        ("stop agent-1 for ever", "10s"),
        ("stop agent-1 quickly", "stop agent-0 for 10s"),
        ("kill coordinator for 10s", "use stop"),
        ("heal agent-1 for 10s", "heal has no end"),
        ("api-down agent-1", "api-down takes no"),
        ("", "stop agent-0"),
    ],
)
def test_what_makes_no_sense_is_refused_with_a_remedy(text: str, remedy: str) -> None:
    with pytest.raises(BadInput, match="(?s)" + remedy.replace(".", r"\.")):
        parse(text)


def test_the_end_of_a_fault_is_its_opposite() -> None:
    assert parse("stop agent-3 for 10s").end == Fault(Action.START, "agent-3")
    assert parse("cut agent-3 for 10s").end == Fault(Action.HEAL, "agent-3")
    assert parse("slow agent-3 for 10s").end == Fault(Action.HEAL, "agent-3")
    assert parse("api-down for 10s").end == Fault(Action.API_UP)
    assert parse("stop agent-3").end is None and parse("kill broker").end is None


@pytest.mark.parametrize("text", ["0s", "-1s", "10", "s", "1h1", "nan s", "1e9s", "25h"])
def test_a_time_is_a_number_with_a_unit_up_to_a_day(text: str) -> None:
    with pytest.raises(BadInput, match="10s"):
        seconds(text)
