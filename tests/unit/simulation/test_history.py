"""What is remembered of exchanges whose rows are gone."""

from fedfleet_coordinator.rows import Exchange, Task
from fedfleet_coordinator.simulation.devices import name_of
from fedfleet_coordinator.simulation.history import History
from fedfleet_protocol.exchange import ExchangeState, TaskState
from fedfleet_protocol.ids import run_id

RUN = run_id(bytes(16))


def tasks(n: int, *states: TaskState, code: str = "") -> list[Task]:
    return [Task(run=RUN, n=n, agent=name_of(i), state=state, code=code) for i, state in enumerate(states)]


def closed(n: int, reason: str) -> Exchange:
    return Exchange(run=RUN, n=n, state=ExchangeState.CLOSED, reason=reason, expected=3, accepted=1)


def test_every_task_is_counted_once_by_what_became_of_it() -> None:
    history = History()
    history.note(closed(1, "deadline"), tasks(1, TaskState.ACCEPTED, TaskState.MISSED, TaskState.MISSED))
    history.note(closed(2, "all"), tasks(2, TaskState.DECLINED, code="killed"))
    history.note(closed(3, "all"), tasks(3, TaskState.ACCEPTED, code="not_finite"))
    told = history.as_json()
    assert told["exchanges"] == {"deadline": 1, "all": 2}
    assert (told["tasks"], told["replies"], told["missed"], told["left_out"]) == (5, 2, 2, 1)
    assert told["declined"] == {"killed": 1}
    assert [one["n"] for one in history.closed] == [1, 2, 3]


def test_the_picture_has_the_first_sixty_agents_only() -> None:
    history = History()
    for n in (1, 2):
        history.note(closed(n, "all"), tasks(n, *[TaskState.ACCEPTED] * 500))
    assert len(history.spans) == 120
