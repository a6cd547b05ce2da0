"""The blob folder: a file is under its digest only when it is whole, and goes when no row names it."""

from collections.abc import Iterator
from errno import ENOSPC
from pathlib import Path

import pytest

from fedfleet_agent.blobs import BlobFolder, read
from fedfleet_agent.errors import AgentError, DiskFull
from fedfleet_protocol.blocks import blocks_of


def test_what_is_put_is_found_under_its_digest(tmp_path: Path) -> None:
    blobs = BlobFolder(tmp_path / "blobs")
    blocks = blobs.put([b"a" * 700_000, b"b" * 700_000])
    assert blocks == blocks_of([b"a" * 700_000 + b"b" * 700_000])
    assert blobs.has(blocks.digest)
    assert b"".join(map(bytes, read(blobs.path(blocks.digest)))) == b"a" * 700_000 + b"b" * 700_000
    assert blobs.used_bytes() == 1_400_000 + 64
    assert blobs.blocks(blocks.digest) == blocks


def test_a_finished_file_is_moved_in(tmp_path: Path) -> None:
    blobs = BlobFolder(tmp_path / "blobs")
    file = tmp_path / "reply"
    file.write_bytes(b"update")
    blocks = blobs.adopt(file)
    assert (file.exists(), blobs.path(blocks.digest).read_bytes()) == (False, b"update")


def test_a_link_that_a_trainer_left_is_not_followed(tmp_path: Path) -> None:
    secret = tmp_path / "key"
    secret.write_bytes(b"secret")
    link = tmp_path / "reply"
    link.symlink_to(secret)
    with pytest.raises(AgentError, match="not an ordinary file"):
        BlobFolder(tmp_path / "blobs").adopt(link)


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path) -> None:
    blobs = BlobFolder(tmp_path / "blobs")

    def pieces() -> Iterator[bytes]:
        yield b"some"
        raise OSError(ENOSPC, "No space left on device")

    with pytest.raises(DiskFull, match="free some space"):
        blobs.put(pieces())
    assert list(blobs.folder.iterdir()) == []


def test_files_that_no_row_names_are_swept_with_their_parts(tmp_path: Path) -> None:
    blobs = BlobFolder(tmp_path / "blobs")
    kept = blobs.put([b"kept"]).digest
    gone = blobs.put([b"gone"]).digest
    (blobs.folder / f"{kept}.part").write_bytes(b"")
    (blobs.folder / f"{gone}.part").write_bytes(b"")
    (blobs.folder / "incoming.1").write_bytes(b"")
    assert blobs.sweep({kept}) == 4
    assert {file.name for file in blobs.folder.iterdir()} == {kept, f"{kept}.part", f"{kept}.blocks"}


def test_a_blob_whose_list_of_blocks_is_lost_is_read_again_and_one_that_changed_is_seen(tmp_path: Path) -> None:
    blobs = BlobFolder(tmp_path / "blobs")
    blocks = blobs.put([b"update"])
    (blobs.folder / f"{blocks.digest}.blocks").write_bytes(b"cut off")
    assert blobs.blocks(blocks.digest) == blocks
    blobs.path(blocks.digest).write_bytes(b"other!")
    with pytest.raises(AgentError, match="has changed on this disk"):
        blobs.blocks(blocks.digest)
