"""What apps compute in the simulation: bytes from which every reply can be traced to what it was made of."""

import hashlib
import json

from fedfleet_protocol.ids import Digest


def train(payload: Digest, state: bytes, noise: int, *, agent: str, n: int) -> bytes:
    """Return the reply of a trainer that was given `payload` and began from `state`. Every other one is large."""
    text = json.dumps({"agent": agent, "payload": payload, "state": state.decode(), "noise": noise})
    large = int(hashlib.sha256(f"{agent}{n}".encode()).hexdigest(), 16) % 2
    return text.encode() + b" " * (300 if large else 0)


def made_of(reply: bytes) -> tuple[str, Digest, bytes]:
    """Return agent, payload and the state it began from."""
    value = json.loads(reply)
    return value["agent"], Digest(value["payload"]), value["state"].encode()


def state_after(state: bytes, payload: Digest) -> bytes:
    """Return the state that a call leaves."""
    return hashlib.sha256(state + payload.encode()).hexdigest()[:24].encode()


def fold(model: bytes, works: list[bytes]) -> bytes:
    """Return the next model: of the one before and of the replies, in the order of agent ids; noise left out."""
    digest = hashlib.sha256(model)
    for work in works:
        digest.update(repr(made_of(work)).encode())
    return digest.hexdigest().encode()
