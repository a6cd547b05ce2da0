"""What is kept of a fleet, so that another terminal can hurt it and a report can be written afterwards.

FOLDER/
  fleet.json            the fleet, and whether it is up; 0600: it leads to keys
  observations.jsonl    what happened to it, a line each, appended
  driver/               what the driver keeps
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from fedfleet_testfleet.errors import BadInput
from fedfleet_testfleet.fleet import Fleet
from fedfleet_testfleet.report import Observation


class Kept(msgspec.Struct, frozen=True):
    """The content of fleet.json."""

    fleet: Fleet
    up: bool


class State:
    """One fleet's folder.

    Args:
        folder: made when something is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.expanduser().absolute()
        self._file, self._observations = self.folder / "fleet.json", self.folder / "observations.jsonl"

    @property
    def driver(self) -> Path:
        """The driver's folder."""
        return self.folder / "driver"

    def kept(self) -> Kept | None:
        """Return what is kept; None if no fleet was ever here.

        Raises:
            BadInput: the file cannot be read.
        """
        try:
            return msgspec.json.decode(self._file.read_bytes(), type=Kept, dec_hook=_path_from)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.MsgspecError) as error:
            raise BadInput(
                f"{self._file} cannot be read: {error}; is it of another version? end what it tells of, and delete it"
            ) from error

    def fleet(self) -> Fleet:
        """Return the fleet that is up.

        Raises:
            BadInput: none is.
        """
        kept = self.kept()
        if kept is None or not kept.up:
            raise BadInput(f"no fleet is up in {self.folder}; start one with: fedfleet testfleet up")
        return kept.fleet

    def begin(self, fleet: Fleet) -> None:
        """Keep a new fleet; what happened to the one before is forgotten.

        Raises:
            BadInput: nothing can be written there.
        """
        with self._writing():
            self._write(Kept(fleet, up=True))
            self._observations.unlink(missing_ok=True)

    def end(self) -> None:
        """Keep that the fleet is not up any more.

        Raises:
            BadInput: nothing can be written there.
        """
        kept = self.kept()
        if kept is not None:
            with self._writing():
                self._write(Kept(kept.fleet, up=False))

    def note(self, observation: Observation) -> None:
        """Append what happened; several terminals may do so at a time.

        Raises:
            BadInput: nothing can be written there.
        """
        line = msgspec.json.encode(observation) + b"\n"
        with self._writing():
            descriptor = os.open(self._observations, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            try:
                os.write(descriptor, line)
            finally:
                os.close(descriptor)

    def observations(self) -> list[Observation]:
        """Return what happened; a last line that was being written is left out."""
        try:
            lines = self._observations.read_bytes().split(b"\n")[:-1]
            return [msgspec.json.decode(line, type=Observation) for line in lines]
        except FileNotFoundError:
            return []
        except (OSError, msgspec.MsgspecError) as error:
            raise BadInput(f"{self._observations} cannot be read: {error}; delete it to begin anew") from error

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise BadInput(
                f"{self.folder} cannot be written to: {error.strerror}; make room, or keep the fleet with --fleet DIR"
            ) from error

    def _write(self, kept: Kept) -> None:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        written = self._file.with_name(f".{self._file.name}.{os.getpid()}")
        with open(os.open(written, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as stream:
            stream.write(msgspec.json.encode(kept, enc_hook=str))
        written.replace(self._file)


def _path_from(kind: type, value: Any) -> Any:
    if kind is Path and isinstance(value, str):
        return Path(value)
    raise NotImplementedError(kind)
