"""What the device has just now: power, load, memory, disk, link. Linux's own files are read, nothing is run.

Reading them here costs the resident process nothing; psutil would cost it over a MiB. What is missing or cannot be
read is None: a rule about it holds. A link is metered if its owner says so by the interface's name; whether a network
*says* it is metered depends on who manages it, and a guess would be worse than the owner's word.
"""

import os
from pathlib import Path

from fedfleet_agent.eligibility import Readings

_MB = 1_000_000
_ROUTE_UP = 0x1


def read(state: Path, root: Path = Path("/")) -> Readings:
    """Return what the device has now.

    Args:
        state: the folder whose disk must have room.
        root: where `proc` and `sys` are.
    """
    battery, mains = _power(root / "sys/class/power_supply")
    return Readings(
        battery_percent=battery,
        on_mains=mains,
        load=_load(root / "proc/loadavg"),
        memory_mb=_memory(root),
        disk_mb=disk_mb(state),
        interface=_default_interface(root / "proc/net/route"),
    )


def disk_mb(folder: Path) -> float | None:
    """Return how much an ordinary user may still write on the disk of `folder`, in MB."""
    try:
        disk = os.statvfs(folder)
    except OSError:
        return None
    return disk.f_bavail * disk.f_frsize / _MB


def _power(supplies: Path) -> tuple[float | None, bool | None]:
    """Return the charge of the emptiest battery in percent, and whether the device is on mains power."""
    charges: list[float] = []
    mains: list[bool] = []
    draining = False
    try:
        folders = sorted(supplies.iterdir())
    except OSError:
        return None, None
    for folder in folders:
        kind = _text(folder / "type")
        if kind == "Battery" and _text(folder / "scope") != "Device":  # "Device": of a mouse, not of this machine
            draining |= _text(folder / "status") == "Discharging"
            if (charge := _number(folder / "capacity")) is not None:
                charges.append(charge)
        elif kind in ("Mains", "USB", "Wireless") and (online := _number(folder / "online")) is not None:
            mains.append(online > 0)
    return min(charges, default=None), any(mains) if mains else (False if draining else None)


def _load(file: Path) -> float | None:
    words = _text(file).split()
    return float(words[0]) / (os.cpu_count() or 1) if words else None


def _memory(root: Path) -> float | None:
    """Return what is available without swapping, in a container at most what its limit leaves."""
    available = None
    for line in _text(root / "proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            available = int(line.split()[1]) * 1024 / _MB
    limit, used = _number(root / "sys/fs/cgroup/memory.max"), _number(root / "sys/fs/cgroup/memory.current")
    if limit is not None and used is not None:
        left = max(0.0, limit - used) / _MB
        available = left if available is None else min(available, left)
    return available


def _default_interface(file: Path) -> str | None:
    """Return the interface of the default route with the lowest metric."""
    routes = []
    for line in _text(file).splitlines()[1:]:
        columns = line.split()
        if len(columns) > 7 and columns[1] == columns[7] == "00000000" and int(columns[3], 16) & _ROUTE_UP:
            routes.append((int(columns[6]), columns[0]))
    return min(routes)[1] if routes else None


def _text(file: Path) -> str:
    try:
        return file.read_text(errors="replace").strip()
    except OSError:
        return ""


def _number(file: Path) -> float | None:
    try:
        return float(_text(file))
    except ValueError:
        return None
