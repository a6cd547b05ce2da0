"""The operator on a real API server, with a coordinator in memory and no pods: what it makes of objects, and when."""

import base64
import dataclasses
import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from fedfleet_coordinator.operator.cluster import ApiServer, NotThere, jobs_path, runs_path
from fedfleet_coordinator.operator.controller import Controller
from fedfleet_coordinator.operator.jobs import RunnerImage
from fedfleet_coordinator.operator.lease import Holder
from fedfleet_coordinator.operator.testing import MemoryRuns
from fedfleet_protocol.blocks import blocks_of
from fedfleet_protocol.ids import RunId
from tests.cluster.conftest import Kubectl

pytestmark = pytest.mark.cluster

NAMESPACE = "controller-tests"
BUNDLE = b"a bundle"
DIGEST = blocks_of([BUNDLE]).digest
Json = dict[str, Any]


class Operator:
    """A running operator."""

    def __init__(self, server: ApiServer, runs: MemoryRuns, identity: str) -> None:
        self.lease = Holder(server, namespace=NAMESPACE, name="fedfleet-operator", identity=identity)
        # No such image: no pod of these tests ever runs.
        image = RunnerImage("fedfleet.invalid/none:0", "https://hub.invalid:8443", "no CA", pull_policy="Never")
        self.controller = Controller(server, runs, self.lease, image)
        self.threads = [threading.Thread(target=act, daemon=True) for act in (self.lease.keep, self.controller.run)]
        for thread in self.threads:
            thread.start()

    def stop(self) -> None:
        self.controller.stop()
        self.threads[1].join(10)
        self.lease.stop()
        self.threads[0].join(10)


@pytest.fixture(scope="module", autouse=True)
def namespace(kubectl: Kubectl) -> Iterator[None]:
    kubectl.run("create", "namespace", NAMESPACE)
    yield
    kubectl.run("delete", "namespace", NAMESPACE, "--wait=false")


@pytest.fixture
def server(kubectl: Kubectl) -> ApiServer:
    return ApiServer.found(kubectl.kubeconfig)


@pytest.fixture
def runs() -> MemoryRuns:
    return MemoryRuns()


@pytest.fixture
def operator(server: ApiServer, runs: MemoryRuns) -> Iterator[Operator]:
    found = Operator(server, runs, "op-1")
    yield found
    found.stop()


