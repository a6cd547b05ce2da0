"""Why something is as it is, in sentences: pure functions of a transaction.

Each answer is `{"text": ..., "lines": [...]}`: what holds as a whole, then one sentence for each reason, e.g. "agent
edge-7 is not in round 3: battery 11% < 20%".
"""

import time
from typing import Any

from fedfleet_coordinator import fleet
from fedfleet_coordinator.api.snapshots import agent_row, run_row, uncounted, waiting
from fedfleet_coordinator.clock import Now
from fedfleet_coordinator.rows import Agent, Exchange, Run, Task
from fedfleet_coordinator.store.port import Tx
from fedfleet_protocol.exchange import ExchangeState, TaskState
from fedfleet_protocol.ids import AgentId, RunId
from fedfleet_protocol.reasons import CLOSE, DECLINE, GATE, RUN

_RECENT = 5
_MANY = 200


def explain_agent(tx: Tx, agent: AgentId, now: Now) -> dict[str, Any]:
    """Return why an agent is, or is not, at work.

    Raises:
        NotFound: there is no such agent.
    """
    row = agent_row(tx, agent)
    name = name_of(row)
    hindrance = hindered(row, now)
    tasks = tx.find(Task, agent=agent)
    open_tasks = [task for task in tasks if task.state is TaskState.PUBLISHED and _open(tx, task)]
    lines = [f"agent {name} works on {round_of(tx, task)} of run {task.run}" for task in open_tasks]
    refused = [task for task in tasks if task.state.terminal and task.code]
    refused.sort(key=lambda task: task.settled_wall or 0.0, reverse=True)
    lines += [f"run {task.run}: {absence(tx, name, task)} ({_when(task.settled_wall)})" for task in refused[:_RECENT]]
    for run in tx.find(Run, state=("pending", "running")):
        if not fleet.matches(row, run.selector):
            lines.append(f"agent {name} is not in run {run.run}: {_mismatch(row, run.selector)}")
    text = hindrance or (f"agent {name} is at work" if open_tasks else f"agent {name} is ready and waits for tasks")
    return {"text": text, "lines": lines}


def explain_run(tx: Tx, run: RunId, now: Now) -> dict[str, Any]:
    """Return why a run is where it is, and why which agent is not in its newest exchange; once it is over, in any.

    Raises:
        NotFound: there is no such run.
    """
    row = run_row(tx, run)
    exchange = tx.get(Exchange, run, row.exchanges) if row.exchanges else None
    lines = _newest(tx, row, exchange, now) if row.live else _absences(tx, run)
    if len(lines) > _MANY:
        lines = [*lines[:_MANY], f"and {len(lines) - _MANY} more; see fedfleet explain AGENT"]
    return {"text": _summary(tx, row, exchange, now), "lines": lines}


def _newest(tx: Tx, run: Run, exchange: Exchange | None, now: Now) -> list[str]:
    tasks = {task.agent: task for task in tx.find(Task, run=run.run, n=run.exchanges)} if exchange is not None else {}
    lines: list[str] = []
    for agent in tx.find(Agent):
        name, task = name_of(agent), tasks.get(agent.agent)
        lines += _outside(agent, name, run, exchange, now) if task is None else _about(tx, name, task)
    return lines


def _absences(tx: Tx, run: RunId) -> list[str]:
    """Return why which agent was not in which exchange, the first one first."""
    names = {agent.agent: name_of(agent) for agent in tx.find(Agent)}
    tasks = [task for task in tx.find(Task, run=run) if task.state.terminal and task.code]
    tasks.sort(key=lambda task: (task.n, names[task.agent]))
    return [absence(tx, names[task.agent], task) for task in tasks]


def name_of(row: Agent) -> str:
    """Return what people call an agent: its label `name` if the join token gave one, else its id."""
    return row.labels.get("name") or row.agent


