"""Every MQTT topic and ACL pattern. The only module that writes a "/" into a topic.

fedfleet/1/agent/<id>/down       coordinator -> agent: notices, verdicts, needs, runs that are over
fedfleet/1/agent/<id>/up         agent -> coordinator: replies, declines, progress, status, log lines
fedfleet/1/agent/<id>/presence   agent -> coordinator, retained: online, or the will when it is gone
fedfleet/1/probe                 the coordinator's own loop-back, by which it knows that its ACL is in force
"""

from fedfleet_protocol.errors import Malformed
from fedfleet_protocol.ids import AgentId, parse_agent_id

ROOT = "fedfleet/1"
PROBE = f"{ROOT}/probe"
ALL_UP = f"{ROOT}/agent/+/up"
ALL_PRESENCE = f"{ROOT}/agent/+/presence"

SERVICE_ACL = f"topic readwrite {ROOT}/#"
"""What the coordinator's own name may do, a line of mosquitto's ACL file."""
AGENT_ACL = (
    f"pattern read {ROOT}/agent/%u/down",
    f"pattern write {ROOT}/agent/%u/up",
    f"pattern write {ROOT}/agent/%u/presence",
)
"""What any agent may do: `%u` is the CN of its certificate."""


def down(agent: AgentId) -> str:
    """Return the topic on which `agent` is spoken to."""
    return f"{ROOT}/agent/{agent}/down"


def up(agent: AgentId) -> str:
    """Return the topic on which `agent` speaks."""
    return f"{ROOT}/agent/{agent}/up"


def presence(agent: AgentId) -> str:
    """Return the retained topic that says whether `agent` is connected."""
    return f"{ROOT}/agent/{agent}/presence"


def speaker(topic: str) -> AgentId:
    """Return the agent whose topic this is.

    The broker's ACL makes this the name in the certificate of whoever published there.

    Raises:
        Malformed: no agent's topic.
    """
    parts = topic.split("/")
    if len(parts) != 5 or "/".join(parts[:2]) != ROOT or parts[2] != "agent":
        raise Malformed(f"{topic[:80]!r} is not an agent's topic")
    return parse_agent_id(parts[3])
