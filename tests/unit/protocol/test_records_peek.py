"""What a content is about can be told from its head alone."""

import pytest

from fedfleet_protocol import records
from fedfleet_protocol.errors import Malformed, NewerSchema


def test_a_peek_tells_message_type_and_group() -> None:
    content = records.encode(
        (records.RecordValue("m", "metrics", (), {"loss": 0.5}),), message_type="train.first", group_id="3"
    )
    head = records.peek(b"".join(content.pieces()))
    assert (head.message_type, head.group_id) == ("train.first", "3")


@pytest.mark.parametrize("data", [b"", b"FFRECORD", b"FFRECORD" + (99).to_bytes(8, "little"), b"x" * 100])
def test_what_is_no_content_is_refused(data: bytes) -> None:
    with pytest.raises(Malformed):
        records.peek(data)


def test_a_content_of_a_newer_version_is_refused() -> None:
    body = b"\x81\xa1v\x63"
    with pytest.raises(NewerSchema):
        records.peek(records.MAGIC + len(body).to_bytes(8, "little") + body)
