"""Twins of the ports, for tests: k3d, docker and kubectl in memory, with every command line kept."""

import json
from collections.abc import Callable, Mapping

import yaml

from fedfleet_testfleet.driver import NOTHING, PATIENCE_S
from fedfleet_testfleet.errors import FleetFault


class FakeK3d:
    """A shell in which k3d, docker and kubectl do what they would, to containers that are entries of a table.

    Attributes:
        said: every command line, in order. broken: the beginnings of command lines that fail.
    """

    def __init__(self) -> None:
        self.said: list[str] = []
        self.broken: set[str] = set()
        self._running: dict[str, bool] = {}
        self._networks: dict[str, set[str]] = {}
        self._programs: dict[tuple[str, ...], Callable[..., str]] = {
            ("k3d", "cluster", "create"): self._create,
            ("k3d", "cluster", "list"): lambda *words: json.dumps([{"name": name} for name in self._clusters()]),
            ("k3d", "cluster", "delete"): self._delete,
            ("k3d", "kubeconfig", "write"): lambda *words: words[-1],
            ("k3d", "node", "list"): self._list,
            ("k3d", "node", "start"): lambda name: self._run(name, running=True),
            ("docker", "kill"): lambda name: self._run(name, running=False),
            ("docker", "update"): lambda *words: words[-1],
            ("docker", "inspect"): self._inspect,
            ("docker", "network", "connect"): lambda network, name: self._plug(name, network),
            ("docker", "network", "disconnect"): self._unplug,
            ("kubectl",): lambda *words: "pod/fedfleet-one\n",
        }

    def run(self, *command: str, environment: Mapping[str, str] = NOTHING, timeout_s: float = PATIENCE_S) -> str:
        """Return what the program would print; see `Shell`."""
        line = " ".join(command)
        self.said.append(line)
        if any(line.startswith(start) for start in self.broken):
            raise FleetFault(f"{line} fails with exit code 1: it is broken")
        for words, program in self._programs.items():
            if command[: len(words)] == words:
                return program(*command[len(words) :])
        raise FleetFault(f"{command[0]} is not installed here; install it, or use another --driver")

    def _clusters(self) -> list[str]:
        servers = [name for name in self._running if name.endswith("-server-0")]
        return sorted(name.removeprefix("k3d-").removesuffix("-server-0") for name in servers)

    def _create(self, option: str, file: str) -> str:
        with open(file, encoding="utf-8") as stream:
            asked = yaml.safe_load(stream)
        name = asked["metadata"]["name"]
        for machine in ["server-0", *(f"agent-{place}" for place in range(asked["agents"]))]:
            self._running[f"k3d-{name}-{machine}"] = True
            self._networks[f"k3d-{name}-{machine}"] = {asked["network"]}
        return ""

    def _delete(self, name: str) -> str:
        self._running = {key: on for key, on in self._running.items() if not key.startswith(f"k3d-{name}-")}
        return ""

    def _list(self, *words: str) -> str:
        return json.dumps([{"name": name, "State": {"Running": on}} for name, on in self._running.items()])

    def _run(self, name: str, *, running: bool) -> str:
        self._there(name)
        if self._running[name] == running:
            raise FleetFault(f"container {name} is {'running' if running else 'not running'}")
        self._running[name] = running
        return name

    def _inspect(self, option: str, template: str, name: str) -> str:
        self._there(name)
        if "Running" in template:
            return str(self._running[name]).lower() + "\n"
        return json.dumps({network: {} for network in self._networks[name]})

    def _plug(self, name: str, network: str) -> str:
        if network in self._networks[name]:
            raise FleetFault(f"endpoint with name {name} already exists in network {network}")
        self._networks[name].add(network)
        return ""

    def _unplug(self, network: str, name: str) -> str:
        if network not in self._networks[name]:
            raise FleetFault(f"container {name} is not connected to network {network}")
        self._networks[name].discard(network)
        return ""

    def _there(self, name: str) -> None:
        if name not in self._running:
            raise FleetFault(f"no such container: {name}")
