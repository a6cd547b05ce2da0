"""The random generators that apps use without making one: seeded by the run, kept in every checkpoint."""

import random
import sys
from typing import Any

import numpy as np


def seed(number: int) -> None:
    """Let `random`, `numpy.random` and, where it is imported, `torch` begin with the run's seed."""
    random.seed(number)
    np.random.seed(number % 2**32)  # noqa: NPY002 - the global generator is what apps and Flower's strategies draw from
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(number)


def state() -> dict[str, Any]:
    """Return where the generators are."""
    found: dict[str, Any] = {"random": random.getstate(), "numpy": np.random.get_state(legacy=False)}  # noqa: NPY002
    if "torch" in sys.modules:
        found["torch"] = sys.modules["torch"].get_rng_state().numpy()
    return found


def restore(found: dict[str, Any]) -> None:
    """Let the generators go on where `found` was taken."""
    random.setstate(found["random"])
    np.random.set_state(found["numpy"])  # noqa: NPY002
    if "torch" in found:
        import torch

        torch.set_rng_state(torch.from_numpy(found["torch"].copy()))
