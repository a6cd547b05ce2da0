"""Reason codes: the only list of them, in words a person can act on."""

import re

import pytest

from fedfleet_protocol import reasons

LISTS = {"decline": reasons.DECLINE, "close": reasons.CLOSE, "gate": reasons.GATE, "run": reasons.RUN}


@pytest.mark.parametrize("name", LISTS)
def test_a_code_is_one_word_for_programs_and_its_text_a_clause_for_people(name: str) -> None:
    for code, text in LISTS[name].items():
        assert re.fullmatch(r"[a-z]+(_[a-z]+)*", code)
        assert len(text) > 10
        assert not text.endswith("."), "the text is put into sentences"


def test_why_an_agent_declines_and_why_the_gate_refuses_cannot_be_mixed_up() -> None:
    assert not set(reasons.DECLINE) & set(reasons.GATE)


def test_codes_of_the_first_version_are_still_there() -> None:
    assert {"battery", "window", "state_lost", "deadline", "untrusted", "packages"} <= set(reasons.DECLINE)
    assert {"all", "quorum", "deadline", "cancelled"} <= set(reasons.CLOSE)
    assert {"not_finite", "wrong_shape", "bad_weight", "norm_bound"} <= set(reasons.GATE)
    assert {"finished", "stopped", "nondeterministic", "epoch"} <= set(reasons.RUN)
