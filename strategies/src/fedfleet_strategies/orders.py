"""What a message tells the client half: which parts run, and what they must know."""

import json
from typing import TYPE_CHECKING, Any

from flwr.app import ConfigRecord

if TYPE_CHECKING:
    from fedfleet_strategies.strategy import Strategy


def parts(strategy: "Strategy") -> tuple[str, ...]:
    """Return the parts, in order; what follows the app goes through them from the last to the first."""
    private = strategy.privacy is not None and not strategy.privacy.central
    slots = (("encode", strategy.uplink is not None), ("private", private), ("local", bool(strategy.local)))
    return (*(name for name, there in slots if there), *strategy.halves)


def record(strategy: "Strategy", server_round: int, *, accepted: int) -> ConfigRecord:
    """Return the record for one device.

    Args:
        accepted: the last round in which the device's reply was used.
    """
    settings: dict[str, Any] = strategy.settings()
    if strategy.privacy is not None and not strategy.privacy.central:
        settings = settings | {"privacy": {**strategy.privacy.settings(), "weight": strategy.weighted_by_key}}
    if strategy.uplink is not None:
        settings = settings | {"uplink": {"name": strategy.uplink.name, "seed": strategy.seed, "round": server_round}}
    return ConfigRecord(
        {
            "parts": list(parts(strategy)), "round": server_round, "accepted": accepted,
            "arrays": strategy.arrayrecord_key, "local": list(strategy.local), "settings": json.dumps(settings),
        }
    )  # fmt: skip
