"""Run the benchmarks and print a table: ours, what must be, and Flower's own runtime in the same go."""

import argparse
import platform
import statistics
from collections.abc import Callable
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from benchmarks import fleet, memory, simulate, strategies, thousand
from benchmarks.processes import MIB


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    what: str
    ours: str
    must: str
    holds: bool
    flower: str = ""
    ratio: str = ""


def main() -> None:
    """Measure what was asked for, print as it comes, then the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", help=f"which: {', '.join(BENCHMARKS)}; default: all")
    parser.add_argument("--without-flower", action="store_true", help="measure our side only; much quicker")
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in BENCHMARKS]
    if unknown:
        parser.error(f"no benchmark {unknown[0]!r}; there are: {', '.join(BENCHMARKS)}")
    console = Console()
    console.print(f"{platform.platform()}, {_processor()}, Python {platform.python_version()}")
    table = Table("what", "fedfleet", "must", "", "Flower", "ratio")
    for name in options.names or BENCHMARKS:
        with console.status(f"{name} ..."):
            rows = BENCHMARKS[name](not options.without_flower)
        for row in rows:
            console.print(f"{row.what}: {row.ours} {row.flower and f'(Flower: {row.flower})'}")
            mark = "[green]ok[/]" if row.holds else "[red]missed[/]"
            table.add_row(row.what, row.ours, row.must, mark, row.flower, row.ratio)
    console.print(table)


def _exchange(agents: int, megabytes: float, must_s: float, *, flower: bool) -> list[Row]:
    ours = fleet.on_fedfleet(agents, megabytes)
    theirs = fleet.on_flower(agents, megabytes) if flower else None
    rows = [
        Row(
            f"exchange, {agents} agents, {megabytes:g} MB",
            _spread(ours.seconds), f"{must_s:g} s", ours.median <= must_s,
            _spread(theirs.seconds) if theirs else "",
            f"{theirs.median / ours.median:.0f} x" if theirs else "",
        )
    ]  # fmt: skip
    if megabytes >= 40:
        rows.append(_limit("  hub and runner, peak", ours.hub_bytes, 500))
        rows.append(_limit("  all processes, peak", ours.all_bytes, 5000))
    return rows


def _quickstart(flower: bool) -> list[Row]:
    ours = fleet.quickstart_on_fedfleet()
    theirs = fleet.quickstart_on_flower() if flower else 0.0
    median = statistics.median(ours)
    ratio = f"{theirs / median:.0f} x" if theirs else ""
    return [
        Row(
            "three-round quickstart, warm",
            _spread(ours),
            "3 s",
            median <= 3,
            f"{theirs:.1f} s" if theirs else "",
            ratio,
        )
    ]


def _idle(flower: bool) -> list[Row]:
    idle = fleet.idle_agent()
    return [
        Row("idle agent, processes", str(idle.processes), "1", idle.processes == 1),
        Row("idle agent, memory", f"{idle.resident_bytes / MIB:.1f} MiB", "35 MiB", idle.resident_bytes <= 35 * MIB),
        Row("idle agent, traffic a day", f"{idle.bytes_a_day / 1e6:.2f} MB", "0.5 MB", idle.bytes_a_day <= 500_000),
    ]


def _thousand(flower: bool) -> list[Row]:
    took, accepted = thousand.seconds()
    median = statistics.median(took)
    return [
        Row("exchange of 4 KB with 1,000 agents", _spread(took), "3 s", median <= 3),
        Row("  replies accepted", str(accepted), "1000", accepted == 1000),
    ]


def _simulate(flower: bool) -> list[Row]:
    found = simulate.overhead()
    per_call = " ".join(f"{1000 * seconds:.2f}" for seconds in sorted(found.per_call_s))
    return [
        Row(
            "simulated call of 4 KB, 1,000 agents, 2 workers",
            f"{1000 * found.median_s:.2f} ms ({per_call})",
            "1 ms",
            found.median_s < 1e-3,
        ),
        Row(
            "  processor time of it, all processes",
            f"{1000 * found.processor_s:.2f} ms",
            "2 ms",
            found.processor_s < 2e-3,
        ),
    ]


def _runner_memory(flower: bool) -> list[Row]:
    return [_limit(f"runner's peak, FedAvg of {n} updates of 40 MB", memory.runner_bytes(n)[0], 250) for n in (20, 200)]


def _aggregation(flower: bool) -> list[Row]:
    return [
        Row(
            one.what,
            _spread(one.ours),
            f"{one.must_s:g} s",
            statistics.median(one.ours) <= one.must_s,
            _spread(one.theirs) if one.theirs else "",
            f"{statistics.median(one.theirs) / statistics.median(one.ours):.1f} x" if one.theirs else "",
        )
        for one in strategies.timed(flower=flower)
    ]


def _aggregation_memory(flower: bool) -> list[Row]:
    return [
        _limit(f"peak of {name}, {count} updates of 40 MB", strategies.peak(count, name), most // 1_000_000)
        for name, (_, most) in strategies.FAMILIES.items()
        for count in (20, 200)
    ]


def _limit(what: str, found: int, most_mb: int) -> Row:
    return Row(what, f"{found / 1e6:.0f} MB", f"{most_mb} MB", found <= most_mb * 1e6)


def _spread(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):.3f} s ({min(seconds):.3f}-{max(seconds):.3f})"


def _processor() -> str:
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    return f"{len(names)} x {names[0]}" if names else "an unknown processor"


BENCHMARKS: dict[str, Callable[[bool], list[Row]]] = {
    "exchange-2": lambda flower: _exchange(2, 4, 0.1, flower=flower),
    "exchange-10": lambda flower: _exchange(10, 4, 0.3, flower=flower),
    "exchange-20": lambda flower: _exchange(20, 4, 0.5, flower=flower),
    "exchange-20-large": lambda flower: _exchange(20, 40, 6.0, flower=False),
    "quickstart": _quickstart,
    "runner-memory": _runner_memory,
    "thousand": _thousand,
    "simulate": _simulate,
    "aggregation": _aggregation,
    "aggregation-memory": _aggregation_memory,
    "idle": _idle,
}

if __name__ == "__main__":
    main()
