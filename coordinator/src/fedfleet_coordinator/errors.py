"""What can go wrong at the coordinator, by whose fault it is.

    CoordinatorError
    ├── Refused                the caller's: the request cannot be done, and why
    │   ├── BadRequest         400
    │   │   ├── Stalled        408, the client stopped in the middle of its request
    │   │   └── TooMuch        413, more bytes than are taken
    │   ├── NoSuchMethod       405
    │   ├── NotAllowed         403
    │   │   ├── CapabilityRefused   forged, expired or made for somebody else: ask again
    │   │   ├── CertificateRefused  none, expired, revoked or replaced
    │   │   └── TokenRefused        an unknown, expired or used join token
    │   ├── NotFound           404
    │   ├── RunIsOver          410
    │   ├── WrongOffset        409, an upload goes on at another byte
    │   ├── WrongBlock         422, an upload brought other bytes than announced
    │   └── StaleEpoch         409, a runner that was replaced
    ├── Misconfigured          the operator's: a file or setting that cannot be used, and the remedy
    ├── Unavailable            nobody's or the operator's: try again later
    │   ├── Busy               503, and when to come back
    │   ├── StoreUnavailable   503
    │   └── QuotaFull          507
    ├── Bug                    500, ours; the log has the traceback, the answer has not
    └── HubRefused             a bug: the hub refuses what a runner asks

Each has a `code` for programs, a sentence for people and the HTTP status it travels under.

    RunnerStop                 ends a runner; no `Exception`, so that it passes through the code of apps
    ├── Fenced                 nobody's: another runner has taken over, or the run has ended
    ├── TooFewAgents           the operator's: the app waits for agents that do not come
    └── Nondeterministic       the researcher's app: run again, it does something else
"""

from typing import ClassVar


class CoordinatorError(Exception):
    """Something the coordinator will not or cannot do; the text says what, where and what to do."""

    code: ClassVar[str] = "error"
    status: ClassVar[int] = 500

    @property
    def details(self) -> dict[str, float]:
        """Numbers that belong to the answer, by name."""
        return {}


class Refused(CoordinatorError):
    """The caller's fault."""

    code = "refused"
    status = 400


class BadRequest(Refused):
    """The request does not make sense here."""

    code = "bad_request"


class Stalled(BadRequest):
    """The client stopped in the middle of its request."""

    code = "stalled"
    status = 408


class TooMuch(BadRequest):
    """More bytes than this place takes."""

    code = "too_much"
    status = 413


class NoSuchMethod(Refused):
    """The address exists and is for something else."""

    code = "method"
    status = 405


class NotAllowed(Refused):
    """The caller is known, and may not do this."""

    code = "not_allowed"
    status = 403


class CapabilityRefused(NotAllowed):
    """The capability is forged, expired, or made for somebody or something else; asking again brings a new one."""

    code = "capability"


class CertificateRefused(NotAllowed):
    """There is no certificate, or the one shown is expired, revoked or replaced by a newer one."""

    code = "certificate"


class TokenRefused(NotAllowed):
    """The join token is unknown, expired or used up; the operator makes a new one."""

    code = "token"


class NotFound(Refused):
    """There is no such thing."""

    code = "not_found"
    status = 404


class RunIsOver(Refused):
    """The run has ended; nothing of it can be written any more."""

    code = "over"
    status = 410


class WrongOffset(Refused):
    """An upload goes on at another byte.

    Attributes:
        offset: where.
    """

    code = "offset"
    status = 409

    def __init__(self, offset: int, text: str = "") -> None:
        super().__init__(text or f"the upload goes on at byte {offset}")
        self.offset = offset

    @property
    def details(self) -> dict[str, float]:
        """Where the upload goes on."""
        return {"offset": self.offset}


class WrongBlock(Refused):
    """A block that was uploaded is not the one announced; what was right before it stays.

    Attributes:
        offset: where the upload goes on.
    """

    code = "block"
    status = 422

    def __init__(self, offset: int, text: str) -> None:
        super().__init__(text)
        self.offset = offset

    @property
    def details(self) -> dict[str, float]:
        """Where the upload goes on."""
        return {"offset": self.offset}


class StaleEpoch(Refused):
    """The runner was replaced by another; it must stop."""

    code = "epoch"
    status = 409


class Misconfigured(CoordinatorError):
    """A file or setting of the coordinator cannot be used; the text names it and the remedy."""

    code = "misconfigured"


class Unavailable(CoordinatorError):
    """Not now: nothing was changed, try again later."""

    code = "unavailable"
    status = 503


class Busy(Unavailable):
    """Too much at a time.

    Attributes:
        retry_after_s: when to come back.
    """

    code = "busy"

    def __init__(self, text: str, retry_after_s: float = 1.0) -> None:
        super().__init__(text)
        self.retry_after_s = retry_after_s

    @property
    def details(self) -> dict[str, float]:
        """When to come back."""
        return {"retry_after_s": self.retry_after_s}


class StoreUnavailable(Unavailable):
    """The database cannot be reached, or its disk is full."""

    code = "store_unavailable"


class QuotaFull(Unavailable):
    """There is no room for more blobs."""

    code = "quota_full"
    status = 507


class Bug(CoordinatorError):
    """Something nobody foresaw; the coordinator's log says what."""

    code = "bug"


class HubRefused(CoordinatorError):
    """The hub does not do what a runner asks, and asking again would not help: a bug on either side."""

    code = "hub_refused"


class RunnerStop(BaseException):
    """A runner's work is over, whatever its app would still like to do.

    Attributes:
        reason: a code of `fedfleet_protocol.reasons.RUN`.
    """

    reason: ClassVar[str] = ""


class Fenced(RunnerStop):
    """Another runner has taken over, or the run has ended; this one writes nothing any more."""

    reason = "epoch"


class TooFewAgents(RunnerStop):
    """The app waits for more agents than there are, and the time for that is over."""

    reason = "too_few_agents"


class Nondeterministic(RunnerStop):
    """Run again, the app does not do what it did before."""

    reason = "nondeterministic"
