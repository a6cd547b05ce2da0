"""The k3d driver by its command lines, and k3d's configuration."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedfleet_testfleet.errors import BadInput, Cannot, FleetFault
from fedfleet_testfleet.fault import parse
from fedfleet_testfleet.fleet import Fleet, Wanted
from fedfleet_testfleet.k3d import K3dDriver, configuration
from fedfleet_testfleet.testing import FakeK3d

ROOT = Path(__file__).resolve().parents[3]
FILE = ROOT / "k3s" / "k3d-fleet.yaml"


@pytest.fixture
def shell() -> FakeK3d:
    return FakeK3d()


@pytest.fixture
def fleet(shell: FakeK3d, tmp_path: Path) -> Fleet:
    made = K3dDriver(shell).up(Wanted(nodes=5, clusters=2, folder=tmp_path))
    assert shell.said == [
        f"k3d cluster create --config {tmp_path}/k3d-0.yaml",
        f"k3d kubeconfig write fedfleet-0 --output {tmp_path}/kubeconfig-0",
        f"k3d cluster create --config {tmp_path}/k3d-1.yaml",
        f"k3d kubeconfig write fedfleet-1 --output {tmp_path}/kubeconfig-1",
    ]
    shell.said.clear()
    return made


RUNNING = "docker inspect --format {{.State.Running}} "
PLUGGED = "docker inspect --format {{json .NetworkSettings.Networks}} "
FIRST, LATER = "k3d-fedfleet-0-agent-2", "k3d-fedfleet-1-agent-0"
KUBECTL = "kubectl --kubeconfig HERE/kubeconfig-"
KILL = "delete pods --all-namespaces --selector=app.kubernetes.io/name"
ON_NODE = f"--field-selector=spec.nodeName={LATER}"
AT_ONCE = "--grace-period=0 --force --wait=false --output=name"


@pytest.mark.parametrize(
    ("faults", "lines"),
    [
        (
            "stop agent-3, start agent-3",
            [RUNNING + LATER, f"docker kill {LATER}", RUNNING + LATER, f"k3d node start {LATER}"],
        ),
        (
            "cut agent-2, heal agent-2",
            [
                RUNNING + FIRST, PLUGGED + FIRST, f"docker network disconnect fedfleet {FIRST}",
                RUNNING + FIRST, PLUGGED + FIRST, f"docker network connect fedfleet {FIRST}",
                f"docker update --cpu-quota=-1 {FIRST}",
            ],
        ),
        ("slow agent-3", [RUNNING + LATER, f"docker update --cpu-period=100000 --cpu-quota=10000 {LATER}"]),
        (
            "api-down, api-up",
            [
                RUNNING + "k3d-fedfleet-0-server-0", "docker kill k3d-fedfleet-0-server-0",
                RUNNING + "k3d-fedfleet-0-server-0", "k3d node start k3d-fedfleet-0-server-0",
            ],
        ),
        ("kill coordinator", [f"{KUBECTL}0 {KILL} in (fedfleet-coordinator, fedfleet-hub) {AT_ONCE}"]),
        (
            "kill agent-3",
            [f"{KUBECTL}1 {KILL}=fedfleet-agent {ON_NODE} {AT_ONCE}"],
        ),
    ],
)  # fmt: skip
def test_a_fault_is_these_command_lines(
    shell: FakeK3d, fleet: Fleet, tmp_path: Path, faults: str, lines: list[str]
) -> None:
    for fault in faults.split(", "):
        K3dDriver(shell).do(fleet, parse(fault))
    assert shell.said == [line.replace("HERE", str(tmp_path)) for line in lines]


def test_a_pod_cannot_be_stopped_and_the_node_it_runs_on_can(shell: FakeK3d, fleet: Fleet) -> None:
    with pytest.raises(Cannot, match="stop the node it runs on"):
        K3dDriver(shell).do(fleet, parse("stop coordinator"))
    assert shell.said == []


def test_down_deletes_what_is_there(shell: FakeK3d, fleet: Fleet) -> None:
    K3dDriver(shell).down(fleet)
    K3dDriver(shell).down(fleet)
    listed = "k3d cluster list --output json"
    assert shell.said == [listed, "k3d cluster delete fedfleet-0", "k3d cluster delete fedfleet-1", listed]


def test_clusters_that_were_made_before_one_failed_are_deleted(shell: FakeK3d, tmp_path: Path) -> None:
    shell.broken.add(f"k3d cluster create --config {tmp_path}/k3d-1.yaml")
    with pytest.raises(FleetFault, match="it is broken"):
        K3dDriver(shell).up(Wanted(nodes=2, clusters=2, folder=tmp_path))
    assert shell.said[-1] == "k3d cluster delete fedfleet-0"


def test_data_folders_are_for_processes(shell: FakeK3d, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="a folder on its node"):
        K3dDriver(shell).up(Wanted(nodes=2, clusters=1, folder=tmp_path, data=tmp_path))


def test_the_file_for_people_is_what_the_driver_writes() -> None:
    assert yaml.safe_load(FILE.read_text()) == configuration("fedfleet-0", 5)


# Of the format k3d.io/v1alpha5, as k3d documents it (k3d.io, "Using Config Files"): the keys that may be used here, and
# what they take. k3d refuses a file with any other key.
FILTERS = [r"(server|agent):(\*|\d+(,\d+)*)|all|loadbalancer"]
FORMAT: dict[str, Any] = {
    "apiVersion": r"k3d\.io/v1alpha5",
    "kind": "Simple",
    "metadata": {"name": r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"},
    "servers": range(1, 2),
    "agents": range(201),
    "network": r"[a-z0-9-]+",
    "options": {
        "k3d": {"wait": bool, "timeout": r"\d+(s|m|h)"},
        "k3s": {"extraArgs": [{"arg": r"--[a-z-]+(=.+)?", "nodeFilters": FILTERS}]},
        "kubeconfig": {"updateDefaultKubeconfig": bool, "switchCurrentContext": bool},
    },
}


def problems(value: Any, wanted: Any, where: str = "") -> list[str]:
    if isinstance(wanted, dict) and isinstance(value, dict):
        unknown = [f"{where}.{key}" for key in value if key not in wanted]
        known = [key for key in wanted if key in value]
        return unknown + [one for key in known for one in problems(value[key], wanted[key], f"{where}.{key}")]
    if isinstance(wanted, list) and isinstance(value, list):
        return [one for item in value for one in problems(item, wanted[0], f"{where}[]")]
    if isinstance(wanted, dict | list):
        return [where]
    if isinstance(wanted, range):
        return [] if type(value) is int and value in wanted else [where]
    if wanted is bool:
        return [] if isinstance(value, bool) else [where]
    return [] if isinstance(value, str) and re.fullmatch(wanted, value) else [where]


def test_k3ds_configuration_has_only_what_k3d_knows() -> None:
    assert problems(yaml.safe_load(FILE.read_text()), FORMAT) == []
    assert problems(configuration("fedfleet-19", 200), FORMAT) == []


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"serverz": 1}, [".serverz"]),
        ({"agents": "5"}, [".agents"]),
        ({"metadata": {"name": "Fleet"}}, [".metadata.name"]),
        ({"options": {"k3s": {"extraArgs": [{"arg": "-x", "nodefilters": []}]}}},
         [".options.k3s.extraArgs[].nodefilters", ".options.k3s.extraArgs[].arg"]),
    ],
)  # fmt: skip
def test_what_k3d_does_not_know_is_noticed(change: dict[str, Any], where: list[str]) -> None:
    assert problems(configuration("fedfleet-0", 5) | change, FORMAT) == where
