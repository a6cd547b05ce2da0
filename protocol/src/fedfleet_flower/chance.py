"""The random generators that apps use without making one."""

import random
import sys

import numpy as np


def seed(number: int) -> None:
    """Let `random`, `numpy.random` and, where it is imported, `torch` begin with this number."""
    random.seed(number)
    np.random.seed(number % 2**32)  # noqa: NPY002 - the global generator is what apps and Flower's strategies draw from
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(number)
