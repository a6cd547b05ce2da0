"""int8: whole multiples of a step, rounded up or down by chance so that the mean is right.

Alistarh, Grubic, Li, Tomioka, Vojnović: QSGD: Communication-Efficient SGD via Gradient Quantization and Encoding,
NeurIPS 2017, arXiv:1610.02132, section 3.1 with s = 127 levels, in buckets (section 4):

    q_i = floor(x_i / step + u_i),  u_i uniform in [0, 1),  step = max |x_i| / 127 over a bucket

Departures from the paper: the step comes from the largest magnitude of a bucket, not from its norm; codes are plain
bytes, not entropy-coded.
"""

import numpy as np

from fedfleet_strategies import columns
from fedfleet_strategies.errors import Refused
from fedfleet_strategies.layout import Vector
from fedfleet_strategies.transforms.transform import Call, Encoded, single, taken
from fedfleet_strategies.updates import finite

BUCKET = 1024
_SEGMENT = 1 << 19
"""A multiple of the bucket: no bucket is cut."""


class Int8:
    """A byte for each value, and four for each 1024."""

    name = "int8"
    unbiased, stateful, summable = True, False, False

    def encode(self, vector: Vector, call: Call) -> Encoded:
        """Return codes and the step of each bucket."""
        x = single(vector)
        seeds = call.rng.integers(0, 1 << 63, -(-x.size // _SEGMENT))
        codes, steps = np.empty(x.size, np.int8), np.empty(-(-x.size // BUCKET), np.float32)

        def work(start: int, stop: int) -> None:
            chance = np.random.Generator(np.random.SFC64(int(seeds[start // _SEGMENT])))
            whole = (stop - start) // BUCKET * BUCKET
            for low, high in ((start, start + whole), (start + whole, stop)):
                if low < high:
                    here = x[low:high].reshape(-1, min(BUCKET, high - low))
                    step = np.maximum(here.max(axis=1), -here.min(axis=1)) / np.float32(127)
                    steps[low // BUCKET : low // BUCKET + step.size] = step
                    codes[low:high] = _rounded(here, step, chance).reshape(-1)

        columns.over(x.size, work, _SEGMENT)
        return {"codes": codes, "steps": steps}

    def decode(self, encoded: Encoded, d: int) -> Vector:
        """Return the vector."""
        codes = taken(encoded, "codes", np.int8, (d,))
        steps = taken(encoded, "steps", np.float32, (-(-d // BUCKET),))
        if not finite(steps):
            raise Refused("its code holds NaN or infinity")
        x = codes.astype(np.float32)
        whole = d // BUCKET * BUCKET
        x[:whole].reshape(-1, BUCKET)[:] *= steps[: whole // BUCKET, None]
        x[whole:] *= steps[whole // BUCKET :].sum()
        return x


def _rounded(x: Vector, step: Vector, chance: np.random.Generator) -> Vector:
    # A step too small to divide by belongs to values that no float32 update notices.
    inverse = np.divide(1, step, out=np.zeros_like(step), where=step > np.finfo(np.float32).tiny)
    scaled = x * inverse[:, None]
    scaled += chance.random(x.shape, dtype=np.float32)
    np.floor(scaled, out=scaled)
    # The largest magnitude is 127 steps, less or more a last digit.
    return np.clip(scaled, -127, 127, out=scaled).astype(np.int8)
