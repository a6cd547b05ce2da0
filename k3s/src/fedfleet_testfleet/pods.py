"""Parts of a fleet that are pods of a Kubernetes cluster."""

from fedfleet_testfleet.driver import Shell
from fedfleet_testfleet.errors import Cannot, FleetFault
from fedfleet_testfleet.fleet import PARTS, Fleet

_LABEL = "app.kubernetes.io/name"
_TOGETHER = ("coordinator", "broker", "operator")
"""What the hub's manifests put into one pod, whose parts go together; in other installations each has a pod."""


def kill(shell: Shell, kubectl: str, fleet: Fleet, target: str) -> str:
    """Return which pods were just killed: those of a part, or the agent's on a node.

    Raises:
        BadInput: there is no such node or part. FleetFault: there is no such pod, or kubectl fails.
    """
    if target in PARTS:
        cluster, selector = fleet.clusters[0], [f"--selector={_LABEL} in ({', '.join(_names(target))})"]
    else:
        node = fleet.node(target)
        cluster = fleet.clusters[node.cluster]
        selector = [f"--selector={_LABEL}=fedfleet-agent", f"--field-selector=spec.nodeName={node.machine}"]
    said = shell.run(
        kubectl, "--kubeconfig", str(cluster.kubeconfig), "delete", "pods", "--all-namespaces", *selector,
        "--grace-period=0", "--force", "--wait=false", "--output=name",
    )  # fmt: skip
    killed = [word for word in said.split() if word.startswith("pod/")]  # with none it says so, where names belong
    if not killed:
        raise FleetFault(f"there is no pod of {target} in {cluster.name}; is fedfleet installed there?")
    return f"{', '.join(killed)} killed"


def only_nodes(fleet: Fleet, action: str, target: str) -> str:
    """Return what the driver calls a node; parts can only be killed.

    Raises:
        BadInput: there is no such node. Cannot: it is a part.
    """
    if target in PARTS:
        raise Cannot(f"{target} is a pod, which can only be killed; {action} the node it runs on")
    return fleet.node(target).machine


def _names(part: str) -> tuple[str, ...]:
    return (f"fedfleet-{part}", "fedfleet-hub") if part in _TOGETHER else (f"fedfleet-{part}",)
