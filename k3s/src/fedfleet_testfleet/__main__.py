"""The command `fedfleet-testfleet`, and `python -m fedfleet_testfleet`."""

import os
import sys

DEBUG = "FEDFLEET_DEBUG"
_BUG = 70


def main() -> None:
    """Run the command line and exit."""
    from fedfleet_testfleet.commands import app

    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # Whoever read our output left; the interpreter must not fail at flushing it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Exception as error:
        if os.environ.get(DEBUG):
            raise
        said = f"a bug in fedfleet-testfleet: {type(error).__name__}: {error}; {DEBUG}=1 shows where, please report it"
        sys.stderr.write(f"error: {said}\n")
        sys.exit(_BUG)


if __name__ == "__main__":
    main()
