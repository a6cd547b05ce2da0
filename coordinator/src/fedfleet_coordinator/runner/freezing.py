"""The state of objects as a content, and back, without pickle.

What a strategy remembers is in its attributes: numbers, texts, containers, arrays, Flower's records, random
generators, other objects. `freeze` writes them as a tree of plain values and a list of arrays; `thaw` puts them back
*into* the objects that the app has made again: a class is never looked up by name, so nothing that is read runs code.
Lists, dicts and sets are refilled, because others may hold them; arrays and records are new objects, because
strategies replace them. Two names for one object are one object again afterwards.

What cannot be written is left out and told: functions, modules, locks and loggers silently, because the app makes
them again; everything else by its path.
"""

import enum
import functools
import logging
import random
import sys
import types
from collections import deque
from collections.abc import Callable, Container
from io import BytesIO
from pathlib import PurePath
from typing import Any, ClassVar

import msgspec
import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from numpy.typing import NDArray

from fedfleet_flower.arrays import split
from fedfleet_flower.contents import StoredContent
from fedfleet_protocol.errors import Malformed
from fedfleet_protocol.records import ArrayValue, RecordValue

_SILENT = (
    type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType, types.MethodType, functools.partial,
    logging.Logger, logging.Handler, Grid, PurePath, np.dtype, np.ufunc, types.GeneratorType,
)  # fmt: skip
_SILENT_MODULES = ("_thread", "threading", "datetime", "io", "_io")
_DEEPEST = 40
_MOST_OBJECTS = 100_000
_INT64 = range(-(2**63), 2**63)


class _Unfreezable(Exception):
    """Something that cannot be written; the text is the path to it and its type."""


class Freezer:
    """Writes one tree.

    Args:
        known: objects that the reader has anyway, by name; they are written as that name.
        skip: paths of attributes that are known to be beyond it, and are not tried again.

    Attributes:
        left_out: paths of attributes that could not be written, with what is in the way.
    """

    def __init__(self, known: dict[str, object], skip: Container[str] = ()) -> None:
        self._known = {id(value): name for name, value in known.items()}
        self._skip = skip
        self._places: dict[int, int] = {}
        self._alive: list[object] = []
        self._arrays: list[ArrayValue] = []
        self.left_out: dict[str, str] = {}

    def freeze(self, value: object) -> tuple[RecordValue, RecordValue]:
        """Return `value` as two records of a content; nothing large is copied."""
        tree = msgspec.msgpack.encode(self._node(value, "state", 0))
        return RecordValue("tree", "config", (), {"tree": tree}), RecordValue("arrays", "arrays", tuple(self._arrays))

    def _field(self, value: Any, path: str, depth: int) -> Any:
        """Return the node of an attribute. What it holds now can stand for it when it is read, which not all can."""
        if isinstance(value, enum.Enum):
            return ["e", value.name]
        if isinstance(value, _SILENT) or type(value).__module__ in _SILENT_MODULES:
            return ["-"]
        return self._node(value, path, depth)

    def _node(self, value: Any, path: str, depth: int) -> Any:
        kind = type(value)
        if value is None or kind in (bool, float, bytes):
            return value
        if kind is int:
            return value if value in _INT64 else ["i", str(value)]
        if kind is str:
            return value if _utf8(value) else ["u", value.encode("utf-16", "surrogatepass")]
        if isinstance(value, np.generic):
            return ["x", self._array(np.asarray(value), path)]
        if id(value) in self._known:
            return ["k", self._known[id(value)]]
        if id(value) in self._places:
            return ["@", self._places[id(value)]]
        if depth > _DEEPEST or len(self._places) > _MOST_OBJECTS:
            raise _Unfreezable(f"{path}, which is too deep or too large")
        if isinstance(value, (*_SILENT, enum.Enum)) or kind.__module__ in _SILENT_MODULES:
            raise _Unfreezable(f"{path} of type {kind.__module__}.{kind.__qualname__}")
        self._places[id(value)] = len(self._places)
        self._alive.append(value)
        return self._object(value, path, depth + 1)

    def _object(self, value: Any, path: str, depth: int) -> Any:
        if isinstance(value, (list, deque)):
            return ["l", [self._node(item, f"{path}[{i}]", depth) for i, item in enumerate(value)]]
        if isinstance(value, tuple):
            return ["t", [self._node(item, f"{path}[{i}]", depth) for i, item in enumerate(value)]]
        if isinstance(value, (set, frozenset)):
            return ["s", [self._node(item, path, depth) for item in _resettled(value)]]
        if isinstance(value, bytearray):
            return ["b", bytes(value)]
        if isinstance(value, dict):
            return ["d", self._pairs(value, path, depth)]
        if isinstance(value, np.ndarray):
            return ["n", self._array(value, path)]
        if isinstance(value, Array):
            prefix, buffer = split(value)
            self._arrays.append(self._named(value.dtype, tuple(value.shape), value.stype, prefix, buffer))
            return ["A", len(self._arrays) - 1]
        if isinstance(value, (ArrayRecord, MetricRecord, ConfigRecord, RecordDict)):
            return ["R", type(value).__name__, self._pairs(dict(value), path, depth)]
        return self._instance(value, path, depth)

    def _instance(self, value: Any, path: str, depth: int) -> Any:
        if isinstance(value, random.Random):
            return ["r", self._node(value.getstate(), path, depth)]
        if isinstance(value, np.random.RandomState):
            return ["r", self._node(value.get_state(legacy=False), path, depth)]
        if isinstance(value, np.random.Generator):
            return ["r", self._node(value.bit_generator.state, path, depth)]
        if _is_tensor(value):
            try:
                return ["T", self._array(value.detach().cpu().numpy(), path)]
            except (TypeError, RuntimeError) as error:
                raise _Unfreezable(f"{path} of type {type(value).__name__}") from error
        if isinstance(value, Strategy) and _restores(value):
            own: Any = value
            return ["P", self._node(own.state(), f"{path}.state()", depth)]
        if not isinstance(value, Strategy) and _keeps_state(value):
            return ["S", self._node(value.state_dict(), f"{path}.state_dict()", depth)]
        if hasattr(value, "__dict__"):
            return ["o", self._fields(value, path, depth)]
        raise _Unfreezable(f"{path} of type {type(value).__module__}.{type(value).__qualname__}")

    def _fields(self, value: Any, path: str, depth: int) -> list[Any]:
        """Return the attributes of an object; a strategy's may be left out one by one, another's all or none."""
        fields = []
        for name, item in vars(value).items():
            here = f"{path}.{name}"
            if here in self._skip:
                continue
            places, alive, arrays = dict(self._places), len(self._alive), len(self._arrays)
            try:
                fields.append([name, self._field(item, here, depth)])
            except _Unfreezable as error:
                if not isinstance(value, (Strategy, State)):
                    raise
                self._places = places
                del self._alive[alive:], self._arrays[arrays:]
                self.left_out[here] = str(error)
        return fields

    def _pairs(self, value: dict[Any, Any], path: str, depth: int) -> list[Any]:
        return [
            [self._node(key, path, depth), self._node(item, f"{path}[{key!r}]", depth)] for key, item in value.items()
        ]

    def _array(self, value: NDArray[Any], path: str) -> int:
        if value.dtype.hasobject:
            raise _Unfreezable(f"{path}, an array of Python objects")
        if not (value.flags.c_contiguous or value.flags.f_contiguous):
            value = value.copy()
        stream = BytesIO()
        np.lib.format.write_array_header_2_0(stream, np.lib.format.header_data_from_array_1_0(value))
        raw = memoryview(b"") if value.nbytes == 0 else value.ravel(order="K").view(np.uint8).data
        self._arrays.append(self._named(str(value.dtype), value.shape, "numpy.ndarray", stream.getvalue(), raw))
        return len(self._arrays) - 1

    def _named(self, dtype: str, shape: tuple[int, ...], stype: str, prefix: bytes, raw: memoryview) -> ArrayValue:
        return ArrayValue(str(len(self._arrays)), dtype, shape, stype, prefix, raw)


