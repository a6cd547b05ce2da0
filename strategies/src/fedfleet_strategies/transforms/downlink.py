"""Models on their way down: a device that has an earlier one is sent the code of the difference.

The server keeps a reference r, the model that devices have, and moves it by what they are sent (as DoubleSqueeze does:
Tang, Lian, Yu, Zhang, Liu, ICML 2019, arXiv:1905.05957; what a code leaves out stays in x - r, and is in the next one):

    r <- r + decode(encode(x - r)),    devices train from r and send y - r,    x <- x + their mean

The last few codes are kept: a device that missed some gets all it lacks. One that has nothing, missed more, or failed,
is sent r whole. The first model goes down whole, and is exact.

Models with floats of 16 bits travel whole, as a device could not keep the reference. A device keeps a copy of the model
in the app's state, under a name of ours. Evaluations are sent the whole model.
"""

from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord
from numpy.typing import NDArray

from fedfleet_strategies import chance
from fedfleet_strategies.errors import Incompatible, Refused
from fedfleet_strategies.layout import Layout, Vector, flat_view, view
from fedfleet_strategies.transforms.transform import Call, Transform, named

RECORD = "fedfleet.downlink"
_X, _ROUNDS, _INTS = "downlink.x", "downlink.rounds", "ints"
State = dict[str, Any]


class Stale(Exception):
    """A device lacks the model that a code is the difference to."""


class Downlink:
    """The server's half.

    Args:
        transform: of the differences, or its name; it must keep nothing itself, as the reference does.
        history: codes that are kept, at least 1.
    """

    def __init__(self, transform: Transform | str, history: int = 4) -> None:
        self.transform = named(transform) if isinstance(transform, str) else transform
        self.history = history
        if self.transform.stateful:
            raise Incompatible(
                f"{self.transform.name} keeps what it leaves out, and so does the download; give it one that does not"
            )
        if history < 1:
            raise Incompatible(f"history is {history}, it must be at least 1")

    def advance(
        self, state: State, layout: Layout, arrays: ArrayRecord, x: Vector, *, server_round: int, seed: int
    ) -> ArrayRecord:
        """Return the model that devices train from in a round; the state has what leads there."""
        if layout.half or not layout.d:
            return arrays
        before = state.get(_X)
        if before is None or before.shape != x.shape:
            state |= {_X: np.array(x), _ROUNDS: [server_round]}
            return arrays
        code = self.transform.encode(x - before, Call(chance.rng(seed, server_round, "downlink")))
        state[_X] = moved(self.transform, before, code)
        state |= {_name(server_round, key): array for key, array in code.items()}
        rounds = [*state[_ROUNDS], server_round]
        state[_ROUNDS] = rounds[-self.history - 1 :]
        for old in rounds[: -self.history]:
            for name in [name for name in state if name.startswith(_name(old, ""))]:
                del state[name]
        return layout.record(state[_X], layout.flat(arrays)[1], arrays)

    def code(self, state: State, layout: Layout, ints: NDArray[np.float64], version: int) -> ArrayRecord | None:
        """Return what leads a device from a round's model to the newest; None if the whole model is shorter.

        Args:
            version: the round whose model it has, 0 for none.
        """
        rounds: list[int] = state.get(_ROUNDS, [])
        if version not in rounds[:-1]:
            return None
        made = ArrayRecord({_INTS: Array(ints)})
        size = 0
        for number in rounds[rounds.index(version) + 1 :]:
            prefix = _name(number, "")
            for name in [name for name in state if name.startswith(prefix)]:
                size += state[name].nbytes
                made[f"{number}.{name.removeprefix(prefix)}"] = Array(state[name])
        return made if size < layout.d * layout.dtype.itemsize else None


def rebuilt(
    name: str, record: ArrayRecord, memory: dict[str, Vector], *, version: int, since: int, local: list[str]
) -> ArrayRecord:
    """Return the model that a device is to train from, on the device.

    Args:
        name: of the transform. record: what the server sent. memory: the model that was kept, of round `version`.
        since: the round whose model the first code is the difference to.

    Raises:
        Stale: that model is not there.
    """
    if not memory or version < since:
        raise Stale(
            f"this device has the model of round {version if memory else 0}, and was sent what changed {since}'s"
        )
    kept = ArrayRecord({key: Array(value) for key, value in memory.items()})
    layout = Layout.of(kept, local)
    x, _ = layout.flat(kept)
    transform = named(name)
    codes: dict[int, dict[str, NDArray[Any]]] = {}
    for key, array in record.items():
        of, _, part = key.partition(".")
        if part:
            codes.setdefault(int(of), {})[part] = view(array)
    try:
        for number in sorted(number for number in codes if number > version):
            x = moved(transform, x, codes[number])
    except Refused as refused:
        raise Stale(f"this device has another model than what was sent changes: {refused}") from refused
    return layout.record(x, np.asarray(flat_view(record[_INTS]), np.float64), kept)


def moved(transform: Transform, x: Vector, code: dict[str, NDArray[Any]]) -> Vector:
    """Return a model moved by a code; server and devices do the same arithmetic."""
    found: Vector = x + np.asarray(transform.decode(code, x.size), x.dtype)
    return found


def _name(server_round: int, part: str) -> str:
    return f"downlink.{server_round}.{part}"
