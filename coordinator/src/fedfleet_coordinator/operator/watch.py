"""All objects of one kind, kept up to date by a thread: listed, then watched, and listed again when in doubt.

In doubt is: the server says the version is too old (410), the connection broke, or ten minutes have passed, for no
watch is worth trusting for ever. A connection on which nothing is heard counts as dead: the server ends each watch
after `WATCH_S`, so there is always something to hear.
"""

import logging
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

from fedfleet_coordinator.operator.cluster import ClusterError, Expired

Json = dict[str, Any]
WATCH_S = 20.0
SILENCE_S = 25.0
RELIST_S = 600.0
_BACKOFF_S = (0.2, 0.5, 1.0, 2.0, 5.0)
_log = logging.getLogger(__name__)


class Source(Protocol):
    """Where objects come from: an API server."""

    def all(self, path: str, *, labels: str = "") -> tuple[list[Json], str]:
        """Return all objects and the version to watch from. Raises: ClusterError."""
        ...

    def watch(self, path: str, version: str, *, labels: str = "", for_s: float, silence_s: float) -> Any:
        """Yield (type, object) for what happens after `version`. Raises: ClusterError."""
        ...


class Watch:
    """The objects below one path.

    Args:
        changed: called, from the watch's thread, after every change and every full list.
        labels: a label selector.
    """

    def __init__(
        self,
        source: Source,
        path: str,
        *,
        changed: Callable[[], None],
        labels: str = "",
        watch_s: float = WATCH_S,
        silence_s: float = SILENCE_S,
        relist_s: float = RELIST_S,
    ) -> None:
        self._source, self._path, self._labels, self._changed = source, path, labels, changed
        self._watch_s, self._silence_s, self._relist_s = watch_s, silence_s, relist_s
        self._objects: dict[str, Json] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._heard_at = float("-inf")
        self.lists = 0
        self._thread = threading.Thread(target=self._follow, name=f"watch {path}", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End; the thread ends with its watch at the latest."""
        self._stop.set()

    def join(self, timeout_s: float) -> None:
        """Wait for the thread's end."""
        self._thread.join(timeout_s)

    def objects(self) -> list[Json]:
        """Return all objects as last heard of; not to be changed."""
        with self._lock:
            return list(self._objects.values())

    def learn(self, found: Json) -> None:
        """Take over an object that a write of ours returned: the watch will say so too, but later."""
        with self._lock:
            known = self._objects.get(found["metadata"]["uid"])
            if known is not None and _version(known) <= _version(found):
                self._objects[found["metadata"]["uid"]] = found

    def age_s(self) -> float:
        """Return for how long nothing was heard of the server; infinite before the first full list."""
        return time.monotonic() - self._heard_at

    def _follow(self) -> None:
        tries = 0
        while not self._stop.is_set():
            try:
                version = self._list()
                tries = 0
                self._watch(version)
            except Expired:
                _log.info("listing %s again: the version watched from is too old", self._path)
            except ClusterError as error:
                _log.warning("%s", error)
                self._stop.wait(_BACKOFF_S[min(tries, len(_BACKOFF_S) - 1)])
                tries += 1
            except Exception:
                _log.exception("watching %s failed; it begins again", self._path)
                self._stop.wait(_BACKOFF_S[-1])

    def _list(self) -> str:
        objects, version = self._source.all(self._path, labels=self._labels)
        with self._lock:
            self._objects = {one["metadata"]["uid"]: one for one in objects}
            self.lists += 1
        self._heard()
        return version

    def _watch(self, version: str) -> None:
        """Follow changes until it is time for the next full list."""
        until = time.monotonic() + self._relist_s
        while not self._stop.is_set() and time.monotonic() < until:
            stream = self._source.watch(
                self._path, version, labels=self._labels, for_s=self._watch_s, silence_s=self._silence_s
            )
            for kind, found in stream:
                version = found["metadata"]["resourceVersion"]
                if kind != "BOOKMARK":
                    self._take(kind, found)
                self._heard(changed=kind != "BOOKMARK")
                if self._stop.is_set():
                    return
            self._heard(changed=False)  # the server ended it in good order

    def _take(self, kind: str, found: Json) -> None:
        uid = found["metadata"]["uid"]
        with self._lock:
            if kind == "DELETED":
                self._objects.pop(uid, None)
            else:
                self._objects[uid] = found

    def _heard(self, *, changed: bool = True) -> None:
        self._heard_at = time.monotonic()
        if changed:
            self._changed()


def _version(found: Json) -> int:
    """Return a resource version as a number: since Kubernetes 1.35 that is promised, and it always was so."""
    text = found["metadata"].get("resourceVersion", "")
    return int(text) if text.isdigit() else 0
