"""One process that calls the ClientApp: a trainer as devices have it, without its outer process.

What is said goes over a socket pair in frames of the hand-over; messages, states and replies are files in a folder of
its own, linked and moved, never copied. Several calls may be with it: it works on the first and finds the next at once.
"""

import os
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree

from fedfleet_protocol import handover
from fedfleet_protocol.ids import Order, RunId
from fedfleet_protocol.messages import Config

_PIECE = 64 << 10
_LIMITS = handover.Limits(nice=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A call of the ClientApp in a device's place.

    Attributes:
        message, state: files, which must stay as long as the call may be made; no state is the empty one.
        seed: what the global random generators begin with.
    """

    order: Order
    message: Path
    state: Path | None
    run_number: int
    node: int
    node_config: Config
    run_config: Config
    seed: int
    remaining_s: float


class WorkerLost(Exception):
    """The process ended by itself or was killed; the text says how."""


class Worker:
    """A process, its folder, and the calls that are with it.

    Args:
        folder: does not exist yet; it is gone again after `end`.
        output: a descriptor that takes what the app prints; None throws it away.

    Attributes:
        calls: in the order in which they are answered. loaded: whether the app is ready.
    """

    def __init__(
        self, folder: Path, *, bundle: Path, run: RunId, output: int | None, environment: Mapping[str, str]
    ) -> None:
        self.folder = folder
        self.calls: deque[Call] = deque()
        self.loaded = False
        self._count = 0
        self._links: dict[Order, list[Path]] = {}
        self._reader = handover.FrameReader()
        folder.mkdir(mode=0o700)
        os.link(bundle, folder / "bundle")
        self._connection, theirs = socket.socketpair()
        told = subprocess.DEVNULL if output is None else output
        with theirs:
            self._process = subprocess.Popen(
                (
                    sys.executable, "-P", "-m", "fedfleet_trainer", "--alone",
                    "--connection", str(theirs.fileno()), "--handover", str(folder),
                ),
                stdin=subprocess.DEVNULL, stdout=told, stderr=told, cwd=folder, env=dict(environment),
                pass_fds=(theirs.fileno(),), start_new_session=True,
            )  # fmt: skip
        self._say(handover.Load(run=run, bundle="bundle", limits=_LIMITS))

    def fileno(self) -> int:
        """Return the descriptor that becomes readable when the process says something or ends."""
        return self._connection.fileno()

    def give(self, call: Call) -> None:
        """Hand over a call; a process that is gone is noticed by `hear`."""
        self._count += 1
        message = self._linked(call.message, f"message-{self._count}")
        links, state = [message], None
        if call.state is not None:
            state = self._linked(call.state, f"state-before-{self._count}")
            links.append(state)
        self._links[call.order] = links
        self.calls.append(call)
        self._say(
            handover.Work(
                order=call.order, message=message.name, state=state.name if state else None,
                run_number=call.run_number, node=call.node, node_config=call.node_config, run_config=call.run_config,
                remaining_s=call.remaining_s, seed=call.seed,
            )
        )  # fmt: skip

    def hear(self) -> list[handover.ToAgent]:
        """Return what the process has said since.

        Raises:
            WorkerLost: it has ended.
            ProtocolError: it says what is no frame.
        """
        try:
            data = self._connection.recv(_PIECE)
        except ConnectionError:
            data = b""
        if not data:
            raise WorkerLost(self._told(self._process.wait()))
        return [handover.for_agent(body) for body in self._reader.feed(data)]

    def settle(self, order: Order) -> Call:
        """Return the call that was answered; what it was handed is taken back."""
        call = self.calls.popleft()
        if call.order != order:
            raise WorkerLost(f"the trainer answered {order[:12]} when it was asked {call.order[:12]}")
        for link in self._links.pop(order):
            link.unlink()
        return call

    def taken(self, file: handover.File, target: Path) -> Path:
        """Return `target`, which is now a file that the process has left."""
        (self.folder / handover.check_file_name(file.name)).rename(target)
        return target

    def end(self) -> None:
        """End the process with everything it started, and remove its folder."""
        self._connection.close()
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        rmtree(self.folder, ignore_errors=True)

    def _linked(self, source: Path, name: str) -> Path:
        target = self.folder / name
        os.link(source, target)
        return target

    def _say(self, frame: handover.Frame) -> None:
        with suppress(ConnectionError):
            self._connection.sendall(handover.pack(frame))

    @staticmethod
    def _told(code: int) -> str:
        if code >= 0:
            return f"the app ended the trainer's process with exit status {code}"
        return f"the trainer's process was ended by signal {-code} ({signal.strsignal(-code) or 'unknown'})"
