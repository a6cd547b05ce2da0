"""The status of a FederatedRun: a projection of the store, so it can be lost and written again.

Conditions are the contract; `phase` is their summary. A condition keeps the time of its last change for as long as its
status stays the same.
"""

from collections.abc import Mapping
from typing import Any

from fedfleet_coordinator.operator.actions import Emit
from fedfleet_coordinator.operator.seen import FederatedRun, Job, Observed, Stored, spell_time

Json = dict[str, Any]
TYPES = ("Accepted", "Reconciling", "AgentsAvailable", "Suspended", "Stalled", "Complete", "Failed")
UNKNOWN_TO_STORE = "RunUnknownToStore"
OTHER_OWNER = "RunIdInUse"
TOO_FEW = "TooFewAgents"
_SHOWN_REASONS = {
    "stopped": "Stopped",
    "app_failed": "AppFailed",
    "runner_died": "RunnerDied",
    "bundle": "BundleUnusable",
}
_WARNING = ("Failed", "Stalled")
_MESSAGE_LENGTH = 4096
Said = tuple[str, str, str]
"""A condition's status, reason and message."""


def status_of(run: FederatedRun, observed: Observed, *, now_wall: float) -> Json:
    """Return the status as it should be now.

    Args:
        run: adopted. What its status says now is used for the times of changes only.
        observed: the coordinator answers, see `silent_status` if it does not.
    """
    stored = observed.stored
    job = current_job(observed.jobs)
    conditions = _conditions(run, _said(run, stored, job), now_wall)
    status: Json = {"observedGeneration": run.generation, "runId": run.run_id}
    if stored is None or stored.owner != run.owner:
        status["completionTime"] = run.status.get("completionTime") or spell_time(now_wall)
    else:
        status |= stored.shown | {"attempt": max(stored.claimed, stored.noted)}
        for name, wall in (("startTime", stored.started_wall), ("completionTime", stored.ended_wall)):
            if wall is not None:
                status[name] = spell_time(wall)
        if job is not None and stored.live:
            status["currentJob"] = job.name
    return status | {"conditions": conditions, "phase": phase_of(conditions)}


def silent_status(run: FederatedRun, *, now_wall: float) -> Json:
    """Return the status while no coordinator answers: what was known, and that nothing newer is."""
    said: dict[str, Said] = {
        one["type"]: (one["status"], one["reason"], one["message"]) for one in _before(run).values()
    }
    if not finished(run.status):
        text = "no coordinator answers; the run goes on when one does"
        said |= {"Stalled": ("True", "CoordinatorUnreachable", text)}
    conditions = _conditions(run, said, now_wall)
    return run.status | {"conditions": conditions, "phase": phase_of(conditions)}


def phase_of(conditions: list[Json]) -> str:
    """Return the one word that sums up conditions."""
    holds = {one["type"] for one in conditions if one["status"] == "True"}
    for condition in ("Complete", "Failed", "Suspended", "Stalled"):
        if condition in holds:
            return condition
    if "Accepted" not in holds:
        return "Pending"
    return "Running" if "AgentsAvailable" in holds else "Waiting"


def finished(status: Mapping[str, Any]) -> bool:
    """Whether a status says that the run has ended."""
    return any(
        one["type"] in ("Complete", "Failed") and one["status"] == "True" for one in status.get("conditions", ())
    )


def current_job(jobs: tuple[Job, ...]) -> Job | None:
    """Return the Job of the newest attempt that is still at work, None if there is none."""
    return max((job for job in jobs if not job.ended and not job.deleting), key=lambda job: job.attempt, default=None)


def events_of(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Emit]:
    """Return what a person wants to read about a change of status."""
    old = {one["type"]: one["status"] for one in before.get("conditions", ())}
    events = []
    for one in after["conditions"]:
        if one["type"] == "Reconciling" or one["status"] == old.get(one["type"]):
            continue
        if one["status"] == "True" or one["reason"] == TOO_FEW:
            bad = one["type"] in _WARNING or one["reason"] == TOO_FEW
            events.append(Emit(one["reason"], one["message"][:1024], warning=bad))
    return events


def _said(run: FederatedRun, stored: Stored | None, job: Job | None) -> dict[str, Said]:
    if stored is None:
        text = (
            f"the coordinator does not know run {run.run_id}, which it had accepted: its store was replaced or "
            "restored from an older backup; create another FederatedRun"
        )
        return _ended("Failed", UNKNOWN_TO_STORE, text, accepted=True)
    if stored.owner != run.owner:
        text = (
            f"run {run.run_id} belongs to {stored.owner or 'nobody in this cluster'}; remove the annotations of "
            "fedfleet.dev from this manifest and create it again"
        )
        return _ended("Failed", OTHER_OWNER, text, accepted=False)
    if stored.state == "finished":
        return _ended("Complete", "Finished", stored.text or "the run has ended well", accepted=True)
    if not stored.live:
        reason = _SHOWN_REASONS.get(stored.reason) or camel(stored.reason) or "Failed"
        return _ended("Failed", reason, stored.text or reason, accepted=stored.reason != "bundle")
    said: dict[str, Said] = {"Accepted": ("True", "Accepted", f"the coordinator has it as run {run.run_id}")}
    if stored.suspended:
        said["Suspended"] = ("True", "Suspended", "spec.suspend is true; set it to false to let the run go on")
    if stored.enough_agents:
        said["AgentsAvailable"] = ("True", "EnoughAgents", stored.waits or "enough agents are there")
    else:
        said["AgentsAvailable"] = ("False", TOO_FEW, stored.waits or "too few agents are there")
    if job is None and not stored.suspended:
        said["Reconciling"] = ("True", "RunnerStarting", f"attempt {stored.noted + 1} is about to start")
    elif job is not None and job.waiting:
        said["Reconciling"] = ("True", "RunnerWaiting", f"{job.name} does not run yet: {job.waiting}")
    if stored.failures and not stored.suspended and job is not None and job.attempt > stored.claimed:
        said["Stalled"] = ("False", "Retrying", f"{stored.failures} runners have failed; {job.name} is the next")
    return said


def _ended(condition: str, reason: str, text: str, *, accepted: bool) -> dict[str, Said]:
    said: dict[str, Said] = {condition: ("True", reason, text)}
    said["Accepted"] = ("True", "Accepted", "the coordinator had it") if accepted else ("False", reason, text)
    return said


def _conditions(run: FederatedRun, said: Mapping[str, Said], now_wall: float) -> list[Json]:
    before = _before(run)
    found = []
    for condition in TYPES:
        status, reason, message = said.get(condition, ("False", "No", ""))
        old = before.get(condition)
        since = old["lastTransitionTime"] if old is not None and old["status"] == status else spell_time(now_wall)
        found.append(
            {"type": condition, "status": status, "observedGeneration": run.generation, "lastTransitionTime": since,
             "reason": reason, "message": message[:_MESSAGE_LENGTH]}
        )  # fmt: skip
    return found


def _before(run: FederatedRun) -> dict[str, Json]:
    return {one["type"]: one for one in run.status.get("conditions", ()) if one["type"] in TYPES}


def camel(code: str) -> str:
    """Return a reason code as a condition's reason: `too_few_agents` is TooFewAgents."""
    return "".join(part.capitalize() for part in code.split("_"))
