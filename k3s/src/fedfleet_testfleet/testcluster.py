"""Fleets on `testcluster`, a Kubernetes of its own for a Linux machine that cannot pull images."""

import contextlib
import json
import os
from pathlib import Path
from typing import Final

from fedfleet_testfleet import pods
from fedfleet_testfleet.driver import LocalShell, NodeState, Shell
from fedfleet_testfleet.errors import BadInput, Cannot, FleetFault
from fedfleet_testfleet.fault import Action, Fault
from fedfleet_testfleet.fleet import Cluster, DriverName, Fleet, Node, Wanted, dealt

VARIABLE = "FEDFLEET_TESTCLUSTER"
"""Names the executable."""
_ID = "TESTCLUSTER_ID"
_DONE = {
    Action.STOP: "is without power", Action.START: "runs again", Action.CUT: "is cut off", Action.HEAL: "has its cable",
}  # fmt: skip


class TestclusterDriver:
    """Drives the program `testcluster`, one cluster per number."""

    __test__ = False  # pytest takes a name like this for a test's
    name: Final[DriverName] = "testcluster"

    def __init__(self, program: Path | None = None, shell: Shell | None = None) -> None:
        given = os.environ.get(VARIABLE)
        self._program = program or (Path(given) if given else None)
        self._shell = shell or LocalShell()

    def up(self, wanted: Wanted) -> Fleet:
        """Return a fleet of clusters whose nodes are ready; see `Driver`."""
        if wanted.data is not None:
            raise BadInput("--data-dir is for processes; in a cluster a device's data is a folder on its node")
        nodes = dealt(wanted.nodes, wanted.clusters)
        wanted.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        first = os.environ.get(_ID, "0")
        if not first.isdecimal():
            raise BadInput(f"{_ID} is {first!r}; it has to be the number of the first cluster")
        made: list[Cluster] = []
        fleet = Fleet("testcluster", _nodes(nodes), wanted.folder)
        try:
            for place in range(wanted.clusters):
                number = str(int(first) + place)
                made.append(Cluster(number, Path("/dev/null")))  # so that it ends if it does not start
                count = sum(where == place for _, where in nodes)
                said = self._run(number, "up", "--nodes", str(count)).split()
                if not said:
                    raise FleetFault(f"{self._program} up prints no kubeconfig; is it the program testcluster?")
                made[-1] = Cluster(number, Path(said[-1]))
        except BaseException:
            with contextlib.suppress(FleetFault):
                self.down(Fleet("testcluster", fleet.nodes, fleet.folder, tuple(made)))
            raise
        return Fleet("testcluster", fleet.nodes, fleet.folder, tuple(made))

    def do(self, fleet: Fleet, fault: Fault) -> str:
        """Return what was done to which node; see `Driver`."""
        action = fault.action
        if action is Action.KILL:
            return pods.kill(self._shell, _kubectl(fleet), fleet, fault.target)
        if action in (Action.API_DOWN, Action.API_UP):
            cluster, away = fleet.clusters[0].name, action is Action.API_DOWN
            self._run(cluster, "api", "stop" if away else "start")
            return f"the API server of cluster {cluster} is {'away' if away else 'there again'}"
        machine = pods.only_nodes(fleet, action, fault.target)
        if action not in _DONE:
            raise Cannot("a node of testcluster has all the machine's processors; it can be stopped or cut")
        cluster = fleet.clusters[fleet.node(fault.target).cluster].name
        self._run(cluster, "node", action, machine)
        return f"{machine} of cluster {cluster} {_DONE[action]}"

    def states(self, fleet: Fleet) -> dict[str, NodeState]:
        """Return how each node is, as its cluster's API server sees it; see `Driver`."""
        found: dict[str, NodeState] = {}
        for place, cluster in enumerate(fleet.clusters):
            ready = self._ready(fleet, cluster) if cluster.kubeconfig.exists() else {}
            for node in fleet.nodes:
                if node.cluster == place:
                    there = ready.get(node.machine)
                    found[node.name] = "gone" if there is None else "up" if there else "stopped"
        return found

    def down(self, fleet: Fleet) -> None:
        """End the clusters; see `Driver`."""
        for cluster in fleet.clusters:
            self._run(cluster.name, "down")

    def _ready(self, fleet: Fleet, cluster: Cluster) -> dict[str, bool]:
        said = self._shell.run(
            _kubectl(fleet), "--kubeconfig", str(cluster.kubeconfig), "get", "nodes", "--output=json", timeout_s=30.0
        )
        return {
            item["metadata"]["name"]: any(
                one["type"] == "Ready" and one["status"] == "True" for one in item["status"]["conditions"]
            )
            for item in json.loads(said)["items"]
        }

    def _run(self, cluster: str, *words: str) -> str:
        if self._program is None:
            raise BadInput(f"where is testcluster? name its executable with --testcluster or the variable {VARIABLE}")
        return self._shell.run(str(self._program), *words, environment={_ID: cluster})


def _nodes(nodes: tuple[tuple[str, int], ...]) -> tuple[Node, ...]:
    return tuple(
        Node(name, cluster, f"node-{[one for one, where in nodes if where == cluster].index(name)}")
        for name, cluster in nodes
    )


def _kubectl(fleet: Fleet) -> str:
    """Return the kubectl of the right version, which is beside the clusters' folders."""
    own = fleet.clusters[0].kubeconfig.parent.parent / "bin" / "kubectl"
    return str(own) if own.exists() else "kubectl"
