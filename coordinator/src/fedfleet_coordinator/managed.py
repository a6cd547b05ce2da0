"""Runs that the operator made for objects of a cluster: their attempts are Jobs, and their runners claim them.

An attempt is claimed before anything is written under it. The claim gives the run a new epoch, so a runner of an older
attempt that is cut off, and lives on, writes nothing any more. How an attempt ended is noted once, by its number. A
failure counts towards `max_attempts`, a disruption does not, the app's own fault ends the run.
"""

import re
from dataclasses import dataclass
from typing import Protocol

import msgspec

from fedfleet_coordinator import runs
from fedfleet_coordinator.clock import Now
from fedfleet_coordinator.errors import BadRequest, NotFound, StaleEpoch, TokenRefused
from fedfleet_coordinator.exchanges import Exchanges
from fedfleet_coordinator.outbox import Outbox
from fedfleet_coordinator.rows import Blob, Exchange, LogLine, Managed, Metrics, Ref, Run, Task
from fedfleet_coordinator.store.port import Tx
from fedfleet_protocol.ids import Digest, RunId
from fedfleet_protocol.reasons import RUN

_POD = re.compile(r"(?P<job>.+)-[a-z0-9]{5}")


@dataclass(frozen=True, slots=True)
class Pod:
    """Who shows a token: a pod, by its namespace and name."""

    namespace: str
    name: str


class Reviewer(Protocol):
    """Asks the cluster whose token it is."""

    def pod_of(self, token: str) -> Pod:
        """Return the pod to which a projected token was given for us.

        Raises:
            TokenRefused: it is none of this cluster, not meant for us, expired, or no pod has it.
            Unavailable: nobody says.
        """
        ...


def create(tx: Tx, run: Run, managed: Managed, failure: str, now: Now, out: Outbox) -> Run:
    """Put a run into the store; the same id again returns what is there.

    Args:
        failure: why its bundle cannot be had; the run has failed from the start then, and is here for its history.
    """
    known = tx.get(Run, run.run)
    if known is not None:
        return known
    if not failure and tx.get(Blob, run.bundle) is None:
        failure = f"{RUN['bundle']}: bundle {run.bundle[:12]} is not at the coordinator; upload it, or name a ConfigMap"
    tx.put(managed)
    if not failure:
        return runs.submit(tx, run, now, out)
    run = msgspec.structs.replace(
        run, state="failed", reason="bundle", text=failure[:4000], created_wall=now.wall, ended_wall=now.wall
    )
    tx.put(run)
    out.changed(run.run)
    return run


def signed_before(tx: Tx, bundle: Digest) -> Run | None:
    """Return a run with this bundle, whose signature vouches for it; None if it was never run."""
    return next((run for run in tx.find(Run, bundle=bundle) if run.signature), None)


def claim(tx: Tx, run_id: RunId, attempt: int, pod: Pod, epoch: str, now: Now, out: Outbox) -> Run:
    """Make a pod the one runner that may write, and return its run.

    Raises:
        NotFound: there is no such run. TokenRefused: the pod is not one of this attempt's Job.
        StaleEpoch: a newer attempt was claimed, or this one has ended. BadRequest: the run is suspended.
    """
    managed, run = tx.get(Managed, run_id), tx.get(Run, run_id)
    if managed is None or run is None:
        raise NotFound(f"there is no run {run_id[:40]} of this cluster")
    namespace, _, name = managed.owner.partition("/")
    job = _POD.fullmatch(pod.name)
    if pod.namespace != namespace or job is None or job["job"] != f"{name}-{attempt}":
        raise TokenRefused(f"pod {pod.namespace}/{pod.name} is no runner of attempt {attempt} of {managed.owner}")
    if not run.live or attempt < run.attempts or attempt <= managed.noted:
        raise StaleEpoch(f"attempt {attempt} of run {run_id} is over; this runner has nothing to do")
    if managed.suspended:
        raise BadRequest(f"run {run_id} is suspended; its next attempt starts when it goes on")
    if managed.active_since is None:
        tx.put(msgspec.structs.replace(managed, active_since=now.up))
    before = msgspec.structs.replace(run, attempts=attempt - 1)
    tx.put(before)
    launched = runs.launch(tx, run_id, epoch, now, out)
    assert launched is not None  # it is live
    return launched


def note_exit(
    tx: Tx, run_id: RunId, attempt: int, exit_code: int, exchanges: Exchanges, now: Now, out: Outbox, *, disrupted: bool
) -> None:
    """Note how an attempt ended; the same attempt again changes nothing.

    Raises:
        NotFound: there is no such run.
    """
    managed, run = _both(tx, run_id)
    if attempt <= managed.noted or not run.live:
        return
    managed = msgspec.structs.replace(managed, noted=attempt, failures=managed.failures + (not disrupted))
    tx.put(managed, msgspec.structs.replace(run, epoch="", attempts=max(run.attempts, attempt)))
    run = _both(tx, run_id)[1]
    out.changed(run_id)
    if not disrupted and exit_code == runs.APP_FAULT:
        runs.end(tx, run, "failed", "app_failed", RUN["app_failed"], exchanges, now, out)
    elif managed.failures >= managed.max_attempts:
        text = f"{managed.failures} runners failed, the last one with exit code {exit_code}; see fedfleet logs {run_id}"
        runs.end(tx, run, "failed", "runner_died", text, exchanges, now, out)


def suspend(tx: Tx, run_id: RunId, exchanges: Exchanges, now: Now, out: Outbox, *, suspended: bool) -> None:
    """End the open exchange with the replies there are and fence the runner, or let the run go on.

    Raises:
        NotFound: there is no such run.
    """
    managed, run = _both(tx, run_id)
    if managed.suspended == suspended or not run.live:
        return
    if suspended:
        exchanges.suspend(tx, run_id, now, out)
        run = _both(tx, run_id)[1]
        tx.put(msgspec.structs.replace(run, epoch=""))
        active_s, since = active(managed, now), None
    else:
        active_s, since = managed.active_s, now.up if run.attempts else None
    tx.put(msgspec.structs.replace(managed, suspended=suspended, active_s=active_s, active_since=since))
    out.changed(run_id)


def set_priority(tx: Tx, run_id: RunId, priority: int, out: Outbox) -> None:
    """Give a run another priority.

    Raises:
        NotFound: there is no such run.
    """
    run = _both(tx, run_id)[1]
    tx.put(msgspec.structs.replace(run, priority=priority))
    out.changed(run_id)


def purge(tx: Tx, run_id: RunId) -> None:
    """Forget an ended run: its model, history and bundle."""
    run = tx.get(Run, run_id)
    if run is None or run.live:
        return
    for kind in (Ref, Metrics, LogLine, Task, Exchange, Managed):
        tx.delete(*tx.find(kind, run=run_id))
    tx.delete(run)


def active(managed: Managed, now: Now) -> float:
    """Return for how long a run has been active in all, in seconds."""
    return managed.active_s + (now.up - managed.active_since if managed.active_since is not None else 0.0)


def _both(tx: Tx, run_id: RunId) -> tuple[Managed, Run]:
    managed, run = tx.get(Managed, run_id), tx.get(Run, run_id)
    if managed is None or run is None:
        raise NotFound(f"there is no run {run_id[:40]} of this cluster")
    return managed, run
