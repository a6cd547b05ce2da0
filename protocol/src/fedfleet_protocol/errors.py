"""What can be wrong with something that came from the other side.

ProtocolError
├── Malformed          the peer's fault: bytes that are not what they claim to be
│   ├── TooLarge       more than this side takes
│   └── BlockMismatch  a block whose bytes do not have the digest they should have
├── NewerSchema        nobody's fault: the peer speaks a later version than we do
├── Forged             the peer's fault: a signature that does not hold
└── Untrusted          the operator's to decide: a valid signature by a key nobody named as trusted
"""


class ProtocolError(Exception):
    """Something from the other side cannot be used; the text says what, where and what to do."""


class Malformed(ProtocolError):
    """The bytes are not what they claim to be."""


class TooLarge(Malformed):
    """The thing is larger than this side takes."""


class BlockMismatch(Malformed):
    """A block of a blob does not have the digest it should have.

    Attributes:
        index: which block, from 0.
    """

    def __init__(self, index: int, text: str) -> None:
        super().__init__(text)
        self.index = index


class NewerSchema(ProtocolError):
    """The message was written by a newer version of fedfleet."""


class Forged(ProtocolError):
    """A signature does not fit the bytes it is said to cover."""


class Untrusted(ProtocolError):
    """The signature holds, but its key is not among the trusted ones."""
