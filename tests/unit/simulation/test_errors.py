"""A full disk ends a simulation in words, and no app can hide it."""

import errno
from pathlib import Path

import pytest

from fedfleet_coordinator.simulation.errors import NoRoom, room_in


def test_a_full_disk_is_told_and_passes_through_the_code_of_apps() -> None:
    def app() -> None:
        try:
            with room_in(Path("/scratch")):
                raise OSError(errno.ENOSPC, "No space left on device")
        except Exception:  # what apps do
            pass

    with pytest.raises(NoRoom, match=r"/scratch is full.*--scratch"):
        app()


def test_any_other_trouble_stays_what_it_is() -> None:
    with pytest.raises(PermissionError), room_in(Path("/scratch")):
        raise PermissionError(errno.EACCES, "Permission denied")
