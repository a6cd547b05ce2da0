"""Orders name a task by all it depends on; a task that is settled stays settled."""

import pytest

from fedfleet_protocol.exchange import TaskState, order_of
from fedfleet_protocol.ids import NO_BASE, AgentId, Digest, RunId, agent_id, parse_digest, run_id
from fedfleet_protocol.task import Stage

RUN, AGENT = run_id(bytes(16)), agent_id(bytes(16))
PAYLOAD = Digest("1" * 64)


def order(
    run: RunId = RUN, n: int = 1, agent: AgentId = AGENT, payload: Digest = PAYLOAD, base: Digest = NO_BASE
) -> str:
    return order_of(run=run, n=n, agent=agent, payload=payload, base=base)


def test_an_order_is_what_it_was_in_the_first_version() -> None:
    assert order() == "8513aa40679312bb280cb4464d48adda4cf4a7c6db8726e643498e8534df21b7"
    assert parse_digest(order()) == order()


def test_whatever_a_task_depends_on_changes_its_order() -> None:
    others = [
        order(run=run_id(b"\1" * 16)),
        order(n=2),
        order(agent=agent_id(b"\1" * 16)),
        order(payload=Digest("2" * 64)),
        order(base=Digest("1" * 64)),
    ]
    assert len({order(), *others}) == 6


@pytest.mark.parametrize("state", TaskState)
def test_only_tasks_that_wait_or_are_out_can_still_change(state: TaskState) -> None:
    assert state.terminal == (state.value not in {"waiting", "published"})


def test_states_are_stored_under_these_words() -> None:
    assert [state.value for state in TaskState] == ["waiting", "published", "accepted", "declined", "missed"]
    assert [stage.value for stage in Stage] == ["idle", "assigned", "training", "ready"]
