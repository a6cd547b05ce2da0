"""Machines that break one rule of the contract each: the schedules must notice, or they prove nothing."""

from collections.abc import Callable

import pytest

from fedfleet_agent import core
from fedfleet_agent.transitions import Action as AgentAction
from fedfleet_coordinator import exchanges, garbage
from fedfleet_coordinator.clock import Now
from fedfleet_coordinator.rows import Blob
from fedfleet_coordinator.store.port import Tx
from fedfleet_coordinator.transitions import Action, Event, Facts, Rule, decide
from fedfleet_protocol.exchange import TaskState
from tests.simulation.schedule import play

pytestmark = pytest.mark.simulation
SEEDS = 200


def test_hub_that_accepts_after_the_close_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def lax(state: TaskState, event: Event, facts: Facts) -> Rule:
        rule = decide(state, event, facts)
        if event is Event.REPLY and rule.action is Action.CLOSED and state is not TaskState.DECLINED:
            return Rule(state, event, (), Action.ACCEPT, TaskState.ACCEPTED)
        return rule

    monkeypatch.setattr(exchanges, "decide", lax)
    assert first_complaint()


def test_hub_that_sweeps_blobs_which_rows_name_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def greedy(tx: Tx, now: Now, grace_s: float) -> list[str]:
        tx.delete(*(blob for blob in tx.find(Blob) if blob.stored_at > 0))
        return []

    monkeypatch.setattr(garbage, "collect", greedy)
    assert first_complaint()


def test_agent_that_keeps_the_state_of_a_refused_reply_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    close: Callable[[core.Core, AgentAction], None] = core.Core._close

    def keep(self: core.Core, action: AgentAction) -> None:
        ready = self.entry is not None and self.entry.reply is not None
        close(self, AgentAction.PROMOTE if ready else action)

    monkeypatch.setattr(core.Core, "_close", keep)
    assert first_complaint()


def first_complaint() -> str:
    """Return what the first schedule that goes wrong says, empty if none does."""
    for seed in range(SEEDS):
        try:
            play(seed)
        except AssertionError as error:
            return str(error)
    return ""
