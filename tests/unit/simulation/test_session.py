"""Where a simulation keeps its files, and what becomes of them."""

import importlib
import os
import sys
import time
from pathlib import Path

from fedfleet_coordinator.simulation import session


def made(parent: Path, name: str, *, age_s: float) -> Path:
    folder = parent / f"fedfleet-simulation-{name}"
    folder.mkdir()
    (folder / "blob").write_bytes(b"x")
    os.utime(folder, (time.time() - age_s,) * 2)
    return folder


def test_what_a_killed_simulation_left_is_removed_by_the_next(tmp_path: Path) -> None:
    left, young, running = made(tmp_path, "a", age_s=600), made(tmp_path, "b", age_s=1), made(tmp_path, "c", age_s=600)
    other = tmp_path / "fedfleet-other"
    other.mkdir()
    lock = session._locked(running)
    assert lock is not None
    session.sweep(tmp_path)
    os.close(lock)
    assert [path.exists() for path in (left, young, running, other)] == [False, True, True, True]
    session.sweep(tmp_path)
    assert not running.exists(), "its lock went with its process"


def test_the_process_is_as_it_was_before_an_app_ran_in_it(tmp_path: Path) -> None:
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "simulated_module.py").write_text("x = 1\n")
    folder, path = Path.cwd(), list(sys.path)
    with session.as_it_was(tmp_path):
        os.chdir(tmp_path / "app")
        sys.path.insert(0, str(tmp_path / "app"))
        assert importlib.import_module("simulated_module").x == 1
    assert (Path.cwd(), sys.path) == (folder, path)
    assert "simulated_module" not in sys.modules
