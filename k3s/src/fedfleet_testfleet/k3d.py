"""Fleets of K3s clusters in containers: k3d, docker and kubectl as a person would type them."""

import contextlib
import json
from typing import Any, Final

import yaml

from fedfleet_testfleet import pods
from fedfleet_testfleet.driver import LocalShell, NodeState, Shell
from fedfleet_testfleet.errors import BadInput, FleetFault
from fedfleet_testfleet.fault import Action, Fault
from fedfleet_testfleet.fleet import Cluster, DriverName, Fleet, Node, Wanted, dealt

NETWORK = "fedfleet"
"""All clusters of a fleet share a docker network, so that agents reach the hub."""
_PERIOD, _TENTH = "--cpu-period=100000", "--cpu-quota=10000"
_QUOTA_OFF = "--cpu-quota=-1"


class K3dDriver:
    """Drives k3d: a node is a container, so a power cut is its death and a cable the docker network."""

    name: Final[DriverName] = "k3d"

    def __init__(self, shell: Shell | None = None, kubectl: str = "kubectl") -> None:
        self._shell = shell or LocalShell()
        self._kubectl = kubectl

    def up(self, wanted: Wanted) -> Fleet:
        """Return a fleet of K3s clusters whose nodes are ready; see `Driver`."""
        if wanted.data is not None:
            raise BadInput("--data-dir is for processes; in a cluster a device's data is a folder on its node")
        nodes = dealt(wanted.nodes, wanted.clusters)
        wanted.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        fleet = Fleet(
            driver="k3d", folder=wanted.folder,
            nodes=tuple(_node(name, cluster, nodes) for name, cluster in nodes),
            clusters=tuple(
                Cluster(f"fedfleet-{place}", wanted.folder / f"kubeconfig-{place}") for place in range(wanted.clusters)
            ),
        )  # fmt: skip
        try:
            for place, cluster in enumerate(fleet.clusters):
                file = wanted.folder / f"k3d-{place}.yaml"
                count = sum(node.cluster == place for node in fleet.nodes)
                file.write_text(yaml.safe_dump(configuration(cluster.name, count), sort_keys=False), encoding="utf-8")
                self._shell.run("k3d", "cluster", "create", "--config", str(file))
                self._shell.run("k3d", "kubeconfig", "write", cluster.name, "--output", str(cluster.kubeconfig))
        except BaseException:
            with contextlib.suppress(FleetFault):
                self.down(fleet)
            raise
        return fleet

    def do(self, fleet: Fleet, fault: Fault) -> str:
        """Return what was done to which container; see `Driver`."""
        run, action = self._shell.run, fault.action
        if action is Action.KILL:
            return pods.kill(self._shell, self._kubectl, fleet, fault.target)
        if action in (Action.API_DOWN, Action.API_UP):
            machine = f"k3d-{fleet.clusters[0].name}-server-0"
        else:
            machine = pods.only_nodes(fleet, action, fault.target)
        running = self._is_running(machine)
        match action:
            case Action.STOP | Action.API_DOWN:
                if running:
                    run("docker", "kill", machine)
                return f"{machine} is without power"
            case Action.START | Action.API_UP:
                if not running:
                    run("k3d", "node", "start", machine)
                return f"{machine} runs again"
            case Action.CUT:
                if self._is_plugged(machine):
                    run("docker", "network", "disconnect", NETWORK, machine)
                return f"the cable of {machine} is pulled"
            case Action.SLOW:
                run("docker", "update", _PERIOD, _TENTH, machine)
                return f"{machine} has a tenth of a processor"
            case _:
                if not self._is_plugged(machine):
                    run("docker", "network", "connect", NETWORK, machine)
                run("docker", "update", _QUOTA_OFF, machine)
                return f"{machine} has its cable and its processors"

    def states(self, fleet: Fleet) -> dict[str, NodeState]:
        """Return whether each node's container runs; see `Driver`."""
        listed = json.loads(self._shell.run("k3d", "node", "list", "--output", "json"))
        running = {str(one["name"]): bool(one.get("State", {}).get("Running")) for one in listed or ()}
        return {node.name: _state(running.get(node.machine)) for node in fleet.nodes}

    def down(self, fleet: Fleet) -> None:
        """Delete the clusters; see `Driver`."""
        listed = json.loads(self._shell.run("k3d", "cluster", "list", "--output", "json"))
        there = {str(one["name"]) for one in listed or ()}
        for cluster in fleet.clusters:
            if cluster.name in there:
                self._shell.run("k3d", "cluster", "delete", cluster.name)

    def _is_running(self, machine: str) -> bool:
        return self._shell.run("docker", "inspect", "--format", "{{.State.Running}}", machine).strip() == "true"

    def _is_plugged(self, machine: str) -> bool:
        networks = self._shell.run("docker", "inspect", "--format", "{{json .NetworkSettings.Networks}}", machine)
        return NETWORK in json.loads(networks)


def configuration(name: str, nodes: int) -> dict[str, Any]:
    """Return k3d's configuration of a cluster with so many nodes beside its control plane.

    `k3s/k3d-fleet.yaml` is the one with five nodes, for those who type `k3d cluster create --config` themselves.
    """
    everywhere = ["server:*"]
    # Nothing of the fleet runs beside the API server, so that it can be taken away alone.
    taint = "--node-taint=node-role.kubernetes.io/control-plane=true:NoSchedule"
    return {
        "apiVersion": "k3d.io/v1alpha5",
        "kind": "Simple",
        "metadata": {"name": name},
        "servers": 1,
        "agents": nodes,
        "network": NETWORK,
        "options": {
            "k3d": {"wait": True, "timeout": "180s"},
            "k3s": {
                "extraArgs": [
                    {"arg": "--disable=traefik", "nodeFilters": everywhere},
                    {"arg": "--disable=metrics-server", "nodeFilters": everywhere},
                    {"arg": taint, "nodeFilters": everywhere},
                ]
            },
            # The fleet's kubeconfig is a file of its own; a person's stays as it is.
            "kubeconfig": {"updateDefaultKubeconfig": False, "switchCurrentContext": False},
        },
    }  # fmt: skip


def _node(name: str, cluster: int, nodes: tuple[tuple[str, int], ...]) -> Node:
    place = [one for one, where in nodes if where == cluster].index(name)
    return Node(name, cluster, f"k3d-fedfleet-{cluster}-agent-{place}")


def _state(running: bool | None) -> NodeState:
    return "gone" if running is None else "up" if running else "stopped"
