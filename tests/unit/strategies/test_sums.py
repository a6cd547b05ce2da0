"""The running fold: numbers from paper, and the same sum in any grouping."""

from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord
from hypothesis import given, settings
from hypothesis import strategies as st

from fedfleet_strategies import columns
from fedfleet_strategies.errors import Refused
from fedfleet_strategies.layout import Layout
from fedfleet_strategies.sums import Sum
from fedfleet_strategies.updates import Source, Update, finite

F32 = np.dtype(np.float32)


def update(delta: Any, weight: float = 1.0, **rest: Any) -> Update:
    return Update(1, weight, delta=np.array(delta, np.float32), ints=np.zeros(1), **rest)


def summed(updates: list[Update], d: int = 3) -> Sum:
    total = Sum(d, 1, F32)
    for one in updates:
        total.add(one)
    return total


def test_deltas_average_by_weight_and_extras_by_device() -> None:
    one = update([1, 2, 3], 1, extra={"c": np.ones(3, np.float32)}, scalars={"t": 2.0})
    other = update([4, 5, 6], 3, extra={"c": np.zeros(3, np.float32)}, scalars={"t": 5.0})
    found = summed([one, other]).aggregate()
    assert found.delta.tolist() == [3.25, 4.25, 5.25]
    assert found.extra["c"].tolist() == [0.5] * 3 and found.scalars == {"t": 7.0}
    assert (found.weight, found.count) == (4.0, 2)


@pytest.mark.parametrize("updates", [[], [update([1, 2, 3], 0)]])
def test_no_update_and_no_weight_have_no_mean(updates: list[Update]) -> None:
    with pytest.raises(Refused, match=r"no update|sum to 0"):
        summed(updates).aggregate()


deltas = st.lists(st.floats(-1e3, 1e3, width=32), min_size=3, max_size=3)
weighed = st.tuples(deltas, st.floats(0.125, 100, width=32))


@settings(max_examples=60, deadline=None)
@given(st.lists(weighed, min_size=2, max_size=9), st.data())
def test_any_grouping_is_the_same_sum_within_rounding(given_: list[Any], data: Any) -> None:
    cut = data.draw(st.integers(0, len(given_)))
    order = data.draw(st.permutations(given_))
    whole = summed([update(d, w) for d, w in given_]).aggregate()
    left, right = (summed([update(d, w) for d, w in part]) for part in (order[:cut], order[cut:]))
    left = Sum.from_records(left.to_records("buffer"), "buffer")
    left.merge(right)
    parts = left.aggregate()
    scale = max(abs(x) for d, _ in given_ for x in d) + 1e-3
    np.testing.assert_allclose(parts.delta, whole.delta, atol=1e-5 * scale)
    assert parts.weight == pytest.approx(whole.weight) and parts.count == whole.count


def test_reading_replies_where_they_lie_gives_the_bits_of_adding_their_deltas() -> None:
    rng = np.random.default_rng(1)
    shapes = [(3, 5), (), (70_001,), (0,), (2 * columns.SEGMENT + 3,)]

    def a_model() -> ArrayRecord:
        return ArrayRecord({str(i): Array(np.asarray(rng.normal(size=s), np.float32)) for i, s in enumerate(shapes)})

    sent = a_model()
    layout = Layout.of(sent)
    was = layout.views(sent)
    fast, clear = Sum(layout.d, layout.k, layout.dtype), Sum(layout.d, layout.k, layout.dtype)
    for weight in range(1, 20):
        views = layout.views(a_model())
        fast.add(Update(weight, weight, source=Source(layout, views, was)))
        clear.add(Update(weight, weight, delta=Source(layout, views, was).delta(), ints=np.zeros(0)))
    np.testing.assert_array_equal(fast.aggregate().delta, clear.aggregate().delta)


def test_what_overflows_in_a_thread_is_silent_and_found() -> None:
    huge = np.full(2 * columns.SEGMENT, 3e38, np.float32)
    total = Sum(huge.size, 0, F32)
    for _ in range(2):
        total.add(Update(1, 1.0, delta=huge, ints=np.zeros(0)))
    assert not finite(total.aggregate().delta)


def test_one_thread_and_many_give_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    delta = np.random.default_rng(2).normal(size=3 * columns.SEGMENT + 17).astype(np.float32)
    found = []
    for threads in (1, 4):
        monkeypatch.setattr(columns, "_THREADS", threads)
        total = Sum(delta.size, 0, F32)
        for weight in (3.0, 5.0):
            total.add(Update(1, weight, delta=delta * np.float32(weight), ints=np.zeros(0)))
        found.append(total.aggregate().delta)
    np.testing.assert_array_equal(found[0], found[1])
