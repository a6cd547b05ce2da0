"""What goes wrong in a strategy, by whose fault.

ValueError
  Incompatible     the researcher: options that contradict each other, or a model that cannot be averaged
Refused            a device: this reply is left out, or this round has no result; the run goes on
  AppFault         the app: as Refused, but if it hits every reply of the first round, the run ends with that text
"""


class Incompatible(ValueError):
    """Options of a strategy that cannot go together, or a model no strategy can average; the text names all of them."""


class Refused(Exception):
    """An update is left out, or a round has no result; the text says why, in words for the researcher."""


class AppFault(Refused):
    """An update is left out because the app does not do what the strategy needs."""
