"""The model as one vector: what goes in comes out, whatever the types, and what cannot be averaged is told."""

from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedfleet_strategies.errors import AppFault, Incompatible
from fedfleet_strategies.layout import Layout, view
from tests.unit.strategies.fleet import model

DTYPES = [np.float16, np.float32, np.float64, np.int8, np.uint8, np.int64, np.bool_]


@st.composite
def arrays(draw: Any) -> Any:
    kind = draw(st.sampled_from(DTYPES))
    elements = {"min_value": -100, "max_value": 100} if np.dtype(kind).kind in "fi" else {}
    return draw(
        hnp.arrays(kind, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4), elements=elements or None)
    )


@settings(max_examples=60, deadline=None)
@given(st.lists(arrays(), min_size=1, max_size=4), st.booleans())
def test_a_model_goes_through_the_vectors_unchanged(values: list[Any], fortran: bool) -> None:
    made = ArrayRecord(
        {str(i): Array(np.asfortranarray(one) if fortran and one.ndim else one) for i, one in enumerate(values)}
    )
    layout = Layout.of(made)
    again = layout.record(*layout.flat(made))
    for name, array in made.items():
        np.testing.assert_array_equal(again[name].numpy(), array.numpy())
        assert again[name].numpy().dtype == array.numpy().dtype and again[name].shape == array.shape


def test_the_vector_is_as_wide_as_the_widest_float() -> None:
    assert Layout.of(model(1.0, dtype=np.float16)).dtype == np.float32
    two = ArrayRecord({"a": Array(np.zeros(2, np.float32)), "b": Array(np.zeros(2, np.float64))})
    assert Layout.of(two).dtype == np.float64


def test_integers_are_rounded_half_to_even_and_saturate() -> None:
    made = ArrayRecord(
        {"i": Array(np.zeros(4, np.int8)), "b": Array(np.zeros(2, np.bool_)), "l": Array(np.zeros(2, np.int64))}
    )
    layout = Layout.of(made)
    found = layout.record(np.zeros(0, np.float32), np.array([0.5, 1.5, 400, -400, 0.5, 0.51, 1e30, -1e30]))
    assert found["i"].numpy().tolist() == [0, 2, 127, -128]
    assert found["b"].numpy().tolist() == [False, True]
    assert found["l"].numpy().tolist() == [2**63 - 1, -(2**63)]


def test_bfloat16_is_widened_and_rounded_half_to_even() -> None:
    bits = np.array([0x3F80, 0x4000, 0xC040], np.uint16).view("V2")
    array = Array("bfloat16", (3,), "numpy.ndarray", Array(bits).data)
    layout = Layout.of(ArrayRecord({"w": array}))
    x, ints = layout.flat(ArrayRecord({"w": array}))
    assert x.tolist() == [1.0, 2.0, -3.0] and x.dtype == np.float32 and layout.half
    again = layout.record(x, ints)["w"]
    assert again.dtype == "bfloat16" and again.data == array.data
    near = np.array([0x3F808000, 0x3F818000, 0x3F808001], np.uint32).view(np.float32)
    rounded = layout.record(near, ints)["w"].numpy().view(np.uint16)
    assert [hex(one) for one in rounded] == ["0x3f80", "0x3f82", "0x3f81"]


@pytest.mark.parametrize("value", [np.zeros(2, np.complex64), np.array(["a"])])
def test_what_cannot_be_averaged_is_told_with_its_name(value: Any) -> None:
    with pytest.raises(Incompatible, match="'odd'"):
        Layout.of(ArrayRecord({"odd": Array(value)}))


def test_local_arrays_are_left_out_and_stay_in_the_record() -> None:
    made = ArrayRecord({"w": Array(np.ones(2, np.float32)), "bn.w": Array(np.full(3, 7, np.float32))})
    layout = Layout.of(made, ("bn.*",))
    assert layout.d == 2 and layout.local == ("bn.w",)
    x, ints = layout.flat(made)
    assert layout.record(x + 1, ints, made)["bn.w"] is made["bn.w"]
    layout.views(ArrayRecord({"w": Array(np.ones(2, np.float32))}))


@pytest.mark.parametrize(
    ("reply", "told"),
    [
        ({"w": np.ones(2, np.float32)}, "lacks 'b'"),
        ({"w": np.ones(2, np.float32), "b": np.ones(1), "z": np.ones(1)}, "has 'z'"),
        ({"w": np.ones(3, np.float32), "b": np.ones(1)}, "shape"),
        ({"w": np.ones(2, np.int32), "b": np.ones(1)}, "is of int32"),
    ],
)
def test_a_reply_that_does_not_fit_says_what_differs(reply: dict[str, Any], told: str) -> None:
    layout = Layout.of(ArrayRecord({"w": Array(np.ones(2, np.float32)), "b": Array(np.ones(1, np.float32))}))
    with pytest.raises(AppFault, match=told):
        layout.views(ArrayRecord({name: Array(value) for name, value in reply.items()}))


def test_a_wider_float_is_cast_to_the_one_sent() -> None:
    layout = Layout.of(model([1.0, 2.0]))
    views = layout.views(model([0.1, 2.0], dtype=np.float64))
    assert views.floats[0].dtype == np.float32 and views.floats[0][0] == np.float32(0.1)


def test_looking_at_an_array_copies_nothing() -> None:
    array = Array(np.arange(6.0).reshape(2, 3))
    seen = view(array)
    assert seen.tolist() == [[0, 1, 2], [3, 4, 5]] and not seen.flags.owndata and not seen.flags.writeable
