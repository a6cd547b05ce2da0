"""The owner's file: every mistake is refused with its place and a remedy, and the defaults are documented."""

import re
from pathlib import Path

import pytest

from fedfleet_agent.config import SECTIONS, Config, described, load, parse, template
from fedfleet_agent.errors import ConfigError
from fedfleet_agent.isolation import sandbox_of

FILE = Path("agent.toml")
KEY = "3b6a27bcceb6a42d62a3a8d02a6f0d73653215771de243a63ac048a18b59da29"
PEM = (
    "-----BEGIN PUBLIC KEY-----\n"
    "MCowBQYDK2VwAyEAO2onvM62pC1io6jQKm8Nc2UyFXcd4kOmOsBIoYtZ2ik=\n"
    "-----END PUBLIC KEY-----\n"
)


def refusal(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(text, FILE)
    return str(caught.value)


def test_a_file_that_does_not_exist_leaves_every_default(tmp_path: Path) -> None:
    assert load(tmp_path / "agent.toml") == Config()


def test_a_whole_file_is_read(tmp_path: Path) -> None:
    file = tmp_path / "agent.toml"
    (tmp_path / "lab.pem").write_text(PEM)
    file.write_text(
        """
        [agent]
        labels = { room = "12" }
        node_config = { partition-id = 0, num-partitions = 5, share = 0.5, small = true, path = "/data" }
        [limits]
        time_s = 60
        [eligibility]
        windows = ["mon-fri 22:00-06:00"]
        [trust.publishers]
        lab = "lab.pem"
        [egress]
        max_reply_mb = 1.5
        """
    )
    config = load(file)
    assert config.agent.node_config == {
        "partition-id": 0,
        "num-partitions": 5,
        "share": 0.5,
        "small": True,
        "path": "/data",
    }
    assert config.limits.time_s == 60
    assert config.trusted == {bytes.fromhex(KEY): "lab"}
    assert config.egress.max_reply_mb == 1.5


@pytest.mark.parametrize(
    ("text", "place", "remedy"),
    [
        ("[limits]\n  tims_s = 3", "2:3", "did you mean time_s?"),
        ("agent.pausd = true", "1:1", "did you mean paused?"),
        ("[limit]\n", "1:2", "did you mean limits?"),
        ("[nonsense]\n", "1:2", "known are: agent, limits"),
        ("agent = 3", "1:1", "write [agent] on a line of its own"),
        ('[limits]\n\n  time_s = "an hour"', "3:3", "expected float, got str. Longest a task may take"),
        ("[eligibility]\nbattery_min_percent = 101", "2:1", "expected int <= 100"),
        ('[eligibility]\nmains_only = "yes"', "2:1", "expected bool, got str"),
        ('[eligibility]\nwindows = ["mon 25"]', "2:1", 'write it like "mon-fri 22:00-06:00"'),
        ('[eligibility]\nwindows = ["mo 22:00-06:00"]', "2:1", "days are mon, tue"),
        ("[agent]\nnode_config = {a = 1, b = [1]}", "2:1", "got array"),
        (
            f'[trust]\npublishers = {{x = "{KEY}", lab = "gone.pem"}}',
            "2:87",
            "neither 64 hexadecimal digits nor a file",
        ),
        ("a = = 3", "1:5", "not TOML"),
        ('[agent]\nlabels = "', "2:11", "not TOML"),
    ],
)
def test_a_mistake_is_refused_with_its_place_and_a_remedy(text: str, place: str, remedy: str) -> None:
    message = refusal(text)
    assert message.startswith(f"agent.toml:{place}: ")
    assert remedy in message


def test_a_file_that_holds_no_key_is_not_a_publisher(tmp_path: Path) -> None:
    (tmp_path / "lab.txt").write_text("hello")
    with pytest.raises(ConfigError, match="holds no Ed25519 public key"):
        parse('[trust]\npublishers = {lab = "lab.txt"}', tmp_path / "agent.toml")


def test_bytes_that_are_no_text_are_refused_with_their_line(tmp_path: Path) -> None:
    file = tmp_path / "agent.toml"
    file.write_bytes(b"[agent]\n# \xff\n")
    with pytest.raises(ConfigError, match=r"agent\.toml:2: not UTF-8"):
        load(file)


def test_the_template_says_the_defaults() -> None:
    assert parse(template(), FILE) == Config()
    uncommented = re.sub(r"^# (\w+ = )", r"\1", template(), flags=re.MULTILINE)
    assert uncommented != template()
    assert parse(uncommented, FILE) == Config()


def test_every_key_is_described() -> None:
    for section in SECTIONS.values():
        assert all(described(section).values())


def test_a_sandbox_lets_apps_read_what_the_owner_names_and_no_more(tmp_path: Path) -> None:
    config = parse(
        """
        [agent]
        node_config = { data = "/srv/data", partition-id = 3, name = "relative/or/a/word" }
        [trainer]
        readable = ["~/rows", "/mnt/x"]
        devices = ["/dev/nvidia0"]
        isolation_minimum = "seccomp"
        """,
        FILE,
    )
    sandbox = sandbox_of(
        config.trainer, config.agent.node_config, key=tmp_path / "key", journal=tmp_path / "journal", agent=7
    )
    assert sandbox.readable == (str(Path("~/rows").expanduser()), "/mnt/x", "/srv/data")
    assert (sandbox.devices, sandbox.minimum, sandbox.agent) == (("/dev/nvidia0",), "seccomp", 7)
    assert sandbox.confine and not sandbox.unix_sockets
    with pytest.raises(ConfigError, match="isolation_minimum"):
        parse('[trainer]\nisolation_minimum = "some"', FILE)
