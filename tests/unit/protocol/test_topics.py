"""Topics: each names one agent, and the broker's ACL lets it have these and no others."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedfleet_protocol import topics
from fedfleet_protocol.errors import Malformed
from fedfleet_protocol.ids import agent_id

AGENT, OTHER = agent_id(bytes(16)), agent_id(bytes(15) + b"\1")


def matches(pattern: str, topic: str) -> bool:
    """Whether a subscription to `pattern` gets `topic`, MQTT 5 §4.7."""
    wanted, parts = pattern.split("/"), topic.split("/")
    for i, level in enumerate(wanted):
        if level == "#":
            return True
        if i >= len(parts) or level not in ("+", parts[i]):
            return False
    return len(wanted) == len(parts)


def allowed(agent: str, access: str, topic: str) -> bool:
    """Whether the ACL for all agents lets `agent` do it."""
    return any(
        words[1] == access and matches(words[2].replace("%u", agent), topic)
        for words in (line.split() for line in topics.AGENT_ACL)
    )


@given(st.binary(min_size=16, max_size=16))
def test_the_speaker_of_an_agents_topic_is_that_agent(entropy: bytes) -> None:
    agent = agent_id(entropy)
    for topic in (topics.up(agent), topics.presence(agent), topics.down(agent)):
        assert topics.speaker(topic) == agent


def test_the_coordinators_subscriptions_get_what_agents_say_and_not_what_they_are_told() -> None:
    assert matches(topics.ALL_UP, topics.up(AGENT))
    assert matches(topics.ALL_PRESENCE, topics.presence(AGENT))
    assert not matches(topics.ALL_UP, topics.down(AGENT))


def test_an_agent_may_read_what_it_is_told_and_write_what_it_says() -> None:
    assert allowed(AGENT, "read", topics.down(AGENT))
    assert allowed(AGENT, "write", topics.up(AGENT))
    assert allowed(AGENT, "write", topics.presence(AGENT))


def test_an_agent_may_neither_give_orders_nor_speak_or_listen_as_another() -> None:
    for topic in (topics.down(AGENT), topics.down(OTHER), topics.up(OTHER), topics.presence(OTHER), topics.PROBE):
        assert not allowed(AGENT, "write", topic)
    for topic in (topics.down(OTHER), topics.up(OTHER), topics.ALL_UP, topics.PROBE):
        assert not allowed(AGENT, "read", topic)


def test_the_service_may_do_all_below_the_root_and_nothing_beside_it() -> None:
    kind, access, pattern = topics.SERVICE_ACL.split()
    assert (kind, access) == ("topic", "readwrite")
    for topic in (topics.PROBE, topics.down(AGENT), topics.up(AGENT)):
        assert matches(pattern, topic)
    assert not matches(pattern, "$SYS/broker/version")


@pytest.mark.parametrize(
    "topic",
    [
        "",
        "fedfleet/1",
        topics.PROBE,
        f"fedfleet/1/agent/{AGENT}",
        f"fedfleet/1/agent/{AGENT}/up/more",
        f"fedfleet/2/agent/{AGENT}/up",
        f"fedfleet/1/run/{AGENT}/up",
        "fedfleet/1/agent/edge-7/up",
        "fedfleet/1/agent/+/up",
    ],
)
def test_no_other_topic_has_a_speaker(topic: str) -> None:
    with pytest.raises(Malformed):
        topics.speaker(topic)
