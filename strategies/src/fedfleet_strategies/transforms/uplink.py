"""Updates on their way up: encoded on the device as the last thing, decoded on the server as the first.

What travels in the place of the model is a record "fedfleet.uplink": the code of the difference to the model that came,
and the difference of the integers.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
from flwr.app import Array, ArrayRecord, RecordDict
from numpy.typing import NDArray

from fedfleet_strategies import chance
from fedfleet_strategies.client import Call, Unmet
from fedfleet_strategies.errors import AppFault, Incompatible, Refused
from fedfleet_strategies.layout import Layout, Vector, flat_view, view
from fedfleet_strategies.transforms import transform
from fedfleet_strategies.transforms.transform import Transform
from fedfleet_strategies.updates import finite

if TYPE_CHECKING:
    from fedfleet_strategies.strategy import Strategy

RECORD = "fedfleet.uplink"
_INTS = "ints"


class Encode:
    """The part of the client half that an uplink transform names."""

    def before(self, call: Call) -> None:
        """Leave the message as it is."""

    def after(self, call: Call) -> None:
        """Put the code of the update in the place of the model; keep what a stateful transform keeps."""
        if not call.training or call.reply is None:
            return
        told = call.settings["uplink"]
        try:
            found = transform.named(told["name"])
            asked = transform.Call(
                chance.rng(told["seed"], told["round"], f"uplink {call.context.node_id}"), call.memory
            )
            code = found.encode(call.trained - call.x, asked)
        except (Incompatible, ValueError) as error:
            raise Unmet(f"the update cannot be encoded: {error}") from error
        ints = call.layout.flat(call.returned)[1] - call.layout.flat(call.arrays)[1]
        if found.stateful:
            call.remembers(asked.kept, call.memory)
        content = RecordDict(
            {name: record for name, record in call.reply.content.items() if not isinstance(record, ArrayRecord)}
        )
        content[RECORD] = ArrayRecord({name: Array(array) for name, array in code.items()} | {_INTS: Array(ints)})
        call.reply.content = content


def decoded(found: Transform, content: RecordDict, layout: Layout) -> tuple[Vector, NDArray[np.float64]]:
    """Return the update of a reply: floats (d,) and integers (k,).

    Raises:
        AppFault: the reply is not encoded. Refused: its code is none.
    """
    record: Any = content.get(RECORD)
    if not isinstance(record, ArrayRecord):
        raise AppFault("its update is not encoded: the app's ClientApp runs without fedfleet_strategies.client.half")
    try:
        arrays = {name: view(array) for name, array in record.items()}
        came = flat_view(record[_INTS]) if _INTS in record else np.zeros(0)
    except (ValueError, KeyError, TypeError) as error:
        raise Refused(f"its code is not readable: {error}") from error
    delta = found.decode({name: array for name, array in arrays.items() if name != _INTS}, layout.d)
    if came.shape != (layout.k,) or came.dtype.kind not in "iuf" or not finite(came):
        raise Refused(f"its integers are not {layout.k} finite numbers")
    return np.asarray(delta, layout.dtype), np.asarray(came, np.float64)


def conflicts(strategy: "Strategy") -> list[str]:
    """Return which of a strategy's options cannot go together with its uplink, a clause each."""
    uplink = strategy.uplink
    found: list[str] = []
    if uplink is None:
        return found
    if not uplink.unbiased and not strategy.rule.linear:
        found.append(
            f"rule {type(strategy.rule).__name__} compares updates, and {uplink.name} sends a biased part of each"
        )
    if not uplink.unbiased and strategy.extras:
        summed = ", ".join(strategy.extras)
        found.append(f"the method sums {summed} with the model, and {uplink.name} sends a biased part of that")
    return found
