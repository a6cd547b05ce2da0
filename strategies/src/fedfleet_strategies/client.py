"""The client half: what a method does on a device, around the app.

`half` is a Flower mod. Where the message holds no record named "fedfleet" it passes untouched; where it does, the parts
named there are looked up in `parts`, in order:

1. Our records leave the message, and what we remember leaves the app's state.
2. Memory settles: what a part wrote last time depends on whether the server used that reply; the message says so.
3. Each part's `before`; the app; each part's `after`, in reverse.
4. Our records join the reply, our memory the state, whatever happened.

On fedfleet the app need not know. On any other Flower runtime the half comes first in `mods`:
`ClientApp(mods=[fedfleet_strategies.client.half])`; standing there twice does no harm.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, RecordDict

from fedfleet_strategies.correction import Correction, Loan, correction, done, lent
from fedfleet_strategies.errors import Incompatible
from fedfleet_strategies.layout import Layout, Vector
from fedfleet_strategies.transforms import downlink

__all__ = ["Call", "correction", "done", "half"]

FEDFLEET = "fedfleet"
_MOD_FAILED = 6
"""Flower's error code for a mod that cannot do its work."""
App = Callable[[Message, Context], Message]
Memory = dict[str, Vector]


class Unmet(Exception):
    """A part cannot do its work; the text goes to the server in an error reply."""


@dataclass
class Call:
    """One message on its way through the half.

    Attributes:
        message: without our records. training: whether it is a train message.
        settings: numbers and texts of the method. shared: vectors (d,) of the method that the server sent, by name.
        layout: of the model without local arrays. arrays: the model as it came. x: its floats (d,).
        memory: what the part that runs now remembers, by name.
        folded, lost: what it will remember if the server uses the reply, and if not; None to remember the same.
        correction: what the app is lent. loan: with what it said it did.
        reply: of the app. extra, scalars: what the server gets besides.
    """

    message: Message
    context: Context
    app: App
    training: bool
    settings: dict[str, Any]
    shared: dict[str, Vector]
    layout: Layout
    arrays: ArrayRecord
    key: str
    memory: Memory = field(default_factory=dict)
    folded: Memory | None = None
    lost: Memory | None = None
    correction: Correction = field(default_factory=Correction)
    loan: Loan = field(default_factory=lambda: Loan(Correction()))
    reply: Message | None = None
    extra: dict[str, Vector] = field(default_factory=dict)
    scalars: dict[str, float] = field(default_factory=dict)

    @property
    def x(self) -> Vector:
        """The floats that came, (d,), a copy."""
        return self.layout.flat(self.arrays)[0]

    @property
    def trained(self) -> Vector:
        """The floats that the app returns, (d,), a copy."""
        return self.layout.flat(self.returned)[0]

    @property
    def returned(self) -> ArrayRecord:
        """The model that the app returns."""
        assert self.reply is not None
        return model_of(self.reply.content)

    def sends(self, x: Vector) -> None:
        """Let the app begin with these floats instead of those that came."""
        self.message.content[self.key] = self.with_floats(x, self.arrays)

    def returns(self, x: Vector) -> None:
        """Let the reply hold these floats instead of those that the app returned."""
        made = self.with_floats(x, self.returned)
        self.returned.clear()
        self.returned.update(made)

    def remembers(self, folded: Memory, lost: Memory | None = None) -> None:
        """Keep `folded`, or, if the server does not use the reply, `lost`; that is the same unless given."""
        self.folded, self.lost = folded, folded if lost is None else lost

    def again(self, x: Vector, correction: Correction) -> Vector:
        """Let the app train once more, from `x` and with another correction; return the floats it came to.

        Raises:
            Unmet: it replied with an error.
        """
        content = RecordDict(dict(self.message.content))
        content[self.key] = self.with_floats(x, self.arrays)
        before, self.message.content = self.message.content, content
        try:
            with lent(correction):
                reply = self.app(self.message, self.context)
        finally:
            self.message.content = before
        if reply.has_error():
            raise Unmet(f"the app trained once and failed the second time: {reply.error.reason}")
        return self.layout.flat(model_of(reply.content))[0]

    def with_floats(self, x: Vector, like: ArrayRecord) -> ArrayRecord:
        """Return a model with the floats `x` and all else as in `like`."""
        made = self.layout.record(x, self.layout.flat(like)[1], like)
        return ArrayRecord({name: made[name] for name in like if name in made})


