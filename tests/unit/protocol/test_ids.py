"""Names: whatever entropy, ids sort as Flower's numbers do, and nothing else passes for one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedfleet_protocol.errors import Malformed
from fedfleet_protocol.ids import agent_id, flower_number, parse_agent_id, parse_digest, parse_run_id, run_id

ENTROPY = st.binary(min_size=16, max_size=16)


@given(ENTROPY)
def test_an_id_is_read_back_as_it_was_spelled(entropy: bytes) -> None:
    assert parse_agent_id(agent_id(entropy)) == agent_id(entropy)
    assert parse_run_id(run_id(entropy)) == run_id(entropy)


@given(st.lists(ENTROPY, min_size=2, max_size=20))
def test_the_order_of_ids_is_the_order_of_flowers_numbers(entropies: list[bytes]) -> None:
    ids = sorted(agent_id(entropy) for entropy in entropies)
    numbers = [flower_number(agent) for agent in ids]
    assert numbers == sorted(numbers)


@given(ENTROPY)
def test_flowers_number_is_positive_and_fits_63_bits(entropy: bytes) -> None:
    assert 1 <= flower_number(agent_id(entropy)) < 1 << 63


def test_the_smallest_number_is_one_because_flower_takes_zero_for_none() -> None:
    assert flower_number(agent_id(bytes(16))) == 1


@pytest.mark.parametrize("length", [0, 15, 17])
def test_an_id_of_too_little_or_too_much_entropy_is_a_bug(length: int) -> None:
    with pytest.raises(ValueError, match="16 random bytes"):
        agent_id(bytes(length))


@pytest.mark.parametrize(
    "text",
    ["", "a-", "a-" + "0" * 25, "a-" + "0" * 27, "a-" + "w" * 26, "A-" + "0" * 26, "a-" + "0" * 26 + "\n", "a/+#"],
)
def test_anything_else_is_no_id(text: str) -> None:
    with pytest.raises(Malformed, match="is not an id"):
        parse_agent_id(text)


def test_an_agents_id_is_no_runs_id() -> None:
    with pytest.raises(Malformed):
        parse_run_id(agent_id(bytes(16)))
    with pytest.raises(Malformed):
        parse_agent_id(run_id(bytes(16)))


@pytest.mark.parametrize("text", ["", "none", "0" * 63, "0" * 65, "A" * 64, "0" * 64 + "\n", "../" + "0" * 61])
def test_anything_else_is_no_digest(text: str) -> None:
    with pytest.raises(Malformed, match="is not a digest"):
        parse_digest(text)


def test_a_complaint_does_not_repeat_a_megabyte() -> None:
    with pytest.raises(Malformed) as caught:
        parse_digest("x" * (1 << 20))
    assert len(str(caught.value)) < 200
