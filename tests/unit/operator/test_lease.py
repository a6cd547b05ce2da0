"""The Lease in virtual time: never two that act, whatever the API server does."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from fedfleet_coordinator.operator.cluster import REQUEST_S, Conflict, NotThere, Unreachable
from fedfleet_coordinator.operator.lease import Holder, Terms

Json = dict[str, Any]


class MemoryLeases:
    """One Lease with optimistic locking; `cut` holds the identities of those who are not heard."""

    def __init__(self) -> None:
        self.lease: Json | None = None
        self.version = 0
        self.cut = False

    def get(self, path: str) -> Json:
        self._reached()
        if self.lease is None:
            raise NotThere(path)
        return dict(self.lease)

    def create(self, path: str, body: Json) -> Json:
        self._reached()
        if self.lease is not None:
            raise Conflict(path)
        return self._put(body)

    def replace(self, path: str, body: Json) -> Json:
        self._reached()
        if body["metadata"].get("resourceVersion") != str(self.version):
            raise Conflict(path)
        return self._put(body)

    def _put(self, body: Json) -> Json:
        self.version += 1
        self.lease = body | {"metadata": body["metadata"] | {"resourceVersion": str(self.version)}}
        return self.lease

    def _reached(self) -> None:
        if self.cut:
            raise Unreachable("cut")


class Link:
    """One candidate's way to the Lease."""

    def __init__(self, leases: MemoryLeases) -> None:
        self._leases, self.cut, self.loses_answers = leases, False, False

    def _through(self, call: Any, *arguments: Any) -> Json:
        if self.cut:
            raise Unreachable("cut")
        answer: Json = call(*arguments)
        if self.loses_answers:
            raise Unreachable("the answer was lost")
        return answer

    def get(self, path: str) -> Json:
        return self._through(self._leases.get, path)

    def create(self, path: str, body: Json) -> Json:
        return self._through(self._leases.create, path, body)

    def replace(self, path: str, body: Json) -> Json:
        return self._through(self._leases.replace, path, body)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def _pair() -> tuple[Clock, list[Link], list[Holder]]:
    clock, leases = Clock(), MemoryLeases()
    links = [Link(leases), Link(leases)]
    holders = [
        Holder(link, namespace="hub", name="operator", identity=f"op-{n}", monotonic=clock, wall=clock)
        for n, link in enumerate(links)
    ]
    return clock, links, holders


def _try(holder: Holder) -> None:
    try:
        holder.attempt()
    except Unreachable:
        pass


def test_first_one_acts_and_the_second_waits() -> None:
    _, _, (first, second) = _pair()
    assert first.attempt() is True
    assert second.attempt() is False
    assert (first.acting(), second.acting()) == (True, False)


def test_holder_without_an_api_server_stops_acting_at_its_renew_deadline() -> None:
    clock, links, (first, _) = _pair()
    first.attempt()
    links[0].cut = True
    clock.now = 9.9
    _try(first)
    assert first.acting()
    clock.now = 10.0
    _try(first)
    assert not first.acting()


def test_second_one_takes_over_after_the_duration_and_a_margin_longer_than_a_request() -> None:
    clock, links, (first, second) = _pair()
    first.attempt()
    second.attempt()
    links[0].cut = True
    clock.now = 14.9
    assert second.attempt() is False
    clock.now = 15.0
    assert second.attempt() is True
    terms = Terms()
    assert terms.duration_s - terms.renew_deadline_s > REQUEST_S


def test_lease_that_is_handed_back_is_taken_at_once() -> None:
    clock, _, (first, second) = _pair()
    first.attempt()
    second.attempt()
    clock.now = 1.0
    first.stop()
    assert second.attempt() is True
    assert not first.acting()


def test_holder_that_comes_back_finds_the_lease_taken() -> None:
    clock, links, (first, second) = _pair()
    first.attempt()
    second.attempt()
    links[0].cut = True
    clock.now = 16.0
    second.attempt()
    links[0].cut = False
    assert first.attempt() is False


_STEPS = st.lists(
    st.tuples(
        st.sampled_from(["try-0", "try-1", "cut-0", "heal-0", "cut-1", "heal-1", "lose-0", "find-0", "wait"]),
        st.floats(0.0, 8.0),
    ),
    max_size=60,
)


@given(steps=_STEPS)
def test_never_do_two_act(steps: list[tuple[str, float]]) -> None:
    clock, links, holders = _pair()
    for what, after_s in steps:
        clock.now += after_s
        verb, _, who = what.partition("-")
        match verb:
            case "try":
                _try(holders[int(who)])
            case "cut" | "heal":
                links[int(who)].cut = verb == "cut"
            case "lose" | "find":
                links[int(who)].loses_answers = verb == "lose"
        assert not all(holder.acting() for holder in holders)
