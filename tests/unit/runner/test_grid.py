"""Flower's Grid, as apps use it, and what it gives again to an app that runs again."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid

from fedfleet_coordinator.rows import Task
from fedfleet_coordinator.runner import replies
from fedfleet_coordinator.runner.execution import App, Outcome
from fedfleet_coordinator.runner.patience import Patience
from fedfleet_coordinator.runner.testing import MemoryHub
from tests.unit.runner.apps import device, run_once, run_to_the_end

Script = Callable[[Any], Any]


def content(value: float = 0.0, **config: Any) -> RecordDict:
    arrays = ArrayRecord({"w": Array(np.full(4, value, np.float32))})
    return RecordDict({"arrays": arrays, "config": ConfigRecord({"x": 1, **config})})


def to_all(grid: Grid, records: RecordDict, kind: str = "train") -> list[Message]:
    return [Message(records, node, kind) for node in grid.get_node_ids()]


def does(script: Script, results: list[Any] | None = None) -> App:
    """An app with a hand-written loop."""

    def app(grid: Grid, context: Context) -> None:
        result = script(grid)
        if results is not None:
            results.append(result)

    return app


def play(script: Script, folder: Path, client: Any = device, **hub: Any) -> tuple[Outcome, Any, MemoryHub]:
    made, results = MemoryHub(client, **hub), list[Any]()
    outcome = run_once(made, does(script, results), folder)
    return outcome, results[0] if results else None, made


def echo(message: Message, context: Context) -> Message:
    return Message(message.content, reply_to=message)


# --- what comes back --------------------------------------------------------------------------------------------------


def test_replies_come_in_the_order_of_node_ids_with_their_true_senders(tmp_path: Path) -> None:
    def script(grid: Any) -> Any:
        messages = to_all(grid, content())
        found = grid.send_and_receive(messages=reversed(messages))
        assert [reply.metadata.reply_to_message_id for reply in found] == [m.metadata.message_id for m in messages]
        return [reply.metadata.src_node_id for reply in found], list(grid.get_node_ids())

    _, (senders, nodes), _ = play(script, tmp_path, agents=5)
    assert senders == nodes == sorted(nodes) and len(nodes) == 5


def test_replies_are_a_sequence_that_keeps_what_an_app_changes(tmp_path: Path) -> None:
    def script(grid: Any) -> Any:
        found = grid.send_and_receive(to_all(grid, content()))
        assert len(found) == 3 and found and found[-1] is found[2] and found[:2] == [found[0], found[1]]
        for reply in found:
            reply.content["arrays"] = ArrayRecord([np.full(2, 7.0)])
        return [reply.content["arrays"]["0"].numpy().tolist() for reply in found]

    _, seen, _ = play(script, tmp_path, agents=3)
    assert seen == [[7.0, 7.0]] * 3


def test_of_very_many_arrays_a_reply_is_kept_only_as_long_as_somebody_holds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replies, "KEEP_ARRAYS", 2)

    def script(grid: Any) -> Any:
        found = grid.send_and_receive(to_all(grid, content()))
        first = found[0]
        return first is found[0], len(found._made), [r.has_content() for r in found], len(found._made)

    _, seen, _ = play(script, tmp_path, agents=3)
    assert seen == (True, 1, [True] * 3, 1)


def test_an_agent_that_declines_or_raises_is_an_error_with_its_node_and_reason(tmp_path: Path) -> None:
    def client(message: Message, context: Context) -> Any:
        match context.node_config["partition-id"]:
            case 0:
                return "battery", "battery 11% < 20%"
            case 1:
                raise ValueError("no data here")
        return device(message, context)

    def script(grid: Any) -> Any:
        return list(grid.send_and_receive(to_all(grid, content())))

    _, (low, raised, fine), _ = play(script, tmp_path, client, agents=3)
    assert low.has_error() and "battery 11% < 20% (battery)" in low.error.reason and low.metadata.src_node_id > 1
    assert raised.has_error() and "no data here" in raised.error.reason
    assert fine.has_content()


@pytest.mark.parametrize("pushed", [False, True])
def test_the_hub_is_told_which_replies_were_left_out_and_why(pushed: bool, tmp_path: Path) -> None:
    def client(message: Message, context: Context) -> Any:
        match context.node_config["partition-id"]:
            case 0:
                return Message(content(float("nan")), reply_to=message)
            case 1:
                raise ValueError("no data here")
        return device(message, context)

    def script(grid: Any) -> None:
        if not pushed:
            grid.send_and_receive(to_all(grid, content()))
            return
        ids = grid.push_messages(to_all(grid, content()))
        got = 0
        while got < 3:
            got += len(grid.pull_messages(ids))

    _, _, hub = play(script, tmp_path, client, agents=3)
    with hub.store_.transaction() as tx:
        nan, raised, fine = tx.find(Task)
    assert (nan.code, nan.text.partition(" (")[0]) == ("not_finite", "array 'w' holds NaN or infinity")
    assert raised.code == "app_error" and "no data here" in raised.text
    assert (fine.code, fine.text) == ("", "") and {nan.state, raised.state, fine.state} == {"accepted"}


def test_an_agent_that_is_silent_until_the_deadline_gives_no_reply(tmp_path: Path) -> None:
    def client(message: Message, context: Context) -> Any:
        return None if context.node_config["partition-id"] == 1 else device(message, context)

    def script(grid: Any) -> Any:
        return len(grid.send_and_receive(to_all(grid, content()), timeout=30))

    _, count, hub = play(script, tmp_path, client, agents=3)
    assert count == 2 and 30 < hub.now < 120


def test_bytes_that_are_no_content_are_an_error_of_their_agent(tmp_path: Path) -> None:
    def client(message: Message, context: Context) -> Any:
        junk = [b"", b"FFRECORD" + (10 << 30).to_bytes(8, "little"), b"FFRECORD\xff", b"x" * 100]
        part = int(context.node_config["partition-id"])
        return junk[part] if part < 4 else device(message, context)

    def script(grid: Any) -> Any:
        return [r.error.reason if r.has_error() else "" for r in grid.send_and_receive(to_all(grid, content()))]

    _, reasons, _ = play(script, tmp_path, client, agents=5)
    assert all("(unreadable)" in reason for reason in reasons[:4]) and reasons[4] == ""


def test_a_manifest_made_of_lists_is_refused_before_it_takes_the_memory_it_asks_for(tmp_path: Path) -> None:
    nested = b"\x90" * (9 << 20)
    bomb = b"FFRECORD" + len(nested).to_bytes(8, "little") + nested

    def script(grid: Any) -> Any:
        return [r.error.reason for r in grid.send_and_receive(to_all(grid, content()))]

    _, reasons, _ = play(script, tmp_path, lambda message, context: bomb, agents=1)
    assert "too many lists" in reasons[0]


def test_any_records_travel_in_queries_of_the_apps_own_types(tmp_path: Path) -> None:
    odd = RecordDict({
        "words": ArrayRecord([np.array("text"), np.array([], np.float16), np.array(True)]),
        "config": ConfigRecord({"a": b"\x00\xff", "b": [1, 2], "c": "ü", "d": False}),
        "none": RecordDict().get("x") or MetricRecord(),
    })  # fmt: skip

    def script(grid: Any) -> Any:
        messages = [Message(odd, node, "query.any", group_id="g", ttl=60.0) for node in grid.get_node_ids()]
        return list(grid.send_and_receive(messages))

    _, found, _ = play(script, tmp_path, echo)
    assert [(r.content == odd, r.metadata.message_type, r.metadata.group_id) for r in found] == [
        (True, "query.any", "g")
    ] * 2


def test_equal_contents_are_one_payload_and_different_ones_are_not(tmp_path: Path) -> None:
    def script(grid: Any) -> Any:
        arrays, config = ArrayRecord([np.ones(3)]), ConfigRecord({"part": 0})
        messages = []
        for i, node in enumerate(grid.get_node_ids()):
            config["part"] = i // 2
            messages.append(Message(RecordDict({"arrays": arrays, "config": config}), node, "query"))

        def yielding() -> Any:
            for i, message in enumerate(messages):
                config["part"] = i // 2
                yield message

        return [r.content["config"]["part"] for r in grid.send_and_receive(yielding())]

    def count(hub: MemoryHub) -> int:
        return sum(b"FFRECORD" in data for data in hub.files.values())

    _, parts, hub = play(
        script, tmp_path, lambda m, c: Message(RecordDict({"config": m.content["config"]}), reply_to=m), agents=4
    )
    assert parts == [0, 0, 1, 1]
    assert count(hub) == 2 + 2  # two payloads, and two kinds of replies


def test_contents_that_are_equal_to_python_and_differ_in_type_are_two_payloads(tmp_path: Path) -> None:
    def script(grid: Any) -> Any:
        nodes = list(grid.get_node_ids())
        values: list[Any] = [1, 1.0, True, [1, 2], [1.0, 2.0]]
        messages = [
            Message(RecordDict({"c": ConfigRecord({"x": value})}), node, "query")
            for node, value in zip(nodes, values, strict=True)
        ]
        return [(type(r.content["c"]["x"]), r.content["c"]["x"]) for r in grid.send_and_receive(messages)]

    _, seen, _ = play(script, tmp_path, echo, agents=5)
    assert seen == [(int, 1), (float, 1.0), (bool, True), (list, [1, 2]), (list, [1.0, 2.0])]
    assert type(seen[4][1][0]) is float


def test_large_arrays_that_were_sent_leave_the_apps_memory_and_stay_what_they_were(tmp_path: Path) -> None:
    values = np.random.default_rng(1).normal(size=(64, 1024)).astype(np.float32)

    def script(grid: Any) -> Any:
        records: Any = content()
        records["arrays"]["big"] = Array(values)
        before = records["arrays"]["big"].data
        grid.send_and_receive(to_all(grid, records, "query"))
        array: Any = records["arrays"]["big"]
        return type(array).__name__, array.data == before, np.array_equal(array.numpy(), values)

    _, seen, _ = play(script, tmp_path, echo)
    assert seen == ("FileArray", True, True)


def test_two_messages_to_one_node_are_both_answered_in_order(tmp_path: Path) -> None:
    def script(grid: Any) -> Any:
        messages = [Message(content(number=i), node, "query") for i in range(3) for node in grid.get_node_ids()]
        return [r.content["config"]["number"] for r in grid.send_and_receive(messages)]

    _, numbers, hub = play(script, tmp_path, echo)
    assert numbers == [0, 1, 2, 0, 1, 2] and hub.row().exchanges == 3


def test_a_node_that_was_never_named_is_an_error_and_nothing_is_opened(tmp_path: Path) -> None:
    def script(grid: Any) -> Any:
        return [r.error.reason for r in grid.send_and_receive([Message(content(), 12345, "query")])]

    outcome, reasons, hub = play(script, tmp_path)
    assert "no node 12345" in reasons[0] and hub.row().exchanges == 0
    assert outcome.reason == "no_results"


def test_no_messages_are_no_exchange(tmp_path: Path) -> None:
    _, found, hub = play(lambda grid: list(grid.send_and_receive([])), tmp_path)
    assert found == [] and hub.row().exchanges == 0


# --- push and pull ----------------------------------------------------------------------------------------------------


def pull_all(grid: Any, ids: Any) -> Any:
    found: list[Any] = []
    while len(found) < len(ids):
        found += grid.pull_messages(ids)
    return found


def test_what_is_pushed_is_pulled_once(tmp_path: Path) -> None:
    def script(grid: Any) -> Any:
        ids = list(grid.push_messages(to_all(grid, content(), "query")))
        found = pull_all(grid, ids)
        return ids, [r.metadata.reply_to_message_id for r in found], list(grid.pull_messages(ids))

    _, (ids, pulled, again), _ = play(script, tmp_path, echo, agents=4, at_once=1)
    assert sorted(ids) == sorted(pulled) and again == []


def test_a_pushed_message_that_is_not_answered_before_its_deadline_is_pulled_as_an_error(tmp_path: Path) -> None:
    def script(grid: Any) -> Any:
        messages = [Message(content(), node, "query", ttl=5) for node in grid.get_node_ids()]
        return [r.error.reason for r in pull_all(grid, grid.push_messages(messages))]

    _, reasons, _ = play(script, tmp_path, lambda m, c: None)
    assert len(reasons) == 2 and all("before the deadline" in reason for reason in reasons)


def test_a_push_that_nobody_pulls_keeps_no_run_open(tmp_path: Path) -> None:
    outcome, _, hub = play(lambda grid: grid.push_messages(to_all(grid, content(), "query")), tmp_path, echo)
    assert outcome.state == "finished" and hub.row().state == "finished"


# --- running again ----------------------------------------------------------------------------------------------------


def hand_written(grid: Any) -> Any:
    """Train by hand, ask in between, push and pull."""
    value = 0.0
    for server_round in range(3):
        found = grid.send_and_receive(to_all(grid, content(value, round=server_round)), timeout=60)
        value = float(np.mean([r.content["arrays"]["w"].numpy() for r in found]))
        ids = grid.push_messages(to_all(grid, content(value, round=server_round), "train.more"))
        more = pull_all(grid, list(ids))
        value += sum(float(r.content["arrays"]["w"].numpy()[0]) * (i + 1) for i, r in enumerate(more))
    return value


@pytest.mark.parametrize("late", [False, True])
def test_a_hand_written_loop_ends_with_the_same_numbers_wherever_its_runner_dies(late: bool, tmp_path: Path) -> None:
    calm, results = MemoryHub(device, agents=3, at_once=1), list[float]()
    run_to_the_end(calm, does(hand_written, results), tmp_path)
    for die_at in range(1, calm.calls):
        hub = MemoryHub(device, agents=3, at_once=1)
        hub.die_at, hub.late = die_at, late
        outcome = run_to_the_end(hub, does(hand_written, results), tmp_path)
        assert outcome.state == "finished", f"killed at {die_at}: {outcome.text}"
    assert len(set(results)) == 1


def test_an_app_that_sends_something_else_the_second_time_ends_its_run_and_says_where(tmp_path: Path) -> None:
    tries = iter(range(100))

    def script(grid: Any) -> Any:
        grid.send_and_receive(to_all(grid, content(1.0), "query"))
        return grid.send_and_receive(to_all(grid, content(float(next(tries))), "query"))

    hub = MemoryHub(echo)
    hub.die_when = lambda run: run.exchanges == 2
    outcome = run_to_the_end(hub, does(script), tmp_path)
    row = hub.row()
    assert (row.state, row.reason) == ("failed", "nondeterministic"), outcome
    assert "exchange 2 (query)" in row.text and outcome.reason == "nondeterministic"


def test_an_app_that_asks_something_else_the_second_time_ends_its_run(tmp_path: Path) -> None:
    tries = iter(range(100))

    def script(grid: Any) -> Any:
        ids = list(grid.push_messages(to_all(grid, content(), "query")))
        if next(tries) == 0:
            pull_all(grid, ids)
        return list(grid.get_node_ids()), grid.send_and_receive(to_all(grid, content(), "query"))

    hub = MemoryHub(echo)
    hub.die_when = lambda run: run.exchanges == 2
    outcome = run_to_the_end(hub, does(script), tmp_path)
    assert (outcome.state, outcome.reason) == ("failed", "nondeterministic")
    assert hub.row().reason == "nondeterministic"


def test_what_ends_a_run_passes_through_an_app_that_catches_everything(tmp_path: Path) -> None:
    tries = iter(range(100))

    def script(grid: Any) -> Any:
        for _ in range(3):
            try:
                grid.send_and_receive(to_all(grid, content(float(next(tries))), "query"))
            except BaseException:
                continue

    hub = MemoryHub(echo)
    hub.die_when = lambda run: run.exchanges == 1
    outcome = run_to_the_end(hub, does(script), tmp_path)
    assert hub.row().reason == "nondeterministic" and outcome.reason == "nondeterministic"


# --- waiting for agents -----------------------------------------------------------------------------------------------


class Clock:
    """Virtual time; agents come at times."""

    def __init__(self, hub: MemoryHub, comes: dict[float, int]) -> None:
        self.now, self.hub, self.comes = 0.0, hub, comes
        self.show()

    def show(self) -> None:
        there = max((count for at, count in self.comes.items() if at <= self.now), default=0)
        self.hub.show(there)

    def time(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.show()


def waiting(hub: MemoryHub, comes: dict[float, int], **patience: Any) -> tuple[Clock, Patience]:
    clock = Clock(hub, comes)
    return clock, Patience(hub, clock=clock.time, sleep=clock.sleep, **{"at_least": 1, "limit_s": 100.0, **patience})


def sample(grid: Grid, clock: Clock, count: int) -> int:
    """Wait as Flower's `sample_nodes` does; return how often it asked."""
    asked = 1
    while len(list(grid.get_node_ids())) < count:
        clock.sleep(1)
        asked += 1
    return asked


