"""`python -m fedfleet_coordinator.runner --home DIR`: see `process`."""

import os
import sys

if __name__ == "__main__":
    if os.environ.get("PYTHONHASHSEED", "random") == "random":
        # The order of sets of strings must be the same in every runner of a run.
        os.execve(sys.executable, sys.orig_argv, {**os.environ, "PYTHONHASHSEED": "0"})  # noqa: S606
    from fedfleet_coordinator.runner import confinement

    lacking = confinement.enter(os.environ, sys.argv[1:])
    from fedfleet_coordinator.runner.process import main

    sys.exit(main(lacking))
