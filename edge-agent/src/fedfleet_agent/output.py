"""What apps print, on its way to `fedfleet logs`: cut to what a person reads, and never more than the owner allows."""

from collections.abc import Callable

from fedfleet_protocol.ids import RunId
from fedfleet_protocol.messages import FromAgent, Log

LINE_CHARACTERS = 2000
LINES_PER_MESSAGE = 50
_BURST_S = 5.0


class Forwarder:
    """Sends lines over the control link as long as they are not too many; the rest is counted.

    Args:
        say: sends a message; returns False if it could not.
        clock: seconds, monotonic.
    """

    def __init__(self, say: Callable[[FromAgent], bool], clock: Callable[[], float]) -> None:
        self._say = say
        self._clock = clock
        self._allowance = 0.0
        self._filled_at: float | None = None
        self._dropped = 0

    def forward(self, run: RunId, n: int, lines: tuple[str, ...], dropped: int, *, lines_per_s: float) -> None:
        """Send these lines of a task.

        Args:
            dropped: lines that were left out before they came here.
            lines_per_s: in the long run; a burst of a few seconds' worth passes.
        """
        allowed = min(len(lines), int(self._refill(lines_per_s)))
        self._allowance -= allowed
        self._dropped += dropped + len(lines) - allowed
        for start in range(0, allowed, LINES_PER_MESSAGE):
            piece = lines[start : min(start + LINES_PER_MESSAGE, allowed)]
            cut = tuple(line if len(line) <= LINE_CHARACTERS else line[:LINE_CHARACTERS] + " [...]" for line in piece)
            if self._say(Log(run=run, n=n, lines=cut, dropped=self._dropped)):
                self._dropped = 0
            else:
                self._dropped += len(piece)

    def _refill(self, lines_per_s: float) -> float:
        now = self._clock()
        since = _BURST_S if self._filled_at is None else now - self._filled_at
        self._filled_at = now
        self._allowance = min(self._allowance + since * lines_per_s, _BURST_S * lines_per_s)
        return self._allowance
