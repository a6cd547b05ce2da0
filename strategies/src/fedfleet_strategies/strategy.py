"""A Flower strategy with slots: a method fills in what it is about, and the order of a round is fixed here.

On the server a round is: choose, send; then read each reply, `prepare`, fold; then close the fold, `step`. A reply is
let go as soon as the fold has it, so memory does not grow with the number of devices.

What a method remembers is in `self.s`: arrays and numbers, kept by `state()` and put back by `restore()`. All other
public attributes are options and stay as they are once the first round has begun.
"""

import json
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp import strategy as flower
from numpy.typing import NDArray

from fedfleet_strategies import chance, cohorts, columns, ending, orders, receiving
from fedfleet_strategies.cohorts import Cohort
from fedfleet_strategies.errors import Ended, Incompatible, Refused
from fedfleet_strategies.layout import Layout, Vector
from fedfleet_strategies.privacy.privacy import Planned, Privacy, protected
from fedfleet_strategies.rules import Rule, Spool
from fedfleet_strategies.sums import Mean
from fedfleet_strategies.table import ClientTable
from fedfleet_strategies.transforms import Transform, transform, uplink
from fedfleet_strategies.transforms.downlink import Downlink
from fedfleet_strategies.updates import Aggregate, Update, finite

_log = logging.getLogger("flwr")
_EXPLAINED_ROUNDS = 32
MetricsFn = Callable[[list[RecordDict], str], MetricRecord]


