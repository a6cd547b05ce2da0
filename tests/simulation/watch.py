"""The invariants that hold after every single commit."""

from fedfleet_coordinator.rows import Exchange, Ref, Task
from fedfleet_coordinator.store.port import Tx
from fedfleet_protocol.exchange import ExchangeState, TaskState
from fedfleet_protocol.ids import NO_BASE, AgentId, Digest, RunId
from fedfleet_protocol.reasons import CLOSE, DECLINE
from tests.simulation.work import made_of, state_after


class Watch:
    """Looks at the store after each commit.

    Attributes:
        files: every blob's bytes that ever were at the hub.
        accepted: what was ever accepted: it may neither change nor go.
        closed: the accepted set of each closed exchange, with the reason.
    """

    def __init__(self) -> None:
        self.files: dict[Digest, bytes] = {}
        self.accepted: dict[tuple[RunId, int, AgentId], Digest] = {}
        self.closed: dict[tuple[RunId, int], tuple[str, frozenset[AgentId]]] = {}

    def look(self, tx: Tx) -> None:
        """Check what holds at every instant.

        Raises:
            AssertionError: it does not; the text names the invariant.
        """
        now: dict[tuple[RunId, int, AgentId], Digest] = {}
        for task in tx.find(Task):
            if task.state is TaskState.ACCEPTED:
                assert task.reply is not None
                now[task.run, task.n, task.agent] = task.reply
            elif task.state.terminal:
                assert task.code in DECLINE or task.code in CLOSE or task.code == "closed", f"no reason: {task}"
        for key, digest in self.accepted.items():
            assert now.get(key) == digest, f"the accepted reply of {key} was lost or changed"
        for key in now.keys() - self.accepted.keys():
            self._accepts(tx, key, now[key])
        self.accepted = now
        for exchange in tx.find(Exchange):
            self._closes(tx, exchange)

    def _accepts(self, tx: Tx, key: tuple[RunId, int, AgentId], digest: Digest) -> None:
        run, n, agent = key
        task, exchange = tx.get(Task, run, n, agent), tx.get(Exchange, run, n)
        assert task is not None and exchange is not None
        if digest not in self.files:
            from fedfleet_coordinator.rows import Blob

            blob = tx.get(Blob, digest)
            assert blob is not None and blob.inline is not None, f"the blob of {key} is not durable"
            self.files[digest] = blob.inline
        author, payload, began = made_of(self.files[digest])
        assert author == agent, f"{agent} was credited with the work of {author}"
        assert payload == task.payload, f"accepted a reply of {key} made of another payload"
        assert exchange.state is ExchangeState.OPEN or exchange.late == "keep" or (run, n) not in self.closed, (
            f"{key} was accepted after the close"
        )
        assert task.late == ((run, n) in self.closed), f"{key} does not say whether it was late"
        base = NO_BASE
        for m in range(1, n):
            base = self.accepted.get((run, m, agent), base)
        state = b"" if base == NO_BASE else state_after(made_of(self.files[base])[2], made_of(self.files[base])[1])
        assert began == state, f"{key} did not start from the state that its last accepted reply left"
        holders = {ref.holder for ref in tx.find(Ref, digest=digest)}
        assert not exchange_live(exchange) or f"reply:{run}:{n}:{agent}" in holders, f"nothing holds the blob of {key}"

    def _closes(self, tx: Tx, exchange: Exchange) -> None:
        key = exchange.run, exchange.n
        replies = frozenset(a for (run, n, a) in self.accepted if (run, n) == key and not self._late(tx, run, n, a))
        if exchange.state is ExchangeState.OPEN:
            assert key not in self.closed, f"exchange {key} opened again"
            return
        assert exchange.reason in CLOSE, f"exchange {key} closed without a reason"
        known = self.closed.setdefault(key, (exchange.reason, replies))
        assert known == (exchange.reason, replies), f"what exchange {key} closed with changed"
        assert exchange.accepted == len(replies), f"exchange {key} counts {exchange.accepted} of {len(replies)} replies"

    def _late(self, tx: Tx, run: RunId, n: int, agent: AgentId) -> bool:
        task = tx.get(Task, run, n, agent)
        return task is not None and task.late


def exchange_live(exchange: Exchange) -> bool:
    """Whether the exchange still takes replies."""
    return exchange.state is ExchangeState.OPEN
