"""Child processes that are started again when they die, and that leave nothing behind."""

import contextlib
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_BACKOFF_S = (0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
_STEADY_S = 20.0
"""Who ran for so long dies for a new reason: the back-off begins anew."""
_TICK_S = 2.0

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Program:
    """What a child runs.

    Attributes:
        name: for people. log: where its output goes, after what is there.
        environment: added to our own.
    """

    name: str
    command: tuple[str, ...]
    log: Path
    environment: tuple[tuple[str, str], ...] = ()


class Child:
    """One child process, started again with back-off whenever it ends by itself.

    The thread that starts it waits for it: Linux ties a parent-death signal to the thread that forked.
    """

    def __init__(self, program: Program, say: Say) -> None:
        self.program = program
        self.restarts = 0
        self._say = say
        self._process: subprocess.Popen[bytes] | None = None
        self._stopping = threading.Event()
        self._held = threading.Event()
        self._offspring: dict[int, float] = {}
        self._thread = threading.Thread(target=self._keep, name=f"child {program.name}", daemon=True)

    @property
    def pid(self) -> int:
        """The process that runs now, 0 if none does."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else 0

    def start(self) -> None:
        """Start it, and keep it running."""
        self._thread.start()

    def kill(self, sign: int = signal.SIGKILL) -> int:
        """Return the process id that was just sent `sign`; it will be started again."""
        pid = self.pid
        self.note_offspring()
        if pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, sign)
        return pid

    def hold(self) -> None:
        """Kill it and keep it down until `release`."""
        self._held.set()
        self.kill()
        while self.pid:
            time.sleep(0.01)

    def release(self) -> None:
        """Let it be started again."""
        self._held.clear()

    def ask_to_end(self) -> None:
        """Tell it to end; it is not started again."""
        self._stopping.set()
        self._held.clear()
        if pid := self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)

    def stop(self, patience_s: float) -> None:
        """End it and everything it started; returns when nothing is left."""
        self.note_offspring()
        if not self._stopping.is_set():
            self.ask_to_end()
        self._thread.join(patience_s)
        if self._thread.is_alive():
            self._say(f"{self.program.name} does not end; killing it")
            self.kill()
            self._thread.join()
        self._sweep()

    def _keep(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            if self._held.is_set():
                time.sleep(0.02)
                continue
            began = time.monotonic()
            code = self._once()
            if self._stopping.is_set():
                return
            failures = 1 if time.monotonic() - began > _STEADY_S else failures + 1
            pause = _BACKOFF_S[min(failures, len(_BACKOFF_S)) - 1]
            self.restarts += 1
            if not self._held.is_set():
                what = f"{self.program.name} ended ({_ending(code)})"
                self._say(f"{what}; starting it again in {pause:g} s, log: {self.program.log}")
            self._stopping.wait(pause)

    def _once(self) -> int:
        self.program.log.parent.mkdir(parents=True, exist_ok=True)
        with self.program.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*_tied(), *self.program.command],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                env=os.environ | dict(self.program.environment),
            )  # fmt: skip
        if self._stopping.is_set():
            # `stop` asked before there was a process to send the signal to.
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGTERM)
        return self._process.wait()

    def note_offspring(self) -> None:
        """Remember who descends from the child: who outlives it (a runner, a trainer) must not outlive the fleet."""
        if pid := self.pid:
            self.remember(descendants(pid)[pid])

    def remember(self, offspring: dict[int, float]) -> None:
        """Remember processes that descend from the child."""
        self._offspring.update(offspring)

    def _sweep(self) -> None:
        for pid, born in list(self._offspring.items()):
            if born_at(pid) == born:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
        self._offspring.clear()


class Family:
    """Children that are watched together and end together, the youngest first."""

    def __init__(self, say: Say) -> None:
        self._say = say
        self._children: list[Child] = []
        self._over = threading.Event()
        self._watch = threading.Thread(target=self._look, name="family", daemon=True)

    def start(self, program: Program) -> Child:
        """Return a child that runs `program` from now on."""
        child = Child(program, self._say)
        self._children.append(child)
        child.start()
        if self._watch.ident is None:
            self._watch.start()
        return child

    def stop(self, patience_s: float = 10.0) -> None:
        """End all of them and whatever they started."""
        self._over.set()
        deadline = time.monotonic() + patience_s
        children = self._children[::-1]
        known = descendants(*(child.pid for child in children if child.pid))
        for child in children:
            child.remember(known.get(child.pid, {}))
            child.ask_to_end()
        for child in children:
            child.stop(max(deadline - time.monotonic(), 0.5))
        self._children.clear()
        if self._watch.ident is not None:
            self._watch.join()

    def _look(self) -> None:
        while not self._over.wait(_TICK_S):
            pids = {child.pid: child for child in self._children}
            pids.pop(0, None)
            for pid, offspring in descendants(*pids).items():
                pids[pid].remember(offspring)


def descendants(*pids: int) -> dict[int, dict[int, float]]:
    """Return, for each process, its children, their children and so on, with the time each was born."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            parents.setdefault(int(_fields(entry)[1]), []).append(int(entry.parent.name))
    found: dict[int, dict[int, float]] = {}
    for pid in pids:
        todo, mine = [pid], found.setdefault(pid, {})
        while todo:
            for child in parents.get(todo.pop(), []):
                born = born_at(child)
                if child not in mine and born is not None:
                    mine[child] = born
                    todo.append(child)
    return found


def born_at(pid: int) -> float | None:
    """Return when a process was born, in the kernel's ticks; None if there is no such process."""
    try:
        return float(_fields(Path(f"/proc/{pid}/stat"))[19])
    except (OSError, ValueError, IndexError):
        return None


def _fields(stat: Path) -> list[str]:
    """Return what follows the command in a stat file: state, parent, ... (proc(5)); a command may hold anything."""
    return stat.read_text(errors="replace").rpartition(")")[2].split()


def _tied() -> tuple[str, ...]:
    """Return what makes a child end with us even when we are killed; setpriv is part of Debian's util-linux."""
    found = shutil.which("setpriv")
    return (found, "--pdeathsig", "TERM", "--") if found else ()


def _ending(code: int) -> str:
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"killed by {signal.Signals(-code).name}"
    return f"exit code {code}"
