"""A hub and a site on the test cluster, as a user would install them, and the digits' shards on its nodes."""

import contextlib
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from tests.cluster.conftest import MANIFESTS, PATIENCE, Kubectl

ROOT = MANIFESTS.parent
DIGITS = ROOT / "examples" / "digits"
HUB, SITE = "fedfleet", "fedfleet-site"
Json = dict[str, Any]


class Installed:
    """The hub's user, on this machine.

    Args:
        folder: gets the user's context.
    """

    def __init__(self, kubectl: Kubectl, folder: Path) -> None:
        self.kubectl, self.folder = kubectl, folder

    @property
    def publisher(self) -> str:
        """The public key that sites trust."""
        return (self.folder / "publisher.pub").read_text().strip()

    def fedfleet(self, *arguments: str) -> str:
        """Return what the command says, over a port-forward to the hub."""
        with self._reached() as port:
            context = self.folder / "context.toml"
            text = re.sub(r'^url = ".*"', f'url = "https://localhost:{port}"', context.read_text(), flags=re.MULTILINE)
            local = self.folder / "local.toml"
            local.write_text(text)
            command = [sys.executable, "-m", "fedfleet_coordinator.cli", *arguments]
            environment = {"FEDFLEET_CONTEXT": str(local), "PATH": "/usr/bin:/bin", "HOME": str(self.folder)}
            done = subprocess.run(
                command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120 * PATIENCE, env=environment
            )
        assert done.returncode == 0, done.stderr
        return done.stdout

    @contextlib.contextmanager
    def _reached(self) -> Iterator[int]:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port: int = probe.getsockname()[1]
        command = [self.kubectl.program, "--kubeconfig", self.kubectl.kubeconfig, "-n", HUB, "port-forward",
                   "service/hub", f"{port}:8443"]  # fmt: skip
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        try:
            assert process.stdout is not None and process.stdout.readline()
            yield port
        finally:
            process.terminate()
            process.communicate(timeout=10)


def install_hub(kubectl: Kubectl, folder: Path) -> Installed:
    """Apply manifests/hub, wait until it serves, and fetch the first user's context."""
    kubectl.must("apply", "-k", str(MANIFESTS / "hub"))
    kubectl.must("-n", HUB, "rollout", "status", "deployment/hub", f"--timeout={int(50 * PATIENCE)}s")
    pod = kubectl.must("-n", HUB, "get", "pod", "-l", "app.kubernetes.io/name=fedfleet-hub", "-o", "name").strip()
    packed = folder / "admin.tar"
    command = [kubectl.program, "--kubeconfig", kubectl.kubeconfig, "-n", HUB, "exec", pod, "-c", "coordinator", "--",
               "tar", "-C", "/var/lib/fedfleet/hub/users/admin", "-cf", "-", "."]  # fmt: skip
    packed.write_bytes(subprocess.run(command, capture_output=True, check=True, timeout=60).stdout)
    subprocess.run(["tar", "-C", str(folder), "-xf", str(packed)], check=True)
    return Installed(kubectl, folder)


def write_shards(kubectl: Kubectl) -> list[str]:
    """Give every node a shard of the digits in /srv/fedfleet/digits; return the nodes."""
    nodes = kubectl.must("get", "nodes", "-o", "name").replace("node/", "").split()
    code: Json = {
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "shards", "namespace": SITE},
        "data": {"shards.py": (DIGITS / "shards.py").read_text(), "init.py": "",
                 "data.py": (DIGITS / "digits" / "data.py").read_text()},
    }  # fmt: skip
    tree = yaml.safe_load((MANIFESTS / "site" / "kustomization.yaml").read_text())
    trainer = next(one for one in tree["images"] if one["name"] == "fedfleet/trainer")
    pods = []
    for number, node in enumerate(nodes):
        # What an earlier hub made of this node is of no use to this one.
        make = f"python shards.py /tmp/shards --agents {len(nodes)} && cp /tmp/shards/{number}/digits.npz /srv/digits/"
        act = f"rm -rf /node/agent && {make}"
        pods.append({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": f"shard-{number}", "namespace": SITE},
            "spec": {
                "nodeName": node, "restartPolicy": "Never", "tolerations": [{"operator": "Exists"}],
                "containers": [{
                    "name": "shard", "image": f"fedfleet/trainer:{trainer['newTag']}", "workingDir": "/code",
                    "command": ["/bin/sh", "-c", act], "securityContext": {"runAsUser": 0},
                    "volumeMounts": [
                        {"name": "code", "mountPath": "/code"}, {"name": "srv", "mountPath": "/srv/digits"},
                        {"name": "node", "mountPath": "/node"}],
                }],
                "volumes": [
                    {"name": "code", "configMap": {"name": "shards", "items": [
                        {"key": "shards.py", "path": "shards.py"}, {"key": "data.py", "path": "digits/data.py"},
                        {"key": "init.py", "path": "digits/__init__.py"}]}},
                    {"name": "srv", "hostPath": {"path": "/srv/fedfleet/digits", "type": "DirectoryOrCreate"}},
                    {"name": "node", "hostPath": {"path": "/var/lib/fedfleet", "type": "DirectoryOrCreate"}},
                ],
            },
        })  # fmt: skip
    kubectl.must("apply", "-f", "-", objects=[code, *pods])
    for number in range(len(nodes)):
        kubectl.must(
            "-n",
            SITE,
            "wait",
            f"pod/shard-{number}",
            "--for=jsonpath={.status.phase}=Succeeded",
            f"--timeout={int(50 * PATIENCE)}s",
        )
    kubectl.must("-n", SITE, "delete", "pod", *(f"shard-{number}" for number in range(len(nodes))), "--wait=false")
    return nodes


def join_nodes(hub: Installed) -> list[Json]:
    """Install a site whose nodes are the cluster's; return its agents once all are there."""
    kubectl = hub.kubectl
    manifest = hub.fedfleet("site", "create", "plant-7", "--publisher", f"lab={hub.publisher}",
                            "--dataset", "data=/srv/fedfleet/digits")  # fmt: skip
    objects = list(yaml.safe_load_all(manifest))
    kubectl.must("apply", "-f", "-", objects=[one for one in objects if one["kind"] == "Namespace"])
    nodes = write_shards(kubectl)
    kubectl.must("apply", "-f", "-", objects=objects)
    kubectl.must("-n", SITE, "rollout", "status", "daemonset/agent", f"--timeout={int(55 * PATIENCE)}s")
    until = time.monotonic() + 30 * PATIENCE
    while True:
        agents: list[Json] = yaml.safe_load(hub.fedfleet("agents", "--json"))
        if sum(bool(one["online"]) for one in agents) >= len(nodes):
            return agents
        assert time.monotonic() < until, agents
        time.sleep(1)
