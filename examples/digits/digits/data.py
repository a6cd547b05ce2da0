"""scikit-learn's 1797 digits: a test split for the hub, the rest cut into shards that differ in their digits."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

FILE = "digits.npz"
TEST = 360
ALPHA = 0.5
SEED = 7

Split = tuple[NDArray[np.float32], NDArray[np.int64]]
"""Images (n x 64, from 0 to 1) and labels (n)."""


def test_split() -> Split:
    """Return the images that no device sees."""
    images, labels = _shuffled()
    return images[:TEST], labels[:TEST]


def shards(count: int, *, alpha: float = ALPHA) -> list[Split]:
    """Return the other images in `count` shards; the shares of each digit are drawn from Dirichlet(alpha).

    Small `alpha`: a device saw few of the ten digits. Drawn again until each shard has at least ten images.
    """
    images, labels = _shuffled()
    images, labels = images[TEST:], labels[TEST:]
    generator = np.random.default_rng(SEED + count)
    while True:
        parts: list[list[int]] = [[] for _ in range(count)]
        for digit in range(10):
            indices = np.flatnonzero(labels == digit)
            cuts = (np.cumsum(generator.dirichlet([alpha] * count))[:-1] * len(indices)).astype(int)
            for part, piece in zip(parts, np.split(indices, cuts), strict=True):
                part.extend(piece.tolist())
        if min(map(len, parts)) >= min(10, len(labels) // count // 2):
            return [(images[part], labels[part]) for part in (generator.permutation(part) for part in parts)]


def write(folder: Path, shard: Split) -> Path:
    """Return the file in `folder` that now holds `shard`."""
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / FILE, images=shard[0], labels=shard[1])
    return folder / FILE


def read(folder: Path) -> Split:
    """Return the shard in `folder`.

    Raises:
        FileNotFoundError: nobody wrote one.
    """
    file = folder / FILE
    if not file.is_file():
        raise FileNotFoundError(f"there is no {file}; write the shards first: python shards.py FOLDER --agents N")
    with np.load(file, allow_pickle=False) as stored:
        return stored["images"], stored["labels"]


def _shuffled() -> Split:
    from sklearn.datasets import load_digits  # here: it takes seconds, and a device with a shard needs none of it

    digits = load_digits()
    order = np.random.default_rng(SEED).permutation(len(digits.target))
    return (digits.data[order] / 16).astype(np.float32), digits.target[order].astype(np.int64)
