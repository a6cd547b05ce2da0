"""Blobs without a transfer: on one machine the coordinator hands over read-only descriptors of its files."""

import array
import contextlib
import os
import socket
import threading

from fedfleet_protocol.messages import BlobRef

_PATIENCE_S = 20.0
ENVIRONMENT = "FEDFLEET_BLOB_FD"


class BlobChannel:
    """One end of a socket pair; the other is the coordinator's.

    It may close at any time, e.g. when the coordinator dies. From then on every blob comes by HTTPS.
    """

    def __init__(self, end: socket.socket) -> None:
        end.settimeout(_PATIENCE_S)
        self._end: socket.socket | None = end
        self._lock = threading.Lock()

    @classmethod
    def inherited(cls) -> "BlobChannel | None":
        """Return the channel this process was started with, if there is one; no child of ours inherits it."""
        number = os.environ.pop(ENVIRONMENT, "")
        if not number.isdigit():
            return None
        try:
            end = socket.socket(fileno=int(number))
        except OSError:
            return None
        end.set_inheritable(False)
        return cls(end)

    def told(self) -> str:
        """Return the first line that the coordinator says, the runner's folder; empty if it says nothing any more."""
        with self._lock:
            if self._end is None:
                return ""
            self._end.settimeout(None)
            line = b""
            while not line.endswith(b"\n"):
                # Byte by byte: what follows is not ours to read.
                piece = self._end.recv(1)
                if not piece:
                    return ""
                line += piece
            self._end.settimeout(_PATIENCE_S)
        return line[:-1].decode()

    def ask(self, blob: BlobRef) -> int | None:
        """Return a descriptor of the blob's file, or None if it must be fetched in another way."""
        with self._lock:
            if self._end is None:
                return None
            try:
                self._end.sendall(f"{blob.digest}\n".encode())
                answer, fds = _received(self._end)
            except OSError:
                answer, fds = b"", []
            if not answer:
                self._end.close()
                self._end = None
                return None
        for extra in fds[1:]:
            os.close(extra)
        if not fds:
            return None
        if answer == b"ok\n" and os.fstat(fds[0]).st_size == blob.size:
            return fds[0]
        with contextlib.suppress(OSError):
            os.close(fds[0])
        return None

    def close(self) -> None:
        """Use the channel no more."""
        with self._lock:
            if self._end is not None:
                self._end.close()
                self._end = None


def _received(end: socket.socket) -> tuple[bytes, list[int]]:
    """Return the next answer and its descriptors, closed on exec: `socket.recv_fds` of Python 3.11 ignores flags."""
    fds = array.array("i")
    room = socket.CMSG_LEN(fds.itemsize)
    data, extra, _, _ = end.recvmsg(16, room, getattr(socket, "MSG_CMSG_CLOEXEC", 0))
    for level, kind, packed in extra:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(packed[: len(packed) - len(packed) % fds.itemsize])
    return data, list(fds)
