"""The model as one flat vector, and where each array lies in it.

Floats (16, 32 and 64 bits, and bfloat16) lie in one vector of float32, or of float64 if any of them is. Integers and
booleans lie in a vector of their own, of float64: they are averaged by the same rule, rounded half to even and
saturated at the ends of their type. Nothing else can be averaged.
"""

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import prod
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord
from numpy.typing import NDArray

from fedfleet_strategies import columns
from fedfleet_strategies.errors import AppFault, Incompatible, Refused
from fedfleet_strategies.flat_array import FlatArray, serialised

Vector = NDArray[Any]
"""One axis of float32 or float64."""
NUMPY = "numpy.ndarray"
BFLOAT16 = "bfloat16"
_LITTLE = 1 << 16
_READERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


@dataclass(frozen=True, slots=True)
class Slot:
    """One array of the model.

    Attributes:
        dtype: what numpy calls its type, or "bfloat16".
        start, stop: where it lies in the vector of floats, or of integers.
        integer: which of the two.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    start: int
    stop: int
    integer: bool


@dataclass(frozen=True, slots=True)
class Layout:
    """Where each array of a model lies.

    Attributes:
        floats, integers: the arrays that are averaged, in the order of the model.
        local: names of arrays that stay on each device; they are sent, and never come back.
        order: all names, as the model has them.
        dtype: of the vector of floats. d, k: lengths of both vectors.
        starts: where each float array begins.
        half: whether an array has fewer than 32 bits, so that the server keeps a float32 master of the model.
    """

    floats: tuple[Slot, ...]
    integers: tuple[Slot, ...]
    local: tuple[str, ...]
    order: tuple[str, ...]
    dtype: np.dtype[Any]
    d: int
    k: int
    half: bool
    starts: tuple[int, ...] = ()

    @classmethod
    def of(cls, arrays: ArrayRecord, local: Sequence[str] = ()) -> "Layout":
        """Return the layout of a model.

        Args:
            local: patterns (as of file names) of the arrays that stay on the devices.

        Raises:
            Incompatible: an array is neither of floats nor of integers, or nothing is left to average.
        """
        floats: list[Slot] = []
        integers: list[Slot] = []
        stay: list[str] = []
        for name, array in arrays.items():
            if any(fnmatchcase(name, pattern) for pattern in local):
                stay.append(name)
                continue
            dtype = BFLOAT16 if array.dtype == BFLOAT16 else view(array).dtype.str
            kind = "f" if dtype == BFLOAT16 else np.dtype(dtype).kind
            if kind not in "fiub" or (dtype != BFLOAT16 and np.dtype(dtype).itemsize > 8):
                raise Incompatible(
                    f"array {name!r} is of {array.dtype}; floats of at most 64 bits, integers and booleans can be "
                    f"averaged. Send it in another record, or keep it on the devices with local=({name!r},)"
                )
            into = floats if kind == "f" else integers
            start = into[-1].stop if into else 0
            shape = tuple(array.shape)
            into.append(Slot(name, shape, dtype, start, start + prod(shape), kind != "f"))
        if not floats and not integers:
            raise Incompatible("there is no array to average" + (": local= matches all of them" if stay else ""))
        sizes = [2 if slot.dtype == BFLOAT16 else np.dtype(slot.dtype).itemsize for slot in floats]
        return cls(
            tuple(floats),
            tuple(integers),
            tuple(stay),
            tuple(arrays),
            np.dtype(np.float64 if 8 in sizes else np.float32),
            floats[-1].stop if floats else 0,
            integers[-1].stop if integers else 0,
            2 in sizes,
            tuple(slot.start for slot in floats),
        )

    def flat(self, arrays: ArrayRecord) -> tuple[Vector, NDArray[np.float64]]:
        """Return a model's floats (d,) and integers (k,), copied."""
        x, ints = np.empty(self.d, self.dtype), np.empty(self.k, np.float64)

        def copy(slot: Slot) -> None:
            x[slot.start : slot.stop] = flat_view(arrays[slot.name])

        columns.each(self.floats, copy, self.d)
        for slot in self.integers:
            ints[slot.start : slot.stop] = flat_view(arrays[slot.name])
        return x, ints

    def record(self, x: Vector, ints: NDArray[np.float64], before: ArrayRecord | None = None) -> ArrayRecord:
        """Return a model made of both vectors, which nobody may change from now on.

        Args:
            before: the model with the arrays that stay on the devices; without it they are left out.
        """
        slots = (*self.floats, *self.integers)
        arrays = columns.each(
            slots, lambda slot: _array(slot, (ints if slot.integer else x)[slot.start : slot.stop]), self.d
        )
        found = {slot.name: array for slot, array in zip(slots, arrays, strict=True)}
        made = ArrayRecord()
        for name in self.order:
            if name in found:
                made[name] = found[name]
            elif before is not None and name in before:
                made[name] = before[name]
        return made

    def named(self, vector: Vector) -> dict[str, Vector]:
        """Return a vector of floats (d,) as views, by name, in the shapes of the model."""
        return {slot.name: vector[slot.start : slot.stop].reshape(slot.shape) for slot in self.floats}

    def views(self, arrays: ArrayRecord) -> "Views":
        """Return a reply's arrays, nothing copied where that can be.

        Raises:
            AppFault: a name is missing or unknown, or a shape or kind of type differs from what was sent.
        """
        wanted = {slot.name for slot in (*self.floats, *self.integers)}
        if arrays.keys() - set(self.local) != wanted:
            missing, unknown = sorted(wanted - arrays.keys()), sorted(arrays.keys() - wanted - set(self.local))
            told = [f"lacks {_names(missing)}"] if missing else []
            told += [f"has {_names(unknown)}, which the model does not have"] if unknown else []
            raise AppFault(f"its model {' and '.join(told)}")
        floats = [self._view(slot, arrays[slot.name]) for slot in self.floats]
        ints = np.empty(self.k, np.float64)
        for slot in self.integers:
            ints[slot.start : slot.stop] = self._view(slot, arrays[slot.name])
        return Views(floats, ints)

    def _view(self, slot: Slot, array: Array) -> Vector:
        if tuple(array.shape) != slot.shape:
            raise AppFault(f"array {slot.name!r} has shape {tuple(array.shape)} where {slot.shape} was sent")
        try:
            got = flat_view(array)
        except (ValueError, KeyError, TypeError) as error:
            raise Refused(f"array {slot.name!r} is not readable: {error}") from error
        if got.size != slot.stop - slot.start:
            raise Refused(f"array {slot.name!r} holds {got.size} values where {slot.shape} was sent")
        if (got.dtype.kind not in "iubf") if slot.integer else (got.dtype.kind != "f"):
            raise AppFault(f"array {slot.name!r} is of {got.dtype} where {slot.dtype} was sent")
        if slot.integer or slot.dtype in {BFLOAT16, got.dtype.str}:
            return got
        with np.errstate(over="ignore"):  # what overflows is not finite, and told as that
            return got.astype(slot.dtype)


