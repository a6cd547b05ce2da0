"""Writes golden files for what is said in a way that no golden file holds yet; existing ones are never touched.

    .venv/bin/python -m tests.unit.protocol.write_golden

A file is `<family>.<kind>.<number>.msgpack`. It is what some version of fedfleet wrote, so it must stay readable.
"""

from collections.abc import Iterator
from pathlib import Path

import msgspec

from fedfleet_protocol.messages import encode
from tests.unit.protocol.samples import CONTENT, HANDOVER, MESSAGES, kind_of

GOLDEN = Path(__file__).parent / "golden"


def said() -> Iterator[tuple[str, bytes]]:
    """Yield the family and kind of every sample, and its bytes."""
    for message in MESSAGES:
        yield f"messages.{kind_of(message)}", encode(message)
    for frame in HANDOVER:
        yield f"handover.{kind_of(frame)}", msgspec.msgpack.encode(frame)
    yield "records.content", b"".join(CONTENT.pieces())


def write() -> None:
    """Write what is missing."""
    GOLDEN.mkdir(exist_ok=True)
    for name, data in said():
        held = sorted(GOLDEN.glob(f"{name}.*.msgpack"))
        if all(path.read_bytes() != data for path in held):
            (GOLDEN / f"{name}.{len(held) + 1}.msgpack").write_bytes(data)


if __name__ == "__main__":
    write()
