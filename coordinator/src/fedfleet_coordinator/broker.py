"""The one part that writes the broker's files, and keeps a mosquitto where nobody else does.

mosquitto fails open: a broken revocation list switches revocation off, a broken ACL lets everybody read and write
everything (measured on 2.0.11). So each file is complete before it takes its place, by rename, and a revoked agent is
silenced three times: by the list, by a rule of its own that denies every topic, and by taking over its session.
"""

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterable
from pathlib import Path

from fedfleet_coordinator.errors import Misconfigured
from fedfleet_coordinator.pki import Pki, write_private
from fedfleet_protocol import topics
from fedfleet_protocol.ids import AgentId

SERVICE = "coordinator"
"""The name in the coordinator's own certificate."""
_BROKER = "broker"


class BrokerFiles:
    """Configuration, ACL, revocation list and certificates of a mosquitto, in one folder.

    Args:
        agents_port: where agents connect, on all addresses. service_port: where the coordinator does, on loopback.
    """

    def __init__(self, folder: Path, *, agents_host: str, agents_port: int, service_port: int) -> None:
        self.folder = folder
        self.agents_host, self.agents_port, self.service_port = agents_host, agents_port, service_port

    def write(
        self, pki: Pki, hosts: list[str], revoked: Iterable[tuple[AgentId, tuple[str, ...]]], now_wall: float
    ) -> None:
        """Write everything a broker starts from."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        (self.folder / "data").mkdir(mode=0o700, exist_ok=True)
        chain, key = pki.issue_service(_BROKER, hosts, now_wall=now_wall)
        write_private(self.folder / "server.pem", chain)
        write_private(self.folder / "server.key", key)
        for name in ("agents", "services"):
            write_private(self.folder / f"{name}-ca.pem", pki.ca_pem(name).encode())  # type: ignore[arg-type]
        self.write_revoked(pki, revoked, now_wall)
        write_private(self.folder / "mosquitto.conf", self._configuration().encode())

    def write_revoked(self, pki: Pki, revoked: Iterable[tuple[AgentId, tuple[str, ...]]], now_wall: float) -> None:
        """Write the list of revoked certificates and the ACL; the broker reads them on SIGHUP."""
        known = list(revoked)
        crl = pki.crl([serial for _, serials in known for serial in serials], now_wall=now_wall)
        write_private(self.folder / "agents.crl", crl)
        lines = [f"user {SERVICE}", topics.SERVICE_ACL, ""]
        for agent, _ in known:
            lines += [f"user {agent}", "topic deny #", ""]
        write_private(self.folder / "acl", ("\n".join([*lines, *topics.AGENT_ACL]) + "\n").encode())

    def _configuration(self) -> str:
        here = self.folder
        tls = f"""certfile {here / "server.pem"}
keyfile {here / "server.key"}
require_certificate true
use_identity_as_username true
tls_version tlsv1.3
allow_anonymous false
acl_file {here / "acl"}
"""
        return f"""# Written by fedfleet-coordinator; changes are overwritten.
per_listener_settings true
{"user root" if os.geteuid() == 0 else ""}
log_dest stderr
log_type error
log_type warning
persistence true
persistence_location {here / "data"}/
autosave_interval 30
persistent_client_expiration 7d
max_queued_messages 100000
max_inflight_messages 100
message_size_limit 1048576
set_tcp_nodelay true
max_keepalive 3600

# Agents: names are those of the certificate, whatever a client calls itself.
listener {self.agents_port} {self.agents_host}
max_connections -1
use_username_as_clientid true
cafile {here / "agents-ca.pem"}
crlfile {here / "agents.crl"}
{tls}
# The coordinator: another CA, and this machine only.
listener {self.service_port} 127.0.0.1
cafile {here / "services-ca.pem"}
{tls}"""


class Broker:
    """A mosquitto of our own, as a child process."""

    def __init__(self, files: BrokerFiles) -> None:
        self._files = files
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """The process, if it runs."""
        return self.process.pid if self.process is not None and self.process.poll() is None else None

    def start(self) -> None:
        """Start it.

        Raises:
            Misconfigured: there is no mosquitto on this machine.
        """
        log = (self._files.folder / "mosquitto.log").open("ab")
        with log:
            self.process = subprocess.Popen(
                [program(), "-c", str(self._files.folder / "mosquitto.conf")],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def reload(self) -> None:
        """Make it read ACL and revocation list again."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGHUP)

    def stop(self) -> None:
        """Stop it and wait until it is gone."""
        if self.process is None:
            return
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(5)
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def program() -> str:
    """Return the path of mosquitto.

    Raises:
        Misconfigured: it is not installed.
    """
    found = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")
    if found is None:
        raise Misconfigured("mosquitto, the MQTT broker, is not installed; on Debian: apt-get install mosquitto")
    return found
