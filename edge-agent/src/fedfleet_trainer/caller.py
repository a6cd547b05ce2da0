"""The inner process of a trainer: loads one app and calls its ClientApp, one message after the other."""

import ctypes
import errno
import faulthandler
import os
import socket
import sys
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from fedfleet_protocol import handover
from fedfleet_protocol.errors import ProtocolError
from fedfleet_protocol.handover import Done, Failed, File, Load, Loaded, LoadFailed, Stop, Work
from fedfleet_trainer import processes
from fedfleet_trainer.confinement import Unconfined, confine

if TYPE_CHECKING:  # flwr takes 0.4 s and 60 MB: it is imported once there is an app to load
    from flwr.app import Context, Message
    from flwr.clientapp import ClientApp

    from fedfleet_flower.apps import AppDescription
    from fedfleet_protocol.records import Content

_PIECE = 64 << 10
_MAX_REASON = 8000
_LIBC = ctypes.CDLL(None)


@dataclass(slots=True)
class _Loaded:
    app: "ClientApp"
    description: "AppDescription"


class Caller:
    """Answers the frames of a keeper until it says stop or hangs up.

    Args:
        keeper: connected to the outer process.
        folder: the hand-over folder.
    """

    def __init__(self, keeper: socket.socket, folder: Path) -> None:
        self._keeper = keeper
        self._folder = self._own = folder
        self._loaded: _Loaded | None = None
        self._count = 0

    def run(self) -> None:
        """Return when there is nothing more to do."""
        reader = handover.FrameReader()
        while data := self._keeper.recv(_PIECE):
            for body in reader.feed(data):
                frame = handover.for_trainer(body)
                if isinstance(frame, Stop):
                    return
                answer = self._load(frame) if isinstance(frame, Load) else self._work(frame)
                _flush()
                self._keeper.sendall(handover.pack(answer))

    # --- loading -----------------------------------------------------------------------------------------------------

    def _load(self, load: Load) -> Loaded | LoadFailed:
        processes.limit(file_bytes=load.limits.file_bytes, nice=load.limits.nice)
        try:
            self._settle(load)
        except Unconfined as error:
            return LoadFailed(code="isolation", text=str(error))
        except OSError as error:
            return LoadFailed(code="disk", text=f"no folder for the app can be made: {error}; free some space")
        try:
            from fedfleet_flower import apps, bundles
            from fedfleet_flower.errors import BridgeError, MissingPackages
        except ImportError as error:
            text = f"the trainer itself lacks {error.name}; install fedfleet-agent[train] on this device"
            return LoadFailed(code="packages", text=text)
        folder = self._own / "app"
        try:
            bundles.unpack_bundle(self._folder / handover.check_file_name(load.bundle), folder)
            description = apps.describe_app(folder)
            warnings = apps.check_packages(description)
            self._loaded = _Loaded(apps.load_client_app(folder, description), description)
        except MissingPackages as error:
            return LoadFailed(code="packages", text=str(error))
        except (BridgeError, ProtocolError) as error:
            return LoadFailed(code="bundle", text=_short(str(error)))
        except OSError as error:
            return LoadFailed(code="disk", text=f"the bundle cannot be unpacked: {error.strerror}; free some space")
        return Loaded(warnings=warnings)

    def _settle(self, load: Load) -> None:
        """Go into a scratch folder, confined; of the app nothing is loaded yet."""
        if load.sandbox is not None:
            self._own = self._folder / handover.MADE
            self._own.mkdir(mode=0o700, exist_ok=True)
        scratch = self._own / "scratch"
        scratch.mkdir(exist_ok=True)
        os.chdir(scratch)
        if load.sandbox is not None:
            confine(self._folder, self._own, load.sandbox)

    # --- working -----------------------------------------------------------------------------------------------------

    def _work(self, work: Work) -> Done | Failed:
        if self._loaded is None:
            return Failed(order=work.order, code="app", text="there is work, but no app was loaded")
        try:
            return _Call(self._loaded, work, self._folder, self._own, self._next()).done()
        except OSError as error:
            code, text = _trouble(error)
            return Failed(order=work.order, code=code, text=text)
        except SystemExit as error:
            text = (
                f"the ClientApp ended the process with sys.exit({error.code!r}): return a reply or raise an exception"
            )
            return Failed(order=work.order, code="app", text=text)
        except ProtocolError as error:
            return Failed(order=work.order, code="app", text=f"what the agent handed over cannot be read: {error}")

    def _next(self) -> int:
        self._count += 1
        return self._count


