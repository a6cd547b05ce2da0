"""How apps are kept apart from the rest of this device: the owner's decision, and what of it holds here."""

import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from fedfleet_agent.errors import AgentError
from fedfleet_protocol.handover import ISOLATION, Sandbox
from fedfleet_protocol.messages import Config as NodeConfig

_PROOF_S = 60.0

Level = Literal["landlock", "seccomp", "none"]


class Isolation(Struct, frozen=True, forbid_unknown_fields=True):
    """What an app may reach on this device beside its own folder."""

    isolation_minimum: Annotated[
        Level,
        Meta(
            description="What must be out of an app's reach, or tasks are refused. landlock: the agent's key and "
            "journal, and the network; seccomp: the network; none: nothing."
        ),
    ] = "landlock"
    sandbox: Annotated[bool, Meta(description="Confine apps as far as this kernel can.")] = True
    readable: Annotated[
        tuple[str, ...],
        Meta(description="Files and folders apps may read, beside Python and the paths that node_config names."),
    ] = ()
    devices: Annotated[
        tuple[str, ...], Meta(description='Device files apps may use, e.g. "/dev/nvidia0", "/dev/nvidiactl".')
    ] = ()
    unix_sockets: Annotated[
        bool,
        Meta(
            description="Let apps make Unix sockets, as torch's DataLoader with workers does; they can then speak to "
            "any service of this machine that listens on one."
        ),
    ] = False


def sandbox_of(rules: Isolation, node_config: NodeConfig, *, key: Path, journal: Path, agent: int = 0) -> Sandbox:
    """Return what a trainer is told of its confinement.

    Args:
        node_config: its absolute paths are named by the owner too, so apps may read them.
        key, journal: the agent's files.
        agent: the agent's process id, 0 where the trainer does not see it.
    """
    named = [value for value in node_config.values() if isinstance(value, str) and value.startswith(("/", "~"))]
    readable = tuple(str(Path(path).expanduser()) for path in (*rules.readable, *named))
    return Sandbox(
        confine=rules.sandbox, minimum=rules.isolation_minimum, readable=readable, devices=rules.devices,
        unix_sockets=rules.unix_sockets, key=str(key), journal=str(journal), agent=agent,
    )  # fmt: skip


def proven(sandbox: Sandbox, folder: Path) -> dict[str, Any]:
    """Return what an app would have in its reach: a process like a trainer confines itself and tries.

    Args:
        folder: where it gets a folder of its own for that time.

    Raises:
        AgentError: it could not be tried; the text says why.
    """
    import tempfile  # the resident process does not need it

    with tempfile.TemporaryDirectory(dir=folder, prefix="isolation-") as own:
        command = [sys.executable, "-P", "-m", "fedfleet_trainer.proof", own]
        try:
            done = subprocess.run(
                command, input=msgspec.json.encode(sandbox), capture_output=True, timeout=_PROOF_S, check=False
            )
            if done.returncode:
                raise AgentError(f"isolation cannot be tried: {done.stderr.decode(errors='replace').strip()[-500:]}")
            return dict(msgspec.json.decode(done.stdout))
        except (OSError, subprocess.TimeoutExpired, msgspec.MsgspecError) as error:
            raise AgentError(f"isolation cannot be tried: {error}") from error


def missing(reach: dict[str, Any], minimum: str) -> list[str]:
    """Return what the owner wants out of an app's reach and is not."""
    return [name for name in ISOLATION[minimum] if reach[name]]
