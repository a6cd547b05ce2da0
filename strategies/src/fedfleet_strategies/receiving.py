"""Replies on their way into the fold: each is read, checked, prepared, added and let go."""

import contextlib
import logging
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from fedfleet_strategies.averages import Averages
from fedfleet_strategies.errors import AppFault, NotFinite, Refused
from fedfleet_strategies.layout import Layout, Vector, Views, flat_view
from fedfleet_strategies.rules import Rule, Spool
from fedfleet_strategies.transforms import uplink
from fedfleet_strategies.updates import Aggregate, Source, Update, finite

if TYPE_CHECKING:
    from fedfleet_strategies.strategy import Strategy

_log = logging.getLogger("flwr")
FEDFLEET = "fedfleet"
MetricsFn = Callable[[list[RecordDict], str], MetricRecord]


@dataclass(frozen=True, slots=True)
class Sent:
    """What a round sent, and whom.

    Attributes:
        views: the model's arrays as they lie in `arrays`.
    """

    server_round: int
    arrays: ArrayRecord
    layout: Layout
    views: Views
    asked: tuple[int, ...]


@dataclass(slots=True)
class Tally:
    """What has come in.

    Attributes:
        nodes: whose updates are in the fold.
        left_out: whose are not, and why.
        faults: how many of those are the app's fault. reports: records without arrays, if a function wants them.
        seen: numbers for the table of devices.
        aggregate: what the updates came to, once closed; refused: why to nothing.
    """

    opened: Any
    averages: Averages
    nodes: list[int] = field(default_factory=list)
    left_out: dict[int, str] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    reports: list[RecordDict] = field(default_factory=list)
    seen: dict[int, dict[str, float]] = field(default_factory=dict)
    aggregate: Aggregate | None = None
    refused: str = ""

    def close(self, rule: Rule, sent: Sent, *, moved: bool) -> None:
        """Let the fold come to an aggregate, or note why it does not.

        Raises:
            NotFinite: a device sent NaN or infinity, and nobody has looked yet which one.
        """
        if not self.nodes:
            first = next(iter(self.left_out.values()), "")
            self.refused = f"{len(self.left_out)} replies were left out, as: {first}" if first else "no device replied"
            return
        try:
            opened = self.opened
            aggregate: Aggregate = opened.moved(sent.layout, sent.views) if moved else rule.close(opened)
        except NotFinite:
            raise
        except Refused as refused:
            self.refused = str(refused)
            return
        vectors = [aggregate.delta, aggregate.ints, *aggregate.extra.values()]
        if not all(finite(one) for one in vectors) or not np.isfinite([*aggregate.scalars.values()]).all():
            raise NotFinite("the sum of all updates is not finite")
        self.aggregate = aggregate
        self.left_out |= aggregate.left_out

    def metrics(self, function: MetricsFn | None, key: str) -> MetricRecord:
        """Return the round's metrics."""
        return self.averages.record() if function is None else function(self.reports, key)


def received(
    strategy: "Strategy", sent: Sent, replies: Iterable[Message], spool: Callable[[], Spool], *, moved: bool
) -> Tally:
    """Return what the replies come to under the strategy's rule, in the order of node ids.

    Nobody looks for NaN and infinity in each reply, which takes as long as the sum: if the aggregate is finite they did
    no harm. If it is not, and the replies can be gone through again, each is asked; replies that come once only are
    asked at once.

    Args:
        spool: makes what the rule may use.
        moved: whether the aggregate's delta shall be the model, moved.

    Raises:
        AppFault: in the strategy's first round, if the app did something wrong on every device.
    """
    # Clipping counts what it clips: once.
    again = isinstance(replies, Sequence) and strategy.privacy is None
    if isinstance(replies, list):
        replies = sorted(replies, key=lambda message: message.metadata.src_node_id)
    tally = None
    if again:
        with contextlib.suppress(NotFinite):
            found = _fold(strategy, sent, replies, spool(), check=False)
            found.close(strategy.rule, sent, moved=moved)
            tally = found
    if tally is None:
        tally = _fold(strategy, sent, replies, spool(), check=True)
        try:
            tally.close(strategy.rule, sent, moved=moved)
        except NotFinite as error:  # finite updates, whose sum is too large for a float
            tally.refused = str(error)
    _log.info("aggregate_train: Received %d results and %d failures", len(tally.nodes), len(tally.left_out))
    for node, why in tally.left_out.items():
        _log.info("\t> left out node %d: %s", node, why)
    first = not strategy.table.folded.any()
    if first and not tally.nodes and tally.faults and len(tally.faults) == len(tally.left_out):
        raise AppFault(f"no reply of round {sent.server_round} can be used: {tally.faults[0]}")
    return tally