@dataclass(slots=True)
class _Call:
    """One call of the ClientApp."""

    loaded: _Loaded
    work: Work
    folder: Path
    own: Path
    number: int
    failed: bool = field(default=False)

    def done(self) -> Done:
        """Return the reply and the state it left, both written to files."""
        from fedfleet_flower.contents import write_content

        reply, state = self._contents()
        files: list[File | None] = []
        for name, content in ((f"reply-{self.number}", reply), (f"state-after-{self.number}", state)):
            if content is None:
                files.append(None)
                continue
            blocks = write_content(self.own / name, content)
            files.append(File(name, blocks.digest, blocks.size, blocks.digests))
        assert files[0] is not None
        return Done(order=self.work.order, reply=files[0], state=files[1], failed=self.failed)

    def _contents(self) -> "tuple[Content, Content | None]":
        """Return the reply's content and the state's; an app that raises answers with Flower's error."""
        from flwr.app import Context, RecordDict

        from fedfleet_flower import chance, compat
        from fedfleet_flower.contents import from_failure, from_records, read_content

        work = self.work
        stored = read_content(self.folder / handover.check_file_name(work.message))
        kind, group = stored.manifest.message_type, stored.manifest.group_id
        state = RecordDict()
        if work.state is not None:
            state = read_content(self.folder / handover.check_file_name(work.state)).records()
        compat.identify(run=work.run_number, node=work.node, task=self.number)
        if work.seed is not None:
            chance.seed(work.seed)
        message = compat.instruction(
            stored.records(),
            run=work.run_number,
            node=work.node,
            message_id=work.order,
            message_type=kind,
            group_id=group,
            ttl=work.remaining_s or 3600.0,
        )
        context = Context(
            run_id=work.run_number,
            node_id=work.node,
            node_config=dict(work.node_config),
            state=state,
            run_config={**self.loaded.description.config, **work.run_config},
        )
        try:
            reply = self._reply(message, context)
            self._check(reply, context.state)
            if reply.has_error():
                self.failed = True
                return from_failure(
                    reply.error.code, _short(reply.error.reason or ""), message_type=kind, group_id=group
                ), None
            # The ids are the order's, not the reply's: the error path of Flower's own mods answers to the wrong one.
            content = from_records(reply.content, message_type=kind, group_id=group)
            return content, from_records(context.state) if len(context.state) else None
        except Exception as error:
            self.failed = True
            traceback.print_exception(error)
            return from_failure(
                compat.CLIENT_APP_RAISED_EXCEPTION, _reason(error), message_type=kind, group_id=group
            ), None

    def _reply(self, message: "Message", context: "Context") -> "Message":
        """Call the app, inside the client half of the run's strategy if it has one; the app need not know of it."""
        if "fedfleet" not in message.content:
            return self.loaded.app(message, context)
        from fedfleet_strategies.client import half

        return half(message, context, self.loaded.app)

    @staticmethod
    def _check(reply: "Message", state: object) -> None:
        from flwr.app import Message, RecordDict

        if not isinstance(reply, Message):
            raise TypeError(f"the ClientApp returned {type(reply).__name__} and not a Message")
        if not isinstance(state, RecordDict):
            raise TypeError(f"context.state is of type {type(state).__name__} and not a RecordDict")


def main(keeper: socket.socket, folder: Path) -> None:
    """Be the inner process, with printing line by line, until the keeper hangs up."""
    faulthandler.enable()
    processes.refuse_privileges()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    Caller(keeper, folder).run()


def _reason(error: Exception) -> str:
    """Return an exception as Flower words it, and the end of its traceback."""
    lines = "".join(traceback.format_exception(error, limit=-12)).rstrip()
    return _short(f"{type(error)}:<'{error}'>\n{lines}")


def _short(text: str) -> str:
    half = _MAX_REASON // 2
    return text if len(text) <= _MAX_REASON else f"{text[:half]}\n[...]\n{text[-half:]}"


def _trouble(error: OSError) -> tuple[str, str]:
    if error.errno == errno.EFBIG:
        return "app", "the reply or the state is larger than the largest file the owner allows ([limits] file_mb)"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "disk", "no room for the reply on the device's disk; free some space"
    return "app", f"the trainer could not read or write a file: {error}"


def _flush() -> None:
    """Bring everything that was printed into the pipes, also by C code."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            continue  # the app closed it
    _LIBC.fflush(None)
