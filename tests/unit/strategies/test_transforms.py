"""Transforms: what comes out is close to what went in, and right on average where they claim it."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedfleet_strategies.errors import Incompatible, Refused
from fedfleet_strategies.transforms import Call, Transform, named
from fedfleet_strategies.transforms.rotated import BLOCK, LEVELS

NAMES = ["plain", "bfloat16", "int8", "rotated-1", "rotated-2", "rotated-3", "rotated-4", "topk-0.1", "topk-1.0"]
UNBIASED = [name for name in NAMES if named(name).unbiased]
VECTORS = arrays(np.float32, st.integers(0, 3000), elements=st.floats(-1e6, 1e6, width=32))


def there_and_back(transform: Transform, x: Any, seed: int = 0) -> Any:
    return transform.decode(transform.encode(x, Call(np.random.default_rng(seed))), x.size)


def relative(y: Any, x: Any) -> float:
    return float(((y - x) ** 2).sum() / (x.astype(np.float64) ** 2).sum())


@pytest.mark.parametrize("name", NAMES)
def test_a_name_finds_its_transform(name: str) -> None:
    assert named(name).name == name


@pytest.mark.parametrize("name", ["", "int4", "rotated", "rotated-5", "topk-0", "topk-nan", "topk-2", "os.system"])
def test_a_name_that_is_none_is_refused_with_those_there_are(name: str) -> None:
    with pytest.raises(Incompatible, match="rotated-1 to rotated-4"):
        named(name)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=30)
@given(x=VECTORS, seed=st.integers(0, 2**32))
def test_any_vector_comes_back_in_its_length_and_finite(name: str, x: Any, seed: int) -> None:
    before = x.copy()
    y = there_and_back(named(name), x, seed)
    assert y.dtype == np.float32 and y.shape == x.shape and np.isfinite(y).all()
    assert np.array_equal(before, x)


@settings(max_examples=50)
@given(x=VECTORS, seed=st.integers(0, 2**32))
def test_errors_keep_their_bounds(x: Any, seed: int) -> None:
    assert (np.abs(there_and_back(named("bfloat16"), x, seed) - x) <= np.abs(x) / 128 + 1e-38).all()
    step = max(abs(x.min()), abs(x.max())) / 127 if x.size else 0.0
    assert (np.abs(there_and_back(named("int8"), x, seed) - x) <= step * (1 + 1e-5) + 1e-35).all()
    assert np.array_equal(there_and_back(named("topk-1.0"), x, seed), x)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_comes_back_as_nothing(name: str) -> None:
    assert not there_and_back(named(name), np.zeros(2500, np.float32)).any()


@pytest.mark.parametrize("name", ["bfloat16", "int8"])
def test_the_mean_of_many_codes_is_the_vector(name: str) -> None:
    x = np.random.default_rng(1).normal(size=200).astype(np.float32)
    found = np.array([there_and_back(named(name), x, seed) for seed in range(4000)], np.float64)
    apart, error = found.mean(0) - x, found.std(0) / math.sqrt(4000)
    # What happens to one code in a thousand may not have happened here.
    rare = 10 / 4000 * (np.abs(x) / 128 if name == "bfloat16" else np.abs(x).max() / 127)
    assert (np.abs(apart) <= 5 * error + rare).all()
    assert error.max() > 0


@pytest.mark.parametrize("name", ["rotated-1", "rotated-2", "rotated-3", "rotated-4"])
@pytest.mark.parametrize("values", [(1.0,), (3.0, 1.0), (1.0, 1.0), tuple(range(1, 1001))])
def test_the_mean_of_many_rotated_codes_is_near_the_vector_even_if_it_is_sparse(name: str, values: Any) -> None:
    x = np.zeros(BLOCK, np.float32)
    x[: len(values)] = values
    many, transform = 400, named(name)
    found = np.array([there_and_back(transform, x, seed) for seed in range(many)], np.float64)
    # The squared error of the mean, less what the mean of so many has by chance.
    bias = relative(found.mean(0), x) - found.var(0).sum() / many / (x.astype(np.float64) ** 2).sum()
    assert bias < 0.012**2
    # Along the vector there is no error at all: that is what the scale is for.
    np.testing.assert_allclose(found @ x, x @ x, rtol=1e-4)


@pytest.mark.parametrize(("bits", "published"), [(1, 0.5708), (2, 0.1331), (3, 0.0358), (4, 0.0096)])
def test_rotated_codes_have_the_published_error(bits: int, published: float) -> None:
    errors = []
    for seed in range(20):
        x = np.random.default_rng(seed).lognormal(size=20 * BLOCK).astype(np.float32)
        errors.append(relative(there_and_back(named(f"rotated-{bits}"), x, seed), x))
    assert np.mean(errors) == pytest.approx(published, rel=0.03)


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_levels_are_the_centres_of_mass_of_their_cells(bits: int) -> None:
    levels = LEVELS[bits]
    borders = [0.0, *((a + b) / 2 for a, b in itertools.pairwise(levels)), 40.0]
    for level, low, high in zip(levels, borders[:-1], borders[1:], strict=True):
        density = [math.exp(-(t**2) / 2) / math.sqrt(2 * math.pi) for t in (low, high)]
        mass = (math.erf(high / math.sqrt(2)) - math.erf(low / math.sqrt(2))) / 2
        assert level == pytest.approx((density[0] - density[1]) / mass, abs=1e-8)


@pytest.mark.parametrize(
    ("name", "most"),
    [("bfloat16", 0.5), ("int8", 0.251), ("rotated-4", 0.1262), ("rotated-1", 0.0324), ("topk-0.01", 0.02)],
)
def test_a_code_is_as_short_as_it_says(name: str, most: float) -> None:
    x = np.ones(1_000_000, np.float32)
    encoded = named(name).encode(x, Call(np.random.default_rng(0)))
    assert sum(array.nbytes for array in encoded.values()) / x.nbytes <= most


def test_what_top_k_keeps_is_exactly_what_did_not_travel() -> None:
    transform, rng = named("topk-0.05"), np.random.default_rng(5)
    memory: dict[str, Any] = {}
    came, went = np.zeros(400), np.zeros(400)
    for _ in range(50):
        x = rng.integers(-8, 9, 400).astype(np.float32)
        call = Call(rng, memory)
        went += x
        came += transform.decode(transform.encode(x, call), 400)
        memory = call.kept
    np.testing.assert_array_equal(came + memory["rest"], went)


def test_top_k_sends_the_largest_magnitudes() -> None:
    x = np.array([1, -9, 3, 0, 8, 2], np.float32)
    assert there_and_back(named("topk-0.34"), x).tolist() == [0, -9, 0, 0, 8, 0]


def test_the_memory_of_another_model_is_forgotten() -> None:
    call = Call(np.random.default_rng(0), {"rest": np.ones(7, np.float32)})
    named("topk-0.5").encode(np.array([1, 2], np.float32), call)
    assert call.kept["rest"].tolist() == [1, 0]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_not_encoded(name: str, value: float) -> None:
    with pytest.raises(ValueError, match="cannot be encoded"):
        named(name).encode(np.array([1.0, value]), Call(np.random.default_rng(0)))


def test_bfloat16_rounds_nothing_to_infinity() -> None:
    x = np.array([3.4e38, -3.4e38, 1.0], np.float32)
    assert all(np.isfinite(there_and_back(named("bfloat16"), x, seed)).all() for seed in range(20))


@pytest.mark.parametrize("name", NAMES)
def test_a_code_that_is_none_is_refused(name: str) -> None:
    transform, x = named(name), np.ones(2000, np.float32)
    good = transform.encode(x, Call(np.random.default_rng(0)))
    with pytest.raises(Refused, match="is missing"):
        transform.decode({}, 2000)
    for key in good:
        with pytest.raises(Refused, match=f"code's '{key}'"):
            transform.decode(good | {key: good[key].astype(np.complex64)}, 2000)
        if key != "seed":
            with pytest.raises(Refused, match=f"code's '{key}'"):
                transform.decode(good | {key: good[key][..., :-1]}, 2000)


@pytest.mark.parametrize(("name", "key"), [("int8", "steps"), ("rotated-4", "scales")])
def test_a_code_with_infinity_is_refused(name: str, key: str) -> None:
    transform, x = named(name), np.ones(2000, np.float32)
    good = transform.encode(x, Call(np.random.default_rng(0)))
    with pytest.raises(Refused, match="NaN or infinity"):
        transform.decode(good | {key: np.full_like(good[key], np.inf)}, 2000)


@pytest.mark.parametrize("places", [[0, 0], [1, 0], [0, 4]])
def test_places_that_are_not_in_order_or_not_in_the_vector_are_refused(places: list[int]) -> None:
    code = {"places": np.array(places, np.uint32), "values": np.ones(2, np.float32)}
    with pytest.raises(Refused, match="places"):
        named("topk-0.5").decode(code, 4)
