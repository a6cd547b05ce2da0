"""Blocks: the same list however the bytes come, resume at any block, and a wrong block costs only itself."""

import hashlib
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedfleet_protocol import blocks
from fedfleet_protocol.blocks import BLOCK_BYTES, BlockList, BlockVerifier, blocks_of, checked
from fedfleet_protocol.errors import BlockMismatch, Malformed, TooLarge
from fedfleet_protocol.ids import Digest

SIZES = [0, 1, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, 3 * BLOCK_BYTES, 3 * BLOCK_BYTES + 17]
DATA = b"".join(hashlib.sha256(i.to_bytes(4, "little")).digest() for i in range(3 * BLOCK_BYTES // 32 + 1))
"""A little more than three blocks, no two alike."""


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[a:b] for a, b in pairwise(edges)]


def feed(verifier: BlockVerifier, pieces: list[bytes]) -> None:
    for piece in pieces:
        verifier.update(memoryview(piece))


PLACES = st.lists(st.integers(0, len(DATA)), max_size=6)


@pytest.mark.parametrize("size", SIZES)
def test_the_list_has_the_sha256_of_each_mebibyte(size: int) -> None:
    found = blocks_of([DATA[:size]])
    assert found.size == min(size, len(DATA))
    by_hand = [
        hashlib.sha256(DATA[a : a + BLOCK_BYTES][: size - a]).digest() for a in range(0, found.size, BLOCK_BYTES)
    ]
    assert [found.block(i) for i in range(found.count)] == by_hand


def test_a_blobs_digest_is_what_it_was_in_the_first_version() -> None:
    assert blocks_of([]).digest == "b1fd5c44de5f666ccaa50bb02b9016010e4c5cafd8f44063f57b9cb7b03c1074"
    assert blocks_of([b"fedfleet"]).digest == "bd008e00593316e0936d502cec5ce2b28d7f278f76e5b6a14b17e040065aceed"


@settings(max_examples=30, deadline=None)
@given(PLACES)
def test_any_chunking_gives_the_same_list_and_passes_the_check(places: list[int]) -> None:
    expected = blocks_of([DATA])
    assert blocks_of(cut(DATA, places)) == expected
    verifier = BlockVerifier(expected)
    feed(verifier, cut(DATA, places))
    assert verifier.complete


@settings(max_examples=30, deadline=None)
@given(st.integers(0, len(DATA)), PLACES)
def test_a_transfer_cut_anywhere_goes_on_in_the_block_that_was_under_way(stop: int, places: list[int]) -> None:
    expected = blocks_of([DATA])
    first = BlockVerifier(expected)
    feed(first, cut(DATA[:stop], places))
    assert first.position == stop
    assert first.verified <= stop < first.verified + BLOCK_BYTES
    second = BlockVerifier(expected, first.verified)
    feed(second, [DATA[first.verified : stop], *cut(DATA[stop:], places)])
    assert second.complete


@settings(max_examples=30, deadline=None)
@given(st.integers(0, len(DATA) - 1), st.integers(1, 255), PLACES)
def test_one_wrong_byte_is_found_at_the_end_of_its_block(where: int, change: int, places: list[int]) -> None:
    wrong = bytearray(DATA)
    wrong[where] ^= change
    verifier = BlockVerifier(blocks_of([DATA]))
    with pytest.raises(BlockMismatch) as caught:
        feed(verifier, cut(bytes(wrong), places))
    assert caught.value.index == where // BLOCK_BYTES
    assert verifier.verified == where // BLOCK_BYTES * BLOCK_BYTES
    again = BlockVerifier(verifier.blocks, verifier.verified)
    again.update(DATA[verifier.verified :])
    assert again.complete


def test_more_bytes_than_announced_are_refused_and_none_counted() -> None:
    verifier = BlockVerifier(blocks_of([b"abc"]))
    with pytest.raises(Malformed, match="4 bytes of a blob of 3"):
        verifier.update(b"abcd")
    assert verifier.verified == 0


def test_an_empty_blob_is_complete_at_once() -> None:
    assert BlockVerifier(blocks_of([])).complete


def test_a_verifier_starts_at_the_first_byte_of_a_block_only() -> None:
    with pytest.raises(ValueError, match="first byte of a block"):
        BlockVerifier(blocks_of([DATA]), 5)


@given(st.sets(st.integers(0, 3)))
def test_blocks_at_hand_are_not_fetched_and_all_others_are_once(held: set[int]) -> None:
    expected = blocks_of([DATA])
    ranges = expected.missing({expected.block(i) for i in held})
    fetched = [i for start, end in ranges for i in range(start // BLOCK_BYTES, -(-end // BLOCK_BYTES))]
    assert fetched == [i for i in range(expected.count) if i not in held]
    assert all(end < start for (_, end), (start, _) in pairwise(ranges)), "neighbours are one range"
    assert all(end <= expected.size for _, end in ranges)


def test_a_list_told_by_the_other_side_is_checked_against_the_digest() -> None:
    told = blocks_of([DATA])
    assert checked(told.digest, told.size, told.digests) == told
    with pytest.raises(Malformed, match="not of"):
        checked(told.digest, told.size - 1, told.digests)
    with pytest.raises(Malformed, match="not of"):
        checked(told.digest, told.size, told.digests[32:] + told.digests[:32])
    with pytest.raises(Malformed, match="the list names 3"):
        checked(told.digest, told.size, told.digests[32:])


@pytest.mark.parametrize("size", [-1, blocks.MAX_BLOB_BYTES + 1])
def test_a_blob_that_cannot_be_is_refused_before_its_blocks_are_counted(size: int) -> None:
    with pytest.raises(TooLarge):
        BlockList(size, b"")


@given(st.integers(0, 1 << 40), st.binary(max_size=200))
def test_any_other_list_is_malformed_and_nothing_worse(size: int, digests: bytes) -> None:
    with pytest.raises(Malformed):
        checked(Digest("0" * 64), size, digests)
