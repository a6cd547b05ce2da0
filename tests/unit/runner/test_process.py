"""From a bundle to an outcome: what a runner process does with an app that can or cannot be loaded."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fedfleet_coordinator.runner.execution import Outcome
from fedfleet_coordinator.runner.process import outcome_of
from fedfleet_coordinator.runner.scratch import Scratch
from fedfleet_coordinator.runner.testing import MemoryHub
from fedfleet_flower.compat import build_bundle
from tests.unit.runner.apps import device

PROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "probe"
version = "1.2.0"
license = "Apache-2.0"
description = ""
dependencies = [{dependencies}]
[tool.hatch.build.targets.wheel]
packages = ["."]
[tool.flwr.app]
publisher = "lab"
[tool.flwr.app.components]
serverapp = "runner_probe.server_app:app"
clientapp = "runner_probe.client_app:app"
[tool.flwr.app.config]
rounds = 1
name = "default"
"""
SERVER = """
from pathlib import Path
import numpy as np
from flwr.app import Array, ArrayRecord
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg
app = ServerApp()
@app.main()
def main(grid, context):
    assert Path("runner_probe/server_app.py").exists() and Path(__file__).exists()
    Path("result.txt").write_text("an app writes where it is")
    arrays = ArrayRecord({"w": Array(np.zeros((3, 4), np.float32)), "b": Array(np.zeros(4, np.float32))})
    FedAvg().start(grid, arrays, num_rounds=context.run_config["rounds"])
    print("called", context.run_config["name"], grid.run.fab_id, grid.run.fab_version)
"""
CLIENT = "from flwr.clientapp import ClientApp\napp = ClientApp()\n"


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """An app changes its process: here that is the test's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith("runner_probe"):
            del sys.modules[name]


def ran(folder: Path, *, server: str = SERVER, dependencies: str = "", config: Any = None, **hub: Any) -> Outcome:
    source = folder / "source"
    (source / "runner_probe").mkdir(parents=True)
    (source / "pyproject.toml").write_text(PROJECT.replace("{dependencies}", dependencies))
    for name, text in (("__init__", ""), ("server_app", server), ("client_app", CLIENT)):
        (source / "runner_probe" / f"{name}.py").write_text(text)
    made = MemoryHub(device, bundle=build_bundle(source), config=config, **hub)
    return execute(made, folder)


def execute(hub: MemoryHub, folder: Path) -> Outcome:
    run, position = hub.look()
    return outcome_of(hub, run, position, folder, Scratch(folder))


def test_an_app_runs_in_a_copy_of_its_own_with_its_config_overridden(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome = ran(tmp_path, config={"name": "mine", "rounds": 2})
    assert (outcome.state, outcome.text) == ("finished", "") and outcome.model is not None
    assert "called mine lab/probe 1.2.0" in capsys.readouterr().out
    assert (tmp_path / "app" / "result.txt").exists()


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        (
            {"server": "import no_such_package_anywhere\n"},
            "needs packages that are not installed here: no_such_package",
        ),
        ({"dependencies": '"no-such-package-anywhere"'}, "needs packages that are not installed here: no-such-package"),
        ({"server": "app = 3\n"}, "is of type int and not a ServerApp"),
        ({"server": "raise ValueError('at import')\n"}, "at import"),
        ({"server": "import sys; sys.exit(2)\n"}, "SystemExit"),
        ({"config": {"ruonds": 3}}, "has no configuration ruonds"),
    ],
)
def test_an_app_that_cannot_be_loaded_ends_its_run_in_words(changed: Any, told: str, tmp_path: Path) -> None:
    outcome = ran(tmp_path, **changed)
    assert (outcome.state, outcome.reason) == ("failed", "bundle") and told in outcome.text


def test_bytes_that_are_no_bundle_end_the_run_in_words(tmp_path: Path) -> None:
    outcome = execute(MemoryHub(device), tmp_path)
    assert outcome.reason == "bundle" and "cannot be unpacked" in outcome.text


def test_gate_settings_that_make_no_sense_end_the_run_in_words(tmp_path: Path) -> None:
    outcome = ran(tmp_path, gate={"weigth": 1})
    assert outcome.state == "failed" and "no setting 'weigth'" in outcome.text
