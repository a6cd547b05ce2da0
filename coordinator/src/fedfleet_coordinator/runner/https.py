"""The hub over HTTPS."""

import logging
import os
from collections.abc import Iterator
from functools import partial
from typing import Any

import msgspec

from fedfleet_coordinator.errors import HubRefused, Nondeterministic
from fedfleet_coordinator.rows import Position, Run
from fedfleet_coordinator.runner.channel import BlobChannel
from fedfleet_coordinator.runner.hub import Ending
from fedfleet_coordinator.runner.scratch import Scratch, is_full
from fedfleet_coordinator.runner.wire import PIECE_BYTES, Elsewhere, Later, Wire, read, refusal
from fedfleet_protocol.blocks import BlockHasher, BlockList
from fedfleet_protocol.ids import AgentId, Digest
from fedfleet_protocol.messages import BlobRef, Checkpoint, ExchangeView, Open, decode_as, encode

_MAX_VIEW_BYTES = 64 << 20
_TRIES_OF_A_BLOB = 3
_TOLD_AT_ONCE = 5000
"""So many sentences of why a reply was left out go into one request."""
_RAW = {"Content-Type": "application/octet-stream"}
_log = logging.getLogger("fedfleet")


class HttpHub:
    """A `Hub` over HTTPS. Safe to be used by several threads.

    Args:
        channel: where to ask for blobs first, on the coordinator's own machine.
    """

    def __init__(self, wire: Wire, scratch: Scratch, *, channel: BlobChannel | None = None) -> None:
        self._wire, self._scratch, self._channel = wire, scratch, channel

    def close(self) -> None:
        """Let go of connections and channel."""
        self._wire.close()
        if self._channel is not None:
            self._channel.close()

    # --- the port ----------------------------------------------------------------------------------------------------

    def look(self) -> tuple[Run, Position | None]:
        """Return the run, and where it goes on."""
        answer = _unpacked(self._wire.ask("GET", ""))
        try:
            run = msgspec.convert(answer["run"], Run)
            position = answer.get("position")
            return run, None if position is None else msgspec.convert(position, Position)
        except (msgspec.ValidationError, KeyError, TypeError) as error:
            raise HubRefused(f"the hub describes the run in a way this runner does not understand: {error}") from error

    def open(self, request: Open) -> ExchangeView:
        """Open an exchange, or return it."""
        return decode_as(ExchangeView, self._wire.ask("POST", "/exchanges", encode(request)), limit=_MAX_VIEW_BYTES)

    def view(self, n: int, *, seen: int, wait_s: float) -> ExchangeView:
        """Return exchange `n`, by long poll."""
        data = self._wire.ask("GET", f"/exchanges/{n}?wait={wait_s:g}&seen={seen}", timeout_s=wait_s + 30.0)
        return decode_as(ExchangeView, data, limit=_MAX_VIEW_BYTES)

    def checkpoint(self, request: Checkpoint) -> tuple[Digest, ...]:
        """Commit a round, or return what is missing for it."""
        return tuple(_unpacked(self._wire.ask("POST", "/checkpoint", encode(request))).get("need", ()))

    def nodes(
        self, k: int, *, at_least: int, unlike: list[AgentId] | None, needs: int = 0
    ) -> tuple[list[AgentId], bool]:
        """Return the agents that are there, and whether that was recorded."""
        body = {"k": k, "at_least": at_least, "unlike": unlike, "needs": needs}
        answer = _unpacked(self._wire.ask("POST", "/nodes", msgspec.msgpack.encode(body), answers=k))
        return [AgentId(agent) for agent in answer["nodes"]], bool(answer["recorded"])

    def answer(self, k: int, kind: str, value: Any) -> Any:
        """Record an answer or return the recorded one."""
        if value is None:
            found = self._wire.ask("GET", f"/answers/{k}", missing=True)
            if not found:
                return None
        else:
            body = msgspec.msgpack.encode({"kind": kind, "value": value})
            found = self._wire.ask("POST", f"/answers/{k}", body, answers=k)
        answer = _unpacked(found)
        if answer["kind"] != kind:
            raise Nondeterministic(f"answer {k} of the Grid was to {answer['kind']!r}, now the app asks for {kind!r}")
        return answer["value"]

    def store(self, fd: int, blocks: BlockList) -> None:
        """Send what the hub lacks of a blob."""
        path = f"/uploads/{blocks.digest}"
        begin = blocks.size.to_bytes(8, "little") + blocks.digests

        def once() -> None:
            state = _unpacked(self._wire.once("POST", path, begin, headers=_RAW))
            while not state.get("complete"):
                offset = int(state.get("offset", 0))
                state = self._send(path, fd, offset, blocks.size)

        self._wire.patiently(once)

    def fetch(self, blob: BlobRef) -> int:
        """Return a descriptor of the blob's bytes: the coordinator's own file, or a copy whose digest was checked."""
        fd = self._channel.ask(blob) if self._channel is not None else None
        if fd is not None:
            return fd
        for _ in range(_TRIES_OF_A_BLOB):
            download = _Download(blob, self._scratch.write(self._scratch.file))
            try:
                self._wire.patiently(partial(self._receive, download))
            except BaseException:
                os.close(download.fd)
                raise
            if download.hasher.finish().digest == blob.digest:
                return download.fd
            os.close(download.fd)
            _log.warning("blob %s came with other bytes than its digest says; fetching it again", blob.digest[:12])
        raise HubRefused(f"blob {blob.digest[:12]} comes with other bytes than its digest says")

    def tell_left_out(self, n: int, why: dict[AgentId, tuple[str, str]]) -> None:
        """Note which replies do not count."""
        agents = list(why)
        for start in range(0, len(agents), _TOLD_AT_ONCE):
            part = {agent: why[agent] for agent in agents[start : start + _TOLD_AT_ONCE]}
            self._wire.ask("POST", f"/exchanges/{n}/left-out", msgspec.msgpack.encode({"why": part}))

    def tell_metrics(self, server_round: int, kind: str, values: dict[str, Any], num_rounds: int) -> None:
        """Keep the metrics of a round."""
        body = {"server_round": server_round, "kind": kind, "values": values, "num_rounds": num_rounds}
        self._wire.ask("POST", "/metrics", msgspec.msgpack.encode(body))

    def tell_lines(self, lines: list[str]) -> None:
        """Append to the run's log; a line may come twice if the coordinator dies in between."""
        self._wire.ask("POST", "/log", msgspec.msgpack.encode({"lines": lines}))

    def tell_alive(self) -> None:
        """Say that this runner lives."""
        self._wire.ask("POST", "/alive", b"")

    def end(self, state: Ending, reason: str, text: str, model: BlobRef | None) -> None:
        """End the run."""
        body = {"state": state, "reason": reason, "text": text, "model": model}
        self._wire.ask("POST", "/end", msgspec.msgpack.encode(body))

    # --- inside ------------------------------------------------------------------------------------------------------

    def _send(self, path: str, fd: int, offset: int, size: int) -> dict[str, Any]:
        """Send the rest of a blob from `offset`; return what the hub says of it then."""
        headers = {**_RAW, "Content-Length": str(size - offset)}
        try:
            data = self._wire.once("PATCH", f"{path}?offset={offset}", _pieces(fd, offset, size), headers=headers)
        except Elsewhere as elsewhere:
            return {"offset": elsewhere.offset}
        return _unpacked(data) if data else {"complete": True}

    def _receive(self, download: "_Download") -> None:
        """Go on with a download where it stopped."""
        blob, done = download.blob, download.done
        response = self._wire.begin("GET", f"/blobs/{blob.digest}", headers={"Range": f"bytes={done}-"})
        what = f"GET blob {blob.digest[:12]}"
        if response.status >= 300:
            data = read(response, PIECE_BYTES)
            response.release_conn()
            raise refusal(what, response.status, data, 0)
        if done and response.status != 206:
            response.close()
            raise HubRefused(f"{what}: the hub does not resume downloads")
        try:
            while piece := read(response, PIECE_BYTES):
                download.take(piece)
        except BaseException as error:
            response.close()
            if is_full(error):
                raise Later(f"there is no room for blob {blob.digest[:12]} on the runner's disk") from error
            raise
        response.release_conn()
        if download.done < blob.size:
            raise Later(f"blob {blob.digest[:12]} was cut off at byte {download.done} of {blob.size}")


