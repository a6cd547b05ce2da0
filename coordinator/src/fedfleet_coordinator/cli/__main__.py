"""`python -m fedfleet_coordinator.cli`: the command `fedfleet` where it is not installed as one."""

from fedfleet_coordinator.cli import main

if __name__ == "__main__":
    main()
