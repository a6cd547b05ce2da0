"""State of every kind is the same after it was written and put back, and nothing is put back that could run code."""

import enum
import math
import random
from collections import OrderedDict, defaultdict, deque, namedtuple
from typing import Any

import msgspec
import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg
from hypothesis import given
from hypothesis import strategies as st

from fedfleet_coordinator.runner.freezing import Freezer, State, Thawer
from fedfleet_coordinator.runner.payloads import pack
from fedfleet_coordinator.runner.scratch import Scratch
from fedfleet_protocol.errors import Malformed
from fedfleet_protocol.records import encode

PLAIN = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(exclude_categories=()))
    | st.binary()
)
KEYS = st.integers() | st.text() | st.booleans() | st.tuples(st.integers(), st.text()) | st.none()
TREES = st.recursive(
    PLAIN,
    lambda inner: st.lists(inner) | st.dictionaries(KEYS, inner) | st.tuples(inner, inner) | st.sets(st.integers()),
    max_leaves=20,
)
Point = namedtuple("Point", "x y")  # noqa: PYI024


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


class Helper:
    def __init__(self) -> None:
        self.count = 0
        self.inner: Any = None


def there_and_back(before: State, after: State, known: dict[str, object] | None = None) -> tuple[Freezer, Thawer]:
    """Write `before` and put it back into `after`, as another process would have it."""
    freezer = Freezer(known or {})
    payload = pack(encode(freezer.freeze(before)), Scratch(__import__("pathlib").Path("/tmp")))
    thawer = Thawer(payload.stored, known or {})
    thawer.thaw(after)
    return freezer, thawer


def again(value: Any, old: Any = None) -> Any:
    after = State(value=old)
    freezer, thawer = there_and_back(State(value=value), after)
    assert not freezer.left_out and not thawer.left_out
    return after.__dict__["value"]


@given(TREES)
def test_plain_values_come_back_as_they_were(value: Any) -> None:
    found = again(value)
    assert repr(found) == repr(value)  # afterwards: sets are in the order that both have from now on


@pytest.mark.parametrize(
    "value",
    [
        np.arange(6).reshape(2, 3), np.zeros((0, 3)), np.asfortranarray(np.arange(6.0).reshape(2, 3)), np.array(3.5),
        np.array(["a", "bcd"]), np.array([1, 2], ">f4"), np.array([b"x"]), np.array([True]), np.arange(10)[::2],
        np.array(["2020-01-01"], "M8[D]"), np.zeros(2, [("a", "f4"), ("b", "i8")]), np.array([1 + 2j]),
    ],
)  # fmt: skip
def test_arrays_come_back_with_shape_dtype_order_and_are_writable(value: Any) -> None:
    found = again(value)
    assert found.dtype == value.dtype and found.shape == value.shape and np.array_equal(found, value)
    assert found.flags.f_contiguous == value.flags.f_contiguous or not value.flags.c_contiguous
    assert found.flags.writeable


@pytest.mark.parametrize("value", [np.float32(1.5), np.int8(-3), np.bool_(True), np.str_("x"), np.float16("nan")])
def test_numpy_scalars_keep_their_type(value: Any) -> None:
    found = again(value)
    assert type(found) is type(value) and (found == value or math.isnan(value))


def test_flowers_records_come_back_as_records() -> None:
    records = RecordDict({
        "a": ArrayRecord({"x": Array(np.arange(3)), "y": Array("float32", (1,), "other", b"raw")}),
        "m": MetricRecord({"loss": [0.5, 1.0], "n": 3}), "c": ConfigRecord({"b": b"\xff", "s": ["x"], "f": False}),
    })  # fmt: skip
    found = again(records)
    assert found == records and type(found) is RecordDict and type(found["a"]) is ArrayRecord


def test_generators_go_on_where_they_were() -> None:
    for make in (random.Random, np.random.RandomState, np.random.default_rng):
        before, after = make(1), make(2)
        before.random()
        assert again(before, after) is after
        assert [after.random() for _ in range(3)] == [before.random() for _ in range(3)]