class _Download:
    """A blob on its way into a file."""

    def __init__(self, blob: BlobRef, fd: int) -> None:
        self.blob, self.fd, self.done, self.hasher = blob, fd, 0, BlockHasher()

    def take(self, piece: bytes) -> None:
        if self.done + len(piece) > self.blob.size:
            raise HubRefused(f"blob {self.blob.digest[:12]} comes with more than its {self.blob.size} bytes")
        view = memoryview(piece)
        while view:
            written = os.pwrite(self.fd, view, self.done)
            self.hasher.update(view[:written])
            self.done += written
            view = view[written:]


def _pieces(fd: int, offset: int, size: int) -> Iterator[bytes]:
    while offset < size:
        piece = os.pread(fd, min(PIECE_BYTES, size - offset), offset)
        if not piece:
            raise HubRefused(f"a file to be sent ended at byte {offset} of {size}")
        yield piece
        offset += len(piece)


def _unpacked(data: bytes) -> dict[str, Any]:
    try:
        answer = msgspec.msgpack.decode(data)
    except msgspec.DecodeError as error:
        raise HubRefused(f"the hub answered with something that is not msgpack: {error}") from error
    if not isinstance(answer, dict):
        raise HubRefused(f"the hub answered with a {type(answer).__name__} where fields were expected")
    return answer
