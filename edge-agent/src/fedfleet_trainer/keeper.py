"""The outer process of a trainer: speaks with the agent, watches the inner one, and tells how it ended.

It has no threads and imports nothing but the standard library and the protocol, so that neither an app that holds the
interpreter's lock nor one that kills itself can keep it from its work.
"""

import os
import selectors
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from fedfleet_protocol import handover
from fedfleet_protocol.errors import ProtocolError
from fedfleet_protocol.handover import Alive, Done, Failed, Load, Loaded, LoadFailed, Output, Stop, Work
from fedfleet_protocol.ids import Order
from fedfleet_trainer import processes
from fedfleet_trainer.output import Lines

BEAT_S = 1.0
_LOOK_S = 0.25
_PIECE = 64 << 10
_MAX_PENDING = 1 << 20
"""Bytes that wait for a slow agent; what is printed beyond that is counted as dropped."""
_FRAME_LINES = 200
_FROM_OUTSIDE = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)


@dataclass(frozen=True, slots=True)
class Inner:
    """The inner process, and this side's ends of what joins the two."""

    pid: int
    frames: socket.socket
    streams: dict[str, int]


@dataclass(slots=True)
class _Task:
    """What the inner process is busy with: an order, or, before the first, its app."""

    order: Order | None = None
    loading: bool = False

    @property
    def busy(self) -> bool:
        return self.loading or self.order is not None


