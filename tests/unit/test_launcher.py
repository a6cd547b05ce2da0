"""What is left of a runner that could not be told what to do."""

import asyncio
from pathlib import Path

from fedfleet_coordinator.capabilities import Capabilities
from fedfleet_coordinator.engine import Engine
from fedfleet_coordinator.exchanges import Exchanges
from fedfleet_coordinator.launcher import Launcher
from fedfleet_coordinator.rows import Run
from fedfleet_coordinator.store.memory import MemoryStore
from fedfleet_protocol.ids import Digest, RunId, run_id


class NoRoom:
    """Credentials that cannot be written down."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()

    def runner_files(self, run: RunId) -> dict[str, bytes]:
        self.asked.set()
        raise OSError(28, "No space left on device")


async def _fail(folder: Path) -> None:
    store, credentials = MemoryStore(), NoRoom()
    with store.transaction() as tx:
        tx.put(Run(run=run_id(bytes(16)), state="pending", bundle=Digest("b"), bundle_size=1))
    engine = Engine(store)
    launcher = Launcher(
        engine=engine, exchanges=Exchanges(Capabilities(bytes(32))), credentials=credentials, folder=folder,
        url="https://127.0.0.1:1", blob_path=Path, confined=False,
    )  # fmt: skip
    launcher.wake(run_id(bytes(16)))
    async with asyncio.timeout(20):
        await credentials.asked.wait()
    await launcher.close()
    await engine.close()


def test_runner_without_its_files_leaves_nothing_behind(tmp_path: Path) -> None:
    asyncio.run(_fail(tmp_path / "runners"))
    assert list((tmp_path / "runners").iterdir()) == []
