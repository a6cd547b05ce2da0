"""What can go wrong at the coordinator, by whose fault it is.

    CoordinatorError
    ├── Refused                the caller's: the request cannot be done, and why
    │   ├── BadRequest         400
    │   ├── NotAllowed         403
    │   ├── NotFound           404
    │   ├── RunIsOver          410
    │   └── StaleEpoch         409, a runner that was replaced
    └── Unavailable            nobody's or the operator's: try again later
        ├── StoreUnavailable   503
        └── QuotaFull          507

Each has a `code` for programs, a sentence for people and the HTTP status it travels under.
"""

from typing import ClassVar


class CoordinatorError(Exception):
    """Something the coordinator will not or cannot do; the text says what, where and what to do."""

    code: ClassVar[str] = "error"
    status: ClassVar[int] = 500


class Refused(CoordinatorError):
    """The caller's fault."""

    code = "refused"
    status = 400


class BadRequest(Refused):
    """The request does not make sense here."""

    code = "bad_request"


class NotAllowed(Refused):
    """The caller is known, and may not do this."""

    code = "not_allowed"
    status = 403


class NotFound(Refused):
    """There is no such thing."""

    code = "not_found"
    status = 404


class RunIsOver(Refused):
    """The run has ended; nothing of it can be written any more."""

    code = "over"
    status = 410


class StaleEpoch(Refused):
    """The runner was replaced by another; it must stop."""

    code = "epoch"
    status = 409


class Unavailable(CoordinatorError):
    """Not now: nothing was changed, try again later."""

    code = "unavailable"
    status = 503


class StoreUnavailable(Unavailable):
    """The database cannot be reached, or its disk is full."""

    code = "store_unavailable"


class QuotaFull(Unavailable):
    """There is no room for more blobs."""

    code = "quota_full"
    status = 507
