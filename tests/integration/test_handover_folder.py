"""What a hostile app leaves in the folder that its trainer shares with the agent."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from fedfleet_agent.supervisor import Done, Failed
from tests.integration.test_trainer import TRAIN, Bench, bundle

pytestmark = [pytest.mark.integration, pytest.mark.timeout(60)]

LITTER = (
    TRAIN
    + """
    for folder in ("..", "../made"):  # a confined app may write in one of them only
        for name in ("reply-0", "message-0", "state-0"):
            try:
                os.makedirs(f"{folder}/{name}/below")
            except OSError:
                continue
    return answer(message)
"""
)
TRAP = (
    TRAIN
    + """
    for number in range(100):
        for name in (f"../message-{number}", f"../state-before-{number}"):
            try:
                os.symlink(VICTIM, name)
            except OSError:
                continue
    return answer(message)
"""
)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.supervisor.close()


def test_a_reply_is_taken_although_the_app_left_folders_where_files_belong(bench: Bench, tmp_path: Path) -> None:
    app = bundle(tmp_path, LITTER)
    for _ in range(2):
        done, _ = bench.do(bench.work(app))
        assert isinstance(done, Done), done
        done.reply.path.unlink()


def test_an_app_cannot_have_the_agent_write_where_a_link_points_to(bench: Bench, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("the owner's")
    app = bundle(tmp_path, TRAP.replace("VICTIM", repr(str(victim))))
    for _ in range(2):
        ended, _ = bench.do(bench.work(app))
        assert isinstance(ended, Done | Failed)
        assert victim.read_text() == "the owner's"