class Keeper:
    """Keeps one inner process until the agent hangs up, or says stop, or the inner process ends.

    Args:
        agent: connected to the agent.
        inner: was just started.
        folder: the hand-over folder.
    """

    def __init__(
        self, agent: socket.socket, inner: Inner, folder: Path, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._agent, self._inner, self._clock = agent, inner, clock
        self._made = str(folder / handover.MADE)
        self._limits = handover.Limits()
        self._task = _Task()
        self._outgoing = bytearray()
        self._lines = {name: Lines(self._limits.lines_per_s, clock) for name in inner.streams}
        self._from_agent, self._from_inner = handover.FrameReader(), handover.FrameReader()
        self._pids: tuple[int, ...] = (inner.pid,)
        self._beat_at = self._memory_at = self._size_at = 0.0
        self._exceeded = ""
        self._tasks_before = 0
        self._over = False
        self._ending = -1
        self._selector = selectors.DefaultSelector()

    def run(self) -> None:
        """Return when there is nothing left to keep; no process of the app lives then."""
        try:
            self._register()
            while not self._over:
                for key, _ in self._selector.select(self._patience()):
                    key.data()
                self._look()
                self._send()
        except (BrokenPipeError, ConnectionError):
            pass  # the agent is gone; it will not be told anything
        finally:
            processes.kill_below(os.getpid())
            self._selector.close()
            self._agent.close()
            self._inner.frames.close()
            for fd in (self._ending, *self._inner.streams.values()):
                with suppress(OSError):
                    os.close(fd)

    # --- what comes in -----------------------------------------------------------------------------------------------

    def _register(self) -> None:
        self._agent.setblocking(False)
        self._inner.frames.setblocking(False)
        self._selector.register(self._agent, selectors.EVENT_READ, self._hear_agent)
        self._selector.register(self._inner.frames, selectors.EVENT_READ, self._hear_inner)
        for name, fd in self._inner.streams.items():
            os.set_blocking(fd, False)
            self._selector.register(fd, selectors.EVENT_READ, lambda name=name: self._hear_stream(name))
        with suppress(OSError, AttributeError):  # Linux 5.3; without it the end is seen at the next look
            self._ending = os.pidfd_open(self._inner.pid)
            self._selector.register(self._ending, selectors.EVENT_READ, _nothing)

    def _hear_agent(self) -> None:
        data = self._received(self._agent)
        if data is None:
            return
        if not data:
            self._over = True
        for body in self._from_agent.feed(data):
            match handover.for_trainer(body):
                case Stop():
                    self._over = True
                case Load() as load:
                    self._limits = load.limits
                    self._lines = {name: Lines(load.limits.lines_per_s, self._clock) for name in self._lines}
                    self._task = _Task(loading=True)
                    self._tell_inner(load)
                case Work() as work:
                    self._task = _Task(work.order)
                    self._tell_inner(work)

    def _hear_inner(self) -> None:
        data = self._received(self._inner.frames)
        if data is None:
            return
        if not data:
            self._selector.unregister(self._inner.frames)  # its end is told by wait(2): a child may hold the other side
            return
        try:
            frames = [handover.for_agent(body) for body in self._from_inner.feed(data)]
        except ProtocolError as error:
            self._end(f"the trainer said what is not a frame: {error}")
            return
        for frame in frames:
            if not self._over:
                self._pass_on(frame)

    def _pass_on(self, frame: handover.ToAgent) -> None:
        match frame:
            case Loaded() | LoadFailed() if not self._task.loading:
                self._end("the trainer said what it must not: how it was loaded, a second time")
                return
            case Loaded() | LoadFailed():
                self._task = _Task()
            case Done() | Failed():
                self._task = _Task()
            case _:
                return  # the rest is this process's to say
        self._drain()
        self._say_lines(last=True)
        self._say(frame)

    def _hear_stream(self, name: str) -> bool:
        fd = self._inner.streams[name]
        try:
            data = os.read(fd, _PIECE)
        except BlockingIOError:
            return False
        if data:
            self._lines[name].feed(data)
            return True
        with suppress(KeyError):
            self._selector.unregister(fd)
        return False

    def _drain(self) -> None:
        """Read what was printed before now; an app that prints without end is cut off after a pipe's worth."""
        for name in self._inner.streams:
            for _ in range(32):
                if not self._hear_stream(name):
                    break

    # --- looking after the inner process -----------------------------------------------------------------------------

    def _patience(self) -> float:
        if self._task.busy and (self._limits.memory_bytes or self._limits.processes):
            return _LOOK_S
        return BEAT_S if self._task.busy or any(lines.waiting for lines in self._lines.values()) else 10.0

    def _look(self) -> None:
        if self._ended():
            return
        now = self._clock()
        if now >= self._beat_at:
            self._beat_at = now + BEAT_S
            if self._task.busy:
                usage = processes.usage_below(os.getpid())
                self._pids = usage.pids
                self._say(Alive(cpu_s=usage.cpu_s, memory_bytes=usage.memory_bytes))
            self._say_lines()
        if now >= self._memory_at:
            self._memory_at = now + _LOOK_S
            self._check_memory()
            self._check_processes()
        if self._task.busy and self._limits.folder_bytes and now >= self._size_at:
            self._check_size()
            # A folder of a hundred thousand files is not walked all the time.
            self._size_at = self._clock() + max(BEAT_S, 20 * (self._clock() - now))

    def _check_memory(self) -> None:
        most = self._limits.memory_bytes
        if not most or processes.memory_of(self._pids) <= most:
            return
        held = processes.shared_out_memory_of(self._pids) or processes.memory_of(self._pids)
        if held > most and not self._exceeded:
            self._exceeded = (
                f"the app used {held >> 20} MB of memory; the device's owner allows {most >> 20} MB "
                "([limits] memory_mb): use a smaller model or batch"
            )
            processes.kill_below(os.getpid())

    def _check_processes(self) -> None:
        """End a trainer that multiplies; they are counted only when the whole machine has many more than before."""
        most = self._limits.processes
        if not most or self._exceeded:
            return
        tasks = processes.tasks_of_machine()
        self._tasks_before = min(tasks, self._tasks_before or tasks)
        if tasks - self._tasks_before <= most // 2:
            return
        count = len(processes.usage_below(os.getpid()).pids)
        if count > most:
            self._exceeded = (
                f"the app had {count} processes; the device's owner allows {most} ([limits] processes): start fewer"
            )
            self._end(self._exceeded)  # then the agent ends the whole group at once, which no loop of kills could

    def _check_size(self) -> None:
        most, held = self._limits.folder_bytes, processes.size_of(self._made)
        if held > most and not self._exceeded:
            self._exceeded = (
                f"the app's folder held {held // 1_000_000} MB; the device's owner allows {most // 1_000_000} MB "
                "([limits] scratch_mb): write less, or remove what is not needed any more"
            )
            processes.kill_below(os.getpid())

    def _ended(self) -> bool:
        """Whether the inner process has ended; then the agent is told, and this one ends as well."""
        try:
            pid, status = os.waitpid(self._inner.pid, os.WNOHANG)
        except ChildProcessError:
            pid, status = self._inner.pid, 0
        if pid == 0:
            self._reap_orphans()
            return False
        if self._exceeded:
            self._end(self._exceeded)
        else:
            code, text = explain(status)
            self._end(text, code, os.waitstatus_to_exitcode(status))
        return True

    def _reap_orphans(self) -> None:
        """Reap adopted processes that ended, without taking the inner one's status from `_ended`."""
        for pid in self._pids:
            if pid != self._inner.pid:
                with suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)

    def _end(self, text: str, code: str = "app", status: int | None = None) -> None:
        self._drain()
        for lines in self._lines.values():
            lines.finish()
        tail = next((lines.tail for name, lines in reversed(self._lines.items()) if lines.tail), [])
        self._say_lines(last=True)
        if tail and code == "app":
            text = f"{text}; the last it printed:\n" + "\n".join(tail)
        if self._task.loading:
            loading = "outside" if code == "outside" else "bundle"
            self._say(LoadFailed(code=loading, text=text, status=status))
        elif self._task.order is not None:
            self._say(Failed(order=self._task.order, code=code, text=text, status=status))
        self._task = _Task()
        self._over = True
        self._agent.settimeout(5.0)
        self._send()

    # --- what goes out -----------------------------------------------------------------------------------------------

    def _say_lines(self, *, last: bool = False) -> None:
        if len(self._outgoing) > _MAX_PENDING and not last:
            return
        for name, lines in self._lines.items():
            taken, dropped = lines.take()
            while taken or dropped:
                self._say(Output(stream=name, lines=tuple(taken[:_FRAME_LINES]), dropped=dropped))
                taken, dropped = taken[_FRAME_LINES:], 0

    def _say(self, frame: handover.Frame) -> None:
        self._outgoing += handover.pack(frame)

    def _send(self) -> None:
        with suppress(BlockingIOError):
            while self._outgoing:
                del self._outgoing[: self._agent.send(self._outgoing)]
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._outgoing else 0)
        if not self._over:
            self._selector.modify(self._agent, wanted, self._hear_agent)

    def _tell_inner(self, frame: handover.Frame) -> None:
        self._inner.frames.setblocking(True)
        with suppress(BrokenPipeError, ConnectionError):  # it has just ended; `_ended` will see
            self._inner.frames.sendall(handover.pack(frame))
        self._inner.frames.setblocking(False)

    @staticmethod
    def _received(connection: socket.socket) -> bytes | None:
        try:
            return connection.recv(_PIECE)
        except BlockingIOError:
            return None
        except ConnectionError:
            return b""


def _nothing() -> None:
    """Only wake up."""


def explain(status: int) -> tuple[str, str]:
    """Return who ended a process that has this wait status ("app" or "outside"), and a sentence."""
    if not os.WIFSIGNALED(status):
        return "app", f"the app ended the trainer's process with exit status {os.waitstatus_to_exitcode(status)}"
    number = os.WTERMSIG(status)
    name = signal.strsignal(number) or "unknown"
    if number in _FROM_OUTSIDE:
        return "outside", f"the trainer was killed from outside by signal {number} ({name})"
    return "app", f"the app crashed with signal {number} ({name})"
