"""What is done about this process's memory: given back where idling does not need it, and hidden from others.

Importing this agent touches 18 MB of program text and constants of Python, two OpenSSLs and SQLite; an idle agent uses
a quarter of it. The kernel would take the rest back when memory becomes short, but by then the device is slow already.
Such pages are clean copies of files: unmapped, they come back at the next access, from the page cache.
"""

import ctypes
import gc
from contextlib import suppress
from pathlib import Path
from typing import Final

_DONTNEED: Final = 4
_PR_SET_DUMPABLE: Final = 4


def hide() -> None:
    """See to it that no other process of this user reads this one's memory or traces it; it dumps no core either."""
    with suppress(OSError, AttributeError):
        zero = ctypes.c_ulong(0)
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, zero, zero, zero, zero)


def give_back() -> None:
    """Let go of free heap and of program text; what is used comes back by itself. Where that cannot be, do nothing."""
    with suppress(OSError, AttributeError, ValueError):
        libc = ctypes.CDLL(None)
        libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        libc.malloc_trim.argtypes = [ctypes.c_size_t]
        gc.collect()
        libc.malloc_trim(0)
        for start, end in droppable(Path("/proc/self/smaps").read_text(encoding="utf-8", errors="replace")):
            libc.madvise(start, end - start, _DONTNEED)


def droppable(smaps: str) -> list[tuple[int, int]]:
    """Return the mappings in `smaps` that are read-only and hold nothing but what is in their files."""
    found: list[tuple[int, int]] = []
    candidate: tuple[int, int] | None = None
    for line in smaps.splitlines():
        words = line.split()
        if not words[0].endswith(":"):
            start, _, end = words[0].partition("-")
            of_a_file = len(words) > 5 and words[5].startswith("/") and words[1] in {"r-xp", "r--p"}
            candidate = (int(start, 16), int(end, 16)) if of_a_file else None
        elif words[0] == "Anonymous:" and words[1] == "0" and candidate is not None:
            found.append(candidate)  # a relocated page (RELRO) is a copy and must stay; those mappings have some
    return found
