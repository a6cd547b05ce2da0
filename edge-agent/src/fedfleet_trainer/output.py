"""What an app prints, cut into lines and held to a rate, so that 100 MB of it hurt nobody."""

from collections.abc import Callable

MAX_LINE = 1000
"""Characters of a line that are passed on."""
_MAX_WAITING = 5000
_TAIL = 24


class Lines:
    """One stream of an app.

    Args:
        rate: lines per second that are passed on; a burst of ten seconds' worth may come at once.
        clock: monotonic seconds.

    Attributes:
        tail: the last lines, passed on or not: they say why an app ended.
    """

    def __init__(self, rate: float, clock: Callable[[], float]) -> None:
        self._rate = rate
        self._clock = clock
        self._burst = max(10.0, 10 * rate)
        self._credit = self._burst
        self._at = clock()
        self._open = bytearray()
        self._lines: list[str] = []
        self._dropped = 0
        self.tail: list[str] = []

    def feed(self, data: bytes) -> None:
        """Take what came out of the pipe."""
        self._open += data
        if b"\n" not in data:
            self._shorten()
            return
        self._earn()
        whole, _, rest = self._open.rpartition(b"\n")
        take, count = min(int(self._credit), _MAX_WAITING - len(self._lines)), whole.count(b"\n") + 1
        if count <= take:
            lines = last = whole.split(b"\n")
        else:
            # Only the lines that are passed on, and the last ones, are ever looked at.
            lines = whole.split(b"\n", take)[:take]
            last = whole[-_TAIL * MAX_LINE :].split(b"\n")
            self._dropped += count - take
        self._credit -= len(lines)
        self._lines += [_text(line) for line in lines]
        self.tail = (self.tail + [_text(line) for line in last[-_TAIL:]])[-_TAIL:]
        self._open = bytearray(rest)
        self._shorten()

    def finish(self) -> None:
        """Take what is left without a line's end as a line."""
        if self._open:
            self.feed(b"\n")

    def take(self) -> tuple[list[str], int]:
        """Return the lines to be passed on since the last call, and how many were not."""
        lines, dropped = self._lines, self._dropped
        self._lines, self._dropped = [], 0
        return lines, dropped

    @property
    def waiting(self) -> bool:
        """Whether there is something to take."""
        return bool(self._lines or self._dropped)

    def _earn(self) -> None:
        now = self._clock()
        self._credit = min(self._burst, self._credit + (now - self._at) * self._rate)
        self._at = now

    def _shorten(self) -> None:
        """Forget what a progress bar has overwritten, and the rest of a line without end."""
        if len(self._open) > 8 * MAX_LINE:
            self._open = bytearray(self._open.rpartition(b"\r")[2][: 4 * MAX_LINE])


def _text(line: bytes | bytearray) -> str:
    shown = bytes(line).rstrip(b"\r").rpartition(b"\r")[2]
    text = shown[: 4 * MAX_LINE].decode("utf-8", "replace")
    return text if len(text) <= MAX_LINE else text[: MAX_LINE - 1] + "…"
