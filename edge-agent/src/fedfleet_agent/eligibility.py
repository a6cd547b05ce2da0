"""Whether this device may train now, and if not why. Pure: rules, readings and the local time are arguments.

Rules are the owner's; what they say is checked in the order of their harshness, and the first that does not hold is
the reason given, so that the same device gives the same reason until something changes. A rule about something the
device does not have (a battery) holds.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Final

from msgspec import Meta, Struct

DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_DAY_MINUTES: Final = 24 * 60


class Rules(Struct, frozen=True, forbid_unknown_fields=True):
    """When the owner lets the device train."""

    battery_min_percent: Annotated[
        int, Meta(ge=0, le=100, description="Train only with at least this much battery; 0: whatever it holds.")
    ] = 0
    mains_only: Annotated[bool, Meta(description="Train only on mains power.")] = False
    load_max: Annotated[
        float, Meta(ge=0, description="Train only while the one-minute load per CPU is below this; 0: always.")
    ] = 0.0
    memory_min_mb: Annotated[int, Meta(ge=0, description="Train only with this much memory available.")] = 0
    disk_min_mb: Annotated[
        int, Meta(ge=0, description="Train only with this much space left on the disk of the state folder.")
    ] = 256
    unmetered_only: Annotated[bool, Meta(description="Train only while the link costs nothing by volume.")] = False
    metered_interfaces: Annotated[
        tuple[str, ...],
        Meta(description="Network interfaces that cost by volume; a * at the end stands for any rest of the name."),
    ] = ("wwan*", "ppp*")
    windows: Annotated[
        tuple[str, ...],
        Meta(description='Train only in these hours of local time, e.g. "mon-fri 22:00-06:00"; none: at any hour.'),
    ] = ()


@dataclass(frozen=True, slots=True)
class Readings:
    """What the probes saw; None where the device has no such thing or it cannot be read.

    Attributes:
        load: the one-minute load average divided by the number of CPUs.
        interface: the network interface of the default route.
    """

    battery_percent: float | None = None
    on_mains: bool | None = None
    load: float | None = None
    memory_mb: float | None = None
    disk_mb: float | None = None
    interface: str | None = None


@dataclass(frozen=True, slots=True)
class Eligible:
    """The device may train."""


@dataclass(frozen=True, slots=True)
class Ineligible:
    """The device may not train now.

    Attributes:
        code: one of `reasons.DECLINE`.
        text: what was read and what the rule asks, for a person.
    """

    code: str
    text: str


@dataclass(frozen=True, slots=True)
class Window:
    """Hours in which the device may train; one that passes midnight belongs to the day it begins on.

    Attributes:
        days: 0 is Monday.
        start, end: minutes since midnight; `end` is at or before `start` if the window passes midnight.
    """

    days: frozenset[int]
    start: int
    end: int

    def holds(self, local: datetime) -> bool:
        """Return whether `local` lies in the window."""
        day, minute = local.weekday(), local.hour * 60 + local.minute
        if self.start < self.end:
            return day in self.days and self.start <= minute < self.end
        return (day in self.days and minute >= self.start) or ((day - 1) % 7 in self.days and minute < self.end)


def parse_window(text: str) -> Window:
    """Return the window that `text` spells: days, then hours, as in "mon-fri,sun 22:00-06:00"; days may be left out.

    Raises:
        ValueError: it spells none; the text says what is wrong with it.
    """
    days_text, _, hours = text.strip().lower().rpartition(" ")
    start_text, dash, end_text = hours.partition("-")
    if not dash:
        raise ValueError(f'"{text}" is not a window; write it like "mon-fri 22:00-06:00"')
    days = _days(days_text) if days_text.strip() else frozenset(range(7))
    return Window(days, _minutes(start_text), _minutes(end_text))


def judge(rules: Rules, readings: Readings, local: datetime, *, paused: bool = False) -> Eligible | Ineligible:
    """Return whether the device may train, by the owner's rules and what was read."""
    refusal = _paused(paused) or _power(rules, readings) or _room(rules, readings) or _link(rules, readings)
    return refusal or _window(rules, local) or Eligible()


def _paused(paused: bool) -> Ineligible | None:
    return Ineligible("paused", "paused by the owner; resume with: fedfleet-agent resume") if paused else None


def _power(rules: Rules, seen: Readings) -> Ineligible | None:
    if seen.battery_percent is not None and seen.battery_percent < rules.battery_min_percent:
        return Ineligible("battery", f"battery {seen.battery_percent:.0f}% < {rules.battery_min_percent}%")
    if rules.mains_only and seen.on_mains is False:
        return Ineligible("mains", "on battery, and the owner asks for mains power")
    return None


def _room(rules: Rules, seen: Readings) -> Ineligible | None:
    if rules.load_max and seen.load is not None and seen.load >= rules.load_max:
        return Ineligible("load", f"load {seen.load:.2f} per CPU >= {rules.load_max:g}")
    if seen.memory_mb is not None and seen.memory_mb < rules.memory_min_mb:
        return Ineligible("memory", f"available memory {seen.memory_mb:.0f} MB < {rules.memory_min_mb} MB")
    if seen.disk_mb is not None and seen.disk_mb < rules.disk_min_mb:
        return Ineligible("disk", f"free disk space {seen.disk_mb:.0f} MB < {rules.disk_min_mb} MB")
    return None


def _link(rules: Rules, seen: Readings) -> Ineligible | None:
    if rules.unmetered_only and seen.interface and any(_named(seen.interface, x) for x in rules.metered_interfaces):
        return Ineligible("metered", f"the default route goes over {seen.interface}, which is metered")
    return None


def _window(rules: Rules, local: datetime) -> Ineligible | None:
    if not rules.windows or any(parse_window(text).holds(local) for text in rules.windows):
        return None
    now = f"{DAYS[local.weekday()]} {local:%H:%M}"
    return Ineligible("window", f"{now} is outside the owner's windows: {', '.join(rules.windows)}")


def _named(interface: str, pattern: str) -> bool:
    return interface.startswith(pattern[:-1]) if pattern.endswith("*") else interface == pattern


def _days(text: str) -> frozenset[int]:
    days: set[int] = set()
    for part in text.replace(" ", "").split(","):
        first, dash, last = part.partition("-")
        for name in (first, last) if dash else (first,):
            if name not in DAYS:
                raise ValueError(f'"{name}" is not a day; days are {", ".join(DAYS)}')
        begin, end = DAYS.index(first), DAYS.index(last if dash else first)
        days.update((begin + step) % 7 for step in range((end - begin) % 7 + 1))
    return frozenset(days)


def _minutes(text: str) -> int:
    hour, colon, minute = text.strip().partition(":")
    if not (colon and hour.isdecimal() and minute.isdecimal() and len(minute) == 2):
        raise ValueError(f'"{text.strip()}" is not a time of day; write it like 22:00')
    total = int(hour) * 60 + int(minute)
    if int(minute) > 59 or total > _DAY_MINUTES:
        raise ValueError(f'"{text.strip()}" is not a time of day; the last one is 24:00')
    return total
