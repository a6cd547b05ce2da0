"""What the operator can do, as values. Each can be done twice: the second time changes nothing."""

from dataclasses import dataclass
from typing import Any

from fedfleet_protocol.ids import RunId

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Adopt:
    """Write finalizer and run id onto the object, in one apply and before anything else is done for it."""

    run_id: RunId


@dataclass(frozen=True, slots=True)
class CreateRun:
    """Put the run into the store under its id, failed from the start if its bundle cannot be had."""

    run_id: RunId


@dataclass(frozen=True, slots=True)
class MarkCreated:
    """Note on the object that the store has had the run: a store that does not know it any more has lost it."""

    run_id: RunId


@dataclass(frozen=True, slots=True)
class CreateJob:
    """Make the Job of one attempt; one that is there already is left as it is."""

    name: str
    attempt: int


@dataclass(frozen=True, slots=True)
class DeleteJob:
    """Delete a Job and its pod."""

    name: str


@dataclass(frozen=True, slots=True)
class NoteExit:
    """Tell the store how an attempt ended; the store decides what that means for the run.

    Attributes:
        exit_code: of the runner's container; -1 if there is none.
        disrupted: the pod was evicted, or its node was lost: it does not count as the run's failure.
    """

    run_id: RunId
    attempt: int
    exit_code: int
    disrupted: bool


@dataclass(frozen=True, slots=True)
class SetSuspended:
    """Suspend the run in the store, which ends its open exchange, or let it go on."""

    run_id: RunId
    suspended: bool


@dataclass(frozen=True, slots=True)
class SetPriority:
    """Give the run another priority in the store."""

    run_id: RunId
    priority: int


@dataclass(frozen=True, slots=True)
class EndRun:
    """End a live run in the store; its agents are told.

    Attributes:
        purge: also forget its model and history.
    """

    run_id: RunId
    reason: str
    text: str
    purge: bool = False


@dataclass(frozen=True, slots=True)
class WriteStatus:
    """Replace the object's status."""

    status: Json


@dataclass(frozen=True, slots=True)
class Emit:
    """Say something a person wants to read, as an Event of the object."""

    reason: str
    message: str
    warning: bool = False


@dataclass(frozen=True, slots=True)
class Release:
    """Take our finalizer off the object."""


@dataclass(frozen=True, slots=True)
class DeleteObject:
    """Delete the FederatedRun: its time to live is over."""


Action = (
    Adopt | CreateRun | MarkCreated | CreateJob | DeleteJob | NoteExit | SetSuspended | SetPriority | EndRun
    | WriteStatus | Emit | Release | DeleteObject
)  # fmt: skip