def test_containers_are_refilled_and_keep_their_type() -> None:
    for old, new in (
        ([9], [1, 2]), ({"a": 9}, {"b": 1}), ({9}, {1}), (deque([9], maxlen=3), deque([1, 2], maxlen=3)),
        (defaultdict(int, a=9), defaultdict(int, b=2)), (OrderedDict(a=9), OrderedDict(b=2)),
    ):  # fmt: skip
        found = again(new, old)
        assert found is old and found == new
    assert again(Point(1, [2]), Point(0, [])) == Point(1, [2]) and type(again(Point(1, 2), Point(0, 0))) is Point
    assert again(frozenset({1}), frozenset()) == frozenset({1})
    assert again(bytearray(b"xy")) == bytearray(b"xy")


def test_two_names_for_one_thing_are_one_thing_again() -> None:
    shared, array = [1], np.arange(3)
    before, after = State(a=shared, b={"x": shared}, c=array, d=(array,)), State(a=None, b=None, c=None, d=None)
    there_and_back(before, after)
    found: Any = after
    assert found.a is found.b["x"] and found.c is found.d[0]


def test_a_thing_that_holds_itself_comes_back() -> None:
    ring: list[Any] = [1]
    ring.append(ring)
    found = again(ring)
    assert found[0] == 1 and found[1] is found


def test_known_things_are_not_written_again() -> None:
    model = ArrayRecord({"w": Array(np.zeros(1000))})
    before, after = State(model=model, other=[model]), State(model=None, other=None)
    freezer = Freezer({"arrays": model})
    assert sum(len(one.arrays) for one in freezer.freeze(before)) == 0
    there_and_back(before, after, {"arrays": model})
    assert after.__dict__["model"] is model and after.__dict__["other"][0] is model


def test_helpers_are_put_back_into_the_objects_the_app_made() -> None:
    before, after = Helper(), Helper()
    before.count, before.inner, after.inner = 3, Helper(), Helper()
    before.inner.count = 4
    mine = after.inner
    assert again(before, after) is after
    assert after.count == 3 and after.inner is mine and mine.count == 4


def test_a_helper_that_the_app_did_not_make_again_is_told() -> None:
    before, after = Helper(), Helper()
    before.inner = Helper()
    state = State(value=after)
    _, thawer = there_and_back(State(value=before), state)
    assert thawer.left_out == ["value.inner"] and after.inner is None


def test_enums_and_functions_in_attributes_stay_what_the_app_made() -> None:
    before, after = Helper(), Helper()
    before.inner, after.inner = Colour.BLUE, Colour.RED
    assert again(before, after).inner is Colour.BLUE
    before.inner, after.inner = print, len
    assert again(before, after).inner is len


def test_of_a_strategy_only_the_attribute_that_cannot_be_written_is_left_out() -> None:
    before, after = FedAvg(), FedAvg()
    before.__dict__.update(good=[1], bad=[print], worse={Colour.RED: 1}, wave=(i for i in "ab"), ugly=[object()])
    freezer, _ = there_and_back(State(strategy=before), State(strategy=after))
    assert sorted(freezer.left_out) == ["state.strategy.bad", "state.strategy.ugly", "state.strategy.worse"]
    assert after.__dict__["good"] == [1] and "bad" not in after.__dict__
    again_skipping = Freezer({}, skip=set(freezer.left_out))
    again_skipping.freeze(State(strategy=before))
    assert not again_skipping.left_out


def test_torch_tensors_modules_and_optimizers_come_back() -> None:
    torch = pytest.importorskip("torch")
    before, after = torch.nn.Linear(2, 3), torch.nn.Linear(2, 3)
    assert again(before, after) is after and torch.equal(before.weight, after.weight)
    tensor = torch.arange(3)
    assert torch.equal(again(tensor), tensor)
    old = torch.zeros(3, dtype=tensor.dtype)
    assert again(tensor, old) is old and torch.equal(old, tensor)


def test_a_checkpoint_that_is_none_is_refused(tmp_path: Any) -> None:
    payload = pack(encode(), Scratch(tmp_path))
    with pytest.raises(Malformed):
        Thawer(payload.stored, {})
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(["-"])) == ["-"]


@given(st.lists(st.integers()), st.lists(st.integers()))
def test_a_set_has_the_same_order_here_and_there(added: list[int], removed: list[int]) -> None:
    live = set(added) | set(removed)
    live -= set(removed)
    for old in (None, {7, 8, 9}, set(range(1000))):
        found = again(live, old)
        assert list(found) == list(live)
