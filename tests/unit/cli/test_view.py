import pytest
from rich.console import Console

from fedfleet_coordinator.cli.client import Away
from fedfleet_coordinator.cli.view import Story, ending, headline, metrics_table, screen
from tests.unit.cli.snapshots import RUN, snapshot


def drawn(picture: object) -> str:
    console = Console(width=140, color_system=None)
    with console.capture() as captured:
        console.print(picture)
    return captured.get()


def test_screen_shows_round_agents_reasons_and_metrics() -> None:
    text = drawn(screen(snapshot(), None))
    assert "round 1/8" in text
    assert "exchange 3 train: 2 of 3 settled, 1 accepted" in text
    assert "site=a" in text and "1.2 s" in text
    assert "battery: the battery is at 11%, the owner's limit is 20%" in text
    assert "server accuracy" in text and "0.8125" in text


def test_replies_that_were_left_out_are_shown_as_such() -> None:
    exchange = snapshot()["exchange"] | {"state": "closed", "reason": "all", "left_out": 1, "accepted": 0}
    exchange["agents"][0] |= {"state": "left out", "code": "not_finite", "text": "array 'w' holds NaN"}
    text = drawn(screen(snapshot(exchange=exchange), None))
    assert "2 of 3 settled, 0 accepted, 1 left out" in text and "not_finite: array 'w' holds NaN" in text
    lines = Story().lines(snapshot(exchange=exchange))
    assert any("left out: not_finite: array 'w' holds NaN" in line for line in lines)


def test_run_that_waits_for_agents_is_shown_with_numbers_once_for_each_change() -> None:
    waiting = {"need": 5, "matching": 3, "there": 2}
    words = "waiting for agents: it needs 5, 3 match its selector, 2 are there"
    assert words in drawn(screen(snapshot(exchange=None, waiting=waiting), None))
    story = Story()
    assert words in story.lines(snapshot(exchange=None, waiting=waiting))
    assert story.lines(snapshot(exchange=None, waiting=waiting)) == []
    assert len(story.lines(snapshot(exchange=None, waiting=waiting | {"there": 3}))) == 1


def test_screen_says_that_the_coordinator_is_away_and_the_run_goes_on() -> None:
    text = drawn(screen(snapshot(), Away("connection refused", 3.4)))
    assert "the coordinator is away for 3 s, reconnecting; the run goes on" in text


def test_screen_shows_those_with_trouble_when_there_are_too_many_agents() -> None:
    agents = [
        {"agent": f"a-{number:026d}", "labels": {}, "state": "accepted", "code": "", "text": "", "seconds": 1.0}
        for number in range(100)
    ]
    agents[70] |= {"state": "declined", "code": "load", "text": "the device is too busy"}
    text = drawn(screen(snapshot(exchange=snapshot()["exchange"] | {"agents": agents}), None))
    assert "load: the device is too busy" in text
    assert "and 80 more" in text


def test_labels_that_look_like_markup_are_shown_as_they_are() -> None:
    exchange = snapshot()["exchange"]
    exchange["agents"][0]["labels"] = {"site": "[red]"}
    assert "site=[red]" in drawn(screen(snapshot(exchange=exchange), None))


def test_story_tells_each_thing_once() -> None:
    story = Story()
    first = story.lines(snapshot())
    assert any("exchange 3 train: 3 agents asked" in line for line in first)
    assert any("declined: battery" in line for line in first)
    assert any("round 1 server: accuracy 0.8125" in line for line in first)
    assert story.lines(snapshot()) == []


def test_story_tells_the_end_of_exchanges_that_closed_between_two_snapshots() -> None:
    story = Story()
    story.lines(snapshot())
    closed = [
        {"n": n, "label": label, "expected": 3, "accepted": 2, "reason": "quorum"}
        for n, label in ((3, "train"), (4, "evaluate"))
    ]
    later = snapshot(closed=closed, exchange=snapshot()["exchange"] | {"n": 5})
    lines = story.lines(later)
    assert lines[:3] == [
        "exchange 3 train: closed (quorum), 2 of 3 accepted",
        "exchange 4 evaluate: closed (quorum), 2 of 3 accepted",
        "exchange 5 train: 3 agents asked",
    ]
    assert story.lines(later) == []


def test_story_tells_the_end_of_an_exchange_once_and_only_when_its_replies_were_judged() -> None:
    ended = snapshot()["exchange"] | {"state": "closed", "reason": "all", "accepted": 3}
    old = {"n": 3, "label": "train", "expected": 3, "accepted": 2, "left_out": 1, "reason": "all"}
    line = "exchange 3 train: closed (all), 2 of 3 accepted, 1 left out"

    going_on = Story()
    assert not any("closed" in line for line in going_on.lines(snapshot(exchange=ended)))
    assert line in going_on.lines(snapshot(closed=[old], exchange=ended | {"n": 4}))
    assert not any("exchange 3" in line for line in going_on.lines(snapshot(closed=[old], exchange=ended | {"n": 4})))

    at_its_end = Story()
    assert line in at_its_end.lines(snapshot(state="finished", exchange=ended | {"accepted": 2, "left_out": 1}))


def test_story_tells_of_an_absence_once_and_of_the_return() -> None:
    story = Story()
    story.lines(snapshot())
    assert story.lines(Away("gone", 0.0)) == ["the coordinator is away, reconnecting; the run goes on"]
    assert story.lines(Away("gone", 2.0)) == []
    assert story.lines(snapshot(attempts=2)) == ["the coordinator is back", "runner 2 goes on after round 1"]


def test_ending_says_the_reason_of_a_failure_and_how_often_the_runner_came_back() -> None:
    failed = snapshot(state="failed", reason="too_few_agents", text="2 agents are there, the app needs 5")
    assert ending(failed) == f"run {RUN} failed (too_few_agents): 2 agents are there, the app needs 5"
    finished = snapshot(state="finished", ended=1011.0, attempts=2)
    assert ending(finished) == f"run {RUN} finished in 10.0 s; its runner was started anew 1 time"


def test_headline_does_not_invent_a_number_of_rounds() -> None:
    assert headline(snapshot(num_rounds=0)).endswith("round 1/?")


def test_metrics_table_has_a_row_per_round_and_the_newest_rounds_only() -> None:
    metrics = [{"round": number, "kind": "train", "values": {"loss": 1 / number}} for number in range(1, 21)]
    table = metrics_table(metrics, rounds=3)
    assert table is not None and table.row_count == 3
    assert "0.05" in drawn(table) and "0.0588" not in drawn(metrics_table(metrics, rounds=1))
    assert metrics_table([]) is None


@pytest.mark.parametrize("state", ["pending", "running", "finished", "failed", "stopped"])
def test_every_state_of_a_run_can_be_drawn(state: str) -> None:
    assert state in drawn(screen(snapshot(state=state, exchange=None, metrics=[]), None))
