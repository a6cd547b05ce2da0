"""The agent's own log: one JSON object per line on stderr, with run, exchange and agent where there are such."""

import json
import logging
import sys
import time
from typing import Final

_FIELDS: Final = ("agent", "run", "n", "order", "attempt", "code")


class JsonLines(logging.Formatter):
    """Makes one line of JSON of each record; a traceback, which only a bug has, stays in one line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, object] = {
            "at": f"{at}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
        }
        line.update((name, value) for name in _FIELDS if (value := getattr(record, name, None)) is not None)
        if record.exc_info:
            line["bug"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def to_stderr(level: str) -> None:
    """Log from `level` on to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.getLogger("urllib3").setLevel("ERROR")  # what it warns of is said by those who call it
