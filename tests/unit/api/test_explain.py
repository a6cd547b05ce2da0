"""Every refusal says why, in words a person can act on."""

import pytest

from fedfleet_coordinator.api.explain import explain_agent, explain_run
from fedfleet_coordinator.api.snapshots import model_blob, run_snapshot, timeline
from fedfleet_coordinator.clock import Now
from fedfleet_coordinator.errors import NotFound
from fedfleet_coordinator.rows import Agent, Blob, Exchange, Position, Run, Task
from fedfleet_coordinator.store.memory import MemoryStore
from fedfleet_protocol.exchange import ExchangeState, TaskState
from fedfleet_protocol.ids import AgentId, Digest, RunId, agent_id, run_id

NOW = Now(up=100.0, wall=1_000_000.0)
RUN = run_id(bytes(16))
IDS = [agent_id(bytes(15) + bytes([index])) for index in range(6)]


@pytest.fixture
def store() -> MemoryStore:
    """A run in its third exchange: one reply is in, one agent declined, one works; three others are not in it."""
    store = MemoryStore()
    with store.transaction() as tx:
        tx.put(Run(run=RUN, state="running", exchanges=3, selector={"site": "a"}, min_agents=2))
        tx.put(Exchange(run=RUN, n=3, label="train", expected=3, settled=2, accepted=1, deadline_at=160.0))
        for index, agent in enumerate(IDS):
            labels = {"site": "b" if index == 3 else "a", "name": f"edge-{index}"}
            tx.put(
                Agent(agent=agent, labels=labels, online=index != 4, not_after_wall=2e6, seen_at=0.0,
                      eligible=index != 5, code="paused" if index == 5 else "")
            )  # fmt: skip
        tx.put(task(0, TaskState.ACCEPTED, settled_wall=999_990.0))
        tx.put(task(1, TaskState.DECLINED, code="battery", text="battery 11% < 20%", settled_wall=999_985.0))
        tx.put(task(2, TaskState.PUBLISHED))
    return store


def task(index: int, state: TaskState, *, code: str = "", text: str = "", settled_wall: float | None = None) -> Task:
    return Task(
        run=RUN, n=3, agent=IDS[index], state=state, code=code, text=text, published_wall=999_980.0,
        settled_wall=settled_wall,
    )  # fmt: skip


def test_run_says_for_each_agent_why_it_is_not_in_the_round(store: MemoryStore) -> None:
    with store.transaction() as tx:
        told = explain_run(tx, RUN, NOW)
    assert told["text"] == (
        f"run {RUN} is in exchange 3 (train): 1 of 3 replies are in, 1 will not come; it closes in 60 s at the latest"
    )
    assert told["lines"][0] == "agent edge-1 is not in exchange 3 (train): battery 11% < 20%"
    assert told["lines"][1].startswith("agent edge-2 works on exchange 3 (train) since 1970-01-12")
    assert told["lines"][2] == (
        "agent edge-3 is not in this run: the run selects site=a, the agent has name=edge-3, site=b"
    )
    assert told["lines"][3] == "agent edge-4 is not connected: it has never been connected"
    assert told["lines"][4] == "agent edge-5 may not train now: the owner has paused this agent"
    assert len(told["lines"]) == 5


def test_reply_that_was_left_out_counts_as_such_and_says_why(store: MemoryStore) -> None:
    with store.transaction() as tx:
        tx.put(task(0, TaskState.ACCEPTED, code="not_finite", text="array 'w' holds NaN", settled_wall=999_990.0))
        snapshot, told = run_snapshot(tx, RUN, NOW), explain_run(tx, RUN, NOW)
        lines, states = explain_agent(tx, IDS[0], NOW)["lines"], [one["state"] for one in timeline(tx, RUN)["tasks"]]
    exchange = snapshot["exchange"]
    assert (exchange["settled"], exchange["accepted"], exchange["left_out"]) == (2, 0, 1)
    assert (exchange["agents"][0]["state"], exchange["agents"][0]["code"]) == ("left out", "not_finite")
    assert states == ["left out", "declined", "published"]
    assert "0 of 3 replies are in, 1 was left out, 1 will not come" in told["text"]
    assert told["lines"][0] == "agent edge-0 is not in exchange 3 (train): array 'w' holds NaN"
    assert lines[0].startswith(f"run {RUN}: {told['lines'][0]}")


@pytest.mark.parametrize(("needs", "waits_for"), [(0, 4), (5, 5)])
def test_run_that_waits_for_agents_says_at_once_how_many_are_missing(
    store: MemoryStore, needs: int, waits_for: int
) -> None:
    later = Now(up=700.0, wall=NOW.wall)  # whoever is not connected now is not there any more
    with store.transaction() as tx:
        tx.put(Run(run=RUN, state="running", exchanges=3, selector={"site": "a"}, min_agents=4, needs=needs))
        tx.put(Exchange(run=RUN, n=3, label="train", state=ExchangeState.CLOSED, reason="all", deadline_at=160.0))
        tx.put(Agent(agent=IDS[1], labels={"site": "a"}, online=False), Agent(agent=IDS[2], labels={"site": "b"}))
        waiting, told = run_snapshot(tx, RUN, later)["waiting"], explain_run(tx, RUN, later)
    assert waiting == {"need": waits_for, "matching": 4, "there": 2}
    assert told["text"] == f"run {RUN} waits for agents: it needs {waits_for}, 4 match its selector, 2 are there"


def test_run_that_has_its_agents_waits_for_nobody(store: MemoryStore) -> None:
    with store.transaction() as tx:
        assert run_snapshot(tx, RUN, NOW)["waiting"] is None


