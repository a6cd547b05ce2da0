"""The life of a run: submitted, given to one runner after the other, ended once.

A run is pending until its first runner is launched. Each launch gets an epoch, a random token; only who holds the
current one may write. A runner that dies is followed by another with a new epoch, which continues from the newest
checkpoint and is given the recorded answers of the Grid again. A runner that dies three times in a row without a new
exchange or checkpoint ends the run.
"""

from typing import Any, Literal

import msgspec

from fedfleet_coordinator import fleet
from fedfleet_coordinator.clock import Now
from fedfleet_coordinator.errors import BadRequest, NotFound
from fedfleet_coordinator.exchanges import Exchanges, writable
from fedfleet_coordinator.outbox import Outbox
from fedfleet_coordinator.rows import Blob, GridAnswer, LogLine, Metrics, Position, Ref, Run, Task, Turn
from fedfleet_coordinator.store.port import Tx
from fedfleet_protocol.exchange import TaskState
from fedfleet_protocol.ids import AgentId, RunId
from fedfleet_protocol.messages import BlobRef, ExchangeView, Log, Open, Over
from fedfleet_protocol.reasons import GATE, RUN

MAX_BARREN = 3
MAX_LOG_LINES = 100_000
APP_FAULT = 3
Ending = Literal["finished", "failed", "stopped"]


def submit(tx: Tx, run: Run, now: Now, out: Outbox) -> Run:
    """Put a new run into the store; the same id again returns what is there.

    Raises:
        BadRequest: its bundle was not uploaded.
    """
    known = tx.get(Run, run.run)
    if known is not None:
        return known
    if tx.get(Blob, run.bundle) is None:
        raise BadRequest(f"bundle {run.bundle[:12]} is not here; upload it first")
    tx.put(
        msgspec.structs.replace(run, created_wall=now.wall),
        Ref(digest=run.bundle, holder=f"bundle:{run.run}", run=run.run),
    )
    out.changed(run.run)
    return run


def launch(tx: Tx, run_id: RunId, epoch: str, now: Now, out: Outbox) -> Run | None:
    """Fence whatever runner there was and return the run for the next one; None if the run has ended."""
    run = tx.get(Run, run_id)
    if run is None or not run.live:
        return None
    run = msgspec.structs.replace(
        run,
        state="running",
        epoch=epoch,
        attempts=run.attempts + 1,
        started_wall=run.started_wall or now.wall,
    )
    tx.put(run)
    if run.attempts > 1:
        log(tx, run_id, "coordinator", [f"runner {run.attempts} continues after round {run.server_round}"], now, out)
    out.changed(run_id)
    return run


def runner_exited(
    tx: Tx, run_id: RunId, epoch: str, exit_code: int, exchanges: Exchanges, now: Now, out: Outbox
) -> None:
    """Note that a runner process ended without having ended its run."""
    run = tx.get(Run, run_id)
    if run is None or not run.live or run.epoch != epoch:
        return
    run = msgspec.structs.replace(run, barren=run.barren + 1)
    tx.put(run)
    if exit_code == APP_FAULT:
        end(tx, run, "failed", "app_failed", RUN["app_failed"], exchanges, now, out)
    elif run.barren >= MAX_BARREN:
        text = f"{RUN['runner_died']}; the last time with exit code {exit_code}: see fedfleet logs {run_id}"
        end(tx, run, "failed", "runner_died", text, exchanges, now, out)


def stop(tx: Tx, run_id: RunId, exchanges: Exchanges, now: Now, out: Outbox) -> Run:
    """End a run because a person says so; a run that has ended stays as it is.

    Raises:
        NotFound: there is no such run.
    """
    run = tx.get(Run, run_id)
    if run is None:
        raise NotFound(f"there is no run {run_id}; fedfleet runs lists them")
    return end(tx, run, "stopped", "stopped", RUN["stopped"], exchanges, now, out) if run.live else run


def end(
    tx: Tx,
    run: Run,
    state: Ending,
    reason: str,
    text: str,
    exchanges: Exchanges,
    now: Now,
    out: Outbox,
    *,
    model: BlobRef | None = None,
) -> Run:
    """End a live run: close its exchanges, let go of its blobs but bundle and model, tell its agents."""
    exchanges.cancel(tx, run.run, now, out)
    ended = tx.get(Run, run.run)
    assert ended is not None  # it is `run`, perhaps changed by the closes
    ended = msgspec.structs.replace(
        ended,
        state=state,
        reason=reason,
        text=text[:4000],
        ended_wall=now.wall,
        epoch="",
        model=model.digest if model else None,
        model_size=model.size if model else 0,
    )
    keep = {f"bundle:{run.run}", f"model:{run.run}"}
    tx.put(ended)
    if model is not None:
        tx.put(Ref(digest=model.digest, holder=f"model:{run.run}", run=run.run))
    tx.delete(*(ref for ref in tx.find(Ref, run=run.run) if ref.holder not in keep))
    tx.delete(*tx.find(GridAnswer, run=run.run), *tx.find(Position, run=run.run))
    for turn in tx.find(Turn, run=run.run):
        out.send(turn.agent, Over(run=run.run))
    tx.delete(*tx.find(Turn, run=run.run))
    out.changed(run.run)
    return ended


def end_by_runner(
    tx: Tx,
    run_id: RunId,
    epoch: str,
    state: Literal["finished", "failed"],
    reason: str,
    text: str,
    model: BlobRef | None,
    exchanges: Exchanges,
    now: Now,
    out: Outbox,
) -> Run:
    """End a run as its runner says.

    Raises:
        StaleEpoch, RunIsOver: the runner was replaced, or the run has ended. BadRequest: the model was not uploaded.
    """
    known = tx.get(Run, run_id)
    if known is not None and not known.live and known.state == state and known.reason == reason:
        return known  # said again by a runner that did not hear the answer
    run = writable(tx, run_id, epoch)
    if reason not in RUN:
        raise BadRequest(f"{reason[:40]!r} is no reason for the end of a run")
    if model is not None and tx.get(Blob, model.digest) is None:
        raise BadRequest(f"model {model.digest[:12]} is not here; upload it first")
    return end(tx, run, state, reason, text, exchanges, now, out, model=model)


