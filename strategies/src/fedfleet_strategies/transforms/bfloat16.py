"""bfloat16: the upper half of a float32, rounded up or down by chance so that the mean is right.

Half the bytes, and no parameter. A value x lies between two bfloat16 numbers and becomes the upper one with the chance
that makes x the mean; its error is below |x| / 128.
"""

import numpy as np

from fedfleet_strategies import columns
from fedfleet_strategies.layout import Vector
from fedfleet_strategies.transforms.transform import Call, Encoded, single, taken

_LARGEST = np.uint32(0x7F7F0000)
_MAGNITUDE = np.uint32(0x7FFFFFFF)


class BFloat16:
    """Two bytes for each value."""

    name = "bfloat16"
    unbiased, stateful, summable = True, False, False

    def encode(self, vector: Vector, call: Call) -> Encoded:
        """Return the upper halves."""
        bits = single(vector).view(np.uint32)
        chance = call.rng.integers(0, 1 << 16, bits.size, np.uint16)
        out = np.empty(bits.size, np.uint16)

        def work(start: int, stop: int) -> None:
            here = bits[start:stop] + chance[start:stop]
            # What would be rounded to infinity stays the largest number.
            over = (here & _MAGNITUDE) > _LARGEST + np.uint32(0xFFFF)
            here[over] = (here[over] & ~_MAGNITUDE) | _LARGEST
            out[start:stop] = here >> np.uint32(16)

        columns.over(bits.size, work)
        return {"upper": out}

    def decode(self, encoded: Encoded, d: int) -> Vector:
        """Return the vector."""
        upper = taken(encoded, "upper", np.uint16, (d,))
        return (upper.astype(np.uint32) << np.uint32(16)).view(np.float32)