def test_an_app_that_waits_for_agents_asks_seldom_and_gets_them(tmp_path: Path) -> None:
    hub, results = MemoryHub(echo, agents=4), list[int]()
    clock, patience = waiting(hub, {0: 1, 30: 2, 60: 4})
    run_once(hub, does(lambda grid: sample(grid, clock, 4), results), tmp_path, patience=patience)
    assert results[0] < 20 and 60 <= clock.now < 70


def test_an_app_that_waits_in_vain_ends_its_run_with_a_reason(tmp_path: Path) -> None:
    hub = MemoryHub(echo, agents=4)
    clock, patience = waiting(hub, {0: 1, 30: 2})
    outcome = run_once(hub, does(lambda grid: sample(grid, clock, 4)), tmp_path, patience=patience)
    assert (outcome.state, outcome.reason) == ("failed", "too_few_agents")
    assert "2 of the run's agents are there and the app waits for more" in outcome.text
    assert 100 <= clock.now < 130


def test_fewer_agents_than_the_run_asks_for_are_no_answer(tmp_path: Path) -> None:
    hub, results = MemoryHub(echo, agents=4), list[Any]()
    clock, patience = waiting(hub, {0: 1, 20: 3}, at_least=3)
    run_once(hub, does(lambda grid: list(grid.get_node_ids()), results), tmp_path, patience=patience)
    assert len(results[0]) == 3 and 20 <= clock.now < 22


