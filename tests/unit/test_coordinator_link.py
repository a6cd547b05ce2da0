"""What of the coordinator's link needs no broker."""

from hypothesis import given
from hypothesis import strategies as st

from fedfleet_coordinator.link import FIRST_WAIT_S, LONGEST_WAIT_S, wait_s


@given(tries=st.integers(0, 10_000), chance=st.floats(0, 1, exclude_max=True))
def test_wait_is_spread_over_its_upper_half_and_has_an_end(tries: int, chance: float) -> None:
    longest = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0 ** min(tries, 30))
    assert longest / 2 <= wait_s(tries, chance) <= longest
