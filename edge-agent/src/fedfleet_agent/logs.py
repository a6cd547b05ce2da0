"""The agent's own log: one JSON object per line on stderr, with run, exchange and agent where there are such."""

import json
import logging
import sys
import time
from typing import Final

_FIELDS: Final = {"run": "run", "n": "exchange", "code": "code"}
"""Attributes of a record, given by `extra`, and what they are called in the log."""


class JsonLines(logging.Formatter):
    """Makes one line of JSON of each record; a traceback, which only a bug has, stays in one line.

    Attributes:
        agent: whose log it is; stands in every line once it is known.
    """

    agent = ""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, object] = {
            "at": f"{at}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
        }
        if self.agent:
            line["agent"] = self.agent
        line.update((said, value) for name, said in _FIELDS.items() if (value := getattr(record, name, None)))
        if record.exc_info:
            line["bug"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def to_stderr(level: str) -> JsonLines:
    """Log from `level` on to stderr; return what makes the lines."""
    handler, lines = logging.StreamHandler(sys.stderr), JsonLines()
    handler.setFormatter(lines)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.getLogger("urllib3").setLevel("ERROR")  # what it warns of is said by those who call it
    return lines
