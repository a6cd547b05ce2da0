"""Random numbers that a killed runner draws again: a function of seed, round and purpose, never a stored generator."""

import hashlib

import numpy as np


def rng(seed: int, server_round: int, purpose: str) -> np.random.Generator:
    """Return a generator for one purpose in one round. Not for noise that protects privacy: its seed is known."""
    digest = hashlib.sha256(f"fedfleet {seed} {server_round} {purpose}".encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))