def hindered(row: Agent, now: Now) -> str:
    """Return the sentence that says why an agent takes no task now; empty if it does."""
    name = name_of(row)
    if row.state == "revoked":
        return f"agent {name} was revoked; it can join again with a new token"
    if row.not_after_wall and row.not_after_wall < now.wall:
        return f"agent {name} has a certificate that expired {_when(row.not_after_wall)}; it must join again"
    if not row.online:
        seen = f"it was last seen {_when(row.seen_wall)}" if row.seen_wall else "it has never been connected"
        return f"agent {name} is not connected: {seen}"
    if not row.eligible:
        return f"agent {name} may not train now: {row.text or DECLINE.get(row.code, row.code)}"
    return ""


def round_of(tx: Tx, task: Task) -> str:
    """Return what people call a task's exchange."""
    exchange = tx.get(Exchange, task.run, task.n)
    label = exchange.label if exchange is not None else ""
    return f"exchange {task.n} ({label})" if label else f"exchange {task.n}"


def absence(tx: Tx, name: str, task: Task) -> str:
    """Return the sentence that says why an agent's reply is not in an exchange."""
    known = DECLINE.get(task.code) or CLOSE.get(task.code) or GATE.get(task.code)
    why = task.text or known or task.code or "no reason is known"
    return f"agent {name} is not in {round_of(tx, task)}: {why}"


def _about(tx: Tx, name: str, task: Task) -> list[str]:
    match task.state:
        case TaskState.ACCEPTED if not task.code:
            return []
        case TaskState.PUBLISHED:
            return [f"agent {name} works on {round_of(tx, task)} since {_when(task.published_wall)}"]
        case TaskState.WAITING:
            return [f"agent {name} still has an earlier task of this run; {round_of(tx, task)} comes after it"]
        case _:
            return [absence(tx, name, task)]


def _outside(agent: Agent, name: str, run: Run, exchange: Exchange | None, now: Now) -> list[str]:
    if not fleet.matches(agent, run.selector):
        return [f"agent {name} is not in this run: {_mismatch(agent, run.selector)}"]
    if hindrance := hindered(agent, now):
        return [hindrance]
    if exchange is not None:
        return [f"agent {name} was not chosen for exchange {exchange.n}; the app's strategy chooses"]
    return []


def _summary(tx: Tx, run: Run, exchange: Exchange | None, now: Now) -> str:
    if not run.live:
        return f"run {run.run} is {run.state}: {run.text or RUN.get(run.reason, run.reason)}"
    if exchange is None or exchange.state is ExchangeState.CLOSED:
        there = len(fleet.present(tx, run.selector, now))
        if (missing := waiting(tx, run, exchange, now)) is not None:
            return (
                f"run {run.run} waits for agents: it needs {missing['need']}, "
                f"{missing['matching']} match its selector, {missing['there']} are there"
            )
        return f"run {run.run} is {run.state}; its app is between exchanges, and {there} agents are there"
    left = max(0.0, exchange.deadline_at - now.up)
    left_out = uncounted(tx.find(Task, run=run.run, n=exchange.n))
    text = f"run {run.run} is in exchange {exchange.n} ({exchange.label or 'no label'}): "
    text += f"{exchange.accepted - left_out} of {exchange.expected} replies are in, "
    if left_out:
        text += f"{left_out} {'was' if left_out == 1 else 'were'} left out, "
    text += f"{exchange.settled - exchange.accepted} will not come; "
    if exchange.quorum and exchange.grace_at is not None:
        return text + f"the quorum is reached, it closes in {max(0.0, exchange.grace_at - now.up):.0f} s"
    return text + f"it closes in {left:.0f} s at the latest"


def _mismatch(row: Agent, selector: dict[str, str]) -> str:
    wanted = [f"{key}={value}" for key, value in sorted(selector.items()) if row.labels.get(key) != value]
    has = ", ".join(f"{key}={value}" for key, value in sorted(row.labels.items())) or "no labels"
    return f"the run selects {', '.join(wanted)}, the agent has {has}"


def _open(tx: Tx, task: Task) -> bool:
    exchange = tx.get(Exchange, task.run, task.n)
    return exchange is not None and exchange.state is ExchangeState.OPEN


def _when(wall: float | None) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(wall)) if wall else "at an unknown time"
