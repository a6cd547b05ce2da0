"""The port to what a fleet is made of, and the port to the command lines that some drivers use."""

import os
import subprocess
from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, Protocol

from fedfleet_testfleet.errors import Failed, FleetFault
from fedfleet_testfleet.fault import Fault
from fedfleet_testfleet.fleet import DriverName, Fleet, Wanted

NodeState = Literal["up", "stopped", "gone"]
PATIENCE_S = 300.0
NOTHING: Mapping[str, str] = MappingProxyType({})


class Driver(Protocol):
    """Makes fleets of one kind, and hurts them."""

    @property
    def name(self) -> DriverName:
        """Which kind."""
        ...

    def up(self, wanted: Wanted) -> Fleet:
        """Return a fleet whose nodes are ready.

        Raises:
            BadInput: it cannot be like that. FleetFault: it does not start; nothing of it is left.
        """
        ...

    def do(self, fleet: Fleet, fault: Fault) -> str:
        """Return in words what was done; whether `for_s` is waited for is the caller's business.

        Doing the same again, and ending what was not begun, is no error.

        Raises:
            BadInput: there is no such node or part. Cannot: this driver cannot do it, and the text says what can.
            FleetFault: it failed; the fleet may be as before or as after.
        """
        ...

    def states(self, fleet: Fleet) -> dict[str, NodeState]:
        """Return how each node is; gone are those whose fleet, or whose process, is not there.

        Raises:
            FleetFault: that cannot be found out.
        """
        ...

    def down(self, fleet: Fleet) -> None:
        """End the fleet, whatever is left of it. Twice is no error.

        Raises:
            FleetFault: something of it could not be ended; the text says what.
        """
        ...


class Shell(Protocol):
    """Runs the programs of others."""

    def run(self, *command: str, environment: Mapping[str, str] = NOTHING, timeout_s: float = PATIENCE_S) -> str:
        """Return what a program printed.

        Raises:
            FleetFault: it is not installed, fails or takes too long; the text has the last line it said.
        """
        ...


class LocalShell:
    """Runs programs on this machine, never through a shell's language."""

    def run(self, *command: str, environment: Mapping[str, str] = NOTHING, timeout_s: float = PATIENCE_S) -> str:
        """Return what a program printed; see `Shell`."""
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False,
                timeout=timeout_s, env=os.environ | dict(environment),
            )  # fmt: skip
        except FileNotFoundError as error:
            raise FleetFault(f"{command[0]} is not installed here; install it, or use another --driver") from error
        except (OSError, subprocess.TimeoutExpired) as error:
            raise FleetFault(f"{' '.join(command)} does not end well: {error}") from error
        if done.returncode:
            said = (done.stderr.strip() or done.stdout.strip() or "it says nothing").splitlines()[-1][:400]
            raise Failed(
                f"{' '.join(command)} fails with exit code {done.returncode}: {said}", code=done.returncode, said=said
            )
        return done.stdout
