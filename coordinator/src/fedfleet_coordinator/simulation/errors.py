"""What ends a simulation before its app does.

SimulationError
├── Unusable       the researcher's: the ClientApp cannot be loaded, or the trainer is not installed
└── NoRoom         the machine's: the scratch folder is full
"""


class SimulationError(Exception):
    """The simulation cannot go on; the text says why and what to do."""


class Unusable(SimulationError):
    """There is no ClientApp to call."""


class NoRoom(SimulationError):
    """The scratch folder is full."""