@pytest.fixture
def name(server: ApiServer, operator: Operator, request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of a run of the test's own, which is gone afterwards."""
    name = f"t-{abs(hash(request.node.name)) % 10**8}"
    yield name
    server.delete(runs_path(NAMESPACE, name))
    _until(lambda: _there(server, name) is None)


def _until(holds: Callable[[], Any], within_s: float = 15.0) -> Any:
    began = time.monotonic()
    while not (found := holds()):
        assert time.monotonic() - began < within_s, "it did not come about in time"
        time.sleep(0.05)
    return found


def _there(server: ApiServer, name: str) -> Json | None:
    try:
        return server.get(runs_path(NAMESPACE, name))
    except NotThere:
        return None


def _apply(server: ApiServer, name: str, **spec: Any) -> None:
    head = {"apiVersion": "fedfleet.dev/v1alpha1", "kind": "FederatedRun"}
    meta = {"name": name, "namespace": NAMESPACE}
    body = head | {"metadata": meta, "spec": {"app": {"bundle": {"digest": DIGEST}}} | spec}
    server.create(runs_path(NAMESPACE), body)


def _phase(server: ApiServer, name: str) -> str:
    found = _there(server, name) or {}
    return str((found.get("status") or {}).get("phase", ""))


def _jobs(server: ApiServer, name: str) -> list[str]:
    found, _ = server.all(jobs_path(NAMESPACE), labels=f"fedfleet.dev/run={name}")
    return sorted(job["metadata"]["name"] for job in found)


def test_run_is_adopted_created_and_given_a_job(server: ApiServer, runs: MemoryRuns, name: str) -> None:
    _apply(server, name)
    _until(lambda: _jobs(server, name) == [f"{name}-1"])
    found = _there(server, name)
    assert found is not None
    run = RunId(found["metadata"]["annotations"]["fedfleet.dev/run-id"])
    assert found["metadata"]["finalizers"] == ["fedfleet.dev/run"]
    assert runs.runs[run].owner == f"{NAMESPACE}/{name}"
    assert runs.wanted[run]["quorum"] == "100%"
    _until(lambda: _phase(server, name) == "Running")


def test_operator_never_writes_the_spec(server: ApiServer, kubectl: Kubectl, name: str) -> None:
    _apply(server, name)
    _until(lambda: _phase(server, name) == "Running")
    found = json.loads(kubectl.must("-n", NAMESPACE, "get", "fr", name, "-o", "json", "--show-managed-fields"))
    ours = [one for one in found["metadata"]["managedFields"] if one["manager"].startswith("fedfleet-operator-")
            or (one["manager"] == "fedfleet-operator" and one["operation"] == "Apply")]  # fmt: skip
    assert len(ours) == 2
    assert not any("f:spec" in one["fieldsV1"] for one in ours)


def test_deleted_run_is_ended_and_gone_within_ten_seconds(server: ApiServer, runs: MemoryRuns, name: str) -> None:
    _apply(server, name)
    _until(lambda: _jobs(server, name))
    server.delete(runs_path(NAMESPACE, name))
    _until(lambda: _there(server, name) is None, within_s=10)
    assert {one.state for one in runs.runs.values() if one.owner.endswith(name)} == {"stopped"}
    _until(lambda: not _jobs(server, name))


def test_finished_run_is_complete(server: ApiServer, runs: MemoryRuns, kubectl: Kubectl, name: str) -> None:
    _apply(server, name)
    _until(lambda: _phase(server, name) == "Running")
    run = next(run for run, one in runs.runs.items() if one.owner.endswith(name))
    runs.runs[run] = dataclasses.replace(runs.runs[run], state="finished", ended_wall=time.time())
    kubectl.must("-n", NAMESPACE, "wait", "--for=condition=Complete", "--timeout=10s", f"fr/{name}")


def test_another_operator_goes_on_without_a_second_job(
    server: ApiServer, runs: MemoryRuns, operator: Operator, name: str
) -> None:
    _apply(server, name)
    _until(lambda: _jobs(server, name))
    operator.stop()
    second = Operator(server, runs, "op-2")
    try:
        _until(second.lease.acting)
        time.sleep(3)
        assert _jobs(server, name) == [f"{name}-1"]
        server.delete(runs_path(NAMESPACE, name))
        _until(lambda: _there(server, name) is None)
    finally:
        second.stop()


def test_lost_status_is_written_again(server: ApiServer, kubectl: Kubectl, name: str) -> None:
    _apply(server, name)
    _until(lambda: _phase(server, name) == "Running")
    kubectl.must("-n", NAMESPACE, "patch", "fr", name, "--subresource=status", "--type=json",
                 "-p", '[{"op": "remove", "path": "/status"}]')  # fmt: skip
    _until(lambda: _phase(server, name) == "Running")


def test_suspended_run_has_no_job(server: ApiServer, kubectl: Kubectl, name: str) -> None:
    _apply(server, name)
    _until(lambda: _jobs(server, name))
    kubectl.must("-n", NAMESPACE, "patch", "fr", name, "--type=merge", "-p", '{"spec": {"suspend": true}}')
    _until(lambda: _phase(server, name) == "Suspended" and not _jobs(server, name), within_s=10)
    kubectl.must("-n", NAMESPACE, "patch", "fr", name, "--type=merge", "-p", '{"spec": {"suspend": false}}')
    _until(lambda: _phase(server, name) == "Running" and _jobs(server, name))


def test_bundle_in_a_config_map_is_uploaded_with_its_signature(
    server: ApiServer, runs: MemoryRuns, kubectl: Kubectl, name: str
) -> None:
    data = {"binaryData": {"app.fab": base64.b64encode(BUNDLE).decode()}, "data": {"app.fab.signature": "aa bb"}}
    held = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": NAMESPACE}} | data
    kubectl.must("apply", "-f", "-", objects=[held])
    _apply(server, name, app={"configMapRef": {"name": name, "key": "app.fab", "digest": DIGEST}})
    _until(lambda: _jobs(server, name))
    wanted = next(one for one in runs.wanted.values() if one["owner"].endswith(name))
    assert (wanted["publisher"], wanted["signature"], wanted["bundle"]) == ("aa", "bb", DIGEST)
    assert runs.bundles == {DIGEST: BUNDLE}


def test_bundle_that_is_nowhere_ends_the_run_with_the_remedy(server: ApiServer, name: str) -> None:
    _apply(server, name, app={"configMapRef": {"name": "nowhere", "key": "app.fab", "digest": DIGEST}})
    _until(lambda: _phase(server, name) == "Failed")
    found = _there(server, name)
    assert found is not None
    failed = next(one for one in found["status"]["conditions"] if one["type"] == "Failed")
    assert failed["reason"] == "BundleUnusable"
    assert "create it before the FederatedRun" in failed["message"]


def test_silent_coordinator_is_said_and_waited_for(server: ApiServer, runs: MemoryRuns, name: str) -> None:
    _apply(server, name)
    _until(lambda: _phase(server, name) == "Running")
    runs.silent = True
    _until(lambda: _phase(server, name) == "Stalled")
    runs.silent = False
    _until(lambda: _phase(server, name) == "Running")
