"""Arrays that are a part of the model's vector are Flower's arrays to everybody."""

import copy
import io
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord

from fedfleet_flower.arrays import split
from fedfleet_strategies.flat_array import FlatArray
from fedfleet_strategies.layout import view


@pytest.fixture(params=[(2, 3), (6,), (), (0, 4)])
def both(request: pytest.FixtureRequest) -> Any:
    size = int(np.prod(request.param))
    vector = np.arange(10, dtype=np.float32)
    values = vector[2 : 2 + size]
    return FlatArray(values, request.param), Array(values.reshape(request.param).copy()), vector


def test_it_is_the_array_that_flower_makes(both: Any) -> None:
    flat, plain, _ = both
    assert (flat.dtype, flat.shape, flat.stype) == (plain.dtype, plain.shape, plain.stype)
    assert flat == plain and flat.object_id == plain.object_id
    np.testing.assert_array_equal(np.load(io.BytesIO(flat.data)), plain.numpy())
    assert type(copy.deepcopy(flat)) is Array and copy.deepcopy(flat) == plain
    record = ArrayRecord()
    record["a"] = flat
    assert record["a"] is flat and record.object_id == ArrayRecord({"a": plain}).object_id


def test_what_an_app_does_to_its_array_does_not_reach_the_model(both: Any) -> None:
    flat, _, vector = both
    flat.numpy()[...] = -1
    assert vector.tolist() == list(range(10))
    flat.data = Array(np.zeros(1)).data
    assert flat.numpy().tolist() == [0.0] and flat.split() is None and flat.values() is None


def test_its_parts_are_told_without_a_copy(both: Any) -> None:
    flat, plain, vector = both
    prefix, raw = split(flat)
    assert prefix + bytes(raw) == plain.data
    if len(raw):
        assert np.shares_memory(np.frombuffer(raw, np.uint8), vector) and np.shares_memory(view(flat), vector)
