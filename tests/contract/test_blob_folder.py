"""What the coordinator's blob folder promises: over real files, real kills and a disk that is really full."""

import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedfleet_coordinator.blobs import SLICE_BYTES, BlobFolder
from fedfleet_coordinator.errors import BadRequest, QuotaFull, WrongBlock, WrongOffset
from fedfleet_protocol.blocks import BLOCK_BYTES, BlockList, blocks_of

DATA = random.Random(7).randbytes(2 * BLOCK_BYTES + 70_001)
BLOCKS = blocks_of([DATA])
DIGEST = BLOCKS.digest


@pytest.fixture
def blobs(tmp_path: Path) -> Iterator[BlobFolder]:
    made = BlobFolder(tmp_path / "blobs")
    yield made
    made.close()


def begin(blobs: BlobFolder, blocks: BlockList = BLOCKS) -> int:
    return blobs.begin(blocks.digest, blocks.size, blocks.digests)


def send(blobs: BlobFolder, until: int | None = None, data: bytes = DATA) -> int:
    """Send from where the upload is to `until`."""
    blocks, end = blocks_of([data]), len(data) if until is None else until
    at = begin(blobs, blocks)
    while at < end:
        at = blobs.append(blocks.digest, at, data[at : min(at + SLICE_BYTES, end)])
    return at


def test_an_upload_in_one_go_is_a_file_of_its_own_name(blobs: BlobFolder) -> None:
    assert begin(blobs) == 0
    assert send(blobs) == len(DATA)
    assert blobs.is_whole(DIGEST)
    name = blobs.complete(DIGEST)
    assert name.startswith(f"{DIGEST}.") and blobs.path(name).read_bytes() == DATA
    assert send(blobs) == len(DATA)
    assert blobs.complete(DIGEST) != name


def test_files_and_folders_are_for_their_owner_only(blobs: BlobFolder) -> None:
    send(blobs)
    blobs.complete(DIGEST)
    send(blobs, 100)
    modes = {path.stat().st_mode & 0o077 for path in [blobs.folder, *blobs.folder.rglob("*")]}
    assert modes == {0}


EDGES = sorted({
    edge + step for edge in (0, SLICE_BYTES, BLOCK_BYTES, 2 * BLOCK_BYTES, len(DATA)) for step in (-1, 0, 1)
    if 0 <= edge + step <= len(DATA)
})  # fmt: skip


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.sampled_from(EDGES) | st.integers(0, len(DATA)), max_size=4), restart=st.booleans())
def test_an_upload_goes_on_at_the_byte_where_it_was_cut(tmp_path: Path, cuts: list[int], restart: bool) -> None:
    blobs = BlobFolder(tmp_path / "blobs")
    for cut in sorted(cuts):
        send(blobs, cut)
        if restart:
            blobs.close()
            blobs = BlobFolder(tmp_path / "blobs")
        assert begin(blobs) == cut
    send(blobs)
    name = blobs.complete(DIGEST)
    assert blobs.path(name).read_bytes() == DATA
    blobs.close()


def test_only_a_wrong_block_is_sent_again(blobs: BlobFolder) -> None:
    wrong = bytearray(DATA)
    wrong[BLOCK_BYTES + 5] ^= 1
    begin(blobs)
    with pytest.raises(WrongBlock) as caught:
        blobs.append(DIGEST, 0, bytes(wrong))
    assert caught.value.offset == BLOCK_BYTES == begin(blobs)
    send(blobs)
    assert blobs.path(blobs.complete(DIGEST)).read_bytes() == DATA


def test_bytes_spoilt_on_disk_between_two_starts_are_sent_again(blobs: BlobFolder, tmp_path: Path) -> None:
    send(blobs, 2 * BLOCK_BYTES + 10)
    blobs.close()
    [partial] = (tmp_path / "blobs" / "partial").iterdir()
    with partial.open("r+b") as stream:
        stream.seek(BLOCK_BYTES + 1)
        stream.write(bytes(100))
    again = BlobFolder(tmp_path / "blobs")
    assert begin(again) == BLOCK_BYTES
    send(again)
    assert again.path(again.complete(DIGEST)).read_bytes() == DATA
    again.close()


def test_bytes_for_another_place_are_refused_and_change_nothing(blobs: BlobFolder) -> None:
    send(blobs, 1000)
    with pytest.raises(WrongOffset) as caught:
        blobs.append(DIGEST, 999, DATA[999:2000])
    assert caught.value.offset == 1000
    with pytest.raises(BadRequest, match="more than"):
        blobs.append(DIGEST, 1000, DATA[1000:] + b"x")
    assert begin(blobs) == 1000


def test_a_list_of_blocks_of_another_blob_is_refused(blobs: BlobFolder) -> None:
    with pytest.raises(BadRequest, match="list of blocks"):
        blobs.begin(DIGEST, BLOCKS.size, bytes(len(BLOCKS.digests)))
    with pytest.raises(BadRequest, match="begin it again"):
        blobs.append(DIGEST, 0, b"x")