def test_reply_that_is_an_error_is_a_failure(store: MemoryStore) -> None:
    with store.transaction() as tx:
        tx.put(task(0, TaskState.ACCEPTED, code="app_error", text="", settled_wall=999_990.0))
        exchange, told = run_snapshot(tx, RUN, NOW)["exchange"], explain_run(tx, RUN, NOW)
    assert exchange["agents"][0]["state"] == "failed" and exchange["accepted"] == 0
    assert told["lines"][0] == "agent edge-0 is not in exchange 3 (train): the app failed on the device"


@pytest.mark.parametrize(
    ("index", "text"),
    [
        (0, "agent edge-0 is ready and waits for tasks"),
        (2, "agent edge-2 is at work"),
        (4, "agent edge-4 is not connected: it has never been connected"),
        (5, "agent edge-5 may not train now: the owner has paused this agent"),
    ],
)
def test_agent_says_what_holds_it(store: MemoryStore, index: int, text: str) -> None:
    with store.transaction() as tx:
        assert explain_agent(tx, IDS[index], NOW)["text"] == text


def test_agent_remembers_what_it_declined(store: MemoryStore) -> None:
    with store.transaction() as tx:
        lines = explain_agent(tx, IDS[1], NOW)["lines"]
    assert lines[0].startswith(f"run {RUN}: agent edge-1 is not in exchange 3 (train): battery 11% < 20% (1970-01-12")


def test_run_that_waits_for_agents_says_how_many(store: MemoryStore) -> None:
    with store.transaction() as tx:
        tx.put(Run(run=RUN, state="running", selector={"site": "b"}, min_agents=2))
        assert explain_run(tx, RUN, NOW)["text"] == (
            f"run {RUN} waits for agents: it needs 2, 1 match its selector, 1 are there"
        )


def test_run_that_ended_says_why(store: MemoryStore) -> None:
    with store.transaction() as tx:
        tx.put(Run(run=RUN, state="failed", reason="no_results"))
        told = explain_run(tx, RUN, NOW)
    assert told["text"] == f"run {RUN} is failed: every reply of an exchange that needed results was a failure"


def test_run_that_is_over_says_who_was_missing_in_any_of_its_exchanges(store: MemoryStore) -> None:
    with store.transaction() as tx:
        tx.put(Run(run=RUN, state="finished", reason="finished", exchanges=4, bundle=Digest("b"), bundle_size=1))
        lines = explain_run(tx, RUN, NOW)["lines"]
    assert "agent edge-1 is not in exchange 3 (train): battery 11% < 20%" in lines
    assert not any("works on" in line or "not connected" in line for line in lines)


def test_snapshot_tells_how_the_exchanges_before_the_newest_ended(store: MemoryStore) -> None:
    with store.transaction() as tx:
        for n, label in ((1, "train"), (2, "evaluate")):
            tx.put(Exchange(run=RUN, n=n, label=label, state="closed", expected=3, settled=3, accepted=2, reason="all"))  # type: ignore[arg-type]
        closed = run_snapshot(tx, RUN, NOW)["closed"]
    assert closed == [
        {"n": 1, "label": "train", "expected": 3, "accepted": 2, "left_out": 0, "reason": "all"},
        {"n": 2, "label": "evaluate", "expected": 3, "accepted": 2, "left_out": 0, "reason": "all"},
    ]


def test_run_that_goes_on_says_where_it_is_and_how_to_have_the_model_of_its_checkpoint(store: MemoryStore) -> None:
    newest = Digest("b" * 64)
    with store.transaction() as tx:
        tx.put(Run(run=RUN, state="running", server_round=4, num_rounds=8))
        with pytest.raises(
            NotFound, match="is at round 4 of 8 and has no model yet; its first checkpoint is not there"
        ):
            model_blob(tx, RUN)
        tx.put(Blob(digest=newest, size=1))
        blobs = {"arrays.2": ["a" * 64, 1], "arrays.10": [newest, 1], "state.10": ["c" * 64, 1]}
        tx.put(Position(run=RUN, server_round=3, blobs=blobs))
        with pytest.raises(NotFound, match=f"that of round 3 is there now: fedfleet model get {RUN} --checkpoint"):
            model_blob(tx, RUN)
        assert model_blob(tx, RUN, checkpoint=True).digest == newest


def test_checkpoint_is_not_to_be_had_where_the_model_is(store: MemoryStore) -> None:
    final = Digest("d" * 64)
    with store.transaction() as tx:
        tx.put(Run(run=RUN, state="finished", model=final, model_size=1))
        tx.put(Blob(digest=final, size=1))
        assert model_blob(tx, RUN, checkpoint=True).digest == final


def test_snapshot_counts_seconds_of_each_task(store: MemoryStore) -> None:
    with store.transaction() as tx:
        exchange = run_snapshot(tx, RUN, NOW)["exchange"]
        tasks = timeline(tx, RUN)["tasks"]
    assert [(one["state"], one["seconds"]) for one in exchange["agents"]] == [
        ("accepted", 10.0), ("declined", 5.0), ("published", 20.0)
    ]  # fmt: skip
    assert exchange["remaining_s"] == 60.0
    assert [(one["label"], one["settled"]) for one in tasks] == [
        ("train", 999_990.0), ("train", 999_985.0), ("train", None)
    ]  # fmt: skip


def test_what_is_not_there_is_said_with_where_to_look(store: MemoryStore) -> None:
    with store.transaction() as tx:
        with pytest.raises(NotFound, match="fedfleet runs"):
            explain_run(tx, RunId("r-none"), NOW)
        with pytest.raises(NotFound, match="fedfleet agents"):
            explain_agent(tx, AgentId("a-none"), NOW)
