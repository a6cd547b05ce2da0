"""A test fleet as values: its clusters, its nodes, and what is wanted of one."""

from pathlib import Path
from typing import Literal

import msgspec

from fedfleet_testfleet.errors import BadInput

DriverName = Literal["process", "k3d", "testcluster"]
DRIVERS: tuple[DriverName, ...] = ("process", "k3d", "testcluster")
PARTS = ("coordinator", "broker", "runner", "operator")
"""What runs once in a fleet, beside the nodes."""
MAX_NODES, MAX_CLUSTERS = 200, 20


class Wanted(msgspec.Struct, frozen=True):
    """What `up` is asked for.

    Attributes:
        clusters: the nodes are dealt to so many; the first is the hub's.
        folder: everything that the driver keeps goes here.
        data: agent i finds its data in the folder i of this one; processes only.
    """

    nodes: int
    clusters: int
    folder: Path
    data: Path | None = None


class Node(msgspec.Struct, frozen=True):
    """A device of the fleet, with an agent on it.

    Attributes:
        name: as people say it: agent-0, agent-1 and on, in every driver.
        cluster: which cluster it is in. machine: what the driver calls it.
    """

    name: str
    cluster: int
    machine: str


class Cluster(msgspec.Struct, frozen=True):
    """A Kubernetes cluster.

    Attributes:
        name: what the driver calls it.
    """

    name: str
    kubeconfig: Path


class Fleet(msgspec.Struct, frozen=True):
    """A fleet that runs.

    Attributes:
        folder: what the driver keeps of it.
        context: how `fedfleet` reaches its coordinator; None: the person knows.
        pid, born: the process that keeps a fleet of processes, and the tick in which it was born; 0: there is none.
    """

    driver: DriverName
    nodes: tuple[Node, ...]
    folder: Path
    clusters: tuple[Cluster, ...] = ()
    context: Path | None = None
    pid: int = 0
    born: float = 0.0

    def node(self, name: str) -> Node:
        """Return the node with this name.

        Raises:
            BadInput: there is none.
        """
        for node in self.nodes:
            if node.name == name:
                return node
        last = f" to {self.nodes[-1].name}" if len(self.nodes) > 1 else ""
        first = f"{self.nodes[0].name}{last}" if self.nodes else "none"
        raise BadInput(f"there is no {name} in this fleet; its nodes are {first}, its parts {', '.join(PARTS)}")


def dealt(nodes: int, clusters: int) -> tuple[tuple[str, int], ...]:
    """Return the names of nodes with the cluster each is in; the first cluster has the first ones.

    Raises:
        BadInput: there cannot be so many.
    """
    if not 1 <= clusters <= min(nodes, MAX_CLUSTERS) or nodes > MAX_NODES:
        raise BadInput(
            f"{nodes} nodes in {clusters} clusters cannot be: take 1 to {MAX_NODES} nodes in 1 to {MAX_CLUSTERS} "
            "clusters, at least one node in each"
        )
    return tuple((f"agent-{place}", place * clusters // nodes) for place in range(nodes))
