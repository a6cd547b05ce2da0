"""The broker as a process: its files, how it starts, and what it leaves behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fedfleet_coordinator.broker import Broker, BrokerFiles, reload
from fedfleet_coordinator.errors import Misconfigured
from fedfleet_coordinator.pki import Pki
from fedfleet_protocol import topics
from fedfleet_protocol.ids import agent_id
from tests.broker_fixture import Desk, Ear, free_port, running_broker

pytestmark = pytest.mark.integration


def made(folder: Path) -> BrokerFiles:
    pki = Pki.create(folder / "pki", now_wall=time.time())
    files = BrokerFiles(folder / "broker", agents_host="127.0.0.1", agents_port=free_port(), service_port=free_port())
    files.write(pki, ["127.0.0.1"], [], time.time())
    return files


def test_keys_are_readable_by_their_owner_only(tmp_path: Path) -> None:
    files = made(tmp_path)
    assert {file.stat().st_mode & 0o077 for file in files.folder.iterdir()} == {0}


def test_folder_with_a_space_in_its_name_works(tmp_path: Path) -> None:
    folder = tmp_path / "my hub"
    folder.mkdir()
    with running_broker(folder) as site:
        desk = Desk()
        ear = Ear(desk, site.device(1))
        assert desk.until(lambda: ear.link.up)
        desk.close()


def test_folder_whose_name_would_add_lines_to_the_configuration_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "hub\nallow_anonymous true"
    folder.mkdir()
    with pytest.raises(Misconfigured, match="line break"):
        made(folder)


def test_port_that_is_taken_is_told_in_words(tmp_path: Path) -> None:
    files = made(tmp_path)
    other = BrokerFiles(
        tmp_path / "other", agents_host="127.0.0.1", agents_port=files.agents_port, service_port=free_port()
    )
    other.write(Pki.load(tmp_path / "pki"), ["127.0.0.1"], [], time.time())
    first, second = Broker(files), Broker(other)
    first.start()
    try:
        with pytest.raises(Misconfigured, match=f"{files.agents_port}.*free"):
            second.start()
        assert second.pid is None
    finally:
        first.stop()
    assert first.pid is None


def test_broker_that_a_killed_process_left_behind_is_ended_before_a_new_one(tmp_path: Path) -> None:
    files = made(tmp_path)
    orphanage = [sys.executable, "-c", _LEAVE_ONE, str(files.folder), str(files.agents_port), str(files.service_port)]
    orphan = int(subprocess.run(orphanage, check=True, capture_output=True, text=True).stdout)
    assert Path(f"/proc/{orphan}").exists()
    broker = Broker(files)
    broker.start()
    try:
        assert broker.pid not in {None, orphan}
    finally:
        broker.stop()


_LEAVE_ONE = """
import sys
from pathlib import Path
from fedfleet_coordinator.broker import Broker, BrokerFiles
ports = {"agents_port": int(sys.argv[2]), "service_port": int(sys.argv[3])}
broker = Broker(BrokerFiles(Path(sys.argv[1]), agents_host="127.0.0.1", **ports))
broker.start()
print(broker.pid, flush=True)
import os
os._exit(0)
"""


def test_signal_goes_to_our_broker_only(tmp_path: Path) -> None:
    files = made(tmp_path)
    assert not reload(files.folder)
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        (files.folder / "mosquitto.pid").write_text(str(stranger.pid))
        assert not reload(files.folder)
        assert stranger.poll() is None
    finally:
        os.kill(stranger.pid, signal.SIGKILL)
        stranger.wait()


def test_revoked_agents_are_denied_each_topic_before_the_patterns(tmp_path: Path) -> None:
    files = made(tmp_path)
    gone = agent_id(b"g" * 16)
    files.write_revoked(Pki.load(tmp_path / "pki"), [(gone, ("ab", "cd"))], time.time())
    lines = (files.folder / "agents.acl").read_text().splitlines()
    assert lines == [f"user {gone}", "topic deny #", *topics.AGENT_ACL]
