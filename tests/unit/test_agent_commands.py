"""The command line: exit codes, remedies instead of tracebacks, and what the owner is shown."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedfleet_agent import identity
from fedfleet_agent.__main__ import main
from fedfleet_agent.errors import AlreadyRunning, JournalError
from fedfleet_agent.home import Home, Report
from fedfleet_agent.journal import LedgerLine
from fedfleet_protocol.ids import RunId


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "agent"


def test_a_device_that_has_not_joined_is_told_how_to(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--check", "--state", str(state)]) == 3
    assert "fedfleet-agent join" in capsys.readouterr().err


def test_a_configuration_that_does_not_hold_is_refused_with_its_place(
    state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state.mkdir()
    (state / "agent.toml").write_text("[limits]\ntime = 3\n")
    assert main(["run", "--state", str(state)]) == 2
    said = capsys.readouterr().err
    assert f"{state / 'agent.toml'}:2:1: limits.time: unknown key; did you mean time_s?" in said
    assert main(["run", "--config", str(state / "gone.toml"), "--state", str(state)]) == 2


@pytest.mark.parametrize(
    "arguments", [["join"], ["join", "fft1.x", "--token-file", "x"], ["join", "--token-file", "gone"]]
)
def test_a_token_must_come_from_one_place(
    arguments: list[str], state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--state", str(state)]) == 2
    assert "token" in capsys.readouterr().err


def test_a_token_in_the_arguments_is_warned_of_and_a_wrong_one_is_no_traceback(
    state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["join", "fft1.nonsense", "--state", str(state)]) == 2
    said = capsys.readouterr().err
    assert "others on this machine can see the token" in said
    assert "cut off or mistyped" in said
    assert not state.exists()


def test_a_token_comes_from_standard_input(
    state: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("not a token\n"))
    assert main(["join", "--token-file", "-", "--state", str(state)]) == 2
    assert "a join token begins with fft1." in capsys.readouterr().err


def test_status_of_an_agent_that_does_not_run(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--state", str(state)]) == 5
    assert f"fedfleet-agent run --state {state}" in capsys.readouterr().out
    assert main(["status", "--json", "--state", str(state)]) == 5
    assert json.loads(capsys.readouterr().out)["running"] is False


def test_status_says_what_the_running_agent_reported(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = Home(state)
    home.write_report(Report(agent="a-1", connected=True, run="r-1", n=3, stage="training", code="battery", text="11%"))
    with home.lock():
        assert main(["status", "--state", str(state)]) == 0
        said = capsys.readouterr().out
        assert f"a-1 (process {os.getpid()}), connected, training: run r-1, exchange 3." in said
        assert "11% (battery)" in said
        assert home.running() == os.getpid()
    assert home.running() is None


def test_explain_names_rule_readings_and_what_became_of_tasks(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = Home(state)
    (state / "agent.toml").write_text("[eligibility]\nmemory_min_mb = 100000000\n")
    journal = home.journal()
    journal.save(None, None, [LedgerLine(0.0, "declined", RunId("r-1"), 3, "untrusted: nobody knows the key")])
    journal.close()
    assert main(["explain", "--state", str(state)]) == 0
    said = capsys.readouterr().out
    assert "It may not train now: available memory" in said
    assert "it trusts no publisher" in said
    assert "declined  exchange 3 of r-1: untrusted: nobody knows the key" in said
    assert main(["explain", "--json", "--state", str(state)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["eligible"], told["code"], told["ledger"][0]["n"]) == (False, "memory", 3)


def test_pause_outlives_the_command_and_resume_ends_it(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pause", "--state", str(state)]) == 0
    assert "as of the next start" in capsys.readouterr().out
    assert main(["explain", "--json", "--state", str(state)]) == 0
    assert json.loads(capsys.readouterr().out)["code"] == "paused"
    assert main(["resume", "--state", str(state)]) == 0
    assert not Home(state).paused


def test_only_one_agent_works_in_a_folder(state: Path) -> None:
    home = Home(state)
    with home.lock(), pytest.raises(AlreadyRunning, match=rf"process {os.getpid()}.*--state"):
        home.lock()


def test_a_damaged_journal_is_a_sentence(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = Home(state)
    (state / "journal.sqlite").write_bytes(b"x" * 5000)
    with pytest.raises(JournalError):
        home.journal()
    assert main(["explain", "--state", str(state)]) == 1
    assert "move it away" in capsys.readouterr().err


def test_help_says_the_exit_codes() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fedfleet_agent", "--help"], capture_output=True, text=True, check=True
    )
    assert "3 this device has not joined" in " ".join(done.stdout.split())


def test_the_key_is_kept_as_others_write_it(tmp_path: Path) -> None:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
    )

    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    assert identity._key_pem(key) == pem
    assert identity._key_in(b"before\n" + pem + b"after").private_bytes_raw() == key.private_bytes_raw()
    with pytest.raises(ValueError, match="no Ed25519 key"):
        identity._key_in(b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")
