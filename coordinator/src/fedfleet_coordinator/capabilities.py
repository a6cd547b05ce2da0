"""Capabilities: the right of one agent to fetch or store one blob for a while, as a short text.

The idea is that of presigned object-store URLs. A capability is an HMAC over the method, the digest, the size, the
agent, the run, the exchange and the expiry; what the coordinator cannot look up in the request itself it carries in
clear: `run.n.size.expiry.mac`. It holds only together with the certificate of the agent it was made for, and does not
name the attempt: a new attempt must not void an upload under way. No I/O; time is an argument.
"""

import base64
import hashlib
import hmac
from dataclasses import dataclass
from typing import Literal

from fedfleet_coordinator.errors import CapabilityRefused
from fedfleet_protocol.ids import AgentId, Digest, RunId
from fedfleet_protocol.messages import BlobRef

HEADER = "Fedfleet-Capability"
MAX_CHARACTERS = 200
_TAG = "fedfleet capability 1"

Method = Literal["GET", "PUT"]


@dataclass(frozen=True, slots=True)
class Granted:
    """What a capability says once it is checked."""

    run: RunId
    n: int
    size: int


class Capabilities:
    """Makes and checks capabilities.

    Args:
        key: at least 32 random bytes that only the coordinator knows. With a new key all earlier capabilities are
            void, and agents ask again.
    """

    def __init__(self, key: bytes) -> None:
        if len(key) < 32:
            raise ValueError(f"a capability key has at least 32 bytes, got {len(key)}")
        self._key = key

    def grant(self, *, method: str, blob: BlobRef, agent: AgentId, run: RunId, n: int, expires_wall: float) -> str:
        """Return the proof that `agent` may GET or PUT this blob until `expires_wall`, for the header `HEADER`."""
        expiry = int(expires_wall)
        mac = self._mac(method, blob.digest, blob.size, agent, run, n, expiry)
        return f"{run}.{n}.{blob.size}.{expiry}.{mac}"

    def check(self, proof: str, *, method: Method, digest: Digest, agent: AgentId, now_wall: float) -> Granted:
        """Return what `proof` grants to `agent`, whose certificate was checked.

        Raises:
            CapabilityRefused: it is missing, forged, expired, or was made for another agent, blob or method.
        """
        if not proof:
            raise CapabilityRefused(f"blob {digest[:12]} needs a capability in the header {HEADER}: ask for your tasks")
        fields = proof.split(".") if len(proof) <= MAX_CHARACTERS else []
        if len(fields) != 5 or not all(field.isascii() and field.isdecimal() for field in fields[1:4]):
            raise CapabilityRefused(f"the capability for blob {digest[:12]} cannot be read: ask again")
        run, n, size, expiry, mac = RunId(fields[0]), int(fields[1]), int(fields[2]), int(fields[3]), fields[4]
        wanted = self._mac(method, digest, size, agent, run, n, expiry)
        # Compared as bytes: compare_digest refuses text that is not ASCII, which a forger could send.
        if not hmac.compare_digest(wanted.encode(), mac.encode()):
            raise CapabilityRefused(
                f"the capability for blob {digest[:12]} was not made for agent {agent} and this request: ask again"
            )
        if now_wall >= expiry:
            raise CapabilityRefused(
                f"the capability for blob {digest[:12]} expired {now_wall - expiry:.0f} s ago: ask again"
            )
        return Granted(run, n, size)

    def _mac(self, method: str, digest: Digest, size: int, agent: AgentId, run: RunId, n: int, expiry: int) -> str:
        covered = "\n".join((_TAG, method, digest, str(size), agent, run, str(n), str(expiry)))
        mac = hmac.digest(self._key, covered.encode(), hashlib.sha256)
        return base64.urlsafe_b64encode(mac).decode().rstrip("=")
