"""`python -m fedfleet_trainer.proof FOLDER`: confine this process like a trainer, try, and print what is in reach.

The sandbox comes as JSON on standard input; what is in reach goes as JSON to standard output.
"""

import dataclasses
import json
import sys
from pathlib import Path

import msgspec

import fedfleet_sandbox
from fedfleet_protocol.handover import MADE, Sandbox
from fedfleet_trainer.confinement import Unconfined, confine, explained


def main() -> int:
    """Print what an app would have in its reach in the folder that is named; return the exit code."""
    folder = Path(sys.argv[1])
    sandbox = msgspec.json.decode(sys.stdin.buffer.read(), type=Sandbox)
    own = folder / MADE
    (own / "scratch").mkdir(parents=True)
    kernel = fedfleet_sandbox.probe()
    try:
        # Less than the minimum is what is to be told here, not to be refused.
        reach = confine(folder, own, msgspec.structs.replace(sandbox, minimum="none"))
    except Unconfined as error:
        print(error, file=sys.stderr)
        return 1
    lacking = reach.missing(sandbox.minimum)
    why = explained(lacking, reach, sandbox) if lacking else ""
    print(json.dumps({"kernel": dataclasses.asdict(kernel), **dataclasses.asdict(reach), "why": why}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
