"""The one part that writes the broker's files, and makes it read them again.

mosquitto fails open: a broken revocation list switches revocation off, a broken ACL lets everybody read and write
everything (measured on 2.0.11). So each file is complete before it takes its place, by rename, and a revoked agent is
silenced three times: by the list, by a rule of its own that denies every topic, and by taking over its session, which
the list alone leaves alive.

Agents and services have a listener, a CA and an ACL each. A client's id is the name in its certificate, whatever it
calls itself: ids are the broker's keys to sessions, and over any listener.
"""

import contextlib
import itertools
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path
from shutil import which

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from fedfleet_coordinator.errors import Misconfigured, Unavailable
from fedfleet_coordinator.pki import Pki, client_context, write_private
from fedfleet_protocol import topics
from fedfleet_protocol.ids import AgentId

SERVICE = "coordinator"
"""The name in the coordinator's own certificate."""
_BROKER = "broker"
_START_S = 10.0
_STOP_S = 5.0
_KICK_S = 5.0
Revoked = Iterable[tuple[AgentId, tuple[str, ...]]]
"""Revoked agents, each with the serial numbers of its certificates."""


class BrokerFiles:
    """Configuration, ACLs, revocation list and certificates of a mosquitto, in one folder.

    Args:
        agents_host, agents_port: where agents connect. service_port: where the coordinator does, on loopback.
    """

    def __init__(self, folder: Path, *, agents_host: str, agents_port: int, service_port: int) -> None:
        self.folder = folder.absolute()
        self.agents_host, self.agents_port, self.service_port = agents_host, agents_port, service_port

    @property
    def configuration_file(self) -> Path:
        """What mosquitto is started with."""
        return self.folder / "mosquitto.conf"

    def write(self, pki: Pki, hosts: list[str], revoked: Revoked, now_wall: float) -> None:
        """Write everything a broker starts from.

        Args:
            hosts: the names and addresses under which agents and the coordinator reach the broker.
        """
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        (self.folder / "data").mkdir(mode=0o700, exist_ok=True)
        self.write_certificate(pki, hosts, now_wall)
        write_private(self.folder / "agents-ca.pem", pki.ca_pem("agents").encode())
        write_private(self.folder / "services-ca.pem", pki.ca_pem("services").encode())
        write_private(self.folder / "services.acl", f"user {SERVICE}\n{topics.SERVICE_ACL}\n".encode())
        self.write_revoked(pki, revoked, now_wall)
        self.write_configuration()

    def write_configuration(self) -> None:
        """Write what mosquitto is started with: ports and addresses as they are set now."""
        write_private(self.configuration_file, self._configuration().encode())

    def write_certificate(self, pki: Pki, hosts: list[str], now_wall: float) -> None:
        """Write the broker's own certificate and key anew."""
        names = list(dict.fromkeys([*hosts, "localhost", "127.0.0.1"]))
        chain, key = pki.issue_service(_BROKER, names, now_wall=now_wall)
        write_private(self.folder / "server.pem", chain)
        write_private(self.folder / "server.key", key)

    def write_revoked(self, pki: Pki, revoked: Revoked, now_wall: float) -> None:
        """Write the list of revoked certificates and the agents' ACL; the broker reads them on SIGHUP.

        Who is on them stays: a revocation is for good, also where the store came back from an older backup.
        """
        known = list(revoked)
        agents = list(dict.fromkeys([*(agent for agent, _ in known), *self._denied()]))
        lines = [line for agent in agents for line in (f"user {agent}", "topic deny #")]
        # The rule first: if the power fails between the two, the agent is mute already.
        write_private(self.folder / "agents.acl", ("\n".join([*lines, *topics.AGENT_ACL]) + "\n").encode())
        listed = {serial for _, serials in known for serial in serials} | self.revoked_serials()
        crl = pki.crl(sorted(listed), now_wall=now_wall)
        write_private(self.folder / "agents.crl", crl)

    def revoked_serials(self) -> set[str]:
        """Return the serial numbers on the list of revoked certificates; none if there is no list that can be read."""
        with contextlib.suppress(OSError, ValueError):
            found = x509.load_pem_x509_crl((self.folder / "agents.crl").read_bytes())
            return {f"{revoked.serial_number:x}" for revoked in found}
        return set()

    def _denied(self) -> list[str]:
        """Return the agents to whom the ACL forbids everything."""
        try:
            lines = (self.folder / "agents.acl").read_text().splitlines()
        except (OSError, UnicodeDecodeError):
            return []
        pairs = itertools.pairwise(lines)
        return [
            user.removeprefix("user ") for user, rule in pairs if user.startswith("user ") and rule == "topic deny #"
        ]

    def _configuration(self) -> str:
        here = self.folder
        if any(character in str(here) for character in "\n\r"):
            raise Misconfigured(f"the state folder {here!s} has a line break in its name; choose another with --state")
        tls = f"""certfile {here / "server.pem"}
keyfile {here / "server.key"}
require_certificate true
use_identity_as_username true
use_username_as_clientid true
tls_version tlsv1.3
allow_anonymous false"""
        # mosquitto gives up root for a user who could not read these files; elsewhere the line has no effect.
        user = "user root" if os.geteuid() == 0 else ""
        return f"""# Written by fedfleet-coordinator; changes are overwritten.
per_listener_settings true
{user}
log_dest stderr
log_type error
log_type warning
connection_messages false
persistence true
persistence_location {here / "data"}/
autosave_interval 30
pid_file {here / "mosquitto.pid"}
persistent_client_expiration 7d
max_queued_messages 100000
max_inflight_messages 100
message_size_limit 1048576
max_keepalive 3600
set_tcp_nodelay true

# Agents.
listener {self.agents_port} {self.agents_host}
max_connections -1
cafile {here / "agents-ca.pem"}
crlfile {here / "agents.crl"}
acl_file {here / "agents.acl"}
{tls}

# The coordinator: another CA, and this machine only.
listener {self.service_port} 127.0.0.1
cafile {here / "services-ca.pem"}
acl_file {here / "services.acl"}
{tls}
"""