def test_a_run_whose_agents_never_come_ends_with_a_reason(tmp_path: Path) -> None:
    hub = MemoryHub(echo, agents=4)
    _, patience = waiting(hub, {0: 1}, at_least=2)
    outcome = run_once(hub, does(lambda grid: list(grid.get_node_ids())), tmp_path, patience=patience)
    assert outcome.reason == "too_few_agents" and "the run needs 2" in outcome.text


def test_an_app_that_asks_twice_in_a_row_does_not_wait(tmp_path: Path) -> None:
    hub = MemoryHub(echo, agents=4)
    clock, patience = waiting(hub, {0: 4})

    def script(grid: Any) -> None:
        for _ in range(10):
            grid.get_node_ids()
        list(grid.get_nodes())
        clock.sleep(5)  # it loads a model
        grid.get_node_ids()

    run_once(hub, does(script), tmp_path, patience=patience)
    assert clock.now == 5


def test_the_wait_for_agents_is_short_when_the_app_runs_again(tmp_path: Path) -> None:
    hub, results = MemoryHub(echo, agents=4), list[int]()
    clock, patience = waiting(hub, {0: 1, 60: 4})
    hub.die_when = lambda run: run.exchanges == 5

    def script(grid: Any) -> int:
        began = clock.now
        sample(grid, clock, 4)
        for _ in range(6):
            grid.send_and_receive(to_all(grid, content(), "query"))
        return int(clock.now - began)

    run_to_the_end(hub, does(script, results), tmp_path, patience=patience)
    assert hub.row().attempts == 2 and results[0] < 15
