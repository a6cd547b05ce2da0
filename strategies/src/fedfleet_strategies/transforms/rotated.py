"""One to four bits a value: rotate at random, so that values look normal; then round to the best levels for that.

Vargaftik, Ben-Basat, Portnoy, Mendelson, Ben-Itzhak, Mitzenmacher: DRIVE: One-bit Distributed Mean Estimation, NeurIPS
2021, arXiv:2105.08339, algorithm 1 with the scale of theorem 3, and, by the same authors, EDEN: Communication-Efficient
and Robust Distributed Mean Estimation for Federated Learning, ICML 2022, arXiv:2108.08842, section 3, for more bits:

    y = R x,   q = nearest levels of sqrt(n) y / |x|,   sent: q and S = |x|^2 / <y, level(q)>,   decoded: S R^T level(q)

The levels are those of Lloyd and Max for the normal distribution. With a uniformly random R the mean of what is decoded
is x, whatever x is, and the error |x' - x|^2 / |x|^2 is .5708, .1331, .0358, .0096 at 1, 2, 3, 4 bits.

Departures from the papers: R is H D2 H D1, with H Hadamard's matrix of 1024 rows and D1, D2 random signs, on each 1024
values; the papers' fast version is H D1. One round leaves a vector with few values in few states, and is then biased
(of (3, 1, 0, ...) at one bit the 1 becomes 0); after two even such a vector looks normal. What bias is left is below
0.01 of the vector's length for the worst we found. All blocks of a vector share the signs.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fedfleet_strategies import columns
from fedfleet_strategies.errors import Refused
from fedfleet_strategies.layout import Vector
from fedfleet_strategies.transforms.transform import Call, Encoded, single, taken
from fedfleet_strategies.updates import finite

SIDE = 32
BLOCK = SIDE * SIDE
_TOGETHER = 64
"""Blocks that one core works on in its near memory: 256 KiB."""
_TINY = float(np.finfo(np.float32).tiny)
LEVELS: dict[int, tuple[float, ...]] = {
    1: (0.797884561,),
    2: (0.452780035, 1.510417608),
    3: (0.245094179, 0.756005281, 1.343909279, 2.151945705),
    4: (0.128395030, 0.388048299, 0.656759119, 0.942340456, 1.256231197, 1.618046386, 2.069017227, 2.732589571),
}
"""Lloyd's and Max's positive levels of a standard normal variable, by the number of bits; the others are their
negatives. The borders lie in the middle between two."""


class Rotated:
    """`bits` for each value, and 32 for each 1024; the last block is filled up.

    Args:
        bits: 1 to 4.
    """

    unbiased, stateful, summable = True, False, False

    def __init__(self, bits: int) -> None:
        self.bits, self.name = bits, f"rotated-{bits}"
        positive = np.array(LEVELS[bits], np.float32)
        self._borders = ((positive[1:] + positive[:-1]) / 2).tolist()
        self._levels = np.concatenate([positive, -positive])

    def encode(self, vector: Vector, call: Call) -> Encoded:
        """Return a bit plane for each bit, the scales, and what the signs were drawn from."""
        x = single(vector)
        seed = np.frombuffer(call.rng.bytes(16), np.uint64)
        first, second = _signs(seed)
        blocks = -(-x.size // BLOCK)
        planes = np.empty((self.bits, blocks, BLOCK // 8), np.uint8)
        scales = np.empty(blocks, np.float32)

        def work(start: int, stop: int) -> None:
            y, z = np.empty((2, _TOGETHER, BLOCK), np.float32)
            codes, bit = np.empty((2, _TOGETHER, BLOCK), np.uint8)
            for low in range(start, stop, _TOGETHER):
                n = min(_TOGETHER, stop - low)
                a, b = y[:n], z[:n]
                _load(x, low, a)
                _mix(a, first, b)
                _mix(a, second, b)
                square = np.einsum("ij,ij->i", a, a, dtype=np.float64)
                wide = np.sqrt(square / BLOCK)
                np.multiply(
                    a, np.divide(1, wide, out=np.zeros(n), where=wide > _TINY).astype(np.float32)[:, None], out=a
                )
                self._quantise(a, b, codes[:n], bit[:n])
                np.take(self._levels, codes[:n], out=b, mode="clip")
                along = np.einsum("ij,ij->i", a, b, dtype=np.float64) * wide
                scales[low : low + n] = np.divide(square, along, out=np.zeros(n), where=along > 0)
                for i in range(self.bits):
                    np.bitwise_and(codes[:n], 1 << i, out=bit[:n])
                    planes[i, low : low + n] = np.packbits(bit[:n], axis=1)

        columns.over(blocks, work, columns.SEGMENT // BLOCK)
        return {"planes": planes, "scales": scales, "seed": seed}

    def decode(self, encoded: Encoded, d: int) -> Vector:
        """Return the vector."""
        blocks = -(-d // BLOCK)
        planes = taken(encoded, "planes", np.uint8, (self.bits, blocks, BLOCK // 8))
        scales = taken(encoded, "scales", np.float32, (blocks,))
        first, second = _signs(taken(encoded, "seed", np.uint64, (2,)))
        if not finite(scales):
            raise Refused("its code holds NaN or infinity")
        x = np.empty(d, np.float32)

        def work(start: int, stop: int) -> None:
            y, z = np.empty((2, _TOGETHER, BLOCK), np.float32)
            for low in range(start, stop, _TOGETHER):
                n = min(_TOGETHER, stop - low)
                a, b = y[:n], z[:n]
                codes = np.unpackbits(planes[0, low : low + n], axis=1)
                for i in range(1, self.bits):
                    codes |= np.unpackbits(planes[i, low : low + n], axis=1) << np.uint8(i)
                np.take(self._levels, codes, out=a, mode="clip")
                np.multiply(a, scales[low : low + n, None], out=a)
                _unmix(a, second, b)
                _unmix(a, first, b)
                here = x[low * BLOCK : (low + n) * BLOCK]
                here[:] = a.reshape(-1)[: here.size]

        columns.over(blocks, work, columns.SEGMENT // BLOCK)
        return x

    def _quantise(self, values: Vector, scratch: Vector, codes: NDArray[np.uint8], above: NDArray[np.uint8]) -> None:
        """Write the codes of standard normal values: how many borders the magnitude is above, then the sign."""
        np.less(values, 0, out=codes.view(np.bool_))
        np.multiply(codes, len(LEVELS[self.bits]), out=codes)
        np.abs(values, out=scratch)
        for border in self._borders:
            np.greater(scratch, np.float32(border), out=above.view(np.bool_))
            np.add(codes, above, out=codes)


def _load(x: Vector, block: int, into: Vector) -> None:
    here = x[block * BLOCK : block * BLOCK + into.size]
    flat = into.reshape(-1)
    flat[: here.size] = here
    flat[here.size :] = 0


def _signs(seed: NDArray[np.uint64]) -> tuple[Vector, Vector]:
    key = int(seed[0]) | int(seed[1]) << 64
    bits = np.random.Generator(np.random.Philox(key=key)).integers(0, 2, (2, BLOCK)).astype(np.float32)
    first, second = 1 - 2 * bits
    return first, second


@lru_cache(maxsize=1)
def _hadamard() -> NDArray[np.float32]:
    matrix = np.ones((1, 1), np.float32)
    while matrix.shape[0] < SIDE:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix / np.float32(np.sqrt(SIDE))


def _mix(values: Vector, signs: Vector, scratch: Vector) -> None:
    """Replace each row by H D row; H, a Kronecker product, is one small matrix from both sides."""
    np.multiply(values, signs, out=values)
    _both_sides(values, scratch)


def _unmix(values: Vector, signs: Vector, scratch: Vector) -> None:
    """Undo `_mix`: H is its own inverse."""
    _both_sides(values, scratch)
    np.multiply(values, signs, out=values)


def _both_sides(values: Vector, scratch: Vector) -> None:
    h = _hadamard()
    square, apart = values.reshape(-1, SIDE, SIDE), scratch.reshape(-1, SIDE, SIDE)
    np.matmul(square, h, out=apart)
    np.matmul(h, apart, out=square)