class State:
    """Things to be frozen together, as attributes; what is put back is in the same attributes."""

    def __init__(self, **parts: Any) -> None:
        self.__dict__.update(parts)


class Thawer:
    """Reads one tree.

    Attributes:
        left_out: what could not be put back, as paths.
    """

    def __init__(self, stored: StoredContent, known: dict[str, object]) -> None:
        records = stored.records()
        tree, arrays = records.get("tree"), records.get("arrays")
        if not isinstance(tree, ConfigRecord) or not isinstance(arrays, ArrayRecord):
            raise Malformed("a checkpoint lacks its tree or its arrays")
        self._tree = msgspec.msgpack.decode(tree["tree"])  # type: ignore[arg-type]
        self._arrays = arrays
        self._known = known
        self._made: list[Any] = []
        self.left_out: list[str] = []

    def thaw(self, into: State) -> None:
        """Put the tree into `into`, whose attributes are objects the app has made again."""
        self._value(self._tree, into, "state")

    def _value(self, node: Any, old: Any, path: str) -> Any:
        """Return the value of a node: `old`, with its content replaced, where that is possible."""
        if not isinstance(node, list):
            return node
        tag, *rest = node
        simple = self._SIMPLE.get(tag)
        if simple is not None:
            return simple(self, rest[0] if rest else None, old)
        place = len(self._made)
        self._made.append(None)
        value = self._OBJECTS[tag](self, rest, old, path, place)
        self._made[place] = value
        return value

    # --- values that no two names share -------------------------------------------------------------------------------

    def _enum(self, name: str, old: Any) -> Any:
        return type(old)[name] if isinstance(old, enum.Enum) else old

    def _numpy(self, index: int) -> NDArray[Any]:
        found: NDArray[Any] = self._arrays[str(index)].numpy()
        return found

    _SIMPLE: ClassVar[dict[str, Callable[["Thawer", Any, Any], Any]]] = {
        "i": lambda self, text, old: int(text),
        "u": lambda self, data, old: data.decode("utf-16", "surrogatepass"),
        "e": _enum,
        "-": lambda self, _, old: old,
        "x": lambda self, index, old: self._numpy(index)[()],
        "k": lambda self, name, old: self._known[name],
        "@": lambda self, place, old: self._made[place],
    }

    # --- objects ------------------------------------------------------------------------------------------------------

    def _list(self, rest: list[Any], old: Any, path: str, place: int) -> Any:
        found: Any = old if isinstance(old, (list, deque)) else []
        before = list(found)
        found.clear()
        self._made[place] = found
        for i, node in enumerate(rest[0]):
            found.append(self._value(node, before[i] if i < len(before) else None, f"{path}[{i}]"))
        return found

    def _tuple(self, rest: list[Any], old: Any, path: str, place: int) -> Any:
        before = old if isinstance(old, tuple) else ()
        items = [
            self._value(node, before[i] if i < len(before) else None, f"{path}[{i}]") for i, node in enumerate(rest[0])
        ]
        made = getattr(type(before), "_make", tuple)  # named tuples keep their type
        return made(items)

    def _set(self, rest: list[Any], old: Any, path: str, place: int) -> Any:
        items = [self._value(node, None, path) for node in rest[0]]
        if isinstance(old, set):
            old.clear()
            old.update(items)
            return old
        return frozenset(items) if isinstance(old, frozenset) else set(items)

    def _dict(self, rest: list[Any], old: Any, path: str, place: int) -> Any:
        found: Any = old if isinstance(old, dict) else {}
        before = dict(found)
        found.clear()
        self._made[place] = found
        self._fill(found, rest[0], before, path)
        return found

    def _record(self, rest: list[Any], old: Any, path: str, place: int) -> Any:
        kinds: dict[str, type[Any]] = {
            "ArrayRecord": ArrayRecord, "MetricRecord": MetricRecord, "ConfigRecord": ConfigRecord,
            "RecordDict": RecordDict,
        }  # fmt: skip
        found = self._made[place] = kinds[rest[0]]()
        self._fill(found, rest[1], {}, path)
        return found

    def _fill(self, found: Any, pairs: list[Any], before: dict[Any, Any], path: str) -> None:
        for key_node, node in pairs:
            key = self._value(key_node, None, path)
            found[key] = self._value(node, before.get(key), f"{path}[{key!r}]")

    def _random(self, rest: list[Any], old: Any, path: str, place: int) -> Any:
        state = self._value(rest[0], None, path)
        if isinstance(old, random.Random):
            old.setstate(state)
        elif isinstance(old, np.random.RandomState):
            old.set_state(state)
        elif isinstance(old, np.random.Generator):
            old.bit_generator.state = state
        else:
            self.left_out.append(f"{path}, a random generator")
        return old

    def _tensor(self, rest: list[Any], old: Any, path: str, place: int) -> Any:
        import torch

        value = torch.from_numpy(self._numpy(rest[0]))
        if _is_tensor(old) and old.shape == value.shape:
            with torch.no_grad():
                old.copy_(value)
            return old
        return value

    def _stateful(self, rest: list[Any], old: Any, path: str, place: int) -> Any:
        state = self._value(rest[0], None, path)
        if _keeps_state(old):
            old.load_state_dict(state)
        else:
            self.left_out.append(path)
        return old

    def _restored(self, rest: list[Any], old: Any, path: str, place: int) -> Any:
        state = self._value(rest[0], None, path)
        if _restores(old):
            old.restore(state)
        else:
            self.left_out.append(path.removeprefix("state."))
        return old

    def _instance(self, rest: list[Any], old: Any, path: str, place: int) -> Any:
        self._made[place] = old
        fields = vars(old) if hasattr(old, "__dict__") else None
        for name, node in rest[0]:
            value = self._value(node, fields.get(name) if fields is not None else None, f"{path}.{name}")
            if fields is not None:
                fields[name] = value
        if fields is None:
            self.left_out.append(path.removeprefix("state."))
        return old

    _OBJECTS: ClassVar[dict[str, Callable[["Thawer", list[Any], Any, str, int], Any]]] = {
        "l": _list,
        "t": _tuple,
        "s": _set,
        "b": lambda self, rest, old, path, place: bytearray(rest[0]),
        "d": _dict,
        "n": lambda self, rest, old, path, place: self._numpy(rest[0]),
        "A": lambda self, rest, old, path, place: self._arrays[str(rest[0])],
        "R": _record,
        "r": _random,
        "T": _tensor,
        "S": _stateful,
        "P": _restored,
        "o": _instance,
    }


def _resettled(items: Any) -> list[Any]:
    """Return the items of a set, which is filled anew: its order depends on its past, and the reader's has none."""
    found = list(items)
    if isinstance(items, set):
        items.clear()
        items.update(found)
    return found


def _utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_tensor(value: object) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def _restores(value: Any) -> bool:
    """Whether a strategy says itself what must survive, as those of fedfleet_strategies do."""
    return callable(getattr(value, "state", None)) and callable(getattr(value, "restore", None))


def _keeps_state(value: object) -> bool:
    return callable(getattr(value, "state_dict", None)) and callable(getattr(value, "load_state_dict", None))
