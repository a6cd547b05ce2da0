"""Top-k: only the largest values travel; a device keeps the rest and adds it to its next update.

Stich, Cordonnier, Jaggi: Sparsified SGD with Memory, NeurIPS 2018, arXiv:1809.07599, algorithm 1:

    p = m + x,    sent: the k values of p that are largest in magnitude,    m <- p - sent

Departures from the paper: an update that was lost changes no memory, as the device begins again from the server's
model; the memory of a device that was not asked for long is old when it is used.
"""

import numpy as np

from fedfleet_strategies.errors import Refused
from fedfleet_strategies.layout import Vector
from fedfleet_strategies.transforms.transform import Call, Encoded, single, taken
from fedfleet_strategies.updates import finite


class TopK:
    """Eight bytes for each value that travels.

    Args:
        fraction: of the values, above 0 and at most 1; at least one travels.
    """

    unbiased, stateful, summable = False, True, False

    def __init__(self, fraction: float) -> None:
        if not 0 < fraction <= 1:
            raise ValueError(f"fraction is {fraction}, it must be above 0 and at most 1")
        self.fraction, self.name = fraction, f"topk-{fraction!r}"

    def encode(self, vector: Vector, call: Call) -> Encoded:
        """Return the places of the largest values, sorted, and these."""
        x = single(vector)
        before = call.memory.get("rest")
        whole = x if before is None or before.shape != x.shape else x + before.astype(np.float32)
        if not finite(whole):
            raise ValueError("an update and what was kept of earlier ones add up to more than float32 holds")
        k = self._count(x.size)
        places = np.argpartition(np.abs(whole), x.size - k)[x.size - k :] if k < x.size else np.arange(x.size)
        places.sort()
        values = whole[places]
        rest = np.array(whole)
        rest[places] = 0
        call.kept["rest"] = rest
        return {"places": places.astype(np.uint32), "values": values}

    def decode(self, encoded: Encoded, d: int) -> Vector:
        """Return the vector, 0 where nothing travelled."""
        k = self._count(d)
        places = taken(encoded, "places", np.uint32, (k,))
        values = taken(encoded, "values", np.float32, (k,))
        if k and (int(places[-1]) >= d or bool(np.any(places[1:] <= places[:-1]))):
            raise Refused("its code's places are not sorted, or not in the vector")
        x = np.zeros(d, np.float32)
        x[places] = values
        return x

    def _count(self, d: int) -> int:
        return min(max(round(self.fraction * d), 1), d)
