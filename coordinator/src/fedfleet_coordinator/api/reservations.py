"""Whose uploads keep room in the blob folder, and for which task.

An upload counts whole against the quota from its beginning. An agent announces what it likes, so it may have
`PER_AGENT` uploads under way; one more takes the place of its oldest, and what was begun for a task that is settled
goes. Pure: the caller gives up the digests that are returned.
"""

from collections.abc import Collection

from fedfleet_protocol.ids import AgentId, Digest, RunId

PER_AGENT = 2
"""The reply that is wanted, and one whose bytes changed while it was under way."""
TaskKey = tuple[RunId, int, AgentId]


class Reservations:
    """Uploads of agents that were begun and are not whole."""

    def __init__(self) -> None:
        self._held: dict[AgentId, dict[Digest, TaskKey]] = {}

    def take(self, task: TaskKey, digest: Digest) -> list[Digest]:
        """Note that an agent begins, or goes on with, an upload for its task; return what it gives up for it."""
        held = self._held.setdefault(task[2], {})
        held.pop(digest, None)
        held[digest] = task
        return self._given_up([(task[2], one) for one in list(held)[:-PER_AGENT]])

    def done(self, digest: Digest) -> None:
        """Note that an upload is whole."""
        for agent in list(self._held):
            self._drop(agent, digest)

    def tasks(self) -> set[TaskKey]:
        """Return the tasks for which something is under way."""
        return {task for held in self._held.values() for task in held.values()}

    def settle(self, tasks: Collection[TaskKey]) -> list[Digest]:
        """Note that these tasks want nothing any more; return what is to be given up."""
        return self._given_up(
            [(agent, one) for agent, held in self._held.items() for one, task in held.items() if task in tasks]
        )

    def _given_up(self, dropped: list[tuple[AgentId, Digest]]) -> list[Digest]:
        for agent, digest in dropped:
            self._drop(agent, digest)
        # Two agents may bring the same bytes: what one of them still brings stays.
        return [one for _, one in dropped if not any(one in held for held in self._held.values())]

    def _drop(self, agent: AgentId, digest: Digest) -> None:
        held = self._held.get(agent, {})
        held.pop(digest, None)
        if not held:
            self._held.pop(agent, None)
