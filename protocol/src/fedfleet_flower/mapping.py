"""Private, writable views of a file's bytes: each call a mapping of its own, gone with the last view of it.

`mmap.mmap` would do, but before Python 3.13 it keeps a duplicate of the descriptor per mapping, and a model of a
thousand layers runs out of descriptors. So this calls mmap(2) itself.
"""

import ctypes
import mmap
import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedfleet_flower.errors import BridgeError

COPY_BELOW = 64 << 10
"""Smaller ranges are read: sixteen pages cost less than a mapping."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (
    ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long,
)  # fmt: skip
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_MAP_FAILED = ctypes.c_void_p(-1).value


class _Mapping:
    """One private mapping; numpy takes it for a flat array of bytes and keeps it alive."""

    def __init__(self, fd: int, start: int, length: int) -> None:
        # MAP_NORESERVE: a written page is a copy, but few are written, and a container must not refuse to map 40 MB
        # because it might copy them all.
        flags = mmap.MAP_PRIVATE | getattr(mmap, "MAP_NORESERVE", 0)
        address = _libc.mmap(None, length, mmap.PROT_READ | mmap.PROT_WRITE, flags, fd, start)
        if address in (None, _MAP_FAILED):
            number = ctypes.get_errno()
            raise OSError(number, f"cannot map {length} bytes: {os.strerror(number)}")
        self._address = address
        self._length = length
        self._unmap = _libc.munmap  # module globals may be gone when the interpreter ends

    @property
    def __array_interface__(self) -> dict[str, Any]:
        return {"version": 3, "typestr": "|u1", "shape": (self._length,), "data": (self._address, False)}

    def __del__(self) -> None:
        if hasattr(self, "_address"):
            self._unmap(self._address, self._length)


def private_bytes(fd: int, offset: int, nbytes: int) -> NDArray[np.uint8]:
    """Return `nbytes` bytes of the file from `offset`, writable, shared with nobody, not read until touched.

    Writes go to copies of pages and never to the file. The file must not get shorter while the view lives.

    Raises:
        BridgeError: the file ends before that.
    """
    if nbytes and os.fstat(fd).st_size < offset + nbytes:
        raise BridgeError(
            f"a file of {os.fstat(fd).st_size} bytes where byte {offset + nbytes} is needed: it was cut off"
        )
    if nbytes < COPY_BELOW:
        return _read(fd, offset, nbytes)
    first = offset % mmap.ALLOCATIONGRANULARITY
    whole: NDArray[np.uint8] = np.asarray(_Mapping(fd, offset - first, first + nbytes))
    return whole[first:]


def _read(fd: int, offset: int, nbytes: int) -> NDArray[np.uint8]:
    data = np.empty(nbytes, np.uint8)
    view, done = data.data, 0
    while done < nbytes:
        got = os.preadv(fd, [view[done:]], offset + done)
        if not got:
            raise BridgeError(f"a file ended at byte {offset + done}, {nbytes - done} bytes early: it was cut off")
        done += got
    return data
