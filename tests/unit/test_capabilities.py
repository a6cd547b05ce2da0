import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedfleet_coordinator.capabilities import MAX_CHARACTERS, Capabilities, Granted
from fedfleet_coordinator.errors import CapabilityRefused
from fedfleet_protocol.ids import AgentId, Digest, RunId, agent_id, run_id
from fedfleet_protocol.messages import BlobRef

KEY = bytes(range(32))
AGENT, OTHER, RUN = agent_id(bytes(16)), agent_id(bytes(15) + b"\1"), run_id(bytes(16))
BLOB = BlobRef(Digest("ab" * 32), 12345)


def grant(key: bytes = KEY, *, method: str = "GET", agent: AgentId = AGENT, run: RunId = RUN) -> str:
    return Capabilities(key).grant(method=method, blob=BLOB, agent=agent, run=run, n=7, expires_wall=1000.9)


def test_capability_grants_what_it_says_until_its_second() -> None:
    check = Capabilities(KEY).check
    assert check(grant(), method="GET", digest=BLOB.digest, agent=AGENT, now_wall=999.9) == Granted(RUN, 7, 12345)
    with pytest.raises(CapabilityRefused, match="expired 0 s ago"):
        check(grant(), method="GET", digest=BLOB.digest, agent=AGENT, now_wall=1000.0)


def test_capability_is_short_enough_for_a_header() -> None:
    blob = BlobRef(Digest("f" * 64), 16 << 30)
    proof = Capabilities(KEY).grant(method="PUT", blob=blob, agent=AGENT, run=RUN, n=10**9, expires_wall=1e11)
    assert len(proof) < MAX_CHARACTERS and proof.isascii() and " " not in proof


@pytest.mark.parametrize(
    ("proof", "method", "digest", "agent"),
    [
        (grant(bytes(32)), "GET", BLOB.digest, AGENT),
        (grant(method="PUT"), "GET", BLOB.digest, AGENT),
        (grant(), "PUT", BLOB.digest, AGENT),
        (grant(), "GET", Digest("cd" * 32), AGENT),
        (grant(), "GET", BLOB.digest, OTHER),
        (grant(agent=OTHER), "GET", BLOB.digest, AGENT),
        ("", "GET", BLOB.digest, AGENT),
    ],
)
def test_capability_for_something_else_is_refused(proof: str, method: str, digest: Digest, agent: AgentId) -> None:
    with pytest.raises(CapabilityRefused):
        Capabilities(KEY).check(proof, method=method, digest=digest, agent=agent, now_wall=0.0)  # type: ignore[arg-type]


@pytest.mark.parametrize("index", range(4))
def test_capability_with_a_changed_field_is_refused(index: int) -> None:
    fields = grant().split(".")
    fields[index] = run_id(bytes(15) + b"\2") if index == 0 else str(int(fields[index]) + 1)
    with pytest.raises(CapabilityRefused, match="not made for"):
        Capabilities(KEY).check(".".join(fields), method="GET", digest=BLOB.digest, agent=AGENT, now_wall=0.0)


@given(st.text(max_size=300))
def test_whatever_is_sent_as_a_capability_is_refused_in_words(proof: str) -> None:
    with pytest.raises(CapabilityRefused):
        Capabilities(KEY).check(proof, method="GET", digest=BLOB.digest, agent=AGENT, now_wall=0.0)


def test_key_that_could_be_guessed_is_not_taken() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        Capabilities(b"secret")
