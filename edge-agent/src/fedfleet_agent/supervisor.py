"""The trainers of one agent: started when there is work, kept warm, limited, watched and ended.

How the agent's loop uses it, all from one long-lived thread:

    supervisor = Supervisor(folder)
    selector.register(supervisor, EVENT_READ)                 # it has a fileno()
    supervisor.start(Work(...))                               # one order at a time
    for event in supervisor.poll(): ...                       # when readable, and after wait_s() at the latest
    supervisor.cancel(order); supervisor.over(run); supervisor.close()

After `start` come any number of `Progressed` and `Output`, and then exactly one of `Done` and `Failed`, unless the
order was cancelled. Nothing here retries: `Failed.code` says what to make of it.
"""

import errno
import os
import select
import shutil
import stat
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from fedfleet_agent.trainer import Trainer, TrainerLost, connect, start_child, wait_for
from fedfleet_protocol import handover
from fedfleet_protocol.blocks import BlockList, checked
from fedfleet_protocol.errors import Malformed, ProtocolError
from fedfleet_protocol.ids import AgentId, Digest, Order, RunId, flower_number
from fedfleet_protocol.messages import Config

_PROGRESS_CPU_S = 0.03
"""Processor time between two heartbeats that counts as work; an idle interpreter uses a hundredth of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """An order for a trainer.

    Attributes:
        bundle, message, state: files; they are handed over as links or copies. No state is the empty one.
        digest: the bundle's, by which a warm trainer is known.
        limit_s: the trainer is ended when it has not answered by then: the time to the deadline, or the owner's limit.
    """

    run: RunId
    order: Order
    agent: AgentId
    bundle: Path
    digest: Digest
    message: Path
    state: Path | None
    run_config: Config
    node_config: Config
    limit_s: float


@dataclass(frozen=True, slots=True)
class Handed:
    """A file from the trainer, now in a folder it cannot reach; whoever gets it moves or removes it.

    Attributes:
        blocks: as the trainer says; true only if the bytes prove it.
    """

    path: Path
    blocks: BlockList


@dataclass(frozen=True, slots=True)
class Progressed:
    """The work on an order really goes on: processor time passed in it."""

    order: Order


@dataclass(frozen=True, slots=True)
class Output:
    """Lines that the app printed; `dropped` were over the limit."""

    order: Order
    run: RunId
    stream: str
    lines: tuple[str, ...]
    dropped: int


@dataclass(frozen=True, slots=True)
class Done:
    """The reply to an order, a content.

    Attributes:
        failed: the reply is a Flower `Error`, as when the app raised; then the state is as it was before.
        state: what the app left; None is the empty state (or, if `failed`, no change).
    """

    order: Order
    reply: Handed
    state: Handed | None
    failed: bool


@dataclass(frozen=True, slots=True)
class Failed:
    """There is no reply to an order.

    Attributes:
        code: "packages", "bundle", "disk": decline with it.
            "app": the app ended its own process (a crash, an exit, too much memory): try once more, then report it.
            "outside": somebody else killed the trainer: try again with back-off until the deadline.
            "deadline": it had not answered after `Work.limit_s` and was ended.
        text: a sentence, and for "app" the last lines it printed.
        status: how the trainer's process ended, negative for a signal; None if it did not.
    """

    order: Order
    code: str
    text: str
    status: int | None = None


Event = Progressed | Output | Done | Failed


@dataclass(slots=True, eq=False)
class _Place:
    """A trainer and what it is doing."""

    trainer: Trainer
    run: RunId
    digest: Digest
    sandbox: handover.Sandbox
    ready: bool = False
    work: Work | None = None
    until: float = 0.0
    idle_since: float = 0.0
    cpu_s: float = 0.0


class Supervisor:
    """Holds at most `warm` trainers, one per run and bundle, of which at most one works.

    Args:
        folder: its own; whatever an earlier life left there is removed. The trainers' folders lie in it.
        limits: what a trainer may use.
        sandbox: returns how the next trainer confines itself; a warm one that does it otherwise is ended.
        warm: trainers that are kept, the working one included.
        idle_s: after that long without work a trainer is ended.
        attach: a Unix socket on which a trainer listens (another container of the pod) in place of a child; it shares
            `folder / "trainer"`.
        environment: added to a child's.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        folder: Path,
        *,
        limits: handover.Limits | None = None,
        sandbox: Callable[[], handover.Sandbox] = handover.Sandbox,
        warm: int = 2,
        idle_s: float = 600.0,
        attach: Path | None = None,
        python: str = sys.executable,
        environment: Mapping[str, str] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder = folder
        self._limits = limits or handover.Limits()
        self._sandbox = sandbox
        self._warm = 1 if attach else max(1, warm)
        self._idle_s = idle_s
        self._attach = attach
        self._python = python
        self._environment = dict(environment or {})
        self._clock = clock
        self._places: list[_Place] = []
        self._events: list[Event] = []
        self._count = 0
        self._epoll = select.epoll()
        self._clean()

    def fileno(self) -> int:
        """Return a descriptor that is readable when `poll` has something to do."""
        return self._epoll.fileno()

    def wait_s(self) -> float | None:
        """Return after how many seconds `poll` must be called even if nothing is readable; None: never."""
        if self._events:
            return 0.0
        times = [place.until if place.work else place.idle_since + self._idle_s for place in self._places]
        return max(0.0, min(times) - self._clock()) if times else None

    @property
    def working(self) -> Order | None:
        """The order under way."""
        return next((place.work.order for place in self._places if place.work), None)

    def pids(self) -> list[int]:
        """Return the process ids of the children, for `status`."""
        return [place.trainer.pid for place in self._places if place.trainer.pid is not None]

    def start(self, work: Work) -> None:
        """Begin with an order, in a warm trainer if there is one. Trouble is told by `poll`.

        Raises:
            RuntimeError: another order is under way.
        """
        if self.working is not None:
            raise RuntimeError(f"order {work.order[:12]} was started while {self.working} is under way")
        try:
            place = self._place(work)
            place.work, place.until, place.cpu_s = work, self._clock() + work.limit_s, 0.0
            if place.ready:
                self._hand_work(place, work)
        except OSError as error:
            self._events.append(Failed(work.order, *_trouble(error)))
            for place in [place for place in self._places if place.work is work]:
                self._remove(place)

    def poll(self) -> list[Event]:
        """Return what happened, without waiting."""
        for fd, _ in self._epoll.poll(0):
            for place in [place for place in self._places if place.trainer.fileno() == fd]:
                self._hear(place)
        now = self._clock()
        for place in list(self._places):
            if place.work and now >= place.until:
                text = f"the app had not answered after {place.work.limit_s:.0f} seconds and was ended"
                self._fail(place, "deadline", text)
            elif not place.work and now >= place.idle_since + self._idle_s:
                self._remove(place)
        events, self._events = self._events, []
        return events

    def cancel(self, order: Order) -> None:
        """End the work on an order; no event of it comes any more."""
        for place in [place for place in self._places if place.work and place.work.order == order]:
            self._remove(place)
        self._events = [event for event in self._events if event.order != order]

    def over(self, run: RunId) -> None:
        """End the trainers of a run."""
        for place in [place for place in self._places if place.run == run]:
            if place.work:
                self.cancel(place.work.order)
            else:
                self._remove(place)

    def close(self) -> None:
        """End all trainers and remove their folders."""
        for place in list(self._places):
            self._remove(place)
        self._epoll.close()
        self._clean()

    # --- trainers ----------------------------------------------------------------------------------------------------

    def _place(self, work: Work) -> _Place:
        sandbox = self._sandbox()
        for place in [place for place in self._places if place.sandbox != sandbox]:
            self._remove(place)
        for place in list(self._places):
            if (place.run, place.digest) == (work.run, work.digest):
                self._hear(place)  # it may have ended since it was last listened to
                if place in self._places:
                    return place
        while len(self._places) >= self._warm:
            self._remove(min(self._places, key=lambda place: place.idle_since))
        trainer = self._launch()
        place = _Place(trainer, work.run, work.digest, sandbox, work=work, idle_since=self._clock())
        self._places.append(place)
        bundle = self._hand_over(work.bundle, trainer, "bundle")
        trainer.say(handover.Load(run=work.run, bundle=bundle, limits=self._limits, sandbox=sandbox))
        wait_for(trainer, self._epoll)
        return place

    def _launch(self) -> Trainer:
        self._count += 1
        folder = self._folder / ("trainer" if self._attach else f"trainer-{self._count}")
        folder.mkdir(mode=0o700, exist_ok=self._attach is not None)
        # Both sides take files out of it; the group is what two containers of a pod share.
        (folder / handover.MADE).mkdir(mode=0o770 if self._attach else 0o700, exist_ok=True)
        if self._attach:
            return connect(self._attach, folder)
        return start_child(folder, python=self._python, extra=self._environment)

    def _remove(self, place: _Place) -> None:
        self._places.remove(place)
        with suppress(OSError, ValueError):
            self._epoll.unregister(place.trainer)
        place.trainer.end()
        _empty(place.trainer.folder)
        if not self._attach:
            shutil.rmtree(place.trainer.folder, ignore_errors=True)

    def _clean(self) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _empty(self._folder, keep="trainer" if self._attach else "")
        (self._folder / "done").mkdir(mode=0o700, exist_ok=True)

    # --- what is said ------------------------------------------------------------------------------------------------

    def _hear(self, place: _Place) -> None:
        try:
            for frame in place.trainer.hear():
                if place in self._places:
                    self._take(place, frame)
        except TrainerLost as lost:
            self._fail(place, "outside" if lost.outside else "app", str(lost))
        except ProtocolError as error:
            self._fail(place, "app", f"the trainer said what it must not: {error}")
        except OSError as error:
            self._fail(place, *_trouble(error))
        if place in self._places:
            place.trainer.write()
            wait_for(place.trainer, self._epoll)

    def _take(self, place: _Place, frame: handover.ToAgent) -> None:
        work = place.work
        match frame:
            case handover.Loaded() | handover.LoadFailed() if place.ready:
                raise Malformed("how it was loaded, a second time")
            case handover.Loaded():
                place.ready = True
                if work:
                    self._warn(work, frame.warnings)
                    self._hand_work(place, work)
            case handover.LoadFailed():
                code = frame.code if frame.code in ("packages", "bundle", "disk", "isolation", "outside") else "bundle"
                self._fail(place, code, frame.text, frame.status)
            case handover.Alive():
                if work and frame.cpu_s - place.cpu_s >= _PROGRESS_CPU_S:
                    self._events.append(Progressed(work.order))
                place.cpu_s = frame.cpu_s
            case handover.Output():
                if work:
                    self._events.append(Output(work.order, work.run, frame.stream, frame.lines, frame.dropped))
            case handover.Done():
                if work and work.order == frame.order:
                    self._finish(place, work, frame)
            case handover.Failed():
                if work and work.order == frame.order:
                    code = frame.code if frame.code in ("app", "outside", "disk") else "app"
                    self._fail(place, code, frame.text, frame.status)

    def _warn(self, work: Work, warnings: tuple[str, ...]) -> None:
        if warnings:
            self._events.append(Output(work.order, work.run, "fedfleet", warnings, 0))

    def _hand_work(self, place: _Place, work: Work) -> None:
        self._count += 1
        state = self._hand_over(work.state, place.trainer, f"state-before-{self._count}") if work.state else None
        message = self._hand_over(work.message, place.trainer, f"message-{self._count}")
        place.trainer.say(
            handover.Work(
                order=work.order,
                message=message,
                state=state,
                run_number=flower_number(work.run),
                node=flower_number(work.agent),
                node_config=work.node_config,
                run_config=work.run_config,
                remaining_s=max(0.0, place.until - self._clock()),
            )
        )
        wait_for(place.trainer, self._epoll)

    def _finish(self, place: _Place, work: Work, done: handover.Done) -> None:
        reply = self._taken(place, done.reply, "reply")
        try:
            state = self._taken(place, done.state, "state") if done.state and not done.failed else None
        except (OSError, ProtocolError):
            reply.path.unlink()
            raise
        place.work, place.idle_since = None, self._clock()
        # Said before the folder is tidied: what else the app left there does not undo its reply.
        self._events.append(Done(work.order, reply, state, done.failed))
        self._tidy(place)

    @staticmethod
    def _tidy(place: _Place) -> None:
        with _made(place.trainer) as made:
            for file in (*place.trainer.folder.iterdir(), *made.iterdir()):
                if file.name.startswith(("message-", "state-", "reply-")):
                    _discard(file)

    def _fail(self, place: _Place, code: str, text: str, status: int | None = None) -> None:
        """Tell of the failure, and end the trainer: what an app did to it, the next order shall not meet."""
        if place.work:
            self._events.append(Failed(place.work.order, code, text, status))
        self._remove(place)

    # --- files -------------------------------------------------------------------------------------------------------

    def _hand_over(self, source: Path, trainer: Trainer, name: str) -> str:
        target = trainer.folder / name
        if self._attach:  # another user's process: it needs a file of its own
            _copy(source, target)
            return name
        try:
            os.link(source, target)
        except OSError:
            _copy(source, target)
        return name

    def _taken(self, place: _Place, file: handover.File, kind: str) -> Handed:
        """Return the file, moved out of the trainer's reach and only then looked at.

        Raises:
            Malformed: it is not a plain file of its own with the size it is said to have. A link would make the agent
                send out what it points to.
        """
        self._count += 1
        target = self._folder / "done" / f"{kind}-{self._count}"
        name = handover.check_file_name(file.name)
        blocks = checked(file.digest, file.size, file.blocks)
        try:
            with _made(place.trainer) as made:
                _move(made / name, target)
        except FileNotFoundError as error:
            raise Malformed(f"the trainer names a file {file.name!r} that is not there") from error
        found = os.lstat(target)
        if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1 or found.st_size != file.size:
            _discard(target)
            raise Malformed(f"{file.name!r} is not a plain file of {file.size} bytes")
        return Handed(target, blocks)