def test_what_is_not_whole_is_not_completed(blobs: BlobFolder) -> None:
    send(blobs, len(DATA) - 1)
    with pytest.raises(BadRequest, match="not whole"):
        blobs.complete(DIGEST)


def test_an_empty_blob_is_whole_at_once(blobs: BlobFolder) -> None:
    nothing = blocks_of([])
    assert begin(blobs, nothing) == 0
    name = blobs.complete(nothing.digest)
    assert list(blobs.slices(name, 0, 0)) == []


def test_slices_are_the_bytes_asked_for(blobs: BlobFolder) -> None:
    send(blobs)
    name = blobs.complete(DIGEST)
    pieces = list(blobs.slices(name, 5, len(DATA) - 3))
    assert b"".join(pieces) == DATA[5:-3]
    assert max(map(len, pieces)) == SLICE_BYTES


def test_a_reader_keeps_its_bytes_when_the_file_goes(blobs: BlobFolder) -> None:
    send(blobs)
    name = blobs.complete(DIGEST)
    slices = blobs.slices(name, 0, len(DATA))
    first = next(slices)
    blobs.unlink(name)
    blobs.unlink(name)
    assert b"".join([first, *slices]) == DATA and not blobs.path(name).exists()


# --- room ------------------------------------------------------------------------------------------------------------


def other(n: int, size: int = BLOCK_BYTES) -> bytes:
    return bytes([n]) * size


def test_the_quota_counts_what_is_stored_and_what_is_under_way(tmp_path: Path) -> None:
    blobs = BlobFolder(tmp_path / "blobs", quota_bytes=3 * BLOCK_BYTES)
    send(blobs, data=other(1))
    name = blobs.complete(blocks_of([other(1)]).digest)
    send(blobs, 10, other(2))
    begin(blobs, blocks_of([other(3)]))
    with pytest.raises(QuotaFull, match=r"3145728 of the 3145728 bytes .* raise \[blobs\] quota_mb"):
        begin(blobs, blocks_of([other(4)]))
    blobs.unlink(name)
    assert begin(blobs, blocks_of([other(4)])) == 0
    blobs.close()


def test_the_quota_counts_partial_uploads_from_before_the_start(tmp_path: Path) -> None:
    blobs = BlobFolder(tmp_path / "blobs")
    send(blobs, BLOCK_BYTES, other(1, 2 * BLOCK_BYTES))
    blobs.close()
    again = BlobFolder(tmp_path / "blobs", quota_bytes=2 * BLOCK_BYTES)
    with pytest.raises(QuotaFull):
        begin(again, blocks_of([other(2, BLOCK_BYTES + 1)]))
    assert begin(again, blocks_of([other(1, 2 * BLOCK_BYTES)])) == BLOCK_BYTES  # the same bytes do not count twice
    again.close()


def test_begun_uploads_hold_no_descriptors(blobs: BlobFolder) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for n in range(50):
        send(blobs, 10, other(n, 100))
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", place], check=False, capture_output=True)
    if mounted.returncode:
        pytest.skip("a small disk cannot be mounted here: run as root, with CAP_SYS_ADMIN")
    yield place
    subprocess.run(["umount", place], check=True)


def check_full(blobs: BlobFolder, make_room: object) -> None:
    assert callable(make_room)
    kept = other(1, 300_000)
    send(blobs, data=kept)
    name = blobs.complete(blocks_of([kept]).digest)
    with pytest.raises(QuotaFull, match="is full; free some space"):
        send(blobs)
    reached = begin(blobs)
    assert 0 < reached < len(DATA)
    assert blobs.path(name).read_bytes() == kept
    make_room()
    send(blobs)
    assert blobs.path(blobs.complete(DIGEST)).read_bytes() == DATA


@pytest.mark.integration
def test_a_full_disk_costs_nothing_that_was_there(small_disk: Path) -> None:
    blobs = BlobFolder(small_disk / "blobs", free_floor_bytes=-(1 << 30))
    check_full(blobs, lambda: subprocess.run(["mount", "-o", "remount,size=8m", small_disk], check=True))
    blobs.close()


