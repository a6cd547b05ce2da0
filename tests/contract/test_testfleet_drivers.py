"""What every driver of test fleets promises: processes for real, k3d in memory, testcluster where there is one.

FEDFLEET_TESTCLUSTER names testcluster's executable; TESTCLUSTER_ID, the number of the first cluster it may make.
"""

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fedfleet_testfleet.driver import Driver
from fedfleet_testfleet.errors import BadInput, Cannot, FleetFault
from fedfleet_testfleet.fault import Action, Fault, parse
from fedfleet_testfleet.fleet import PARTS, Fleet, Wanted
from fedfleet_testfleet.k3d import K3dDriver
from fedfleet_testfleet.process import ProcessDriver
from fedfleet_testfleet.testcluster import VARIABLE, TestclusterDriver
from fedfleet_testfleet.testing import FakeK3d

pytestmark = pytest.mark.timeout(400)
MAKERS: dict[str, Callable[[], Driver]] = {
    "process": ProcessDriver,
    "k3d": lambda: K3dDriver(FakeK3d()),
    "testcluster": TestclusterDriver,
}

CANNOT: dict[str, set[str]] = {
    "process": {"cut agent-1", "slow agent-1", "api-down", "kill runner", "kill operator"},
    "k3d": set(),
    "testcluster": {"slow agent-1"},
}
"""What a driver cannot do to a fleet on which nothing runs, each with a reason."""


@pytest.fixture(
    scope="module",
    params=[
        pytest.param("process", marks=pytest.mark.integration),
        "k3d",
        pytest.param("testcluster", marks=pytest.mark.cluster),
    ],
)
def driver(request: pytest.FixtureRequest) -> Driver:
    if request.param == "testcluster" and not os.environ.get(VARIABLE):
        pytest.skip(f"no testcluster here: let {VARIABLE} name its executable, and be root")
    return MAKERS[request.param]()


@pytest.fixture(scope="module")
def fleet(driver: Driver, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    made = driver.up(Wanted(nodes=2, clusters=1, folder=tmp_path_factory.mktemp("fleet") / "it"))
    if driver.name == "testcluster":
        with pytest.raises(FleetFault, match="no pod of agent-0"):
            driver.do(made, parse("kill agent-0"))
        install_stand_ins(made)
    yield made
    driver.down(made)
    assert set(driver.states(made).values()) == {"gone"}
    driver.down(made)  # twice is no error


def install_stand_ins(fleet: Fleet) -> None:
    """Run pods that have the labels of fedfleet's and do nothing; the image is one that every node has."""
    kubeconfig = fleet.clusters[0].kubeconfig
    kubectl = [str(kubeconfig.parent.parent / "bin" / "kubectl"), "--kubeconfig", str(kubeconfig)]
    for part in ("agent", *PARTS):
        labels = {"app.kubernetes.io/name": f"fedfleet-{part}"}
        container = {"name": "it", "image": "fedfleet.test/pause:1", "imagePullPolicy": "Never"}
        pod = {"metadata": {"labels": labels}, "spec": {"containers": [container]}}
        made = {
            "apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": f"fedfleet-{part}"},
            "spec": {"selector": {"matchLabels": labels}, "template": pod},
        }  # fmt: skip
        subprocess.run([*kubectl, "apply", "-f", "-"], input=json.dumps(made), text=True, check=True, timeout=60)
        subprocess.run([*kubectl, "rollout", "status", f"daemonset/fedfleet-{part}"], check=True, timeout=60)


def until(driver: Driver, fleet: Fleet, node: str, state: str, timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while driver.states(fleet)[node] != state:
        assert time.monotonic() < deadline, f"{node} is {driver.states(fleet)[node]}, not {state}"
        time.sleep(0.05)


def test_a_fleet_that_is_up_has_all_its_nodes(driver: Driver, fleet: Fleet) -> None:
    assert fleet.driver == driver.name
    assert [node.name for node in fleet.nodes] == ["agent-0", "agent-1"]
    assert driver.states(fleet) == {"agent-0": "up", "agent-1": "up"}


def test_a_node_that_is_stopped_is_so_until_it_is_started(driver: Driver, fleet: Fleet) -> None:
    for _ in range(2):  # the same again is no error
        assert driver.do(fleet, parse("stop agent-1"))
        until(driver, fleet, "agent-1", "stopped")
    assert driver.states(fleet)["agent-0"] == "up"
    for _ in range(2):
        assert driver.do(fleet, parse("start agent-1"))
        until(driver, fleet, "agent-1", "up")


def test_an_agent_that_is_killed_comes_back(driver: Driver, fleet: Fleet) -> None:
    assert driver.do(fleet, parse("kill agent-0")).endswith(" killed")
    until(driver, fleet, "agent-0", "up")


@pytest.mark.parametrize("action", [action for action in Action if action not in (Action.API_DOWN, Action.API_UP)])
def test_a_node_that_is_not_there_is_told_with_those_that_are(driver: Driver, fleet: Fleet, action: Action) -> None:
    with pytest.raises(BadInput, match="agent-0 to agent-1"):
        driver.do(fleet, Fault(action, "agent-9"))
    assert driver.states(fleet) == {"agent-0": "up", "agent-1": "up"}


@pytest.mark.parametrize(
    ("begin", "end"), [("cut agent-1", "heal agent-1"), ("slow agent-1", "heal agent-1"), ("api-down", "api-up")]
)
def test_a_fault_is_done_and_undone_or_refused_with_what_can_be_done(
    driver: Driver, fleet: Fleet, begin: str, end: str
) -> None:
    if begin in CANNOT[driver.name]:
        with pytest.raises(Cannot, match=r"can be stopped"):
            driver.do(fleet, parse(begin))
    else:
        for fault in (begin, begin, end, end):
            assert driver.do(fleet, parse(fault))
    until(driver, fleet, "agent-1", "up")


@pytest.mark.parametrize("part", PARTS)
def test_a_part_is_killed_or_it_is_told_why_not(driver: Driver, fleet: Fleet, part: str) -> None:
    if f"kill {part}" in CANNOT[driver.name]:
        with pytest.raises((FleetFault, BadInput), match=part):
            driver.do(fleet, Fault(Action.KILL, part))
    else:
        assert driver.do(fleet, Fault(Action.KILL, part)).endswith(" killed")


@pytest.mark.parametrize(("nodes", "clusters"), [(0, 1), (1, 2), (1000, 1)])
def test_a_fleet_that_cannot_be_is_refused_before_anything_starts(
    driver: Driver, tmp_path: Path, nodes: int, clusters: int
) -> None:
    with pytest.raises(BadInput, match="cannot be"):
        driver.up(Wanted(nodes=nodes, clusters=clusters, folder=tmp_path / "never"))
    assert not (tmp_path / "never").exists()
