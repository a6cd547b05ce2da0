"""What the app prints, and what Flower and fedfleet log: to the run's log at the hub, and still to where it went.

Standard output and error are replaced by a pipe at the level of file descriptors, so that libraries in C and child
processes are heard, too. Lines are sent in batches from a thread of their own; more than the rate allows are counted
and dropped, and a coordinator that is away stops nobody from printing.
"""

import contextlib
import os
import re
import sys
import threading
import time
from collections import deque
from collections.abc import Callable

from fedfleet_coordinator.errors import Fenced, HubRefused

_ESCAPES = re.compile(rb"\x1b\[[0-9;?]*[ -/]*[@-~]")
_BATCH_S = 0.2
_MOST_WAITING = 10_000
_LINE_BYTES = 4000
Send = Callable[[list[str]], None]


class Output:
    """Catches what this process writes to standard output and error from now on.

    Args:
        send: sends lines, in order; may wait for long.
        lines_a_second, burst: what is let through.
        echo: whether everything is still printed to where standard error went.
    """

    def __init__(self, send: Send, *, lines_a_second: float = 500.0, burst: int = 5000, echo: bool = True) -> None:
        self._send = send
        self._rate, self._burst = lines_a_second, burst
        self._allowance, self._counted_at = float(burst), time.monotonic()
        self._lines: deque[str] = deque()
        self._dropped = 0
        self._more = threading.Condition()
        self._closed = False
        sys.stdout.flush()
        sys.stderr.flush()
        self._kept = os.dup(1), os.dup(2)
        reader, writer = os.pipe()
        os.dup2(writer, 1)
        os.dup2(writer, 2)
        os.close(writer)
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(AttributeError):
                stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
        self._reading = threading.Thread(target=self._read, args=(reader, echo), name="output", daemon=True)
        self._sending = threading.Thread(target=self._deliver, name="log", daemon=True)
        self._reading.start()
        self._sending.start()

    def close(self, patience_s: float = 5.0) -> None:
        """Give standard output and error back, once, and send what was caught unless that takes too long."""
        if self._closed:
            return
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(ValueError, OSError):
                stream.flush()
        until = time.monotonic() + patience_s
        for fd, kept in zip((1, 2), self._kept, strict=True):
            os.dup2(kept, fd)
            os.close(kept)
        # A child process of the app may hold the pipe open for ever.
        self._reading.join(min(1.0, patience_s))
        with self._more:
            self._closed = True
            self._more.notify_all()
        self._sending.join(max(0.0, until - time.monotonic()))

    def _read(self, reader: int, echoed: bool) -> None:
        rest = b""
        echo = os.dup(self._kept[1]) if echoed else os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        try:
            while data := os.read(reader, 64 << 10):
                with contextlib.suppress(OSError):
                    os.write(echo, data)
                *lines, rest = (rest + data).split(b"\n")
                rest = rest[:_LINE_BYTES] if len(rest) > 16 * _LINE_BYTES else rest
                self._take(lines)
            if rest:
                self._take([rest])
        finally:
            os.close(reader)
            os.close(echo)

    def _take(self, lines: list[bytes]) -> None:
        now = time.monotonic()
        with self._more:
            self._allowance = min(float(self._burst), self._allowance + (now - self._counted_at) * self._rate)
            self._counted_at = now
            for line in lines:
                if self._allowance < 1.0 or len(self._lines) >= _MOST_WAITING:
                    self._dropped += 1
                    continue
                self._allowance -= 1.0
                # A progress bar rewrites its line: what counts is the last state.
                shown = line.rstrip(b"\r").rpartition(b"\r")[2]
                self._lines.append(_ESCAPES.sub(b"", shown)[:_LINE_BYTES].decode("utf-8", "replace"))
            self._more.notify_all()

    def _deliver(self) -> None:
        while True:
            with self._more:
                while not self._lines and not self._dropped and not self._closed:
                    self._more.wait()
                if not self._lines and not self._dropped:
                    return
            if not self._closed:
                time.sleep(_BATCH_S)
            with self._more:
                batch, dropped = list(self._lines)[:1000], self._dropped
                for _ in batch:
                    self._lines.popleft()
                self._dropped = 0
            if dropped:
                batch.append(f"[{dropped} lines were dropped: more than {self._rate:g} a second]")
            try:
                self._send(batch)
            except (Fenced, HubRefused):
                return  # nobody reads this log any more; the run's own thread learns it by itself
