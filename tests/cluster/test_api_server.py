"""The operator's way to a real API server: what it says, what a watch sees, and what happens when the way is gone."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fedfleet_coordinator.operator.cluster import (
    ApiServer,
    Conflict,
    Expired,
    NotThere,
    Refused,
    Unreachable,
    runs_path,
)
from fedfleet_coordinator.operator.lease import Holder, Terms
from fedfleet_coordinator.operator.watch import Watch
from tests.cluster.cable import Cable, cable_to
from tests.cluster.conftest import Kubectl

pytestmark = pytest.mark.cluster

NAMESPACE = "operator-tests"
DIGEST = "ab" * 32
Json = dict[str, Any]


@pytest.fixture(scope="module", autouse=True)
def namespace(kubectl: Kubectl) -> Iterator[None]:
    """A namespace of our own."""
    kubectl.run("create", "namespace", NAMESPACE)
    yield
    kubectl.run("delete", "namespace", NAMESPACE, "--wait=false")


@pytest.fixture
def server(kubectl: Kubectl) -> ApiServer:
    return ApiServer.found(kubectl.kubeconfig)


@pytest.fixture
def cable(kubectl: Kubectl, tmp_path: Path) -> Iterator[tuple[Cable, ApiServer]]:
    """A cable that can be pulled, and the API server at its other end."""
    with cable_to(kubectl.kubeconfig, tmp_path) as (cable, kubeconfig):
        yield cable, ApiServer.found(kubeconfig)


def _run(name: str) -> Json:
    return {
        "apiVersion": "fedfleet.dev/v1alpha1", "kind": "FederatedRun",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {"app": {"bundle": {"digest": DIGEST}}},
    }  # fmt: skip


def _until(holds: Callable[[], bool], within_s: float) -> float:
    began = time.monotonic()
    while not holds():
        assert time.monotonic() - began < within_s, "it did not come about in time"
        time.sleep(0.02)
    return time.monotonic() - began


def test_each_refusal_is_told_apart(server: ApiServer) -> None:
    server.delete(runs_path(NAMESPACE, "errors"))
    server.create(runs_path(NAMESPACE), _run("errors"))
    with pytest.raises(Conflict, match="already exists"):
        server.create(runs_path(NAMESPACE), _run("errors"))
    with pytest.raises(NotThere):
        server.get(runs_path(NAMESPACE, "nobody"))
    with pytest.raises(Refused, match="has a dot; use a dash instead"):
        server.create(runs_path(NAMESPACE), _run("a.b"))
    with pytest.raises(Expired):
        list(server.watch(runs_path(), "1", for_s=5, silence_s=10))
    server.delete(runs_path(NAMESPACE, "nobody"))


def test_applied_fields_are_ours_and_nobody_elses_are_touched(server: ApiServer, kubectl: Kubectl) -> None:
    server.delete(runs_path(NAMESPACE, "applied"))
    server.create(runs_path(NAMESPACE), _run("applied"))
    kubectl.must("-n", NAMESPACE, "annotate", "fr", "applied", "mine=kept")
    ours = {"name": "applied", "namespace": NAMESPACE, "finalizers": ["fedfleet.dev/run"],
            "annotations": {"fedfleet.dev/run-id": "r-1"}}  # fmt: skip
    head = {"apiVersion": "fedfleet.dev/v1alpha1", "kind": "FederatedRun"}
    found = server.apply(runs_path(NAMESPACE, "applied"), head | {"metadata": ours})
    assert found["metadata"]["annotations"]["mine"] == "kept"
    assert found["metadata"]["finalizers"] == ["fedfleet.dev/run"]
    managers = {one["manager"]: one["operation"] for one in found["metadata"]["managedFields"]}
    assert managers["fedfleet-operator"] in ("Apply", "Update")
    bare = {"name": "applied", "namespace": NAMESPACE}
    found = server.apply(runs_path(NAMESPACE, "applied"), head | {"metadata": bare})
    assert found["metadata"].get("finalizers") is None
    assert found["metadata"]["annotations"] == {"mine": "kept"}
    assert found["spec"]["app"] == {"bundle": {"digest": DIGEST}}


def test_lists_longer_than_a_page_are_whole(server: ApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedfleet_coordinator.operator.cluster._PAGE", 2)
    for number in range(5):
        server.delete(runs_path(NAMESPACE, f"page-{number}"))
        server.create(runs_path(NAMESPACE), _run(f"page-{number}"))
    found, version = server.all(runs_path(NAMESPACE))
    assert {f"page-{number}" for number in range(5)} <= {one["metadata"]["name"] for one in found}
    assert version


class _Followed:
    """A watch through a cable."""

    def __init__(self, server: ApiServer) -> None:
        self.watch = Watch(server, runs_path(), changed=lambda: None, watch_s=2, silence_s=3)
        self.watch.start()
        _until(lambda: self.watch.age_s() < 60, 10)

    def names(self) -> set[str]:
        return {one["metadata"]["name"] for one in self.watch.objects()}


@pytest.fixture
def followed(cable: tuple[Cable, ApiServer]) -> Iterator[_Followed]:
    found = _Followed(cable[1])
    yield found
    cable[0].state = "whole"
    found.watch.stop()
    found.watch.join(10)


def test_watch_sees_a_change_within_a_second(followed: _Followed, server: ApiServer) -> None:
    server.delete(runs_path(NAMESPACE, "seen"))
    _until(lambda: "seen" not in followed.names(), 5)
    server.create(runs_path(NAMESPACE), _run("seen"))
    assert _until(lambda: "seen" in followed.names(), 5) < 1.0
    server.delete(runs_path(NAMESPACE, "seen"))
    _until(lambda: "seen" not in followed.names(), 5)


@pytest.mark.parametrize("state", ["pulled", "hanging"])
def test_watch_catches_up_when_the_cable_is_whole_again(
    followed: _Followed, cable: tuple[Cable, ApiServer], server: ApiServer, state: Any
) -> None:
    server.delete(runs_path(NAMESPACE, "late"))
    _until(lambda: "late" not in followed.names(), 5)
    cable[0].state = state
    server.create(runs_path(NAMESPACE), _run("late"))
    time.sleep(4)
    assert "late" not in followed.names()
    assert followed.watch.age_s() > 3  # and it knows that it knows nothing
    cable[0].state = "whole"
    _until(lambda: "late" in followed.names(), 15)
    server.delete(runs_path(NAMESPACE, "late"))


def test_request_over_a_hanging_cable_ends(cable: tuple[Cable, ApiServer]) -> None:
    link, server = cable
    server.all(runs_path())
    link.state = "hanging"
    began = time.monotonic()
    with pytest.raises(Unreachable):
        server.all(runs_path())
    assert time.monotonic() - began < 7
    link.state = "whole"


@pytest.mark.parametrize("state", ["pulled", "hanging"])
def test_never_do_two_operators_act(cable: tuple[Cable, ApiServer], server: ApiServer, state: Any) -> None:
    terms = Terms(duration_s=7.0, renew_deadline_s=2.0, retry_s=0.3)
    first, second = (
        Holder(way, namespace=NAMESPACE, name=f"lease-{state}", identity=name, terms=terms)
        for way, name in ((cable[1], "first"), (server, "second"))
    )
    server.delete(f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases/lease-{state}")
    threads = [threading.Thread(target=holder.keep, daemon=True) for holder in (first, second)]
    threads[0].start()
    _until(first.acting, 10)
    threads[1].start()
    time.sleep(1)
    assert not second.acting()
    cable[0].state = state
    both, gone_at = False, time.monotonic()
    stopped_at = taken_at = 0.0
    while not taken_at:
        a, b = first.acting(), second.acting()
        both = both or (a and b)
        stopped_at = stopped_at or (0.0 if a else time.monotonic())
        taken_at = time.monotonic() if b else 0.0
        assert time.monotonic() - gone_at < 20
        time.sleep(0.005)
    assert not both
    assert stopped_at - gone_at < 2.5
    assert taken_at - stopped_at > 3
    cable[0].state = "whole"
    time.sleep(1)
    assert (first.acting(), second.acting()) == (False, True)
    first.stop()
    second.stop()
    for thread in threads:
        thread.join(10)