class Strategy(flower.Strategy):
    """What all strategies here share; it averages, as FedAvg does.

    Args:
        fraction_train, fraction_evaluate: of the devices there are, to be asked each round; 0 for none at all.
        min_train_nodes, min_evaluate_nodes: asked at least. min_available_nodes: waited for.
        weighted_by_key: where an app reports its weight. Finite, at least 0; several updates of weight 0 alone are no
            result.
        arrayrecord_key, configrecord_key: names of the model and of the configuration in a message.
        train_metrics_aggr_fn, evaluate_metrics_aggr_fn: make one record of all; None for the weighted mean. The first
            sees replies without their arrays.
        rule: how updates become one; None for the weighted mean.
        cohort: whom a round asks; None for a random choice.
        privacy: what protects the devices from those who see the models; None for nothing.
        uplink: how devices encode their updates, a transform or its name; None for the model as it is.
        downlink: how models are encoded for devices that have an earlier one; None for the model as it is.
        max_weight: a weight counts at most so much.
        local: patterns of the names of arrays that stay on the devices.
        seed: cohorts are drawn from it.

    Attributes:
        s: what the method remembers from round to round.
        table: what is known of each device.
        halves: names of the parts of the client half that the method needs.
        extras, scalars: names of the vectors and numbers that a device must send besides its model.
        weights: whether updates weigh what devices report, or what the method sets in `prepare`.

    Departures from Flower's own strategies: a reply that cannot be used is left out and the round goes on; cohorts come
    from the seed, not from `random`; a round without a result leaves the model as it is.
    """

    halves: ClassVar[tuple[str, ...]] = ()
    extras: ClassVar[tuple[str, ...]] = ()
    scalars: ClassVar[tuple[str, ...]] = ()
    weights: ClassVar[Literal["reported", "own"]] = "reported"

    def __init__(
        self,
        fraction_train: float = 1.0,
        fraction_evaluate: float = 1.0,
        min_train_nodes: int = 2,
        min_evaluate_nodes: int = 2,
        min_available_nodes: int = 2,
        weighted_by_key: str = "num-examples",
        arrayrecord_key: str = "arrays",
        configrecord_key: str = "config",
        train_metrics_aggr_fn: MetricsFn | None = None,
        evaluate_metrics_aggr_fn: MetricsFn | None = None,
        *,
        rule: Rule | None = None,
        cohort: Cohort | None = None,
        privacy: Privacy | None = None,
        uplink: Transform | str | None = None,
        downlink: Downlink | str | None = None,
        max_weight: float | None = None,
        local: Sequence[str] = (),
        seed: int = 0,
    ) -> None:
        self.fraction_train, self.fraction_evaluate = fraction_train, fraction_evaluate
        self.min_train_nodes = min_train_nodes if fraction_train else 0
        self.min_evaluate_nodes = min_evaluate_nodes if fraction_evaluate else 0
        self.min_available_nodes = min_available_nodes
        self.weighted_by_key = weighted_by_key
        self.arrayrecord_key, self.configrecord_key = arrayrecord_key, configrecord_key
        self.train_metrics_aggr_fn, self.evaluate_metrics_aggr_fn = train_metrics_aggr_fn, evaluate_metrics_aggr_fn
        self.rule: Rule = Mean() if rule is None else rule
        self.cohort: Cohort = cohorts.Random() if cohort is None else cohort
        self.privacy = privacy
        self.uplink = transform.named(uplink) if isinstance(uplink, str) else uplink
        self.downlink = Downlink(downlink) if isinstance(downlink, str) else downlink
        self.max_weight = max_weight
        self.local = (local,) if isinstance(local, str) else tuple(local)
        self.seed = seed
        self.s: dict[str, Any] = {}
        self.table = ClientTable()
        self._ready = False
        self._reasons: dict[int, dict[int, str]] = {}
        self._round: receiving.Sent | None = None
        self._population = 0
        self._planned: Planned | None = None
        self._told = flower.Result()
        if conflicts := self.conflicts():
            raise Incompatible(f"{type(self).__name__} cannot work like this: {'; '.join(conflicts)}")
        if self.privacy is not None:
            self.privacy.begin(self.s)

    # --- what a method fills in ---------------------------------------------------------------------------------------

    def init(self, x: Vector) -> dict[str, Any]:
        """Return what the method remembers before the first round; `x` is the model (d,)."""
        del x
        return {}

    def prepare(self, update: Update) -> Update:
        """Return the update as the rule shall see it; raise `Refused` to leave it out."""
        return update

    def step(self, x: Vector, aggregate: Aggregate, server_round: int) -> Vector:
        """Return the next model; may change `x` (d,), which is a copy."""
        del server_round
        return columns.add(x, aggregate.delta)

    def shared(self) -> dict[str, Vector]:
        """Return vectors (d,) that all devices of a round get besides the model, by name."""
        return {}

    def settings(self) -> dict[str, Any]:
        """Return numbers and texts for the client half."""
        return {}

    def told(self, config: ConfigRecord) -> None:
        """Put into the configuration of a round's messages what the app itself must know."""

    def reference(self, arrays: ArrayRecord, x: Vector, server_round: int) -> Vector | None:
        """Return the server's own update (d,), for rules that compare with one."""
        del arrays, x, server_round
        return None

    def conflicts(self) -> list[str]:
        """Return what is wrong with the options, a clause each."""
        found = [
            f"{name} is {value}, it must be from 0 to 1"
            for name, value in (("fraction_train", self.fraction_train), ("fraction_evaluate", self.fraction_evaluate))
            if not 0 <= value <= 1
        ]
        if self.max_weight is not None and not self.max_weight > 0:
            found.append(f"max_weight is {self.max_weight}, it must be above 0")
        if not self.rule.linear and (self.extras or self.scalars):
            needed = ", ".join((*self.extras, *self.scalars))
            found.append(
                f"rule {type(self.rule).__name__} is not linear, and the method sums {needed} beside the model"
            )
        if not self.rule.linear and self.weights == "own":
            found.append(f"rule {type(self.rule).__name__} looks at no weights, and the method is in its weights")
        if self.privacy is not None:
            found += self.privacy.conflicts(self)
        return found + uplink.conflicts(self)

    # --- Flower's interface -------------------------------------------------------------------------------------------

    def summary(self) -> None:
        """Log the options."""
        for name, value in sorted(vars(self).items()):
            if not name.startswith("_") and name not in {"s", "table"}:
                shown = value if isinstance(value, (int, float, str, tuple, type(None))) else type(value).__name__
                _log.info("\t├──> %s: %s", name, shown)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return a message for each device of the round's cohort.

        Raises:
            Ended: the budget of privacy does not allow the round.
        """
        self._round = None
        if not self.fraction_train:
            return []
        layout = Layout.of(arrays, self.local)
        if not self._ready:
            self.s |= self.init(self._model(layout, arrays)[0])
            self._ready = True
        ids = self._candidates(grid, self.min_train_nodes)
        self._population = ids.size
        n = max(int(ids.size * self.fraction_train), self.min_train_nodes)
        draw = self.rng(server_round, "cohort")
        self._planned = Planned(server_round, n, int(ids.size), self.cohort.sampling)
        if self.privacy is not None:
            if (why := self.privacy.refuse_round(self.s, self._planned)) is not None:
                raise Ended(why, arrays)
            draw = self.privacy.rng(self.s, self._planned) or draw
        chosen = np.sort(self.cohort.choose(ids, n, self.table, server_round, draw)).tolist()
        shown = arrays
        if self.downlink is not None:
            x = self._model(layout, arrays)[0]
            shown = self.downlink.advance(self.s, layout, arrays, x, server_round=server_round, seed=self.seed)
        self._round = receiving.Sent(server_round, arrays, layout, layout.views(shown), tuple(chosen))
        told = orders.numbered(config, server_round)
        self.told(told)
        return orders.messages(self, server_round, shown, told, chosen, MessageType.TRAIN)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Return the next model and the round's metrics; None for both if there is no result.

        Raises:
            AppFault: in the first round, if the app did the same wrong thing on every device.
        """
        sent, self._round = self._round, None
        if sent is None or not (sent.asked or self.central):
            return None, None
        plain = self._plain and not sent.layout.half
        reference = None
        if type(self).reference is not Strategy.reference:
            reference = self.reference(sent.arrays, self._model(sent.layout, sent.arrays)[0], server_round)

        def spool() -> Spool:
            return Spool(rng=self.rng(server_round, "rule"), reference=reference)

        tally = receiving.received(self, sent, replies, spool, moved=plain)
        arrays = None
        try:
            if (aggregate := protected(self, sent.layout, tally)) is None:
                raise Refused(tally.refused)
            arrays = self._next(sent, aggregate, server_round, moved=plain)
        except Refused as refused:
            tally.left_out[0] = f"round {server_round} has no result: {refused}"
        self._note(server_round, sent, tally, folded=arrays is not None)
        if arrays is None:
            _log.warning("%s", tally.left_out[0])
            return None, None
        metrics = MetricRecord() if self.central else tally.metrics(self.train_metrics_aggr_fn, self.weighted_by_key)
        if self.privacy is not None:
            metrics.update(self.privacy.metrics(self.s))
        if tally.left_out:
            metrics["fedfleet.left-out"] = len(tally.left_out)
        self._told.train_metrics_clientapp[server_round] = metrics
        return arrays, metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return a message for each device that evaluates the model this round; they are drawn at random.

        None under central privacy: nothing of what they report could be told.
        """
        if not self.fraction_evaluate or self.central:
            return []
        ids = self._candidates(grid, self.min_evaluate_nodes)
        n = max(int(ids.size * self.fraction_evaluate), self.min_evaluate_nodes)
        drawn = cohorts.Random().choose(ids, n, self.table, server_round, self.rng(server_round, "evaluate"))
        nodes = np.sort(drawn).tolist()
        return orders.messages(
            self, server_round, arrays, orders.numbered(config, server_round), nodes, MessageType.EVALUATE
        )

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Return the metrics of all devices that evaluated; None if there are none."""
        found = receiving.evaluated(replies, self.evaluate_metrics_aggr_fn, self.weighted_by_key, server_round)
        if found is not None:
            self._told.evaluate_metrics_clientapp[server_round] = found
        return found

    def start(self, *args: Any, **options: Any) -> Any:
        """Train, as Flower's `start` does, or until `Ended`; on a fedfleet runner each round is durable."""
        self._round, self._told = None, flower.Result()
        return ending.started(self._told, super().start, *args, **options)

    # --- state --------------------------------------------------------------------------------------------------------

    def state(self) -> RecordDict:
        """Return all that must survive between two rounds."""
        vectors, numbers = ArrayRecord(), {}
        for name, value in self.s.items():
            if isinstance(value, np.ndarray):
                vectors[name] = Array(value)
            else:
                numbers[name] = value
        reasons = {str(number): {str(k): why for k, why in found.items()} for number, found in self._reasons.items()}
        told = ConfigRecord({"ready": self._ready, "numbers": json.dumps(numbers), "reasons": json.dumps(reasons)})
        return RecordDict({"state": told, "vectors": vectors, "table": self.table.record()})

    def restore(self, records: RecordDict) -> None:
        """Be as the strategy was that `state` was called on; the options are those given here."""
        told: Any = records["state"]
        vectors: Any = records["vectors"]
        table: Any = records["table"]
        self._ready = bool(told["ready"])
        self.s = {name: np.array(array.numpy()) for name, array in vectors.items()} | json.loads(told["numbers"])
        self._reasons = {
            int(number): {int(node): why for node, why in found.items()}
            for number, found in json.loads(told["reasons"]).items()
        }
        self.table.restore(table)
        self._round = None

    @property
    def population(self) -> int:
        """How many devices there were when the round began."""
        return self._population

    def rng(self, server_round: int, purpose: str) -> np.random.Generator:
        """Return the round's generator for a purpose; a round that runs again draws the same."""
        return chance.rng(self.seed, server_round, purpose)

    def explain(self, server_round: int) -> dict[int, str]:
        """Return whose update was left out in a recent round and why; under 0, why a round had no result."""
        return dict(self._reasons.get(server_round, {}))

    def __setattr__(self, name: str, value: Any) -> None:
        if vars(self).get("_ready") and not name.startswith("_") and name != "s":
            raise AttributeError(
                f"{type(self).__name__}.{name} is set after the first round, where no checkpoint would keep it; "
                f"put what must survive into self.s[{name!r}]"
            )
        super().__setattr__(name, value)

    # --- inside -------------------------------------------------------------------------------------------------------

    def _model(self, layout: Layout, arrays: ArrayRecord) -> tuple[Vector, NDArray[np.float64]]:
        """Return the model as vectors: of a half-precision model the float32 master, if it is this one's."""
        x, ints = layout.flat(arrays)
        master = self.s.get("_master")
        if layout.half and isinstance(master, np.ndarray) and master.size == x.size:
            shown, _ = layout.flat(layout.record(master, ints))
            if np.array_equal(shown, x):
                return master.copy(), ints
        return x, ints

    @property
    def _plain(self) -> bool:
        """Whether a round is FedAvg's mean and step and no more, which have a quicker way to the same bits."""
        usual = type(self).step is Strategy.step and type(self.rule).close is Mean.close
        return usual and self.privacy is None and self.downlink is None

    @property
    def central(self) -> bool:
        """Whether the server itself adds noise, and tells nothing without it."""
        return self.privacy is not None and self.privacy.central

    def _next(self, sent: receiving.Sent, aggregate: Aggregate, server_round: int, *, moved: bool) -> ArrayRecord:
        if moved:
            return sent.layout.record(aggregate.delta, sent.views.ints + aggregate.ints, sent.arrays)
        x, ints = self._model(sent.layout, sent.arrays)
        stepped = np.asarray(self.step(x, aggregate, server_round), sent.layout.dtype)
        if not finite(stepped):
            raise Refused("the next model would hold NaN or infinity")
        if any(isinstance(held, np.ndarray) and np.may_share_memory(held, stepped) for held in self.s.values()):
            stepped = stepped.copy()
        if sent.layout.half:
            self.s["_master"] = stepped
        return sent.layout.record(stepped, ints + aggregate.ints, sent.arrays)

    def _candidates(self, grid: Grid, at_least: int) -> NDArray[np.uint64]:
        needed = max(self.min_available_nodes, at_least)
        while len(ids := list(grid.get_node_ids())) < needed:
            _log.info("Waiting for nodes to connect: %d connected (minimum required: %d).", len(ids), needed)
            time.sleep(1)
        return np.sort(np.array(ids, np.uint64))

    def _note(self, server_round: int, sent: receiving.Sent, tally: receiving.Tally, *, folded: bool) -> None:
        self.table.note("asked", sent.asked, server_round)
        if self.downlink is not None:
            # Who failed may have lost what it had; who says nothing of its time has no client half that keeps it.
            self.table.note("version", sent.asked, 0)
            kept = [node for node in tally.nodes if "seconds" in tally.seen.get(node, {})]
            self.table.note("version", kept, server_round)
        used = [node for node in tally.nodes if node not in tally.left_out]
        if folded:
            self.table.note("folded", used, server_round)
        for column in ("loss", "seconds"):
            found = {node: values[column] for node, values in tally.seen.items() if column in values}
            if found and column in self.cohort.reads:
                self.table.note(column, found, list(found.values()))
        if tally.left_out:
            self._reasons[server_round] = tally.left_out
        for old in [number for number in self._reasons if number <= server_round - _EXPLAINED_ROUNDS]:
            del self._reasons[old]
