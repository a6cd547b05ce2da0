"""Rows as JSON for people: pure functions of a transaction. Times are seconds since the epoch."""

from collections.abc import Iterable
from typing import Any

from fedfleet_coordinator import fleet
from fedfleet_coordinator.clock import Now
from fedfleet_coordinator.errors import NotFound
from fedfleet_coordinator.rows import Agent, Blob, Exchange, LogLine, Metrics, Position, Run, Task, Token
from fedfleet_coordinator.store.port import Tx
from fedfleet_protocol.exchange import ExchangeState, TaskState
from fedfleet_protocol.ids import RunId

Json = dict[str, Any]
LINES_AT_ONCE = 1000
CLOSED_SHOWN = 20
"""Exchanges before the newest whose end a snapshot tells: short ones open and close between two looks of a person."""


def run_row(tx: Tx, run: str) -> Run:
    """Return a run's row.

    Raises:
        NotFound: there is no such run.
    """
    row = tx.get(Run, run)
    if row is None:
        raise NotFound(f"there is no run {run[:40]}; fedfleet runs lists them")
    return row


def agent_row(tx: Tx, agent: str) -> Agent:
    """Return an agent's row.

    Raises:
        NotFound: there is no such agent.
    """
    row = tx.get(Agent, agent)
    if row is None:
        raise NotFound(f"there is no agent {agent[:40]}; fedfleet agents lists them")
    return row


def run_summary(run: Run) -> Json:
    """Return a run in a few words."""
    return {
        "run": run.run,
        "app": run.app,
        "state": run.state,
        "reason": run.reason,
        "text": run.text,
        "attempts": run.attempts,
        "server_round": run.server_round,
        "num_rounds": run.num_rounds,
        "submitted_by": run.submitted_by,
        "created": run.created_wall,
        "started": run.started_wall,
        "ended": run.ended_wall,
    }


def run_snapshot(tx: Tx, run: RunId, now: Now) -> Json:
    """Return all that is shown of a run while it goes on.

    Raises:
        NotFound: there is no such run.
    """
    row = run_row(tx, run)
    newest = tx.get(Exchange, run, row.exchanges) if row.exchanges else None
    metrics = tx.find(Metrics, run=run, order=("server_round", "kind"))
    before = tx.find(Exchange, run=run, order=("n",), after=("n", row.exchanges - 1 - CLOSED_SHOWN))
    return {
        **run_summary(row),
        "config": row.config,
        "selector": row.selector,
        "min_agents": row.min_agents,
        "quorum": row.quorum,
        "waiting": waiting(tx, row, newest, now),
        "exchange": _exchange(tx, newest, now) if newest is not None else None,
        "closed": [_closed(tx, one) for one in before if one.reason and one.n < row.exchanges],
        "metrics": [{"round": one.server_round, "kind": one.kind, "values": one.values} for one in metrics],
        "model": {"digest": row.model, "size": row.model_size} if row.model else None,
    }


def timeline(tx: Tx, run: RunId) -> Json:
    """Return every task of a run: who had it, from when to when, and what became of it.

    Raises:
        NotFound: there is no such run.
    """
    run_row(tx, run)
    labels_of: dict[str, dict[str, str]] = {}
    exchanges = {exchange.n: exchange.label for exchange in tx.find(Exchange, run=run)}
    tasks = []
    for task in tx.find(Task, run=run):
        if task.agent not in labels_of:
            labels_of[task.agent] = _labels(tx, task.agent)
        tasks.append(
            {
                "agent": task.agent,
                "labels": labels_of[task.agent],
                "n": task.n,
                "label": exchanges.get(task.n, ""),
                "published": task.published_wall,
                "settled": task.settled_wall,
                "state": shown_state(task),
                "code": task.code,
            }
        )
    return {"run": run, "tasks": tasks}


def log_lines(tx: Tx, run: RunId, after: int) -> list[Json]:
    """Return the lines of a run's log whose number is greater than `after`, not too many at once.

    Raises:
        NotFound: there is no such run.
    """
    run_row(tx, run)
    rows = tx.find(LogLine, run=run, order=("seq",), after=("seq", after), limit=LINES_AT_ONCE)
    return [{"seq": row.seq, "source": row.source, "line": row.line, "at": row.at_wall} for row in rows]


