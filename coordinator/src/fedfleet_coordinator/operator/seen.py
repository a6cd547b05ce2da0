"""What the operator sees: the FederatedRun, the runner's Jobs, and what the coordinator's store says of the run."""

import datetime
import hashlib
import re
from dataclasses import dataclass, field
from typing import Any, Literal

from fedfleet_protocol.ids import RunId, run_id

Json = dict[str, Any]
FINALIZER = "fedfleet.dev/run"
RUN_ID = "fedfleet.dev/run-id"
CREATED = "fedfleet.dev/run-created"
_FRACTION = re.compile(r"[-+]?(\d+\.\d+([eE][-+]?\d+)?|\d+[eE][-+]?\d+)")


@dataclass(frozen=True, slots=True)
class FederatedRun:
    """A FederatedRun as the API server has it.

    Attributes:
        run_id: what its annotation says; empty before it is adopted.
        created: the store has had the run, says its annotation.
        max_active_s: activeDeadlineSeconds, None for none.
    """

    namespace: str
    name: str
    uid: str
    generation: int = 1
    run_id: str = ""
    created: bool = False
    finalized: bool = False
    deleting: bool = False
    suspend: bool = False
    priority: int = 0
    max_active_s: int | None = None
    ttl_s: int | None = None
    purge: bool = False
    status: Json = field(default_factory=dict)

    @property
    def owner(self) -> str:
        """What the store knows the object by."""
        return f"{self.namespace}/{self.name}"

    @property
    def own_id(self) -> RunId:
        """The id this object's run gets: made of its uid, so that asking again gives the same."""
        return run_id(hashlib.sha256(f"fedfleet run {self.uid}".encode()).digest()[:16])

    def job_name(self, attempt: int) -> str:
        """Return the name of an attempt's Job."""
        return f"{self.name}-{attempt}"


def federated_run(found: Json) -> FederatedRun:
    """Return an object of the API server as a value."""
    meta, spec = found["metadata"], found.get("spec", {})
    annotations = meta.get("annotations") or {}
    return FederatedRun(
        namespace=meta["namespace"],
        name=meta["name"],
        uid=meta["uid"],
        generation=meta.get("generation", 1),
        run_id=annotations.get(RUN_ID, ""),
        created=annotations.get(CREATED) == annotations.get(RUN_ID, "") != "",
        finalized=FINALIZER in (meta.get("finalizers") or []),
        deleting="deletionTimestamp" in meta,
        suspend=spec.get("suspend", False),
        priority=spec.get("priority", 0),
        max_active_s=spec.get("activeDeadlineSeconds"),
        ttl_s=spec.get("ttlSecondsAfterFinished"),
        purge=spec.get("deletionPolicy") == "Purge",
        status=found.get("status") or {},
    )


@dataclass(frozen=True, slots=True)
class Job:
    """One attempt's Job.

    Attributes:
        exit_code: of the runner's container once it has ended; -1 if nobody knows it.
        waiting: why its pod does not run yet, in the cluster's words; empty if it does.
        deleting: it is on its way out, and says no more how its runner ended.
    """

    name: str
    attempt: int
    state: Literal["active", "succeeded", "failed"] = "active"
    exit_code: int = -1
    disrupted: bool = False
    deleting: bool = False
    waiting: str = ""

    @property
    def ended(self) -> bool:
        """Whether its runner is no more at work."""
        return self.state != "active"


@dataclass(frozen=True, slots=True)
class Stored:
    """What the store says of a run.

    Attributes:
        owner: the object it was made for, `namespace/name`.
        claimed: the newest attempt that a runner has claimed.
        noted: the newest attempt whose end was noted.
        active_s: how long it has been active in all, suspended times left out.
        shown: fields of the object's status that are the store's to say: round, agents, metrics, model ...
        waits: what it waits for, in a sentence; empty if for nothing but its agents.
    """

    state: Literal["pending", "running", "finished", "failed", "stopped"]
    owner: str = ""
    reason: str = ""
    text: str = ""
    claimed: int = 0
    noted: int = 0
    failures: int = 0
    suspended: bool = False
    priority: int = 0
    active_s: float = 0.0
    started_wall: float | None = None
    ended_wall: float | None = None
    enough_agents: bool = True
    waits: str = ""
    shown: Json = field(default_factory=dict)

    @property
    def live(self) -> bool:
        """Whether the run can still change."""
        return self.state in ("pending", "running")


@dataclass(frozen=True, slots=True)
class Observed:
    """What there is beside the object itself.

    Attributes:
        stored: the run in the store, None if the store does not know its id; see `silent_s`.
        silent_s: for how long no coordinator has answered; None if one does. Then `stored` says nothing.
        jobs: all Jobs of the object.
    """

    stored: Stored | None = None
    silent_s: float | None = None
    jobs: tuple[Job, ...] = ()


def config_values(given: Json) -> Json:
    """Return a FederatedRun's configuration with each value of its kind.

    Its schema knows whole numbers and text; text that is spelled like a fraction or a truth value is one, and text in
    double quotes is what is between them.
    """
    return {key: _value(value) if isinstance(value, str) else value for key, value in given.items()}


def _value(text: str) -> bool | float | str:
    if text in ("true", "false"):
        return text == "true"
    if _FRACTION.fullmatch(text):
        return float(text)
    return text[1:-1] if len(text) >= 2 and text[0] == text[-1] == '"' else text


def spell_time(wall: float) -> str:
    """Return seconds since the epoch as the API server writes times."""
    return datetime.datetime.fromtimestamp(int(wall), datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def read_time(text: str) -> float:
    """Return a time of the API server as seconds since the epoch."""
    return datetime.datetime.fromisoformat(text).timestamp()
