"""Names of things: agents, runs, digests, and the numbers Flower wants for them.

An agent's id is `a-` and 26 characters of base32 over 128 random bits, a run's is `r-` and the same. The alphabet
is RFC 4648's "extended hex" one, in lower case, because it alone sorts as the bits do: the order of agent ids is the
order of Flower node ids, so a fold "in the order of agent ids" and one "in the order of node ids" are the same fold.
"""

import base64
import re
from typing import NewType

from fedfleet_protocol.errors import Malformed

AgentId = NewType("AgentId", str)
RunId = NewType("RunId", str)
Digest = NewType("Digest", str)
"""64 lower-case hexadecimal characters."""
Order = NewType("Order", str)
"""The digest that identifies one task: see `exchange.order_of`."""

NO_BASE = Digest("none")
"""The base of an agent's first task in a run: it starts from an empty state."""

_PATTERN = {"a": re.compile(r"a-[0-9a-v]{26}"), "r": re.compile(r"r-[0-9a-v]{26}")}
_DIGEST = re.compile(r"[0-9a-f]{64}")


def agent_id(entropy: bytes) -> AgentId:
    """Return the agent id made of 16 random bytes."""
    return AgentId("a-" + _spell(entropy))


def run_id(entropy: bytes) -> RunId:
    """Return the run id made of 16 random bytes."""
    return RunId("r-" + _spell(entropy))


def parse_agent_id(text: str) -> AgentId:
    """Return `text` as an agent id.

    Raises:
        Malformed: it is not one; the sender's fault.
    """
    return AgentId(_matched(text, "a"))


def parse_run_id(text: str) -> RunId:
    """Return `text` as a run id.

    Raises:
        Malformed: it is not one; the sender's fault.
    """
    return RunId(_matched(text, "r"))


def parse_digest(text: str) -> Digest:
    """Return `text` as a digest.

    Raises:
        Malformed: it is not one; the sender's fault.
    """
    if not _DIGEST.fullmatch(text):
        raise Malformed(f"{text[:80]!r} is not a digest of 64 lower-case hexadecimal characters")
    return Digest(text)


def flower_number(name: AgentId | RunId) -> int:
    """Return the positive 63-bit integer that Flower sees as this agent's node id or this run's run id."""
    bits = base64.b32hexdecode(name[2:].upper() + "======")
    return int.from_bytes(bits[:8], "big") >> 1 or 1


def _spell(entropy: bytes) -> str:
    if len(entropy) != 16:
        raise ValueError(f"an id takes 16 random bytes, got {len(entropy)}")
    return base64.b32hexencode(entropy).decode().rstrip("=").lower()


def _matched(text: str, kind: str) -> str:
    if not _PATTERN[kind].fullmatch(text):
        raise Malformed(f"{text[:80]!r} is not an id of the form {kind}-<26 characters>")
    return text