@contextmanager
def _made(trainer: Trainer) -> Iterator[Path]:
    """Give a way to the folder in which the trainer writes, which stays that folder whatever is put in its place.

    Raises:
        Malformed: something else lies there; a link would lead the agent to files of its own.
    """
    flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        descriptor = os.open(trainer.folder / handover.MADE, flags)
    except OSError as error:
        raise Malformed("the folder for what the trainer makes is gone, or no folder") from error
    try:
        yield Path(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


def _empty(folder: Path, *, keep: str = "") -> None:
    with suppress(FileNotFoundError):
        for entry in list(folder.iterdir()):
            if entry.name != keep:
                _discard(entry)


def _discard(entry: Path) -> None:
    """Remove whatever lies there, as far as that can be done; a link is not followed."""
    with suppress(OSError):
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)


def _copy(source: Path, target: Path) -> None:
    """Copy into a file that is new: what an app put in its place, a link say, is not written through."""
    with source.open("rb") as given, target.open("xb") as taken:
        shutil.copyfileobj(given, taken, 1 << 20)


def _move(source: Path, target: Path) -> None:
    try:
        source.rename(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        # The trainer's folder is a volume of its own. A link, a pipe or a device is not followed, opened or waited for.
        fd = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(fd, "rb") as given:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise Malformed(f"{source.name!r} is not a plain file") from error
            with target.open("xb") as taken:
                shutil.copyfileobj(given, taken, 1 << 20)
        source.unlink()


def _trouble(error: OSError) -> tuple[str, str]:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "disk", "no room on this device's disk to hand the work to the trainer; free some space"
    return "outside", f"the trainer could not be started or reached: {error}"
