"""What the operator reads out of objects."""

from fedfleet_coordinator.operator.seen import config_values, read_time, spell_time


def test_text_that_is_spelled_like_a_fraction_or_a_truth_value_is_one() -> None:
    given = {
        "rounds": 3,
        "rate": "0.1",
        "tiny": "1e-3",
        "deep": "true",
        "name": "plain",
        "word": '"true"',
        "v": "1.2.3",
    }
    assert config_values(given) == {
        "rounds": 3, "rate": 0.1, "tiny": 0.001, "deep": True, "name": "plain", "word": "true", "v": "1.2.3",
    }  # fmt: skip


def test_times_are_read_as_they_are_written() -> None:
    assert spell_time(read_time("2026-01-02T03:04:05Z")) == "2026-01-02T03:04:05Z"
