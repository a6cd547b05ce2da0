"""The random generators that apps use without making one: seeded by the run, kept in every checkpoint."""

import random
import sys
from typing import Any

import numpy as np

from fedfleet_flower.chance import seed

__all__ = ["restore", "seed", "state"]


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
