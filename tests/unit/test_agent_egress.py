"""What may leave the device, and what the owner is told when it may not."""

import pytest

from fedfleet_agent.egress import Allowed, Policy, Withheld, judge_reply, judge_task
from fedfleet_protocol import reasons


def test_a_reply_at_the_limit_leaves_and_one_byte_more_does_not() -> None:
    policy = Policy(max_reply_mb=1)
    assert judge_reply(policy, "train", 1_000_000) == Allowed()
    verdict = judge_reply(policy, "train", 1_000_001)
    assert isinstance(verdict, Withheld)
    assert verdict.code == "too_large"
    assert "[egress] max_reply_mb" in verdict.text


@pytest.mark.parametrize("message_type", ["train", "evaluate", "query", "query.data", "train.first.half"])
def test_a_type_covers_what_is_below_it(message_type: str) -> None:
    assert judge_task(Policy(), message_type) == Allowed()


@pytest.mark.parametrize("message_type", ["query", "trains", "query.data", ""])
def test_a_type_that_is_not_named_is_not_answered(message_type: str) -> None:
    verdict = judge_task(Policy(message_types=("train",)), message_type)
    assert isinstance(verdict, Withheld)
    assert verdict.code in reasons.DECLINE
    assert "[egress] message_types" in verdict.text


def test_a_star_covers_everything_and_an_empty_list_nothing() -> None:
    assert judge_task(Policy(message_types=("*",)), "anything") == Allowed()
    assert judge_task(Policy(message_types=()), "train") != Allowed()