def _fold(strategy: "Strategy", sent: Sent, replies: Iterable[Message], spool: Spool, *, check: bool) -> Tally:
    layout = sent.layout
    opened = strategy.rule.open(layout.d, layout.k, layout.dtype, spool)
    tally = Tally(opened, Averages(strategy.weighted_by_key))
    known: set[int] = set()
    for message in replies:
        node = message.metadata.src_node_id
        if message.has_error():
            tally.left_out[node] = message.error.reason or f"error {message.error.code}"
            continue
        try:
            if node in known:
                raise Refused("it replied twice; the first reply counts")
            update = strategy.prepare(_read(strategy, sent, message.content, node))
            if strategy.privacy is not None:
                # Last before the fold: `prepare` cannot undo it.
                update = strategy.privacy.clip(update, strategy.s)
            if check and not update.finite:
                raise Refused("its model holds NaN or infinity")
            opened.add(update)
        except Refused as refused:
            tally.left_out.setdefault(node, str(refused))
            if isinstance(refused, AppFault):
                tally.faults.append(str(refused))
            continue
        known.add(node)
        tally.nodes.append(node)
        _report(strategy, tally, message.content, update)
    return tally


def _report(strategy: "Strategy", tally: Tally, content: RecordDict, update: Update) -> None:
    reported = update.metrics.get(strategy.weighted_by_key)
    weight = float(reported) if isinstance(reported, (int, float)) else 1.0
    tally.averages.add(update.metrics, weight)
    if strategy.train_metrics_aggr_fn is not None:
        told = RecordDict()
        for name, one in content.items():
            if not isinstance(one, ArrayRecord) and not name.startswith(FEDFLEET):
                told[name] = one
        tally.reports.append(told)
    seen = {}
    loss = update.metrics.get(getattr(strategy.cohort, "loss_key", "train_loss"))
    if isinstance(loss, (int, float)) and math.isfinite(loss):
        seen["loss"] = float(loss)
    half: Any = content.get(FEDFLEET, {})
    if isinstance(half.get("seconds"), float):
        seen["seconds"] = half["seconds"]
    if seen:
        tally.seen[update.node] = seen


def _read(strategy: "Strategy", sent: Sent, content: RecordDict, node: int) -> Update:
    models = [one for name, one in content.items() if isinstance(one, ArrayRecord) and not name.startswith(FEDFLEET)]
    reports = [one for one in content.values() if isinstance(one, MetricRecord)]
    if len(models) != (strategy.uplink is None) or len(reports) != 1:
        if strategy.uplink is not None:
            uplink.decoded(strategy.uplink, content, sent.layout)
        raise AppFault(f"it has {len(models)} models and {len(reports)} metric records where one of each is needed")
    metrics = reports[0]
    weight = _weight(metrics, strategy)
    extra = {name: _extra(content, name, sent.layout) for name in strategy.extras}
    half: Any = content.get(FEDFLEET, ConfigRecord())
    scalars = {}
    for name in strategy.scalars:
        value = half.get(name, metrics.get(name))
        if not isinstance(value, (int, float)) or not math.isfinite(value):
            raise AppFault(f"it reports no {name!r}, which {type(strategy).__name__} needs, or no number")
        scalars[name] = float(value)
    if strategy.uplink is not None:
        delta, ints = uplink.decoded(strategy.uplink, content, sent.layout)
        return Update(node, weight, delta=delta, ints=ints, extra=extra, scalars=scalars, metrics=metrics)
    source = Source(sent.layout, sent.layout.views(models[0]), sent.views)
    return Update(node, weight, source=source, extra=extra, scalars=scalars, metrics=metrics)


def _weight(metrics: MetricRecord, strategy: "Strategy") -> float:
    value = metrics.get(strategy.weighted_by_key)
    if value is None:
        raise AppFault(
            f"its metrics hold no weight {strategy.weighted_by_key!r}, but {', '.join(sorted(metrics)) or 'nothing'}; "
            f"weighted_by_key= names another"
        )
    if isinstance(value, list) or not math.isfinite(value) or value < 0:
        raise AppFault(f"its weight {strategy.weighted_by_key} is {str(value)[:80]}, which is no number of at least 0")
    return float(value if strategy.max_weight is None else min(value, strategy.max_weight))


def _extra(content: RecordDict, name: str, layout: Layout) -> Vector:
    record = content.get(f"{FEDFLEET}.{name}")
    if not isinstance(record, ArrayRecord) or "vector" not in record:
        raise AppFault(f"it sends no {name!r}: the app's ClientApp runs without fedfleet_strategies.client.half")
    vector = flat_view(record["vector"])
    if vector.shape != (layout.d,) or vector.dtype.kind != "f" or not finite(vector):
        raise Refused(f"its {name!r} is not {layout.d} finite floats")
    return np.asarray(vector, layout.dtype)


def evaluated(
    replies: Iterable[Message], function: MetricsFn | None, key: str, server_round: int
) -> MetricRecord | None:
    """Return the metrics of all devices that evaluated the model, None if none did."""
    averages, reports, failed = Averages(key), [], 0
    for message in replies:
        records = [] if message.has_error() else [r for r in message.content.values() if isinstance(r, MetricRecord)]
        weight = records[0].get(key) if len(records) == 1 else None
        if not isinstance(weight, (int, float)) or not math.isfinite(weight) or weight < 0:
            failed += 1
            told = message.error.reason if message.has_error() else f"it has no single record with a weight {key!r}"
            _log.info("\t> left out node %d: %s", message.metadata.src_node_id, told)
            continue
        averages.add(records[0], float(weight))
        if function is not None:
            reports.append(message.content)
        else:
            reports.append(RecordDict())
    _log.info("aggregate_evaluate: Received %d results and %d failures in round %d", len(reports), failed, server_round)
    if not reports:
        return None
    return averages.record() if function is None else function(reports, key)
