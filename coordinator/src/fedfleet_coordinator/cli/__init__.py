"""The command `fedfleet`: what researchers and operators type.

Here belongs what a person sees and types; what it means is decided by the coordinator behind its API. A local fleet
is child processes (`localfleet`), not an import of the daemons.

Exit codes: 0 done, 1 the run failed, 2 bad input, 3 no coordinator answers, 4 the coordinator refuses, 5 this machine
or a part of a local fleet failed, 130 interrupted.
"""

import os
import sys

__all__ = ["main"]

DEBUG = "FEDFLEET_DEBUG"
_BUG = 70
_OWN_MACHINE = 5


def main() -> None:
    """Run the command line and exit."""
    from fedfleet_coordinator.cli.commands import app
    from fedfleet_coordinator.cli.errors import CliError
    from fedfleet_coordinator.cli.output import complain

    try:
        app()
    except CliError as error:
        complain(str(error), error.exit_code)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # Whoever read our output left; the interpreter must not fail at flushing it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:
        if os.environ.get(DEBUG):
            raise
        where = f" ({error.filename})" if error.filename else ""
        complain(f"{error.strerror or error}{where}", _OWN_MACHINE)
        sys.exit(_OWN_MACHINE)
    except Exception as error:
        if os.environ.get(DEBUG):
            raise
        complain(f"a bug in fedfleet: {type(error).__name__}: {error}; {DEBUG}=1 shows where, please report it", _BUG)
        sys.exit(_BUG)
