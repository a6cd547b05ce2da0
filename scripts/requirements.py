"""Print what our distributions need from elsewhere, one requirement a line: `requirements.py FOLDER ...`.

Their extras are included, plots left out: an image holds all that its processes can use.
"""

import sys
import tomllib
from pathlib import Path

LEFT_OUT = {"plot"}


def main() -> None:
    """Print the requirements of the folders that are named."""
    found = set()
    for folder in sys.argv[1:]:
        project = tomllib.loads((Path(folder) / "pyproject.toml").read_text())["project"]
        found |= set(project.get("dependencies", []))
        for extra, needs in project.get("optional-dependencies", {}).items():
            found |= set(needs) if extra not in LEFT_OUT else set()
    print("\n".join(sorted(one for one in found if not one.startswith("fedfleet-"))))


if __name__ == "__main__":
    main()
