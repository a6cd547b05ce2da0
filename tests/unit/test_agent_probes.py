"""Readings from a tree that looks like Linux's, as on a laptop, a board without battery, and in a container."""

from pathlib import Path

import pytest

from fedfleet_agent import probes
from fedfleet_agent.eligibility import Readings

ROUTES = """Iface	Destination	Gateway 	Flags	RefCnt	Use	Metric	Mask		MTU	Window	IRTT
wwan0	00000000	0101A8C0	0003	0	0	700	00000000	0	0	0
wlan0	00000000	0101A8C0	0003	0	0	600	00000000	0	0	0
wlan0	0001A8C0	00000000	0001	0	0	600	00FFFFFF	0	0	0
"""


def put(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return root


def test_a_laptop_on_battery(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    power = "sys/class/power_supply"
    root = put(
        tmp_path,
        {
            f"{power}/BAT0/type": "Battery\n",
            f"{power}/BAT0/capacity": "41\n",
            f"{power}/BAT0/status": "Discharging\n",
            f"{power}/mouse/type": "Battery\n",
            f"{power}/mouse/scope": "Device\n",
            f"{power}/mouse/capacity": "3\n",
            f"{power}/AC/type": "Mains\n",
            f"{power}/AC/online": "0\n",
            "proc/loadavg": "2.00 1.00 0.50 1/200 4242\n",
            "proc/meminfo": "MemTotal: 8000000 kB\nMemAvailable: 1000000 kB\n",
            "proc/net/route": ROUTES,
        },
    )
    seen = probes.read(tmp_path, root)
    assert (seen.battery_percent, seen.on_mains, seen.load, seen.interface) == (41, False, 0.5, "wlan0")
    assert seen.memory_mb == pytest.approx(1024)
    assert seen.disk_mb is not None
    assert seen.disk_mb > 0


def test_what_a_board_does_not_have_is_unknown(tmp_path: Path) -> None:
    assert probes.read(tmp_path / "gone", tmp_path) == Readings()


def test_in_a_container_only_what_its_limit_leaves_is_available(tmp_path: Path) -> None:
    files = {
        "proc/meminfo": "MemAvailable: 1000000 kB\n",
        "sys/fs/cgroup/memory.max": "300000000\n",
        "sys/fs/cgroup/memory.current": "100000000\n",
    }
    assert probes.read(tmp_path, put(tmp_path, files)).memory_mb == 200
    put(tmp_path, {"sys/fs/cgroup/memory.max": "max\n"})
    assert probes.read(tmp_path, tmp_path).memory_mb == pytest.approx(1024)
