"""What a watch does with what an API server says, in whatever order and however badly."""

import queue
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from fedfleet_coordinator.operator.cluster import ClusterError, Expired, Unreachable
from fedfleet_coordinator.operator.watch import Watch

Json = dict[str, Any]


def _object(uid: str, version: int) -> Json:
    return {"metadata": {"uid": uid, "name": uid, "resourceVersion": str(version)}}


class Script:
    """An API server that says what the test puts into its queue; `end` ends a watch in good order."""

    def __init__(self) -> None:
        self.listed: list[Json] = []
        self.says: queue.Queue[tuple[str, Json] | ClusterError | str] = queue.Queue()
        self.watched_from: list[str] = []

    def all(self, path: str, *, labels: str = "") -> tuple[list[Json], str]:
        return list(self.listed), "10"

    def watch(
        self, path: str, version: str, *, labels: str = "", for_s: float, silence_s: float
    ) -> Iterator[tuple[str, Json]]:
        self.watched_from.append(version)
        while True:
            said = self.says.get(timeout=20)
            if isinstance(said, ClusterError):
                raise said
            if isinstance(said, str):
                return
            yield said


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
def changes() -> queue.Queue[None]:
    return queue.Queue()


@pytest.fixture
def watch(script: Script, changes: queue.Queue[None]) -> Iterator[Watch]:
    found = Watch(script, "/things", changed=lambda: changes.put(None))
    script.listed = [_object("a", 1), _object("b", 2)]
    assert found.age_s() == float("inf")
    found.start()
    changes.get(timeout=5)
    yield found
    found.stop()
    script.says.put("end")
    found.join(5)
    assert not [one for one in threading.enumerate() if one.name.startswith("watch")]


def _names(watch: Watch) -> list[str]:
    return sorted(one["metadata"]["name"] for one in watch.objects())


def test_changes_are_followed(watch: Watch, script: Script, changes: queue.Queue[None]) -> None:
    assert _names(watch) == ["a", "b"]
    script.says.put(("ADDED", _object("c", 11)))
    changes.get(timeout=5)
    script.says.put(("DELETED", _object("a", 12)))
    changes.get(timeout=5)
    assert _names(watch) == ["b", "c"]
    assert watch.age_s() < 5


def test_watch_that_ends_goes_on_from_the_last_version_bookmarks_included(
    watch: Watch, script: Script, changes: queue.Queue[None]
) -> None:
    script.says.put(("BOOKMARK", _object("", 15)))
    script.says.put("end")
    script.says.put(("ADDED", _object("c", 16)))
    changes.get(timeout=5)
    assert script.watched_from == ["10", "15"]
    assert watch.lists == 1


@pytest.mark.parametrize("error", [Expired("too old"), Unreachable("broken")])
def test_after_an_error_everything_is_listed_again(
    watch: Watch, script: Script, changes: queue.Queue[None], error: ClusterError
) -> None:
    script.listed = [_object("b", 20)]
    script.says.put(error)
    changes.get(timeout=5)
    assert _names(watch) == ["b"]
    assert watch.lists == 2


def test_everything_is_listed_again_after_a_while(script: Script, changes: queue.Queue[None]) -> None:
    watch = Watch(script, "/things", changed=lambda: changes.put(None), relist_s=0.0)
    watch.start()
    for _ in range(3):
        changes.get(timeout=5)
    watch.stop()
    watch.join(5)
    assert watch.lists >= 3


def test_own_write_is_known_at_once_unless_something_newer_is(watch: Watch) -> None:
    watch.learn(_object("a", 5) | {"spec": "new"})
    watch.learn(_object("a", 3) | {"spec": "old"})
    assert [one["spec"] for one in watch.objects() if one["metadata"]["uid"] == "a"] == ["new"]
