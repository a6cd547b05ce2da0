"""No transform: the update travels as it is, as a difference and not as a model.

The server needs no model to compare it with, and so keeps no old ones for devices that are late.
"""

import numpy as np

from fedfleet_strategies.errors import Refused
from fedfleet_strategies.layout import Vector
from fedfleet_strategies.transforms.transform import Call, Encoded
from fedfleet_strategies.updates import finite


class Plain:
    """The values themselves."""

    name = "plain"
    unbiased, stateful, summable = True, False, True

    def encode(self, vector: Vector, call: Call) -> Encoded:
        """Return the values."""
        del call
        if not finite(vector):
            raise ValueError("an update with NaN or infinity cannot be encoded")
        return {"values": np.ascontiguousarray(vector)}

    def decode(self, encoded: Encoded, d: int) -> Vector:
        """Return the vector, float32 or float64."""
        values = encoded.get("values")
        if values is None or values.dtype not in (np.float32, np.float64) or values.shape != (d,):
            found = "missing" if values is None else f"{values.dtype} of shape {values.shape}"
            raise Refused(f"its code's 'values' is {found} where float32 or float64 of shape {(d,)} is needed")
        return values