def node_ids(
    tx: Tx,
    run_id: RunId,
    epoch: str,
    k: int,
    now: Now,
    out: Outbox,
    *,
    at_least: int = 0,
    unlike: list[AgentId] | None = None,
    needs: int = 0,
) -> tuple[list[AgentId], bool]:
    """Return the agents that are there, and whether that is now recorded as the k-th answer of the run's Grid.

    The answer names agents, not Flower's numbers: a runner can count from the one to the other and not back.

    Args:
        at_least: with fewer agents nothing is recorded; the runner asks again.
        unlike: with exactly these agents nothing is recorded: the runner waits for a change.
        needs: with fewer agents the app asks again, as far as the runner knows; it is noted for people.
    """
    run = writable(tx, run_id, epoch)
    if tx.get(GridAnswer, run_id, k) is None:
        agents = fleet.present(tx, run.selector, now)
        wanted = max(at_least, needs)
        waits_for = wanted if len(agents) < wanted else 0
        if run.needs != waits_for:
            tx.put(msgspec.structs.replace(run, needs=waits_for))
            out.changed(run_id)
        if len(agents) < at_least or agents == unlike:
            return agents, False
        return list(answer(tx, run_id, epoch, k, "nodes", agents).value), True
    return list(answer(tx, run_id, epoch, k, "nodes", []).value), True


def answer(tx: Tx, run_id: RunId, epoch: str, k: int, kind: str, value: Any) -> GridAnswer:
    """Record the k-th answer of a run's Grid, or return what is recorded already.

    Raises:
        BadRequest: the k-th answer was to another question: the app does not do what it did before.
    """
    writable(tx, run_id, epoch)
    recorded = tx.get(GridAnswer, run_id, k)
    if recorded is None:
        recorded = GridAnswer(run=run_id, k=k, kind=kind, value=value)
        tx.put(recorded)
    if recorded.kind != kind:
        raise BadRequest(f"answer {k} of run {run_id} was to {recorded.kind!r}, now it is asked for {kind!r}")
    return recorded


def metrics(
    tx: Tx,
    run_id: RunId,
    epoch: str,
    server_round: int,
    kind: str,
    values: dict[str, Any],
    num_rounds: int,
    out: Outbox,
) -> None:
    """Keep the metrics of a round; without values, only how many rounds there will be."""
    run = writable(tx, run_id, epoch)
    if values:
        tx.put(Metrics(run=run_id, server_round=server_round, kind=kind, values=values))
    if num_rounds and num_rounds != run.num_rounds:
        tx.put(msgspec.structs.replace(run, num_rounds=num_rounds))
    out.changed(run_id)


def left_out(tx: Tx, run_id: RunId, epoch: str, n: int, why: dict[AgentId, tuple[str, str]], out: Outbox) -> None:
    """Note why accepted replies of an exchange do not count; what is said of other tasks changes nothing.

    Args:
        why: a code of `reasons.GATE` and a sentence for each agent whose reply was left out.

    Raises:
        StaleEpoch, RunIsOver: the runner was replaced, or the run has ended. BadRequest: there is no such code.
    """
    writable(tx, run_id, epoch)
    for agent, (code, text) in why.items():
        if code not in GATE:
            raise BadRequest(f"{code[:40]!r} is no reason to leave a reply out")
        task = tx.get(Task, run_id, n, agent)
        if task is not None and task.state is TaskState.ACCEPTED:
            tx.put(msgspec.structs.replace(task, code=code, text=text[:500]))
    out.changed(run_id)


def log(tx: Tx, run_id: RunId, source: str, lines: list[str], now: Now, out: Outbox) -> None:
    """Append lines to a run's log; past the limit they are dropped, and a last line says so."""
    last = tx.find(LogLine, run=run_id, order=("-seq",), limit=1)
    seq = last[0].seq if last else 0
    for line in lines:
        if seq >= MAX_LOG_LINES:
            return
        seq += 1
        text = "the log is full; later lines are not kept" if seq == MAX_LOG_LINES else line[:4000]
        tx.put(LogLine(run=run_id, seq=seq, source=source, line=text, at_wall=now.wall))
    out.changed(run_id)


def open_exchange(tx: Tx, request: Open, exchanges: Exchanges, now: Now, out: Outbox) -> ExchangeView:
    """Open an exchange for a runner; an app that does not send what it had sent before ends its run.

    Raises:
        StaleEpoch, RunIsOver, BadRequest: as `Exchanges.open`.
    """
    view = exchanges.open(tx, request, now, out)
    if view.closed == "nondeterministic":
        text = f"{RUN['nondeterministic']}: exchange {request.n} ({request.label or 'no label'})"
        end(tx, writable(tx, request.run, request.epoch), "failed", "nondeterministic", text, exchanges, now, out)
    return view


def device_log(tx: Tx, agent: AgentId, message: Log, now: Now, out: Outbox) -> None:
    """Append what an app wrote on a device, if the device is in that run."""
    run = tx.get(Run, message.run)
    if run is None or tx.get(Turn, message.run, agent) is None:
        return
    lines = [line[:2000] for line in message.lines[:500]]
    if message.dropped:
        lines.append(f"({message.dropped} more lines were over the rate limit and are not kept)")
    log(tx, message.run, agent, lines, now, out)
