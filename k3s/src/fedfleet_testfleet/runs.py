"""Runs on a fleet, as a person starts and watches them: the command `fedfleet run` and the coordinator's API."""

import contextlib
import http.client
import json
import ssl
import tomllib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import msgspec

from fedfleet_testfleet.driver import LocalShell, Shell
from fedfleet_testfleet.errors import BadInput, Failed, FleetFault, TestfleetError, Unreachable
from fedfleet_testfleet.process import fedfleet
from fedfleet_testfleet.scenario import Scenario

ENDED = ("finished", "failed", "stopped")
ANSWER_S = 5.0
_MAX_BYTES = 64 << 20


class Look(msgspec.Struct, frozen=True):
    """A run at one moment.

    Attributes:
        round: the one that is under way, 0 before the first; at the end, the last one.
        text: why it ended. model: the digest of the final one.
    """

    state: str
    round: int
    text: str = ""
    model: str = ""

    @property
    def ended(self) -> bool:
        """Whether it does not change any more."""
        return self.state in ENDED


class Runs(Protocol):
    """Starts runs, and looks at them."""

    def submit(self, scenario: Scenario) -> str:
        """Return the id of a new run of the scenario's app.

        Raises:
            BadInput: the app cannot be used. Unreachable: no coordinator answers. FleetFault: anything else.
        """
        ...

    def look(self, run: str) -> Look:
        """Return how a run is now.

        Raises:
            Unreachable: the coordinator does not answer in time.
        """
        ...

    def tasks(self, run: str) -> dict[str, int]:
        """Return how many of its tasks came to which state.

        Raises:
            Unreachable: the coordinator does not answer in time.
        """
        ...


class CoordinatorRuns:
    """Runs on the fleet of a context file.

    Raises:
        BadInput: the context cannot be read.
    """

    def __init__(self, context: Path, shell: Shell | None = None) -> None:
        self._context, self._shell = context, shell or LocalShell()
        try:
            table = tomllib.loads(context.read_text(encoding="utf-8"))
            self._host, self._port = urlsplit(str(table["url"])).hostname or "", urlsplit(str(table["url"])).port
            self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            self._tls.minimum_version = ssl.TLSVersion.TLSv1_3
            self._tls.load_verify_locations(context.parent / Path(table["ca"]).expanduser())
            cert, key = (context.parent / Path(table[name]).expanduser() for name in ("cert", "key"))
            self._tls.load_cert_chain(cert, key)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BadInput(
                f"the context {context} cannot be used: {error}; is it the file that fedfleet uses for this fleet?"
            ) from error
        self._link: http.client.HTTPSConnection | None = None

    def submit(self, scenario: Scenario) -> str:
        """Return the id of a new run; see `Runs`."""
        command = (*fedfleet(), "run", str(scenario.app), "--detach", "--json", *scenario.options)
        try:
            said = self._shell.run(*command, environment={"FEDFLEET_CONTEXT": str(self._context)})
            return str(json.loads(said)["run"])
        except Failed as error:
            kinds: Mapping[int, type[TestfleetError]] = {2: BadInput, 3: Unreachable}
            with contextlib.suppress(ValueError, KeyError, TypeError):
                raise kinds.get(error.code, FleetFault)(str(json.loads(error.said)["error"])) from error
            raise
        except (ValueError, KeyError, TypeError) as error:
            raise FleetFault("fedfleet run says no id of a run; is fedfleet of another version?") from error

    def look(self, run: str) -> Look:
        """Return how a run is now; see `Runs`."""
        return seen(self._get(f"/v1/runs/{run}"))

    def tasks(self, run: str) -> dict[str, int]:
        """Return how many tasks came to which state; see `Runs`."""
        return dict(Counter(str(task["state"]) for task in self._get(f"/v1/runs/{run}/timeline")["tasks"]))

    def close(self) -> None:
        """Close the connection."""
        if self._link is not None:
            self._link.close()
            self._link = None

    def _get(self, path: str) -> dict[str, Any]:
        try:
            if self._link is None:
                self._link = http.client.HTTPSConnection(self._host, self._port, context=self._tls, timeout=ANSWER_S)
            self._link.request("GET", path)
            answer = self._link.getresponse()
            data = answer.read(_MAX_BYTES)
            if answer.status >= 300:
                raise ValueError(f"HTTP {answer.status}")
            return dict(json.loads(data))
        except (OSError, http.client.HTTPException, ValueError) as error:
            self.close()
            raise Unreachable(f"the coordinator at {self._host}:{self._port} does not answer: {error}") from error


def seen(snapshot: Mapping[str, Any]) -> Look:
    """Return what the coordinator's snapshot of a run says."""
    state, done, total = str(snapshot["state"]), int(snapshot["server_round"]), int(snapshot.get("num_rounds") or 0)
    begun = snapshot.get("exchange") is not None
    now = done if state in ENDED else min(done + 1, total or done + 1) if begun else 0
    model = snapshot.get("model") or {}
    return Look(state, now, str(snapshot.get("text") or ""), str(model.get("digest") or ""))
