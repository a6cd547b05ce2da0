"""Write each device's shard of the digits into a folder of its own, before the run.

python examples/digits/shards.py FOLDER --agents 5 --alpha 0.5     # FOLDER/0/digits.npz ... FOLDER/4/digits.npz
"""

import argparse
from pathlib import Path

import numpy as np
from digits import data


def main() -> None:
    """Write the shards and show what is in them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--agents", type=int, default=5)
    parser.add_argument("--alpha", type=float, default=data.ALPHA, help="smaller: each device saw fewer of the digits")
    options = parser.parse_args()
    if options.agents < 1 or options.alpha <= 0:
        parser.error("--agents takes a number from 1, --alpha one above 0")
    for number, shard in enumerate(data.shards(options.agents, alpha=options.alpha)):
        counts = " ".join(f"{count:3}" for count in np.bincount(shard[1], minlength=10))
        print(f"{data.write(options.folder / str(number), shard)}: {len(shard[1]):4} images, of 0 to 9: {counts}")


if __name__ == "__main__":
    main()
