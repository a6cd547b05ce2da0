"""What asynchronous strategies share: some devices always train, and a round is over when enough have replied.

One round of Flower's loop is one version of the model. `configure_train` pushes tasks until `concurrency` devices
train; `aggregate_train` pulls replies, gives each place to another device, and lets the model step once `buffer`
updates are there. What has arrived together is used together, so a version may use more. A device that was asked for
an older version goes on; its age, in versions, is the update's staleness. A device trains once for a version; if all
have replied or failed, the version makes do with what it has.

Which devices train for which version is in the strategy's state, and the Grid keeps pushed tasks: a runner that is
killed goes on with them.
"""

import logging
import time
from collections.abc import Iterable
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord
from flwr.serverapp import Grid

from fedfleet_strategies import orders, receiving
from fedfleet_strategies.errors import Ended
from fedfleet_strategies.layout import Layout, Vector
from fedfleet_strategies.privacy.privacy import Planned
from fedfleet_strategies.strategy import Strategy
from fedfleet_strategies.updates import Update

_log = logging.getLogger("flwr")
_OPEN = "open"


class Buffered(Strategy):
    """The part of an asynchronous strategy that is not about weights.

    Args:
        buffer: updates that a version waits for, at least 1.
        concurrency: devices that train at a time, at least 1; fewer where there are not so many.
        exponent: a of the weight (1 + staleness)^-a, at least 0.
        timeout_s: how long a device may take.
        poll_s: pause between two looks for replies.

    `fraction_train` and `min_train_nodes` do nothing here. Devices evaluate only if `fraction_evaluate` is given, and
    those that train do so afterwards: a version then waits for them.
    """

    def __init__(
        self,
        *args: Any,
        buffer: int,
        concurrency: int,
        exponent: float,
        timeout_s: float = 3600.0,
        poll_s: float = 0.2,
        **options: Any,
    ) -> None:
        self.buffer, self.concurrency, self.exponent = buffer, concurrency, exponent
        self.timeout_s, self.poll_s = timeout_s, poll_s
        self._grid: Grid | None = None
        self._told_apps = ConfigRecord()
        self._ids = np.zeros(0, np.uint64)
        self._fills = 0
        self._staleness: dict[int, int] = {}
        if len(args) < 2:
            options.setdefault("fraction_evaluate", 0.0)
        super().__init__(*args, **options)

    def conflicts(self) -> list[str]:
        """Return what is wrong with the options."""
        found = super().conflicts()
        found += [
            f"{name} is {value}, it must be {must}"
            for name, value, good, must in (
                ("buffer", self.buffer, self.buffer >= 1, "at least 1"),
                ("concurrency", self.concurrency, self.concurrency >= 1, "at least 1"),
                ("exponent", self.exponent, self.exponent >= 0, "at least 0"),
                ("timeout_s", self.timeout_s, self.timeout_s > 0, "above 0"),
            )
            if not good
        ]
        if not self.rule.linear:
            found.append(
                f"rule {type(self.rule).__name__} compares updates of one version, and here versions are mixed"
            )
        if self.downlink is not None:
            found.append("a downlink follows one version of the model, here devices are at many")
        if self.extras:
            found.append(f"{', '.join(self.extras)} of devices that are late do not belong to the model there is")
        if self.privacy is not None and self.privacy.central:
            found.append("central privacy has no account of devices that reply when they can")
        return found

    def init(self, x: Vector) -> dict[str, Any]:
        """Begin with nobody training."""
        del x
        return {_OPEN: {}}

    def aged(self, staleness: int) -> float:
        """Return the weight of an update by its age in versions."""
        return float((1.0 + staleness) ** -self.exponent)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Push tasks until enough devices train; return no message, as nobody waits for replies to these.

        Raises:
            Ended: the budget of privacy does not allow the version. A device trains once for a version, at most.
        """
        layout = Layout.of(arrays, self.local)
        if not self._ready:
            self.s |= self.init(self._model(layout, arrays)[0])
            self._ready = True
        self._grid, self._fills, self._staleness = grid, 0, {}
        self._ids = self._candidates(grid, 1)
        self._population = self._ids.size
        self._planned = Planned(server_round, self.concurrency, int(self._ids.size), "adaptive")
        if self.privacy is not None and (why := self.privacy.refuse_round(self.s, self._planned)) is not None:
            raise Ended(why, arrays)
        self._round = receiving.Sent(server_round, arrays, layout, layout.views(arrays), ())
        self._told_apps = orders.numbered(config, server_round)
        self.told(self._told_apps)
        self._fill(self._round)
        return []

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Wait for enough updates; return the next model and metrics; None for both if there is no result.

        Raises:
            AppFault: in the first version, if the app did the same wrong thing on every device.
        """
        del replies
        sent = self._round
        if sent is None:
            return None, None
        arrived = self._arrive(sent)
        nodes = tuple(sorted(self._staleness))
        self._round = receiving.Sent(server_round, sent.arrays, sent.layout, sent.views, nodes)
        arrays, metrics = super().aggregate_train(server_round, arrived)
        # The client half's memory goes by the version that a device was asked for.
        refused = self.explain(server_round)
        used = [] if arrays is None else [node for node in nodes if node not in refused]
        self.table.note("folded", used, [server_round - self._staleness[node] for node in used])
        if metrics is not None and used:
            metrics["fedfleet.staleness"] = float(np.mean([self._staleness[node] for node in used]))
        return arrays, metrics

    def prepare(self, update: Update) -> Update:
        """Return the update with its age."""
        update.staleness = self._staleness[update.node]
        return update

    def _arrive(self, sent: receiving.Sent) -> list[Message]:
        """Return replies of which enough are updates, or all there will be, and note their ages."""
        assert self._grid is not None
        arrived: list[Message] = []
        updates, self._staleness = 0, {}
        while updates < self.buffer and self.s[_OPEN]:
            found = list(self._grid.pull_messages([message_id for message_id, _ in self.s[_OPEN].values()]))
            if not found:
                time.sleep(self.poll_s)
                continue
            for message in found:
                node = message.metadata.src_node_id
                _, version = self.s[_OPEN].pop(str(node))
                self._staleness[node] = sent.server_round - version
                arrived.append(message)
                updates += not message.has_error()
            if updates < self.buffer:
                self._fill(sent)
        return arrived

    def _fill(self, sent: receiving.Sent) -> None:
        """Let devices that are idle train on this version, until enough do; each trains once for a version."""
        open_ = self.s[_OPEN]
        busy = np.array([*map(int, open_), *self._staleness], np.uint64)
        idle = np.setdiff1d(self._ids, busy)
        n = min(self.concurrency - len(open_), idle.size)
        if n <= 0:
            return
        assert self._grid is not None
        self._fills += 1
        draw = self.rng(sent.server_round, f"cohort {self._fills}")
        chosen = np.sort(self.cohort.choose(idle, n, self.table, sent.server_round, draw)).tolist()
        messages = list(
            orders.messages(self, sent.server_round, sent.arrays, self._told_apps, chosen, MessageType.TRAIN)
        )
        for message in messages:
            message.metadata.ttl = self.timeout_s
        self.table.note("asked", chosen, sent.server_round)
        pushed = self._grid.push_messages(messages)
        open_ |= {str(node): [message_id, sent.server_round] for node, message_id in zip(chosen, pushed, strict=True)}