def half(message: Message, context: Context, call_next: App) -> Message:
    """Return the reply of `call_next`, with what the message's method does around it."""
    from fedfleet_strategies.parts import PARTS

    record = message.content.get(FEDFLEET) if message.has_content() else None
    if not isinstance(record, ConfigRecord):
        return call_next(message, context)
    orders: Any = record
    began = time.monotonic()
    names = [str(name) for name in orders["parts"]]
    if unknown := [name for name in names if name not in PARTS]:
        return _failed(
            message, f"this device's fedfleet-strategies knows no part {unknown[0]!r}; it is older than the run's"
        )
    coded = message.content.pop(downlink.RECORD, None)
    shared = {
        name.removeprefix(f"{FEDFLEET}."): np.array(one["vector"].numpy())
        for name, one in message.content.items()
        if name.startswith(f"{FEDFLEET}.") and isinstance(one, ArrayRecord)
    }
    for name in [name for name in message.content if name == FEDFLEET or name.startswith(f"{FEDFLEET}.")]:
        del message.content[name]
    kept = {name: context.state.pop(name) for name in [n for n in context.state if n.startswith(f"{FEDFLEET}.")]}
    try:
        key = str(orders["arrays"])
        if isinstance(coded, ArrayRecord):
            message.content[key] = _rebuilt(coded, kept, orders)
        arrays: Any = message.content[key]
        call = Call(
            message, context, call_next, message.metadata.message_type.partition(".")[0] == "train",
            json.loads(orders["settings"]), shared, Layout.of(arrays, orders["local"]), arrays, key,
        )  # fmt: skip
        reply = _through([PARTS[name] for name in names], names, call, kept, orders)
        if not reply.has_error() and call.training:
            _add_to(reply, call, time.monotonic() - began)
            if "downlink" in call.settings:
                model = {name: np.array(array.numpy()) for name, array in arrays.items()}
                keep(kept, "downlink", int(orders["round"]), model, model)
        return reply
    except Unmet as unmet:
        return _failed(message, str(unmet))
    finally:
        for name, held in kept.items():
            context.state[name] = held


def _rebuilt(coded: ArrayRecord, kept: dict[str, Any], orders: Any) -> ArrayRecord:
    memory, told = settled(kept, "downlink", int(orders["accepted"])), json.loads(orders["settings"])["downlink"]
    version = int(kept[f"{FEDFLEET}.downlink"]["round"]) if memory else 0
    try:
        return downlink.rebuilt(
            told["name"], coded, memory, version=version, since=int(orders["since"]), local=list(orders["local"])
        )
    except (downlink.Stale, Incompatible) as error:
        raise Unmet(str(error)) from error


def _through(parts: list[Any], names: list[str], call: Call, kept: dict[str, Any], orders: Any) -> Message:
    """Run the app between the parts; `kept` is changed only if all went well."""
    round_, accepted = int(orders["round"]), int(orders["accepted"])
    memories = {name: settled(kept, name, accepted) for name in names}
    written: dict[str, tuple[Memory, Memory]] = {}
    for name, part in zip(names, parts, strict=True):
        call.memory = memories[name]
        part.before(call)
    with lent(call.correction) as call.loan:
        call.reply = call.app(call.message, call.context)
    if call.reply.has_error():
        return call.reply
    for name, part in reversed(list(zip(names, parts, strict=True))):
        call.memory, call.folded, call.lost = memories[name], None, None
        part.after(call)
        if call.training and call.folded is not None and call.lost is not None:
            written[name] = call.folded, call.lost
    for name, (folded, lost) in written.items():
        keep(kept, name, round_, folded, lost)
    return call.reply


def settled(kept: dict[str, Any], part: str, accepted: int) -> Memory:
    """Return what a part remembers, given the last round in which the server used this device's reply."""
    name = f"{FEDFLEET}.{part}"
    if name not in kept:
        return {}
    happened = "folded" if int(kept[name]["round"]) == accepted else "lost"
    if f"{name}.{happened}" not in kept:
        happened = "folded"
    return {key: np.array(array.numpy()) for key, array in kept[f"{name}.{happened}"].items()}


def keep(kept: dict[str, Any], part: str, server_round: int, folded: Memory, lost: Memory) -> None:
    """Note both things a part may have to remember; if they are the same, one."""
    name = f"{FEDFLEET}.{part}"
    kept[name] = ConfigRecord({"round": server_round})
    kept[f"{name}.folded"] = ArrayRecord({key: Array(value) for key, value in folded.items()})
    kept.pop(f"{name}.lost", None)
    if lost is not folded:
        kept[f"{name}.lost"] = ArrayRecord({key: Array(value) for key, value in lost.items()})


def model_of(content: RecordDict) -> ArrayRecord:
    """Return the one model in a reply.

    Raises:
        Unmet: there is none, or more than one.
    """
    found = [record for record in content.values() if isinstance(record, ArrayRecord)]
    if len(found) != 1:
        raise Unmet(f"the app's reply holds {len(found)} models, one is needed")
    return found[0]


def _add_to(reply: Message, call: Call, seconds: float) -> None:
    numbers: dict[str, Any] = dict(call.scalars)
    numbers["seconds"] = float(seconds)
    reply.content[FEDFLEET] = ConfigRecord(numbers)
    for name, vector in call.extra.items():
        reply.content[f"{FEDFLEET}.{name}"] = ArrayRecord({"vector": Array(vector)})


def _failed(message: Message, why: str) -> Message:
    return Message(Error(_MOD_FAILED, why), reply_to=message)