def model_blob(tx: Tx, run: RunId, *, checkpoint: bool = False) -> Blob:
    """Return the blob of a run's final model.

    Args:
        checkpoint: return the model of the newest checkpoint of a run that has no final one (yet).

    Raises:
        NotFound: there is no such run, or it has no model (yet).
    """
    row = run_row(tx, run)
    blob = tx.get(Blob, row.model) if row.model else None
    if blob is not None:
        return blob
    if row.state not in {"pending", "running"}:
        raise NotFound(f"run {run} has no model: it is {row.state}, and its app returned none that is kept")
    position = tx.get(Position, run)
    saved = _arrays(tx, position) if position is not None else None
    if checkpoint and saved is not None:
        return saved
    there = f"run {run} is at round {row.server_round} of {row.num_rounds or 'an unknown number'} and has no model yet"
    if position is None or saved is None:
        raise NotFound(f"{there}; its first checkpoint is not there either: ask again after a round")
    now = f"that of round {position.server_round} is there now: fedfleet model get {run} --checkpoint"
    raise NotFound(f"{there}; {now}")


def _arrays(tx: Tx, position: Position) -> Blob | None:
    """Return the global arrays of a checkpoint: those of the newest call of `Strategy.start`."""
    found = {name: digest for name, (digest, _) in position.blobs.items() if name.startswith("arrays.")}
    if not found:
        return None
    return tx.get(Blob, found[max(found, key=lambda name: int(name.removeprefix("arrays.")))])


def agent_json(row: Agent) -> Json:
    """Return an agent as it is listed."""
    return {
        "agent": row.agent,
        "labels": row.labels,
        "self_labels": row.self_labels,
        "state": row.state,
        "online": row.online,
        "eligible": row.eligible,
        "code": row.code,
        "text": row.text,
        "version": row.version,
        "seen": row.seen_wall or None,
        "enrolled": row.enrolled_wall,
        "certificate_expires": row.not_after_wall,
    }


def token_json(row: Token) -> Json:
    """Return a join token without anything that could be used to join."""
    return {
        "hashed": row.hashed,
        "labels": row.labels,
        "uses_left": row.uses_left,
        "expires": row.expires_wall,
        "created_by": row.created_by,
    }


def waiting(tx: Tx, run: Run, exchange: Exchange | None, now: Now) -> dict[str, int] | None:
    """Return for how many agents a run waits, how many match its selector and how many are there; None if it does not.

    Args:
        exchange: its newest one.
    """
    need = max(run.needs, run.min_agents)
    if not run.live or (exchange is not None and exchange.state is ExchangeState.OPEN):
        return None
    there = len(fleet.present(tx, run.selector, now))
    if there >= need:
        return None
    matching = sum(fleet.matches(agent, run.selector) for agent in tx.find(Agent, state="active"))
    return {"need": need, "matching": matching, "there": there}


def shown_state(task: Task) -> str:
    """Return a task's state as people are told it: a reply may have arrived safely and still not count."""
    if task.state is not TaskState.ACCEPTED or not task.code:
        return task.state
    return "failed" if task.code == "app_error" else "left out"


def uncounted(tasks: Iterable[Task]) -> int:
    """Return how many replies that were in time do not count."""
    return sum(task.state is TaskState.ACCEPTED and bool(task.code) and not task.late for task in tasks)


def _exchange(tx: Tx, row: Exchange, now: Now) -> Json:
    tasks = tx.find(Task, run=row.run, n=row.n)
    left_out = uncounted(tasks)
    return {
        "n": row.n,
        "label": row.label,
        "state": row.state,
        "expected": row.expected,
        "settled": row.settled,
        "accepted": row.accepted - left_out,
        "left_out": left_out,
        "reason": row.reason,
        "remaining_s": round(max(0.0, row.deadline_at - now.up), 1) if not row.reason else 0.0,
        "agents": [_task(tx, task, now) for task in tasks],
    }


def _closed(tx: Tx, row: Exchange) -> Json:
    left_out = uncounted(tx.find(Task, run=row.run, n=row.n, state=TaskState.ACCEPTED)) if row.accepted else 0
    return {
        "n": row.n,
        "label": row.label,
        "expected": row.expected,
        "accepted": row.accepted - left_out,
        "left_out": left_out,
        "reason": row.reason,
    }


def _task(tx: Tx, task: Task, now: Now) -> Json:
    until = now.wall if task.state is TaskState.PUBLISHED else task.settled_wall
    return {
        "agent": task.agent,
        "labels": _labels(tx, task.agent),
        "state": shown_state(task),
        "code": task.code,
        "text": task.text,
        "seconds": round(until - task.published_wall, 3) if until and task.published_wall else None,
    }


def _labels(tx: Tx, agent: str) -> dict[str, str]:
    row = tx.get(Agent, agent)
    return row.labels if row is not None else {}
