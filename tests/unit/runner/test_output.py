"""What an app prints is caught, and standard output is given back."""

import subprocess
import sys


def test_output_that_was_given_back_may_be_closed_again() -> None:
    # The runner closes it before it ends its run, and once more when it leaves, whatever happened in between.
    code = """
from fedfleet_coordinator.runner.output import Output
lines = []
output = Output(lines.extend)
print("caught")
output.close()
output.close()
print("given back", lines)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "given back ['caught']\n"
