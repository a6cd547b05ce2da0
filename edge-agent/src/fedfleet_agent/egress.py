"""What may leave this device. Pure: the owner's policy and what is about to leave are arguments.

The policy is asked before work begins, for a task whose answer could never leave, and again when its reply is there.
"""

from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta, Struct


class Policy(Struct, frozen=True, forbid_unknown_fields=True):
    """What the owner lets leave."""

    max_reply_mb: Annotated[
        float, Meta(gt=0, description="No reply larger than this leaves, in MB of 1,000,000 bytes.")
    ] = 512.0
    message_types: Annotated[
        tuple[str, ...],
        Meta(
            description='Only tasks of these Flower message types are answered; "query" covers "query.anything" too, '
            '"*" covers all.'
        ),
    ] = ("train", "evaluate", "query")
    logs: Annotated[
        bool,
        Meta(description="Whether lines that an app prints, its tracebacks, and what else a trainer says may leave."),
    ] = True


@dataclass(frozen=True, slots=True)
class Allowed:
    """It may leave."""


@dataclass(frozen=True, slots=True)
class Withheld:
    """It may not leave.

    Attributes:
        code: one of `reasons.DECLINE`.
        text: what the policy says and what the owner can change.
    """

    code: str
    text: str


def judge_task(policy: Policy, message_type: str) -> Allowed | Withheld:
    """Return whether a task of this message type may be answered at all."""
    if any(_covers(allowed, message_type) for allowed in policy.message_types):
        return Allowed()
    allowed = ", ".join(policy.message_types) or "none"
    return Withheld(
        "egress",
        f"the owner's egress policy does not answer messages of type {message_type!r} (only: {allowed}); "
        "the owner can add it to [egress] message_types",
    )


def judge_reply(policy: Policy, message_type: str, size: int) -> Allowed | Withheld:
    """Return whether a reply of this message type and of `size` bytes may leave."""
    if size > policy.max_reply_mb * 1_000_000:
        return Withheld(
            "too_large",
            f"the reply has {size / 1_000_000:.1f} MB, the owner's egress policy lets {policy.max_reply_mb:g} MB out; "
            "the owner can raise [egress] max_reply_mb",
        )
    return judge_task(policy, message_type)


def judge_text(policy: Policy, text: str, *, own: str = "the app failed", status: int | None = None) -> str:
    """Return what may leave of a text that a trainer chose, such as a traceback or the last lines an app printed.

    Args:
        own: the agent's words for the same, which leave in its place.
        status: how the app's process ended, if it did, negative for a signal; that leaves in any case.
    """
    if policy.logs:
        return text
    ended = "" if status is None else f" (exit status {status})" if status >= 0 else f" (signal {-status})"
    return f"{own}{ended}; the device keeps what it said in its own log ([egress] logs = false)"


def _covers(allowed: str, message_type: str) -> bool:
    return allowed in ("*", message_type) or message_type.startswith(allowed + ".")