class Broker:
    """A mosquitto of our own, as a child process."""

    def __init__(self, files: BrokerFiles) -> None:
        self._files = files
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """The process, if it runs."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def start(self) -> None:
        """Start it, and return when it takes connections. One that somebody who was killed left behind is ended first.

        Raises:
            Misconfigured: there is no mosquitto on this machine, or it does not start.
        """
        self._end_orphan()
        path = self._files.folder / "mosquitto.log"
        with path.open("wb") as log:
            self._process = subprocess.Popen(
                command(self._files.folder),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        until = time.monotonic() + _START_S
        while time.monotonic() < until and self.pid is not None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._files.service_port), 1):
                return
            time.sleep(0.02)
        self.stop()
        raise Misconfigured(
            f"mosquitto does not start: {path.read_text(errors='replace')[-500:].strip()}; "
            f"are ports {self._files.agents_port} and {self._files.service_port} free?"
        )

    def stop(self) -> None:
        """Stop it and wait until it is gone."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _end_orphan(self) -> None:
        pid = _running(self._files.folder)
        if pid is None:
            return
        until = time.monotonic() + _STOP_S
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
            while time.monotonic() < until:
                os.kill(pid, 0)
                time.sleep(0.02)


def reload(folder: Path) -> bool:
    """Make the broker that runs on `folder` read ACL and revocation list again; return whether there was one."""
    pid = _running(folder)
    if pid is None:
        return False
    os.kill(pid, signal.SIGHUP)
    return True


def command(folder: Path) -> list[str]:
    """Return the command line that runs a broker on `folder`, in the foreground.

    Raises:
        Misconfigured: mosquitto is not installed.
    """
    return [program(), "-c", str(folder / "mosquitto.conf")]


def take_over(pki: Pki, agent: AgentId, *, port: int, folder: Path, now_wall: float) -> None:
    """End the live session of a revoked agent, by a connection in its name that is closed at once.

    A broker checks a certificate when a connection is made and never again (measured): whoever is connected stays so.
    The few bytes are spoken here: paho's thread waits by `select`, which hangs in a process with many descriptors.

    Raises:
        Unavailable: the broker did not answer; the agent is denied every topic, but may still be connected.
    """
    key = Ed25519PrivateKey.generate()
    certificate = pki.issue_agent(key.public_key(), agent, now_wall=now_wall)
    chain = folder / f"kick-{agent}.pem"
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    write_private(chain, private + certificate.public_bytes(Encoding.PEM))
    try:
        context = client_context(pki.ca_pem("services"), chain)
    finally:
        chain.unlink()
    name = agent.encode()
    # MQTT 5 §3.1: protocol name and level, clean start, keep-alive 10 s, no properties, client id.
    rest = b"\x00\x04MQTT\x05\x02\x00\x0a\x00" + len(name).to_bytes(2, "big") + name
    try:
        plain = socket.create_connection(("127.0.0.1", port), _KICK_S)
        with plain, context.wrap_socket(plain, server_hostname="127.0.0.1") as sock:
            sock.sendall(bytes((0x10, len(rest))) + rest)
            answer = sock.recv(4)
            if answer[:1] != b"\x20" or answer[3:4] != b"\x00":
                raise Unavailable(f"the broker did not let the hub take over the session of {agent}; revoke it again")
            sock.sendall(b"\xe0\x00")  # §3.14: a normal disconnect, and with it the session ends
    except OSError as error:
        raise Unavailable(f"the broker cannot be reached to end the session of {agent}: {error}") from error


def program() -> str:
    """Return the path of mosquitto.

    Raises:
        Misconfigured: it is not installed.
    """
    found = which("mosquitto") or which("mosquitto", path="/usr/sbin:/usr/local/sbin")
    if found is None:
        raise Misconfigured("mosquitto, the MQTT broker, is not installed; on Debian: apt-get install mosquitto")
    return found


def _running(folder: Path) -> int | None:
    """Return the process that runs a broker on `folder`: a process id is used again by others, so its words decide."""
    try:
        pid = int((folder / "mosquitto.pid").read_text())
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (OSError, ValueError):
        return None
    return pid if os.fsencode(folder / "mosquitto.conf") in words else None
