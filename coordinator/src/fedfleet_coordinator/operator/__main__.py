"""The operator as a process: `python -m fedfleet_coordinator.operator`. Composition root.

It is told by its environment where the coordinator is (FEDFLEET_URL), where its certificate is (FEDFLEET_CREDENTIALS, a
folder), what runners are made of (FEDFLEET_RUNNER_IMAGE), and who and where it is (POD_NAME, POD_NAMESPACE).
"""

import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path

from fedfleet_coordinator.operator.cluster import ApiServer, ClusterError
from fedfleet_coordinator.operator.controller import Controller
from fedfleet_coordinator.operator.jobs import RunnerImage
from fedfleet_coordinator.operator.lease import Holder
from fedfleet_coordinator.operator.store import ApiStore

_log = logging.getLogger("fedfleet")


def main() -> int:
    """Operate until SIGTERM; return the exit code."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("urllib3").setLevel(logging.ERROR)
    folder = Path(os.environ["FEDFLEET_CREDENTIALS"])
    while not (folder / "operator.pem").exists():  # the coordinator writes it at its start
        _log.info("waiting for %s, which the coordinator writes", folder / "operator.pem")
        time.sleep(1.0)
    try:
        server = ApiServer.found(os.environ.get("KUBECONFIG"))
    except ClusterError as error:
        _log.error("%s", error)
        return 2
    url = os.environ["FEDFLEET_URL"]
    lease = Holder(
        server, namespace=os.environ["POD_NAMESPACE"], name="fedfleet-operator", identity=os.environ["POD_NAME"]
    )
    image = RunnerImage(os.environ["FEDFLEET_RUNNER_IMAGE"], url, (folder / "ca.pem").read_text())
    controller = Controller(server, ApiStore(url, folder), lease, image)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: controller.stop())
    keeper = threading.Thread(target=lease.keep, name="lease", daemon=True)
    keeper.start()
    controller.run()
    lease.stop()
    keeper.join(5.0)
    return 0


if __name__ == "__main__":
    sys.exit(main())
