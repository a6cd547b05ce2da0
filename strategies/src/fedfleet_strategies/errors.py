"""What goes wrong in a strategy, by whose fault.

ValueError
  Incompatible     the researcher: options that contradict each other, or a model that cannot be averaged
Refused            a device: this reply is left out, or this round has no result; the run goes on
  AppFault         the app: as Refused, but if it hits every reply of the first round, the run ends with that text
Ended              nobody: a limit that the researcher set is reached, and the run ends well before the next round
"""

from flwr.app import ArrayRecord


class Incompatible(ValueError):
    """Options of a strategy that cannot go together, or a model no strategy can average; the text names all of them."""


class Refused(Exception):
    """An update is left out, or a round has no result; the text says why, in words for the researcher."""


class NotFinite(Refused):
    """Some update holds NaN or infinity; nobody has looked yet whose."""


class AppFault(Refused):
    """An update is left out because the app does not do what the strategy needs."""


class Ended(Exception):
    """No further round may begin; the text says which limit is reached.

    Attributes:
        arrays: the model that the rounds so far gave.
    """

    def __init__(self, why: str, arrays: ArrayRecord | None = None) -> None:
        super().__init__(why)
        self.arrays = arrays
