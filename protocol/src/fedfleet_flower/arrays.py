"""Flower `Array`s whose bytes stay in a file until somebody looks, and the split of any `Array` into header and buffer.

`Array.data` is what `np.save` writes: a short header, then the raw buffer. On the wire the two are apart, so that the
buffer lies aligned and can be mapped; put together they are the same bytes again, for every dtype and order.
"""

import io
import os
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.app import Array
from numpy.typing import NDArray

from fedfleet_flower.mapping import private_bytes

NUMPY = "numpy.ndarray"
"""The `stype` of an array that `np.save` serialised."""

_MAGIC = b"\x93NUMPY"
_MAX_HEADER = 10_000
"""numpy refuses to read longer headers, too."""


class Descriptor:
    """An open file that closes with its last user."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._close = os.close

    def __del__(self) -> None:
        with suppress(OSError):  # closed by somebody else; there is nobody to tell
            self._close(self.fd)


@dataclass(frozen=True, slots=True)
class _Range:
    file: Descriptor
    offset: int
    nbytes: int
    prefix: bytes

    def raw(self) -> NDArray[np.uint8]:
        return private_bytes(self.file.fd, self.offset, self.nbytes)


class FileArray(Array):
    """An ordinary Flower `Array` whose bytes are read from a file when asked for.

    `numpy()` gives a writable array over a private mapping of its own: nothing is copied but the pages that are
    written, and all is given back when that array is dropped. `data` puts the serialisation together on each access
    and keeps nothing.
    """

    def __init__(
        self,
        file: Descriptor,
        *,
        dtype: str,
        shape: tuple[int, ...],
        stype: str,
        prefix: bytes,
        offset: int,
        nbytes: int,
    ) -> None:
        self.__dict__.update(dtype=dtype, shape=shape, stype=stype, _data=None, _is_dirty=True)
        self.__dict__["_range"] = _Range(file, offset, nbytes, prefix)

    @property
    def data(self) -> bytes:
        """The serialised array, exactly as it was on the other side."""
        own: bytes | None = self.__dict__["_data"]
        if own is not None:
            return own
        here: _Range = self.__dict__["_range"]
        return b"".join((here.prefix, here.raw().data))

    @data.setter
    def data(self, value: bytes) -> None:
        self.__dict__["_data"] = value

    def numpy(self) -> NDArray[Any]:
        """Return the array: writable, sharing memory with no other."""
        here: _Range = self.__dict__["_range"]
        plain = None
        if self.__dict__["_data"] is None and self.stype == NUMPY:
            plain = _plain(here.prefix, here.nbytes)
        if plain is None:
            return super().numpy()
        shape, fortran, dtype = plain
        return np.ndarray(shape, dtype, buffer=here.raw(), order="F" if fortran else "C")

    def split(self) -> tuple[bytes, memoryview] | None:
        """Return header and raw buffer as they lie in the file, or None if the app replaced them."""
        if self.__dict__["_data"] is not None or self.stype != NUMPY:
            return None
        here: _Range = self.__dict__["_range"]
        return here.prefix, here.raw().data

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Array):
            return NotImplemented
        mine, theirs = (self.dtype, self.shape, self.stype), (other.dtype, other.shape, other.stype)
        return mine == theirs and self.data == other.data

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Array(dtype={self.dtype!r}, shape={self.shape!r}, stype={self.stype!r}, data=<in a file>)"

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy is an ordinary Array with bytes of its own."""
        return Array, (self.dtype, self.shape, self.stype, self.data)


def split(array: Array) -> tuple[bytes, memoryview]:
    """Return the header and the raw buffer of `array`, nothing copied; the header is empty if it is not numpy's.

    Besides those in files, arrays of strategies know their parts: they have a `split` of their own.
    """
    own = getattr(array, "split", None)
    if own is not None and (parts := own()) is not None:
        found: tuple[bytes, memoryview] = parts
        return found
    data = memoryview(array.data).cast("B")
    length = _header_length(data) if array.stype == NUMPY else 0
    return bytes(data[:length]), data[length:]


def _header_length(data: memoryview) -> int:
    if bytes(data[:6]) != _MAGIC or len(data) < 12:
        return 0
    size = 2 if data[6] == 1 else 4
    length = 8 + size + int.from_bytes(data[8 : 8 + size], "little")
    return length if length <= min(len(data), _MAX_HEADER) else 0


def _plain(prefix: bytes, nbytes: int) -> tuple[tuple[int, ...], bool, np.dtype[Any]] | None:
    """Return shape, order and dtype if the raw buffer is such an array; everything else is left to `np.load`."""
    stream = io.BytesIO(prefix)
    try:
        version = np.lib.format.read_magic(stream)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, fortran, dtype = read(stream)
    except Exception:  # a device wrote it: numpy raises ValueError, SyntaxError, TokenError and whatever it trips over
        return None
    count = 1
    for length in shape:
        count *= length
    if dtype.hasobject or count * dtype.itemsize > nbytes:
        return None
    return shape, fortran, dtype
