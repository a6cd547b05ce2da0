"""A runner's process has bounds of its own, which the app it executes cannot lift."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import json, os, pathlib, resource, sys
from fedfleet_coordinator.runner.limits import limit
limit(memory_bytes=512 << 20, file_bytes=1 << 20)
told = {"core": resource.getrlimit(resource.RLIMIT_CORE)}
told["privileges"] = "NoNewPrivs:\\t1" in pathlib.Path("/proc/self/status").read_text()
try:
    bytearray(1 << 30)
except MemoryError:
    told["memory"] = "refused"
try:
    pathlib.Path(sys.argv[1]).write_bytes(bytes(2 << 20))
except OSError as error:
    told["file"] = error.errno
try:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 30, 1 << 30))
except (ValueError, OSError):
    told["lifted"] = False
else:
    told["lifted"] = os.geteuid() == 0 and "root may"
print(json.dumps(told))
"""


def test_runner_is_bounded_in_memory_and_files_and_gains_no_rights(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, tmp_path / "big"], capture_output=True, text=True, check=True, timeout=60
    )
    told = json.loads(done.stdout)
    assert told == {"core": [0, 0], "privileges": True, "memory": "refused", "file": 27, "lifted": told["lifted"]}
    assert told["lifted"] in (False, "root may")
