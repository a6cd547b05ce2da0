"""Commands that other distributions bring along."""

import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main

from fedfleet_coordinator.cli import commands


def entry(name: str, value: str) -> importlib.metadata.EntryPoint:
    return importlib.metadata.EntryPoint(name, value, commands.PLUGINS)


def test_the_commands_of_test_fleets_are_fedfleets_where_both_are_installed() -> None:
    group = typer.main.get_command(commands.app).commands["testfleet"]  # type: ignore[attr-defined]
    assert list(group.commands) == ["up", "fault", "scenario", "report", "down"]


def test_one_that_is_broken_is_told_and_the_others_are_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = entry("wings", "fedfleet_wings.gone:app")
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: (broken,))
    commands._add_installed()
    assert "the command wings is broken: ModuleNotFoundError" in capsys.readouterr().err
    assert "up" in typer.main.get_command(commands.app).commands  # type: ignore[attr-defined]


def test_an_error_in_one_is_a_sentence_with_its_exit_code(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fedfleet_coordinator.cli", "testfleet", "fault", "kill", "broker", "--json"]
    done = subprocess.run([*command, "--fleet", str(tmp_path)], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2, done.stderr
    assert "no fleet is up" in json.loads(done.stderr)["error"]
