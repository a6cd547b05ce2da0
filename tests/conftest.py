"""What holds for all tests: examples are drawn without a stopwatch, and no process outlives its test."""

from collections.abc import Iterator

import psutil
import pytest
from hypothesis import settings

settings.register_profile("fedfleet", deadline=None)  # this may be a busy machine; a hang is found by the timeout
settings.load_profile("fedfleet")


@pytest.fixture(autouse=True)
def no_process_outlives_its_test(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test with real processes that leaves one behind, and end it."""
    if not any(request.node.get_closest_marker(name) for name in ("integration", "e2e", "cluster")):
        yield
        return
    if "fleet" in request.fixturenames:  # it outlives the test, starts again what is killed, and cleans up itself
        yield
        return
    before = set(psutil.Process().children(recursive=True))
    yield
    left = [child for child in psutil.Process().children(recursive=True) if child not in before and alive(child)]
    names = [f"{child.pid} {child.name()}" for child in left]
    for child in left:
        child.kill()
    assert not left, f"processes left behind: {', '.join(names)}"


def alive(process: psutil.Process) -> bool:
    """Whether it still runs; a zombie is its parent's to bury."""
    return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
