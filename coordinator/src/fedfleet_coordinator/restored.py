"""What a coordinator does, before it serves, when its store came back from a backup (EXCHANGE rule 13).

The store is older than the world: replies were accepted, agents revoked and tokens used that it does not know of, and
blobs are gone that it names. Nobody can see that from the inside, so a person says it: `serve --restored`.
"""

from collections.abc import Callable, Collection

import msgspec

from fedfleet_coordinator import enrolment, runs
from fedfleet_coordinator.clock import Now
from fedfleet_coordinator.exchanges import Exchanges
from fedfleet_coordinator.outbox import Outbox
from fedfleet_coordinator.rows import Agent, Blob, Exchange, Position, Ref, Run, Task, Token, Turn
from fedfleet_coordinator.store.port import Tx
from fedfleet_protocol.exchange import ExchangeState, TaskState
from fedfleet_protocol.reasons import RUN

_TOLD = "the coordinator was restored from a backup; the run goes on after round {}"


def recover(
    tx: Tx, present: Callable[[Blob], bool], revoked: Collection[str], exchanges: Exchanges, now: Now, out: Outbox
) -> None:
    """Make a restored store fit to serve; doing it again changes nothing more.

    Afterwards every live run waits for a runner with a new epoch; each accepted reply whose blob is gone is asked for
    again, or its run has ended; who was revoked since is revoked; and no join token made before can be used.

    Args:
        present: whether a blob's file is there.
        revoked: serial numbers in the list of revocations that the broker has.
    """
    tx.delete(*[blob for blob in tx.find(Blob, inline=None) if not present(blob)])
    tx.delete(*tx.find(Token))
    for agent in tx.find(Agent, state="active"):
        if set(agent.serials) & set(revoked):
            enrolment.revoke(tx, agent.agent, exchanges, now, out)
    for run in tx.find(Run, state=("pending", "running")):
        lost = _lost(tx, run, now)
        live = tx.get(Run, run.run)
        if live is None or not live.live:
            continue
        if lost:
            runs.end(tx, live, "failed", "lost", f"{RUN['lost']}: {lost}", exchanges, now, out)
            continue
        tx.put(msgspec.structs.replace(live, epoch=""))
        runs.log(tx, run.run, "coordinator", [_TOLD.format(live.server_round)], now, out)


def _lost(tx: Tx, run: Run, now: Now) -> str:
    """Ask again for replies that are gone; return what else is gone without which the run cannot go on, in words."""
    position = tx.get(Position, run.run)
    named = [(digest, "a checkpoint") for digest, _ in position.blobs.values()] if position is not None else []
    named.append((run.bundle, "the bundle"))
    replies = []
    for ref in tx.find(Ref, run=run.run):
        kind = ref.holder.partition(":")[0]
        if kind == "payload":
            named.append((ref.digest, f"a payload of exchange {ref.n}"))
        elif kind == "reply" and tx.get(Blob, ref.digest) is None:
            replies.append(ref)
    for digest, what in named:
        if tx.get(Blob, digest) is None:
            return what
    for ref in replies:
        if not _asked_again(tx, ref, now):
            return f"the reply of agent {ref.holder.rpartition(':')[2]} to exchange {ref.n}"
    return ""


def _asked_again(tx: Tx, ref: Ref, now: Now) -> bool:
    """Make the task of a reply that is gone an open one again, if its exchange is open and nothing builds on it."""
    agent = ref.holder.rpartition(":")[2]
    task, exchange = tx.get(Task, ref.run, ref.n, agent), tx.get(Exchange, ref.run, ref.n)
    turn = tx.get(Turn, ref.run, agent)
    if task is None or exchange is None or turn is None:
        return False
    if exchange.state is not ExchangeState.OPEN or turn.n != ref.n:
        return False
    accepted = exchange.accepted - 1
    tx.put(
        msgspec.structs.replace(
            task, state=TaskState.PUBLISHED, attempt=task.attempt + 1, reply=None, reply_size=0, code="", text="",
            settled_wall=None,
        ),
        msgspec.structs.replace(turn, base=task.base),
        msgspec.structs.replace(
            exchange, settled=exchange.settled - 1, accepted=accepted,
            grace_at=exchange.grace_at if accepted >= exchange.quorum else None,
        ),
    )  # fmt: skip
    tx.delete(ref)
    return True
