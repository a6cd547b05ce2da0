"""The hub's rules in the runner's own process, over a store that is at hand: no network, no disk, any clock.

What is the same for every hub of this kind is here; what a call costs, what time it is and where blobs are is for those
who inherit to say.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from fedfleet_coordinator import runs
from fedfleet_coordinator.clock import Now
from fedfleet_coordinator.errors import BadRequest, Fenced, Nondeterministic, RunIsOver, StaleEpoch
from fedfleet_coordinator.exchanges import Exchanges, writable
from fedfleet_coordinator.outbox import Outbox
from fedfleet_coordinator.rows import GridAnswer, Position, Run
from fedfleet_coordinator.runner.hub import Ending
from fedfleet_coordinator.store.port import Tx
from fedfleet_protocol.ids import AgentId, RunId
from fedfleet_protocol.messages import BlobRef, ExchangeView, Open

_T = TypeVar("_T")
Work = Callable[[Tx, Now, Outbox], _T]


class Anybody:
    """Grants every capability: in one process there is nobody to keep out."""

    def grant(self, *, method: str, blob: BlobRef, agent: AgentId, run: RunId, n: int, expires_wall: float) -> str:
        """Return what nobody checks."""
        return "granted"


class InProcessHub(ABC):
    """Those methods of a `Hub` that only ask the store.

    Attributes:
        run, epoch: which run's runner calls, and by what right. exchanges: the machine.
    """

    run: RunId
    epoch: str
    exchanges: Exchanges

    @abstractmethod
    def _call(self, work: Work[_T]) -> _T:
        """Do a runner's request in one transaction; what it raises is as `refused_as_told` says."""

    def look(self) -> tuple[Run, Position | None]:
        """Return the run, and where it goes on."""
        return self._call(lambda tx, now, out: (writable(tx, self.run, self.epoch), tx.get(Position, self.run)))

    def open(self, request: Open) -> ExchangeView:
        """Open an exchange, or return it."""
        return self._call(lambda tx, now, out: runs.open_exchange(tx, request, self.exchanges, now, out))

    def nodes(
        self, k: int, *, at_least: int, unlike: list[AgentId] | None, needs: int = 0
    ) -> tuple[list[AgentId], bool]:
        """Return the agents that are there."""
        return self._call(
            lambda tx, now, out: runs.node_ids(
                tx, self.run, self.epoch, k, now, out, at_least=at_least, unlike=unlike, needs=needs
            )
        )

    def answer(self, k: int, kind: str, value: Any) -> Any:
        """Record an answer, or return the recorded one."""

        def ask(tx: Tx, now: Now, out: Outbox) -> Any:
            if value is None:
                recorded = tx.get(GridAnswer, self.run, k)
                if recorded is not None and recorded.kind != kind:
                    raise BadRequest("an answer to another question")
                return recorded.value if recorded is not None else None
            return runs.answer(tx, self.run, self.epoch, k, kind, value).value

        return self._call(ask)

    def tell_metrics(self, server_round: int, kind: str, values: dict[str, Any], num_rounds: int) -> None:
        """Keep the metrics of a round."""
        self._call(
            lambda tx, now, out: runs.metrics(tx, self.run, self.epoch, server_round, kind, values, num_rounds, out)
        )

    def tell_left_out(self, n: int, why: dict[AgentId, tuple[str, str]]) -> None:
        """Note which replies do not count."""
        self._call(lambda tx, now, out: runs.left_out(tx, self.run, self.epoch, n, why, out))

    def end(self, state: Ending, reason: str, text: str, model: BlobRef | None) -> None:
        """End the run."""

        def finish(tx: Tx, now: Now, out: Outbox) -> Run:
            return runs.end_by_runner(tx, self.run, self.epoch, state, reason, text, model, self.exchanges, now, out)

        self._call(finish)


@contextmanager
def refused_as_told() -> Iterator[None]:
    """Turn what the rules raise into what the port promises."""
    try:
        yield
    except (StaleEpoch, RunIsOver) as error:
        raise Fenced(str(error)) from error
    except BadRequest as error:
        raise Nondeterministic(str(error)) from error
