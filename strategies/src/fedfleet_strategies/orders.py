"""What is in a message: the model or its code, the method's vectors, and what the client half must know."""

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MessageType, RecordDict

from fedfleet_strategies.layout import Layout
from fedfleet_strategies.transforms.downlink import RECORD

if TYPE_CHECKING:
    from fedfleet_strategies.strategy import Strategy


FEDFLEET = "fedfleet"
"""Name of the record that drives the client half, and begin of the names of its arrays."""


def messages(
    strategy: "Strategy", server_round: int, arrays: ArrayRecord, config: ConfigRecord, nodes: list[int], kind: str
) -> Iterable[Message]:
    """Return a message for each device; they share what is the same in all.

    Args:
        arrays: the model that devices are to have. config: what the app itself is told.
    """
    records: dict[str, Any] = {strategy.arrayrecord_key: arrays, strategy.configrecord_key: config}
    if kind == MessageType.TRAIN:
        for name, vector in strategy.shared().items():
            records[f"{FEDFLEET}.{name}"] = ArrayRecord({"vector": Array(vector)})
    ids = np.array(nodes, np.uint64)
    folded, versions = strategy.table.look("folded", ids).tolist(), strategy.table.look("version", ids).tolist()
    codes = _codes(strategy, arrays, set(versions)) if kind == MessageType.TRAIN else {}
    for node, last, version in zip(nodes, folded, versions, strict=True):
        content, code = RecordDict(records), codes.get(version)
        if code is not None:
            del content[strategy.arrayrecord_key]
            content[RECORD] = code
        if parts(strategy) or strategy.downlink is not None:
            content[FEDFLEET] = record(strategy, server_round, accepted=last, since=version)
        yield Message(content, node, kind)


def _codes(strategy: "Strategy", arrays: ArrayRecord, versions: set[int]) -> dict[int, ArrayRecord | None]:
    """Return what devices with these versions are sent in the place of the model."""
    if strategy.downlink is None:
        return {}
    layout = Layout.of(arrays, strategy.local)
    ints = layout.flat(arrays)[1]
    return {one: strategy.downlink.code(strategy.s, layout, ints, one) for one in versions}


def parts(strategy: "Strategy") -> tuple[str, ...]:
    """Return the parts, in order; what follows the app goes through them from the last to the first."""
    private = strategy.privacy is not None and not strategy.privacy.central
    slots = (("encode", strategy.uplink is not None), ("private", private), ("local", bool(strategy.local)))
    return (*(name for name, there in slots if there), *strategy.halves)


def record(strategy: "Strategy", server_round: int, *, accepted: int, since: int = 0) -> ConfigRecord:
    """Return the record for one device.

    Args:
        accepted: the last round in which the device's reply was used.
        since: the round whose model it has, if it is sent the difference to that.
    """
    settings: dict[str, Any] = strategy.settings()
    if strategy.privacy is not None and not strategy.privacy.central:
        settings = settings | {"privacy": {**strategy.privacy.settings(), "weight": strategy.weighted_by_key}}
    if strategy.uplink is not None:
        settings = settings | {"uplink": {"name": strategy.uplink.name, "seed": strategy.seed, "round": server_round}}
    if strategy.downlink is not None:
        settings = settings | {"downlink": {"name": strategy.downlink.transform.name}}
    return ConfigRecord(
        {
            "parts": list(parts(strategy)), "round": server_round, "accepted": accepted, "since": since,
            "arrays": strategy.arrayrecord_key, "local": list(strategy.local), "settings": json.dumps(settings),
        }
    )  # fmt: skip


def numbered(config: ConfigRecord, server_round: int) -> ConfigRecord:
    """Return a copy with the round's number: messages in flight share the record, and the caller's is theirs."""
    return ConfigRecord({**config, "server-round": server_round})
