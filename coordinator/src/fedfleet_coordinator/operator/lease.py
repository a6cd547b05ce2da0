"""Who may act: one operator at a time, by a Lease, and never two.

The holder acts until `renew_deadline_s` after the moment it *asked* for its last renewal, by the monotonic clock.
Another takes the Lease after it has seen it unchanged for `duration_s`, by its own monotonic clock: wall clocks are
compared by nobody. Between the two lies a margin that is longer than any request may take, so a request that the old
holder sent in its last moment is over before the new one begins.
"""

import datetime
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from fedfleet_coordinator.operator.cluster import ClusterError, Conflict, NotThere, lease_path

Json = dict[str, Any]
_log = logging.getLogger(__name__)


class Leases(Protocol):
    """Where the Lease is: an API server."""

    def get(self, path: str) -> Json:
        """Return an object. Raises: ClusterError."""
        ...

    def create(self, path: str, body: Json) -> Json:
        """Make an object. Raises: ClusterError."""
        ...

    def replace(self, path: str, body: Json) -> Json:
        """Replace the version of an object that `body` names. Raises: ClusterError."""
        ...


@dataclass(frozen=True, slots=True)
class Terms:
    """How long a Lease holds.

    Attributes:
        duration_s: others wait this long. renew_deadline_s: the holder stops acting by then. retry_s: between renewals.
    """

    duration_s: float = 15.0
    renew_deadline_s: float = 10.0
    retry_s: float = 2.0


class Holder:
    """One candidate for the Lease.

    Args:
        identity: of this process; no two are the same.
    """

    def __init__(
        self,
        leases: Leases,
        *,
        namespace: str,
        name: str,
        identity: str,
        terms: Terms | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._leases, self._namespace, self._name, self.identity = leases, namespace, name, identity
        self.terms = terms or Terms()
        self._monotonic, self._wall = monotonic, wall
        self._seen: tuple[Any, Any] | None = None
        self._seen_at = 0.0
        self._until = float("-inf")
        self._stop = threading.Event()

    def acting(self) -> bool:
        """Whether this process may act now."""
        return self._monotonic() < self._until

    def keep(self) -> None:
        """Try for the Lease and renew it, until `stop`."""
        while not self._stop.is_set():
            before = self.acting()
            try:
                self.attempt()
            except ClusterError as error:
                _log.warning("the lease was not renewed: %s", error)
            if self.acting() != before:
                _log.info("this operator %s", "acts" if self.acting() else "does not act any more")
            self._stop.wait(self.terms.retry_s)

    def stop(self) -> None:
        """Act no more, and let another one take over at once if the API server hears it."""
        acting, self._until = self.acting(), float("-inf")
        self._stop.set()
        if acting:
            try:
                found = self._leases.get(lease_path(self._namespace, self._name))
                if found["spec"].get("holderIdentity") == self.identity:
                    self._leases.replace(lease_path(self._namespace, self._name), self._spec(found, holder=""))
            except ClusterError as error:
                _log.info("the lease was not handed back: %s", error)

    def attempt(self) -> bool:
        """Ask once for the Lease, or for its renewal; return whether this process may act.

        Raises:
            ClusterError: nobody can say who holds it.
        """
        asked_at = self._monotonic()
        path = lease_path(self._namespace, self._name)
        try:
            found = self._leases.get(path)
        except NotThere:
            meta = {"name": self._name, "namespace": self._namespace}
            return self._won(
                lambda: self._leases.create(lease_path(self._namespace), self._spec({"metadata": meta})), asked_at
            )
        spec = found.get("spec") or {}
        holder, stamp = spec.get("holderIdentity") or "", (spec.get("holderIdentity"), spec.get("renewTime"))
        if stamp != self._seen:
            self._seen, self._seen_at = stamp, asked_at
        if holder not in ("", self.identity) and asked_at - self._seen_at < self.terms.duration_s:
            self._until = float("-inf")
            return False
        return self._won(lambda: self._leases.replace(path, self._spec(found)), asked_at)

    def _won(self, write: Callable[[], Json], asked_at: float) -> bool:
        try:
            written = write()
        except Conflict:
            # Somebody wrote in between. If it was another holder the next look says so; until then what held holds.
            return self.acting()
        spec = written["spec"]
        self._seen, self._seen_at = (spec.get("holderIdentity"), spec.get("renewTime")), asked_at
        self._until = asked_at + self.terms.renew_deadline_s
        return True

    def _spec(self, found: Json, *, holder: str | None = None) -> Json:
        """Return the Lease with our name on it, in the version that was read."""
        holder = self.identity if holder is None else holder
        old = found.get("spec") or {}
        now = datetime.datetime.fromtimestamp(self._wall(), datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        new = old.get("holderIdentity") != holder
        spec = {
            "holderIdentity": holder,
            "leaseDurationSeconds": int(self.terms.duration_s) if holder else 1,
            "acquireTime": now if new else old.get("acquireTime", now),
            "renewTime": now,
            "leaseTransitions": old.get("leaseTransitions", 0) + (1 if new and holder and old else 0),
        }
        return {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": found["metadata"], "spec": spec}
