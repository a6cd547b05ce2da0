"""A whole fleet on this machine: hub, broker and agents as child processes that are started again when they die.

STATE/
  context.toml          what the other commands need to talk to the fleet
  user.pem user.key     the certificate of the person who started it; publisher.key signs bundles
  hub/                  the coordinator's state folder
  agents/0 ..           the agents' state folders, each with its agent.toml
  log/                  what each process prints
  lock                  held as long as the fleet runs
"""

import fcntl
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from shutil import rmtree
from typing import IO, Any, Self

import tomli_w

import fedfleet_sandbox
from fedfleet_coordinator.cli import context
from fedfleet_coordinator.cli.children import Child, Family, Program, Say
from fedfleet_coordinator.cli.client import Client
from fedfleet_coordinator.cli.context import Context
from fedfleet_coordinator.cli.errors import BadInput, LocalFault, Refusal, Unreachable
from fedfleet_coordinator.settings import Blobs, Exchange, Runner

READY_S = 60.0
JOIN_S = 60.0
MAX_AGENTS = 200
_USER = "admin"
_JOINING_AT_A_TIME = 4
AgentSettings = Mapping[str, Mapping[str, Any]]


class LocalFleet:
    """A fleet of child processes; `with LocalFleet(agents=3) as fleet:` is ready inside and gone after.

    Args:
        state: where everything is kept; the same folder again is the same fleet. None: a temporary one.
        labels: of all agents; a key with several values deals them out in turn.
        data_dir: agent i finds its data in the folder i of this one, as `data` in its node_config.
        settings: sections of agent.toml, on top of what the fleet writes itself.
        exchange, blobs, runner: sections of the hub's configuration, for a fleet that is made anew.
        say: is told what a person should know, e.g. that a process died and is started again.

    Attributes:
        context: how to talk to the fleet. coordinator, broker, agents: its processes, each with `pid` and `kill`.
    """

    def __init__(
        self,
        *,
        agents: int = 2,
        state: Path | None = None,
        labels: Mapping[str, Sequence[str]] | None = None,
        data_dir: Path | None = None,
        settings: AgentSettings | None = None,
        exchange: Exchange | None = None,
        blobs: Blobs | None = None,
        runner: Runner | None = None,
        say: Say = lambda line: None,
    ) -> None:
        if not 0 <= agents <= MAX_AGENTS:
            raise BadInput(f"--agents takes a number from 0 to {MAX_AGENTS}; not {agents}")
        self._temporary = state is None
        self.state = Path(tempfile.mkdtemp(prefix="fedfleet-")) if state is None else state.expanduser().resolve()
        self._count, self._labels, self._data_dir = agents, dict(labels or {}), data_dir
        self._settings, self._say = dict(settings or {}), say
        self._exchange, self._blobs = exchange or Exchange(), blobs or Blobs()
        self._runner = runner or Runner()
        self._family = Family(say)
        self._lock: IO[bytes] | None = None
        self.coordinator: Child
        self.agents: list[Child] = []
        self.broker: Child
        self.context: Context

    @property
    def hub(self) -> Path:
        """The coordinator's state folder."""
        return self.state / "hub"

    @property
    def context_file(self) -> Path:
        """The context that the commands use with FEDFLEET_CONTEXT."""
        return self.state / "context.toml"

    def __enter__(self) -> Self:
        try:
            self.start()
            self.wait_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start everything; what is not there yet (keys, identities, settings) is made.

        Raises:
            LocalFault: something does not start; it names the log to read.
        """
        self._take_folder()
        self.context = self._make_hub()
        context.save(self.context, self.context_file)
        self.broker = self._start("broker", "fedfleet_coordinator", "broker", "--state", str(self.hub))
        self.coordinator = self._start("coordinator", "fedfleet_coordinator", "serve", "--state", str(self.hub))
        self._wait(lambda client: client.ready(), "the coordinator", self.coordinator)
        with ThreadPoolExecutor(_JOINING_AT_A_TIME) as pool:
            list(pool.map(self._make_agent, range(self._count)))
        for number in range(self._count):
            folder = str(self._agent(number))
            self.agents.append(self._start(f"agent {number}", "fedfleet_agent", "run", "--state", folder))

    def wait_ready(self, timeout_s: float = READY_S) -> None:
        """Return when all agents are online.

        Raises:
            LocalFault: they are not in time.
        """
        last = self.agents[-1] if self.agents else self.coordinator
        self._wait(lambda client: self.online(client) >= self._count, f"{self._count} agents", last, timeout_s)

    def online(self, client: Client) -> int:
        """Return how many agents are connected now."""
        answer = client.get("/v1/agents")
        rows = answer.get("agents", []) if isinstance(answer, dict) else answer
        return sum(bool(row.get("online")) for row in rows)

    def client(self) -> Client:
        """Return a new client of this fleet."""
        return Client(self.context)

    def kill(self, part: str, number: int = 0, sign: int = signal.SIGKILL) -> int:
        """Return the process id of the part ("coordinator", "broker" or "agent") that was just killed."""
        return self.part(part, number).kill(sign)

    def part(self, name: str, number: int = 0) -> Child:
        """Return the child that is the "coordinator", the "broker" or the agent with this number."""
        return {"coordinator": self.coordinator, "broker": self.broker}.get(name) or self.agents[number]

    def stop(self) -> None:
        """End all processes and wait until they are gone; a temporary fleet's folder is removed."""
        self._family.stop()
        if self._lock is not None:
            self._lock.close()
            self._lock = None
        if self._temporary:
            rmtree(self.state, ignore_errors=True)

    def _take_folder(self) -> None:
        """Make the state folder, and hold it against a second fleet: two coordinators there would undo each other.

        Raises:
            BadInput: another fleet runs there, or it cannot be a folder.
        """
        try:
            self.state.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = (self.state / "lock").open("ab")
        except OSError as error:
            raise BadInput(f"{self.state} cannot hold a fleet: {error.strerror}; name another folder") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.close()
            raise BadInput(f"a fleet runs in {self.state} already; end it first, or name another folder") from error
        self._lock = lock

    # --- what is made once -------------------------------------------------------------------------------------------

    def _make_hub(self) -> Context:
        """Return how to talk to the hub, which has everything it needs now."""
        from fedfleet_coordinator import hub, settings
        from fedfleet_coordinator.errors import CoordinatorError
        from fedfleet_coordinator.pki import Pki

        file = self.hub / "users" / _USER / "context.toml"
        try:
            if not (self.hub / "hub.toml").exists():
                api, broker, service = free_ports(3)
                made = settings.Settings(
                    api=settings.Api(host="127.0.0.1", port=api, url=f"https://127.0.0.1:{api}"),
                    broker=settings.Broker(
                        host="127.0.0.1", address=f"127.0.0.1:{broker}", port=broker, service_port=service
                    ),
                    exchange=self._exchange,
                    blobs=self._blobs,
                    runner=self._runner,
                )
                return context.load(hub.init(self.hub, made, user=_USER))
            # The certificate of a fleet that rested for long may have expired.
            found = context.load(file)
            chain, key = Pki.load(self.hub / "pki").issue_user(_USER, now_wall=time.time())
            _write_private(found.cert, chain)
            _write_private(found.key, key)
            return found
        except CoordinatorError as error:
            raise LocalFault(str(error)) from error

    def _make_agent(self, number: int) -> None:
        folder = self._agent(number)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _write_private(folder / "agent.toml", tomli_w.dumps(self._agent_settings(number)).encode())
        if (folder / "identity.pem").exists():
            return
        labels = {key: values[number % len(values)] for key, values in self._labels.items()}
        with self.client() as client:
            token = client.post("/v1/tokens", {"labels": labels, "uses": 1, "expires_s": 600})["token"]
        token_file = folder / "token"
        _write_private(token_file, str(token).encode())
        try:
            self._run(
                f"agent-{number}", "fedfleet_agent", "join", "--token-file", str(token_file), "--state", str(folder)
            )
        finally:
            token_file.unlink(missing_ok=True)

    def _agent_settings(self, number: int) -> dict[str, Any]:
        node_config: dict[str, Any] = {"partition-id": number, "num-partitions": self._count}
        if self._data_dir is not None:
            node_config["data"] = str(self._data_dir.expanduser().resolve() / str(number))
        publisher = self.context.publisher().public_key().public_bytes_raw().hex()
        made: dict[str, dict[str, Any]] = {
            "agent": {"node_config": node_config},
            "trust": {"publishers": {"local": publisher}},
        }
        able = fedfleet_sandbox.probe()
        if not (able.landlock and able.seccomp):  # these agents' owner is who runs the apps
            made["trainer"] = {"isolation_minimum": "none"}
        for section, values in self._settings.items():
            made[section] = made.get(section, {}) | dict(values)
        return made

    # --- processes ---------------------------------------------------------------------------------------------------

    def _agent(self, number: int) -> Path:
        return self.state / "agents" / str(number)

    def _log(self, name: str) -> Path:
        return self.state / "log" / f"{name.replace(' ', '-')}.log"

    def _start(self, name: str, module: str, *arguments: str) -> Child:
        return self._family.start(Program(name, (sys.executable, "-m", module, *arguments), self._log(name)))

    def _run(self, name: str, module: str, *arguments: str) -> None:
        """Run a command to its end."""
        log = self._log(name)
        log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        command = [sys.executable, "-m", module, *arguments]
        try:
            done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=JOIN_S)
        except subprocess.TimeoutExpired as error:
            raise LocalFault(
                f"{module} {arguments[0]} takes longer than {JOIN_S:.0f} s; is this machine overloaded?"
            ) from error
        with log.open("ab") as file:
            file.write(done.stdout + done.stderr)
        if done.returncode:
            said = (done.stderr or done.stdout).decode(errors="replace").strip().splitlines()
            raise LocalFault(f"{module} {arguments[0]} failed: {said[-1] if said else 'it says nothing'}; log: {log}")

    def _wait(self, done: Any, what: str, child: Child, timeout_s: float = READY_S) -> None:
        """Wait until `done(client)` holds."""
        deadline = time.monotonic() + timeout_s
        with self.client() as client:
            while time.monotonic() < deadline:
                with suppress(Unreachable, Refusal):
                    if done(client):
                        return
                if child.restarts > 3:
                    log = child.program.log
                    raise LocalFault(f"{child.program.name} ends again and again: {_last_line(log)}; log: {log}")
                time.sleep(0.05)
        raise LocalFault(f"{what} not ready after {timeout_s:.0f} s; log: {child.program.log}")


def free_ports(count: int) -> list[int]:
    """Return different ports that nobody listened on a moment ago."""
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
    finally:
        for probe in probes:
            probe.close()


def _write_private(file: Path, data: bytes) -> None:
    written = file.with_name(f".{file.name}.new")
    with open(os.open(written, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as stream:
        stream.write(data)
    written.replace(file)


def _last_line(log: Path) -> str:
    with suppress(OSError):
        lines = log.read_text(errors="replace").strip().splitlines()
        return lines[-1][:400] if lines else "it says nothing"
    return "it has no log"
