"""What of the agent's link needs no broker: how long it waits, and whom it says it is."""

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedfleet_agent import identity
from fedfleet_agent.errors import NotEnrolled
from fedfleet_agent.link import FIRST_WAIT_S, KEEP_ALIVE_S, LONGEST_WAIT_S, wait_s


@given(tries=st.integers(0, 10_000), seed=st.integers())
def test_wait_grows_with_the_tries_and_has_an_end(tries: int, seed: int) -> None:
    assert 0.0 <= wait_s(tries, random.Random(seed)) <= min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0 ** min(tries, 30))


def test_a_fleet_that_lost_its_broker_comes_back_spread_out() -> None:
    waits = sorted(wait_s(6, random.Random(seed)) for seed in range(1000))
    # Full jitter: as many in each tenth of the time.
    tenths = [sum(1 for wait in waits if i * 6.4 <= wait < (i + 1) * 6.4) for i in range(10)]
    assert min(tenths) > 60


def test_idle_link_stays_below_half_a_megabyte_a_day() -> None:
    tls, tcp_ip = 22, 52  # a TLS 1.3 record's header, tag and type; TCP with time stamps over IPv4
    ping_answer_ack = 2 * (2 + tls + tcp_ip) + tcp_ip
    assert 86_400 / KEEP_ALIVE_S * ping_answer_ack < 250_000


@pytest.mark.parametrize(
    ("address", "parts"),
    [("hub.example:8883", ("hub.example", 8883)), ("[::1]:1", ("::1", 1)), ("10.0.0.1:65535", ("10.0.0.1", 65535))],
)
def test_broker_address_is_host_and_port(address: str, parts: tuple[str, int]) -> None:
    assert identity.host_and_port(address) == parts


@pytest.mark.parametrize("address", ["", "hub", ":1", "hub:", "hub:0", "hub:65536", "hub:-1", "hub:x", "hub:1٣"])
def test_text_that_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match="host:port"):
        identity.host_and_port(address)


def test_device_that_did_not_join_is_told_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(NotEnrolled, match="fedfleet-agent join TOKEN"):
        identity.load(tmp_path)


def test_key_asked_for_is_kept_until_its_certificate_came(tmp_path: Path) -> None:
    first = identity.pending_key(tmp_path, None)
    again = identity.pending_key(tmp_path, None)
    assert first.public_key() == again.public_key()
    assert (tmp_path / "pending.pem").stat().st_mode & 0o777 == 0o600
    # It became the key in force, and the power failed before the file was removed: a renewal takes another.
    assert identity.pending_key(tmp_path, first).public_key() != first.public_key()


def test_key_file_cut_off_by_a_power_failure_is_made_anew(tmp_path: Path) -> None:
    (tmp_path / "pending.pem").write_bytes(b"-----BEGIN PRIV")
    assert identity.pending_key(tmp_path, None).public_key() == identity.pending_key(tmp_path, None).public_key()