def test_a_limit_on_file_sizes_is_as_a_full_disk(blobs: BlobFolder) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (BLOCK_BYTES + 100_000, hard))
    try:
        check_full(blobs, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_some_of_the_disk_stays_free(tmp_path: Path) -> None:
    blobs = BlobFolder(tmp_path / "blobs", free_floor_bytes=1 << 60)
    with pytest.raises(QuotaFull, match="free some space"):
        begin(blobs)
    blobs.close()


# --- sweeping --------------------------------------------------------------------------------------------------------


def test_old_files_that_no_row_names_go_at_a_start(blobs: BlobFolder, tmp_path: Path) -> None:
    send(blobs)
    named = blobs.complete(DIGEST)
    send(blobs)
    orphan = blobs.complete(DIGEST)
    send(blobs, 10, other(1))
    blobs.close()
    again = BlobFolder(tmp_path / "blobs")
    os.utime(again.path(orphan), (0, 0))
    assert again.sweep({named}, older_than_s=3600) == 1
    assert again.path(named).exists() and not again.path(orphan).exists()
    assert begin(again, blocks_of([other(1)])) == 10
    again.close()


def test_a_file_whose_row_is_not_committed_yet_stays_whatever_the_wall_clock_says(blobs: BlobFolder) -> None:
    send(blobs)
    name = blobs.complete(DIGEST)
    send(blobs, 10, other(1))
    for path in (blobs.path(name), blobs.folder / "partial" / blocks_of([other(1)]).digest):
        os.utime(path, (0, 0))  # as after a jump of the clock
    assert blobs.sweep(set(), older_than_s=3600) == 0
    assert blobs.path(name).exists()
    assert begin(blobs, blocks_of([other(1)])) == 10


def test_uploads_that_nobody_goes_on_with_are_given_up(blobs: BlobFolder) -> None:
    send(blobs, 10)
    time.sleep(0.02)
    assert blobs.sweep(set(), older_than_s=0.01) == 1
    with pytest.raises(BadRequest, match="begin it again"):
        blobs.append(DIGEST, 10, b"x")
    assert begin(blobs) == 0


def test_old_partial_uploads_from_before_the_start_go(blobs: BlobFolder, tmp_path: Path) -> None:
    send(blobs, 10)
    blobs.close()
    os.utime(tmp_path / "blobs" / "partial" / DIGEST, (0, 0))
    again = BlobFolder(tmp_path / "blobs")
    assert again.sweep(set(), older_than_s=3600) == 1
    assert begin(again) == 0
    again.close()


# --- many at a time, and kills ----------------------------------------------------------------------------------------


def test_threads_that_send_the_same_blob_write_it_once(blobs: BlobFolder) -> None:
    names: list[str] = []
    begun = threading.Barrier(4)

    def run() -> None:
        at = begin(blobs)
        begun.wait(10)
        while at < len(DATA):
            try:
                at = blobs.append(DIGEST, at, DATA[at : at + 65_536])
            except WrongOffset as error:
                at = error.offset
            except BadRequest:
                return  # the other one has completed it
        try:
            names.append(blobs.complete(DIGEST))
        except BadRequest:
            pass

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(names) == 1 and blobs.path(names[0]).read_bytes() == DATA


def test_threads_that_begin_while_others_complete_are_served(blobs: BlobFolder) -> None:
    small = blocks_of([b"x" * 100])
    names: list[str] = []

    def run() -> None:
        for _ in range(50):
            try:
                if begin(blobs, small) == 0:
                    blobs.append(small.digest, 0, b"x" * 100)
                names.append(blobs.complete(small.digest))
            except (BadRequest, WrongOffset):
                pass  # another one was quicker

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert names and len(set(names)) == len(names)
    assert {blobs.path(name).read_bytes() for name in names} == {b"x" * 100}
    for name in names:
        blobs.unlink(name)
    assert begin(blobs, small) == 0


_UPLOADER = """
import random, sys
from pathlib import Path
from fedfleet_coordinator.blobs import BlobFolder
from fedfleet_protocol.blocks import BLOCK_BYTES, blocks_of
data = random.Random(7).randbytes(2 * BLOCK_BYTES + 70_001)
blocks = blocks_of([data])
blobs = BlobFolder(Path(sys.argv[1]))
at = blobs.begin(blocks.digest, blocks.size, blocks.digests)
while at < len(data):
    at = blobs.append(blocks.digest, at, data[at : at + 1009])
    print(at, flush=True)
print(blobs.complete(blocks.digest), flush=True)
"""


@pytest.mark.integration
def test_an_upload_survives_kills_without_sending_a_byte_twice(tmp_path: Path) -> None:
    rng, kills, reached = random.Random(3), 0, 0
    while True:
        with subprocess.Popen(
            [sys.executable, "-c", _UPLOADER, tmp_path / "blobs"], stdout=subprocess.PIPE, text=True
        ) as child:
            assert child.stdout is not None
            said = [child.stdout.readline()]
            if kills < 4:
                time.sleep(rng.uniform(0.0, 0.01))
                child.send_signal(signal.SIGKILL)
            said += child.stdout.readlines()
        whole = [line.strip() for line in said if line.endswith("\n")]
        if whole and whole[0].isdigit():
            assert int(whole[0]) > reached  # it goes on where the killed one was
        if whole and "." in whole[-1]:
            assert (tmp_path / "blobs" / whole[-1]).read_bytes() == DATA
            break
        kills += 1
        if whole:
            reached = int(whole[-1])
        assert kills < 20
    assert kills
