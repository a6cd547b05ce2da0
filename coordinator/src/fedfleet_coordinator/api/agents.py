"""What devices ask: to become agents, to stay agents, and what became of their tasks."""

import os

from fastapi import Request
from starlette.responses import PlainTextResponse, Response

from fedfleet_coordinator import enrolment
from fedfleet_coordinator.api.bodies import MSGPACK, body_of
from fedfleet_coordinator.api.roles import Caller, Role, active, allow, guarded_router
from fedfleet_coordinator.api.services import Hub
from fedfleet_coordinator.clock import Now
from fedfleet_coordinator.errors import NotAllowed
from fedfleet_coordinator.outbox import Outbox
from fedfleet_coordinator.store.port import Tx
from fedfleet_protocol.errors import Forged
from fedfleet_protocol.ids import AgentId
from fedfleet_protocol.messages import MAX_MESSAGE_BYTES, Answer, Ask, Enrol, Renew, decode_as, encode
from fedfleet_protocol.trust import HUB, open_envelope, seal

router = guarded_router()


@router.get("/v1/ca", include_in_schema=False)
@allow(Role.ANYONE, max_bytes=0)
async def ca(hub: Hub) -> Response:
    """Return the certificate of the services CA: public, and compared with the fingerprint in the join token."""
    return PlainTextResponse(hub.pki.ca_pem("services"), media_type="application/x-pem-file")


@router.post("/v1/enrol", include_in_schema=False)
@allow(Role.ANYONE, max_bytes=16 << 10)
async def enrol(request: Request, hub: Hub) -> Response:
    """Make the holder of a join token an agent."""
    asked = decode_as(Enrol, await body_of(request))
    entropy = os.urandom(16)
    told = await hub.engine.do(
        lambda tx, now, out: enrolment.enrol(tx, asked, hub.pki, hub.addresses, entropy=entropy, now=now)
    )
    return Response(encode(told), media_type=MSGPACK)


@router.post("/v1/renew", include_in_schema=False)
@allow(Role.AGENT, max_bytes=16 << 10)
async def renew(request: Request, hub: Hub, caller: Caller) -> Response:
    """Give an agent its next certificate."""
    asked = decode_as(Renew, await body_of(request))
    told = await hub.engine.do(lambda tx, now, out: enrolment.renew(tx, caller, asked, hub.pki, hub.addresses, now=now))
    return Response(encode(told), media_type=MSGPACK)


@router.post("/v1/ask", include_in_schema=False)
@allow(Role.AGENT)
async def ask(request: Request, hub: Hub, caller: Caller) -> Response:
    """Tell an agent the truth about its tasks; question and answer are sealed."""
    data, agent = await body_of(request), AgentId(caller.name)

    def answered(tx: Tx, now: Now, out: Outbox) -> Answer:
        active(tx, caller)
        asked = _opened(tx, agent, data)
        return hub.exchanges.ask(tx, agent, asked, now, out)

    answer = _fitting(await hub.engine.do(answered))
    return Response(seal(hub.pki.order_key, answer, sender=HUB, to=agent), media_type=MSGPACK)


def _opened(tx: Tx, agent: AgentId, data: bytes) -> Ask:
    """Return the question in an envelope of the agent that shows its certificate.

    Raises:
        NotAllowed: it is in another agent's name.
        ProtocolError: forged, or no question.
    """
    failure: Forged | None = None
    for key in enrolment.keys_of(tx, agent):
        try:
            asked = decode_as(Ask, open_envelope(data, key, sender=agent, to=HUB))
        except Forged as error:
            failure = error
            continue
        if asked.agent != agent:
            raise NotAllowed(f"agent {agent} asks in the name of {asked.agent[:40]!r}")
        return asked
    raise failure or NotAllowed(f"agent {agent} has no key here; it must join again")


def _fitting(answer: Answer) -> bytes:
    """Return the answer as a message that is not too large; tasks left out come with the next question."""
    while len(data := encode(answer)) > MAX_MESSAGE_BYTES and len(answer.open) > 1:
        answer = Answer(verdicts=answer.verdicts, open=answer.open[:-1], over=answer.over)
    return data
