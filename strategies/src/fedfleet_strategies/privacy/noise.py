"""Gaussian noise from a cryptographic generator: a function of key, round, purpose and place in the vector.

A killed runner draws the same bits again. Another draw for the same round would be a second look at the same sum, and
the mean of many looks is the sum.

The uniform bits are SHAKE-256 of key, purpose, round and segment; Box and Muller make them normal, with 53 bits each,
so the tail ends at 8.5 deviations. What is noisy is rounded to a grid of 2^-16 of the noise: the lowest bits of a float
tell which sums it can have come from (Mironov: On Significance of the Least Significant Bits for Differential Privacy,
CCS 2012), and the grid leaves none of these.
"""

import hashlib
import math
import secrets

import numpy as np
from numpy.typing import NDArray

from fedfleet_strategies import columns
from fedfleet_strategies.layout import Vector

KEY_BYTES = 32
_SEGMENT = 1 << 16
_GRID = -16


def new_key() -> NDArray[np.uint8]:
    """Return a key nobody else has, (32,) uint8: a state keeps arrays."""
    return np.frombuffer(secrets.token_bytes(KEY_BYTES), np.uint8).copy()


def add_gaussian(vector: Vector, deviation: float, key: NDArray[np.uint8], purpose: str, server_round: int) -> None:
    """Add normal noise to each value, in place, and round to the grid.

    Args:
        vector: (d,), of floats.
        deviation: standard deviation of the noise, finite and at least 0; 0 leaves the vector as it is.
    """
    if not deviation >= 0 or not math.isfinite(deviation):
        raise ValueError(f"no noise has the standard deviation {deviation}")
    if not deviation:
        return
    grid = 2.0 ** (math.floor(math.log2(deviation)) + _GRID)

    def work(start: int, stop: int) -> None:
        wide = standard(key, purpose, server_round, start // _SEGMENT, stop - start)
        wide *= deviation
        wide += vector[start:stop]
        wide /= grid
        np.rint(wide, out=wide)
        wide *= grid
        vector[start:stop] = wide

    columns.over(vector.size, work, _SEGMENT)


def standard(key: NDArray[np.uint8], purpose: str, server_round: int, segment: int, n: int) -> NDArray[np.float64]:
    """Return `n` standard normal values."""
    half = -(-n // 2)
    u = np.frombuffer(_bits(key, f"{purpose} {server_round} {segment}", 16 * half), "<u8") >> np.uint64(11)
    radius = np.sqrt(-2 * np.log((u[:half] + 1.0) * 2.0**-53))
    angle = u[half:] * (2 * math.pi * 2.0**-53)
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:n]


def rng(key: NDArray[np.uint8], purpose: str, server_round: int) -> np.random.Generator:
    """Return a generator that nobody without the key can foresee: privacy is amplified by a cohort that is secret."""
    return np.random.Generator(np.random.Philox(key=int.from_bytes(_bits(key, f"{purpose} {server_round}", 16))))


def _bits(key: NDArray[np.uint8], what: str, n: int) -> bytes:
    data = key.tobytes()
    if len(data) != KEY_BYTES:
        raise ValueError(f"a key has {KEY_BYTES} bytes, this one has {len(data)}")
    return hashlib.shake_256(data + what.encode()).digest(n)