@dataclass(frozen=True, slots=True)
class Views:
    """A model's arrays as they lie in memory or in a file: one flat view per float array, and the integers."""

    floats: list[Vector]
    ints: NDArray[np.float64]

    @property
    def borrowed(self) -> bool:
        """Whether holding them takes next to no memory: nearly all lies in a mapped file, or in bytes others hold."""
        own = sum(one.nbytes for one in self.floats if not _borrowed(one))
        return own <= max(_LITTLE, sum(one.nbytes for one in self.floats) // 50)


def view(array: Array) -> NDArray[Any]:
    """Return an array in its shape, read-only; nothing is copied if it is an ordinary Flower `Array`."""
    if isinstance(array, FlatArray) and (values := array.values()) is not None:
        return values
    if type(array) is not Array or array.stype != NUMPY:
        return array.numpy()
    data = array.data
    stream = io.BytesIO(data[:10_100])
    shape, fortran, dtype = _READERS[np.lib.format.read_magic(stream)](stream)
    if dtype.hasobject:
        raise ValueError("it holds Python objects")
    return np.ndarray(shape, dtype, buffer=data, offset=stream.tell(), order="F" if fortran else "C")


def flat_view(array: Array) -> Vector:
    """Return an array's values on one axis, in C order; bfloat16 is widened."""
    found = view(array).reshape(-1)
    if array.dtype == BFLOAT16 and found.dtype.itemsize == 2:
        return (found.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return found


def _array(slot: Slot, values: Vector) -> Array:
    if slot.dtype == BFLOAT16:
        return _serialised(_to_bfloat16(values), slot.shape, BFLOAT16)
    dtype = np.dtype(slot.dtype)
    if slot.integer:
        rounded = np.rint(values)
        if dtype.kind == "b":
            return _serialised(rounded > 0, slot.shape)
        limits = np.iinfo(dtype)
        # The largest 64-bit integers are no float64: what reaches them is set, not converted.
        whole = np.where(rounded >= float(limits.max), 0, np.maximum(rounded, float(limits.min))).astype(dtype)
        whole[rounded >= float(limits.max)] = limits.max
        return _serialised(whole, slot.shape)
    if values.dtype == dtype:
        return FlatArray(values, slot.shape)
    with np.errstate(over="ignore"):
        return _serialised(values.astype(dtype), slot.shape)


def _serialised(values: NDArray[Any], shape: tuple[int, ...], dtype: str = "") -> Array:
    return Array(dtype or str(values.dtype), shape, NUMPY, serialised(values, shape))


def _to_bfloat16(values: Vector) -> NDArray[Any]:
    """Return the upper halves of float32 values, rounded half to even; NaN stays NaN."""
    wide = np.ascontiguousarray(values, np.float32)
    bits = wide.view(np.uint32)
    rounded = ((bits + np.uint32(0x7FFF) + ((bits >> 16) & np.uint32(1))) >> 16).astype(np.uint16)
    rounded[np.isnan(wide)] = 0x7FC0
    return rounded.view("V2")


def _borrowed(values: NDArray[Any]) -> bool:
    base: Any = values
    while isinstance(base, np.ndarray):
        if base.base is None:
            return False
        base = base.base
    return True


def _names(names: Iterable[str]) -> str:
    shown = list(names)
    more = f" and {len(shown) - 5} more" if len(shown) > 5 else ""
    return ", ".join(repr(name[:60]) for name in shown[:5]) + more
