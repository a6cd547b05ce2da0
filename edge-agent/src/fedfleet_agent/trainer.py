"""One trainer process as the agent holds it: started, spoken to, and ended with everything it started."""

import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from fedfleet_protocol import handover

_PIECE = 64 << 10
_LAST_WORDS_S = 1.0
_PASSED = (
    "PATH", "HOME", "USER", "LOGNAME", "SHELL", "TERM", "LANG", "LANGUAGE", "TZ", "TMPDIR", "VIRTUAL_ENV",
    "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "LD_PRELOAD", "SSL_CERT_FILE", "SSL_CERT_DIR",
)  # fmt: skip
_PASSED_PREFIXES = ("LC_", "CUDA_", "NVIDIA_", "ROCR_", "HIP_", "OMP_", "MKL_", "OPENBLAS_", "TORCH", "HF_", "XDG_")


def environment(own: Mapping[str, str], extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return what a trainer gets of this process's environment: names known to be harmless, and none else."""
    kept = {name: value for name, value in own.items() if name in _PASSED or name.startswith(_PASSED_PREFIXES)}
    kept = {name: value for name, value in kept.items() if not any(word in name for word in ("TOKEN", "SECRET", "KEY"))}
    return {**kept, "FLWR_TELEMETRY_ENABLED": "0", "PYTHONUNBUFFERED": "1", **(extra or {})}


class TrainerLost(Exception):
    """The trainer hung up.

    Attributes:
        outside: whether somebody else killed it.
    """

    def __init__(self, text: str, *, outside: bool) -> None:
        super().__init__(text)
        self.outside = outside


class Trainer:
    """A connection to a trainer, and its process if it is a child of this one.

    Attributes:
        connection: non-blocking.
        folder: shared with it.
    """

    def __init__(self, connection: socket.socket, folder: Path, child: "subprocess.Popen[bytes] | None" = None) -> None:
        connection.setblocking(False)
        self.connection = connection
        self.folder = folder
        self._child = child
        self._reader = handover.FrameReader()
        self._outgoing = bytearray()

    def fileno(self) -> int:
        """Return the descriptor that becomes readable when the trainer says something or ends."""
        return self.connection.fileno()

    @property
    def pid(self) -> int | None:
        """The child's process id."""
        return self._child.pid if self._child else None

    @property
    def wants_to_write(self) -> bool:
        """Whether something waits for room in the socket."""
        return bool(self._outgoing)

    def say(self, frame: handover.Frame) -> None:
        """Queue a frame, and send what can be sent; a trainer that is gone is noticed by `hear`."""
        self._outgoing += handover.pack(frame)
        self.write()

    def write(self) -> None:
        """Send what can be sent now."""
        with suppress(BlockingIOError, ConnectionError):
            while self._outgoing:
                del self._outgoing[: self.connection.send(self._outgoing)]

    def hear(self) -> list[handover.ToAgent]:
        """Return what the trainer has said since.

        Raises:
            TrainerLost: it has ended, or hung up.
            ProtocolError: it says what is no frame; end it.
        """
        frames: list[handover.ToAgent] = []
        while True:
            try:
                data = self.connection.recv(_PIECE)
            except BlockingIOError:
                return frames
            except ConnectionError:
                data = b""
            if not data:
                if frames:
                    return frames  # the end is told by the next call
                raise self._lost()
            frames += [handover.for_agent(body) for body in self._reader.feed(data)]

    def end(self) -> None:
        """End the trainer and everything it started, now.

        Its outer process kills what the app started, wherever that hides, when the connection closes; it has a second
        for that. What is left of its process group is killed then.
        """
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)
        self.connection.close()
        if self._child is None:
            return
        self._wait(self._child.pid)
        # The child is not reaped yet: until then nobody else can have its group's number.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._child.pid, signal.SIGKILL)
        self._child.wait()

    def _lost(self) -> TrainerLost:
        if self._child is None:
            return TrainerLost("the trainer hung up", outside=True)
        status = self._wait(self._child.pid)
        if status is None:
            return TrainerLost("the trainer closed its connection", outside=False)
        if status in (-signal.SIGKILL, -signal.SIGTERM):
            return TrainerLost(f"the trainer was killed from outside by signal {-status}", outside=True)
        # With status 0 it ended between two orders, before it read this one: not the order's fault.
        return TrainerLost(f"the trainer ended with status {status} without an answer", outside=status == 0)

    @staticmethod
    def _wait(pid: int) -> int | None:
        """Return how the child ended, negative for a signal, without reaping it; None if it still lives."""
        until = time.monotonic() + _LAST_WORDS_S
        while True:
            found = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if found is not None:
                return found.si_status if found.si_code == os.CLD_EXITED else -found.si_status
            if time.monotonic() > until:
                return None
            time.sleep(0.002)


def start_child(folder: Path, *, python: str = sys.executable, extra: Mapping[str, str] | None = None) -> Trainer:
    """Return a trainer that was just started as a child of this process, in a session of its own.

    It does not outlive this process, which it notices by the connection.
    """
    mine, theirs = socket.socketpair()
    with theirs:
        arguments: Sequence[str] = (
            python, "-P", "-m", "fedfleet_trainer", "--connection", str(theirs.fileno()), "--handover", str(folder),
        )  # fmt: skip
        child = subprocess.Popen(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            cwd=folder,
            env=environment(os.environ, extra),
            pass_fds=(theirs.fileno(),),
            start_new_session=True,
        )
    return Trainer(mine, folder, child)


def connect(path: Path, folder: Path) -> Trainer:
    """Return the trainer that listens on the Unix socket at `path` and shares `folder` with this process.

    Raises:
        OSError: nobody listens there (yet).
    """
    connection = socket.socket(socket.AF_UNIX)
    # By descriptor, for a path of a socket may not be longer than 107 bytes.
    parent = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        connection.connect(f"/proc/self/fd/{parent}/{path.name}")
    except OSError:
        connection.close()
        raise
    finally:
        os.close(parent)
    return Trainer(connection, folder)


def wait_for(trainer: Trainer, epoll: select.epoll) -> None:
    """Watch the trainer with `epoll`, for room to write only if something waits for it."""
    mask = select.EPOLLIN | (select.EPOLLOUT if trainer.wants_to_write else 0)
    try:
        epoll.register(trainer, mask)
    except FileExistsError:
        epoll.modify(trainer, mask)
