"""Decides what is to be done for one FederatedRun, and for runs whose object is gone.

Level-based: nothing is remembered from one call to the next, so a lost event or a restart changes nothing. Rules:

1. Before any side effect the object carries our finalizer and its run's id.
2. The store creates by that id, once. An id that it has had and does not know any more ends Failed/RunUnknownToStore.
3. A run that the store calls ended never starts again.
4. One Job for each attempt, `<run>-<attempt>`, never applied twice. The next attempt begins when the end of the last is
   noted in the store, which counts failures and not disruptions, and ends the run when they are too many.
5. A deleted object's run is ended first; the finalizer goes when that is done and no Job is left, or when no
   coordinator has answered for two minutes: the sweep ends such a run later.
"""

from collections.abc import Iterable, Mapping

from fedfleet_coordinator.operator.actions import (
    Action,
    Adopt,
    CreateJob,
    CreateRun,
    DeleteJob,
    DeleteObject,
    EndRun,
    MarkCreated,
    NoteExit,
    Release,
    SetPriority,
    SetSuspended,
    WriteStatus,
)  # fmt: skip
from fedfleet_coordinator.operator.seen import FederatedRun, Observed, Stored, read_time
from fedfleet_coordinator.operator.status import events_of, finished, silent_status, status_of
from fedfleet_protocol.ids import RunId

PATIENCE_S = 120.0
"""For how long a deleted object waits for a coordinator."""
LINGER_S = 60.0
"""For how long a runner may go on after its run has ended: it says its last words, and ends by itself."""


def reconcile(desired: FederatedRun, observed: Observed, *, now_wall: float) -> list[Action]:
    """Return what is to be done now, in this order. Done, and looked at again, it ends with an empty list."""
    if desired.deleting:
        return _farewell(desired, observed) if desired.finalized else []
    if not desired.finalized or not desired.run_id:
        return [Adopt(RunId(desired.run_id) or desired.own_id)]
    run = RunId(desired.run_id)
    if observed.silent_s is not None:
        return _status(desired, silent_status(desired, now_wall=now_wall))
    stored = observed.stored
    if stored is None and not desired.created and not finished(desired.status):
        return [CreateRun(run)]
    if stored is not None and not desired.created:
        return [MarkCreated(run)]
    actions: list[Action] = []
    if stored is not None and stored.live and stored.owner == desired.owner:
        actions += _live(desired, observed, stored)
    else:
        if _lingers(desired, stored, now_wall):
            actions += [DeleteJob(job.name) for job in observed.jobs if not job.ended and not job.deleting]
        if _outlived(desired, now_wall):
            return [*actions, DeleteObject()]
    if stored is None and finished(desired.status):
        return actions  # it ended, and the store keeps no history of it any more
    return actions + _status(desired, status_of(desired, observed, now_wall=now_wall))


def sweep(owners: Mapping[RunId, str], objects: Iterable[FederatedRun]) -> list[EndRun]:
    """Return which live runs of the store have lost their object.

    Args:
        owners: live runs that were made for objects, each with its owner.
        objects: all FederatedRuns there are, from a full list: one that is only not seen yet would be ended.
    """
    there = {(one.run_id, one.owner) for one in objects}
    text = "its FederatedRun was deleted while no coordinator answered"
    return [EndRun(run, "stopped", text) for run, owner in sorted(owners.items()) if (run, owner) not in there]


def _live(desired: FederatedRun, observed: Observed, stored: Stored) -> list[Action]:
    """Return what a run needs that has not ended."""
    run = RunId(desired.run_id)
    if desired.max_active_s is not None and stored.active_s >= desired.max_active_s:
        text = f"it has been active for activeDeadlineSeconds, {desired.max_active_s} s"
        return [EndRun(run, "deadline_exceeded", text)]
    actions: list[Action] = []
    if stored.priority != desired.priority:
        actions.append(SetPriority(run, desired.priority))
    if stored.suspended != desired.suspend:
        actions.append(SetSuspended(run, desired.suspend))
    working = [job for job in observed.jobs if not job.ended]
    if desired.suspend:
        # Whose Job is deleted because the run was suspended has neither failed nor been disrupted: noted as the latter.
        actions += [DeleteJob(job.name) for job in working if not job.deleting]
        if not working and stored.claimed > stored.noted:
            actions.append(_exit(observed, stored, run))
        return actions
    attempt = stored.noted + 1
    at_work = next((job for job in working if job.attempt == attempt), None)
    actions += [DeleteJob(job.name) for job in working if job.attempt != attempt and not job.deleting]
    if at_work is not None:
        return actions
    if stored.claimed >= attempt or any(job.attempt >= attempt and job.ended for job in observed.jobs):
        return [*actions, _exit(observed, stored, run)]
    return [*actions, CreateJob(desired.job_name(attempt), attempt)]


def _exit(observed: Observed, stored: Stored, run: RunId) -> NoteExit:
    """Return how the newest attempt ended. Without its Job nobody can say: somebody took it away."""
    attempts = [job.attempt for job in observed.jobs if job.ended and job.attempt > stored.noted]
    attempt = max([stored.claimed, *attempts])
    job = next((job for job in observed.jobs if job.attempt == attempt and job.ended), None)
    if job is None:
        return NoteExit(run, attempt, exit_code=-1, disrupted=True)
    return NoteExit(run, attempt, job.exit_code, job.disrupted)


def _farewell(desired: FederatedRun, observed: Observed) -> list[Action]:
    """Return what is to be done before a deleted object may go."""
    actions: list[Action] = [DeleteJob(job.name) for job in observed.jobs if not job.deleting]
    stored, mine = observed.stored, False
    if observed.silent_s is None and stored is not None:
        mine = stored.owner == desired.owner and desired.run_id != ""
        if mine and (stored.live or desired.purge):
            actions.append(
                EndRun(RunId(desired.run_id), "stopped", "its FederatedRun was deleted", purge=desired.purge)
            )
    told = observed.silent_s is None and not (mine and stored is not None and (stored.live or desired.purge))
    if (told or (observed.silent_s or 0.0) >= PATIENCE_S or not desired.run_id) and not observed.jobs:
        actions.append(Release())
    return actions


def _lingers(desired: FederatedRun, stored: Stored | None, now_wall: float) -> bool:
    """Whether a runner without a live run has had its time to end by itself, which leaves its log behind."""
    if stored is None or stored.owner != desired.owner or stored.ended_wall is None:
        return True
    return now_wall - stored.ended_wall >= LINGER_S


def _outlived(desired: FederatedRun, now_wall: float) -> bool:
    if desired.ttl_s is None or not finished(desired.status):
        return False
    ended = desired.status.get("completionTime")
    return ended is not None and read_time(ended) + desired.ttl_s <= now_wall


def _status(desired: FederatedRun, status: dict[str, object]) -> list[Action]:
    if status == desired.status:
        return []
    return [*events_of(desired.status, status), WriteStatus(status)]
