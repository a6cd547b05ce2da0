from fedfleet_coordinator.api.reservations import PER_AGENT, Reservations
from fedfleet_protocol.ids import Digest, agent_id, run_id

RUN, A, B = run_id(bytes(16)), agent_id(bytes([1]) * 16), agent_id(bytes([2]) * 16)


def test_one_upload_too_many_takes_the_place_of_the_agents_own_oldest() -> None:
    held = Reservations()
    names = [Digest(f"{number:064x}") for number in range(PER_AGENT + 1)]
    held.take((RUN, 1, B), Digest("b" * 64))
    for name in names[:-1]:
        assert held.take((RUN, 1, A), name) == []
    assert held.take((RUN, 1, A), names[0]) == [], "going on with an upload makes it the newest"
    assert held.take((RUN, 1, A), names[-1]) == [names[1]]


def test_what_another_agent_brings_as_well_stays() -> None:
    held, same = Reservations(), Digest("a" * 64)
    held.take((RUN, 1, A), same)
    held.take((RUN, 1, B), same)
    assert held.settle({(RUN, 1, A)}) == []
    assert held.tasks() == {(RUN, 1, B)}
    assert held.settle({(RUN, 1, B)}) == [same]
    assert held.tasks() == set()


def test_what_is_whole_is_not_given_up() -> None:
    held, whole = Reservations(), Digest("a" * 64)
    held.take((RUN, 1, A), whole)
    held.done(whole)
    assert held.settle({(RUN, 1, A)}) == [] and held.tasks() == set()
