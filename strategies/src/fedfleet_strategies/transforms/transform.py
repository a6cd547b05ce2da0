"""What a transform is, and how a device finds the one the server names."""

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fedfleet_strategies.errors import Incompatible, Refused
from fedfleet_strategies.layout import Vector
from fedfleet_strategies.updates import finite

Encoded = dict[str, NDArray[Any]]


@dataclass(slots=True)
class Call:
    """What `encode` may use.

    Attributes:
        rng: for one vector; another generator for another vector, or the errors of both add up.
        memory: what a stateful transform kept of the vectors before, by name. `encode` puts what it wants to keep
            into `kept`: it holds once the vector was used, and never if it was lost.
    """

    rng: np.random.Generator
    memory: dict[str, Vector] = field(default_factory=dict)
    kept: dict[str, Vector] = field(default_factory=dict)


class Transform(Protocol):
    """A way to write a vector in fewer bytes.

    Attributes:
        name: how a message names it.
        unbiased: whether the mean of what is decoded, over the generator, is the vector.
        stateful: whether it keeps something from vector to vector.
        summable: whether sums of codes are codes of sums.
    """

    name: str
    unbiased: bool
    stateful: bool
    summable: bool

    def encode(self, vector: Vector, call: Call) -> Encoded:
        """Return arrays that `decode` makes a vector of.

        Args:
            vector: (d,) of floats; it stays as it is. Values are taken as float32.

        Raises:
            ValueError: a value is not finite, or too large for float32.
        """
        ...

    def decode(self, encoded: Encoded, d: int) -> Vector:
        """Return the vector (d,), float32.

        Raises:
            Refused: the arrays are not what `encode` returns for a vector of that length.
        """
        ...


def named(name: str) -> Transform:
    """Return the transform of that name: plain, bfloat16, int8, rotated-1 to rotated-4, or topk-F with a fraction F.

    Raises:
        Incompatible: there is none.
    """
    from fedfleet_strategies.transforms.bfloat16 import BFloat16
    from fedfleet_strategies.transforms.int8 import Int8
    from fedfleet_strategies.transforms.plain import Plain
    from fedfleet_strategies.transforms.rotated import Rotated
    from fedfleet_strategies.transforms.topk import TopK

    kind, _, option = name.partition("-")
    if name == "plain":
        return Plain()
    if name == "bfloat16":
        return BFloat16()
    if name == "int8":
        return Int8()
    if kind == "rotated" and option in {"1", "2", "3", "4"}:
        return Rotated(int(option))
    if kind == "topk":
        try:
            return TopK(float(option))
        except ValueError:
            pass
    raise Incompatible(
        f"there is no transform {name[:60]!r}; there are plain, bfloat16, int8, rotated-1 to rotated-4, and topk-F "
        f"with a fraction F above 0 and at most 1, as topk-0.01"
    )


def single(vector: Vector) -> NDArray[np.float32]:
    """Return a vector as float32, the same object if it is.

    Raises:
        ValueError: a value is not finite, or too large.
    """
    with np.errstate(over="ignore"):
        narrow = np.ascontiguousarray(vector, np.float32)
    if not finite(narrow):
        raise ValueError("an update with NaN, infinity or a value beyond float32 cannot be encoded")
    return narrow


def taken(encoded: Encoded, name: str, dtype: Any, shape: tuple[int, ...]) -> NDArray[Any]:
    """Return one array of a code.

    Raises:
        Refused: it is missing, or of another type or shape.
    """
    array = encoded.get(name)
    if array is None or array.dtype != np.dtype(dtype) or array.shape != shape:
        found = "missing" if array is None else f"{array.dtype} of shape {array.shape}"
        raise Refused(f"its code's {name!r} is {found} where {np.dtype(dtype)} of shape {shape} is needed")
    return array
