"""A hub and three nodes on a real cluster, installed as a user would: runs end well, whatever is taken away meanwhile.

Needs the images fedfleet/coordinator, fedfleet/agent and fedfleet/trainer on every node, built with
EXTRAS="torch scikit-learn". Each test writes what it saw into the folder that FEDFLEET_EVIDENCE names.
"""

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.conftest import MANIFESTS, PATIENCE, Kubectl
from tests.cluster.site import DIGITS, HUB, SITE, Installed, install_hub, join_nodes

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        not os.environ.get("FEDFLEET_TEST_IMAGES"), reason="set FEDFLEET_TEST_IMAGES=1 once they are loaded"
    ),
]

NAMESPACE = "lab"
Json = dict[str, Any]


@pytest.fixture(scope="module")
def hub(kubectl: Kubectl, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installed]:
    """A hub with a site on every node, and the digits as a bundle."""
    hub = install_hub(kubectl, tmp_path_factory.mktemp("user"))
    join_nodes(hub)
    kubectl.run("create", "namespace", NAMESPACE)
    bundle = yaml.safe_load(hub.fedfleet("bundle", str(DIGITS), "--namespace", NAMESPACE))
    kubectl.must("apply", "-f", "-", objects=[bundle])
    yield hub
    kubectl.run("delete", "namespace", NAMESPACE, "--wait=true", "--timeout=50s")
    kubectl.run("delete", "namespace", SITE, "--wait=false")
    kubectl.run("delete", "-k", str(MANIFESTS / "hub"), "--wait=false")


def _evidence(name: str, **seen: Any) -> None:
    folder = os.environ.get("FEDFLEET_EVIDENCE")
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / f"{name}.json").write_text(json.dumps(seen, indent=1, default=str))


def _run(name: str, **config: Any) -> Json:
    run: Json = yaml.safe_load((DIGITS / "federatedrun.yaml").read_text())
    run["metadata"] = {"name": name, "namespace": NAMESPACE}
    run["spec"]["config"] |= config
    return run


def _status(kubectl: Kubectl, name: str) -> Json:
    found: Json = json.loads(kubectl.must("-n", NAMESPACE, "get", "fr", name, "-o", "json"))
    status: Json = found.get("status") or {}
    return status


def _until(holds: Callable[[], Any], within_s: float) -> float:
    began = time.monotonic()
    while not holds():
        assert time.monotonic() - began < within_s * PATIENCE, "it did not come about in time"
        time.sleep(0.2)
    return time.monotonic() - began


def _replied(kubectl: Kubectl, name: str) -> bool:
    status = _status(kubectl, name)
    return bool(status.get("round") or (status.get("agents") or {}).get("replied"))


def _complete(kubectl: Kubectl, name: str) -> Json:
    """Wait as a person would; a run that fails instead says why."""
    until = time.monotonic() + 150 * PATIENCE
    while True:
        wait = ("wait", "--for=condition=Complete", f"fr/{name}", "--timeout=20s")
        done = kubectl.run("-n", NAMESPACE, *wait)
        status = _status(kubectl, name)
        assert status["phase"] != "Failed", status["conditions"]
        if done.returncode == 0:
            assert status["phase"] == "Complete"
            return status
        assert time.monotonic() < until, status


@pytest.fixture(scope="module")
def undisturbed(hub: Installed) -> Json:
    """The status of a run that nothing happened to."""
    kubectl = hub.kubectl
    kubectl.must("apply", "-f", "-", objects=[_run("undisturbed")])
    first_s = _until(lambda: _replied(kubectl, "undisturbed"), 60)
    status = _complete(kubectl, "undisturbed")
    shown = kubectl.must("-n", NAMESPACE, "get", "fr", "undisturbed")
    _evidence("undisturbed", first_update_s=first_s, status=status, shown=shown)
    return status | {"first_s": first_s}


def test_federated_run_on_three_nodes_is_complete(undisturbed: Json) -> None:
    assert undisturbed["round"] == 3
    assert undisturbed["attempt"] == 1
    assert undisturbed["model"]["digest"]
    assert undisturbed["first_s"] < 30 * PATIENCE


def test_lost_runner_is_followed_by_one_that_ends_with_the_same_model(hub: Installed, undisturbed: Json) -> None:
    kubectl = hub.kubectl
    kubectl.must("apply", "-f", "-", objects=[_run("runner-lost")])
    _until(lambda: _replied(kubectl, "runner-lost"), 60)
    kubectl.must("-n", NAMESPACE, "delete", "pod", "-l", "fedfleet.dev/run=runner-lost", "--grace-period=0", "--force")
    assert _status(kubectl, "runner-lost")["phase"] != "Complete"
    status = _complete(kubectl, "runner-lost")
    _evidence("runner-lost", status=status)
    assert status["attempt"] > 1
    assert status["model"]["digest"] == undisturbed["model"]["digest"]


def test_hub_that_is_deleted_in_mid_run_changes_nothing(hub: Installed, undisturbed: Json) -> None:
    kubectl = hub.kubectl
    kubectl.must("apply", "-f", "-", objects=[_run("hub-lost")])
    _until(lambda: _replied(kubectl, "hub-lost"), 60)
    kubectl.must("-n", HUB, "delete", "pod", "-l", "app.kubernetes.io/name=fedfleet-hub", "--grace-period=0", "--force")
    assert _status(kubectl, "hub-lost")["phase"] != "Complete"
    kubectl.must("-n", HUB, "rollout", "status", "deployment/hub", f"--timeout={int(50 * PATIENCE)}s")
    status = _complete(kubectl, "hub-lost")
    _evidence("hub-lost", status=status)
    assert status["model"]["digest"] == undisturbed["model"]["digest"]


def test_run_that_is_deleted_in_mid_round_is_gone_in_ten_seconds(hub: Installed) -> None:
    kubectl = hub.kubectl
    kubectl.must("apply", "-f", "-", objects=[_run("deleted", **{"num-server-rounds": 50})])
    _until(lambda: _replied(kubectl, "deleted"), 60)
    began = time.monotonic()
    kubectl.must("-n", NAMESPACE, "delete", "fr", "deleted", "--timeout=50s")
    took = time.monotonic() - began
    runs = json.loads(hub.fedfleet("runs", "--json"))
    run = next(one for one in runs if one["submitted_by"] == f"{NAMESPACE}/deleted")
    _evidence("deleted", took_s=took, run=run)
    assert took < 10 * PATIENCE
    assert run["state"] == "stopped"
    _until(lambda: not kubectl.must("-n", NAMESPACE, "get", "pods", "-l", "fedfleet.dev/run=deleted", "-o", "name"), 30)
