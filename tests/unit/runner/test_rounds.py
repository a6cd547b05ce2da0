"""The durable round loop: Flower's own loop to the app, and whole again after any death of its runner."""

import dataclasses
import logging
import random
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAdam, FedAvg, Result, Strategy

from fedfleet_coordinator.errors import Fenced, Misconfigured
from fedfleet_coordinator.runner.execution import App, Outcome, execute
from fedfleet_coordinator.runner.scratch import Scratch
from fedfleet_coordinator.runner.testing import MemoryHub
from tests.unit.runner.apps import device, initial, run_once, run_to_the_end, trains

STOCK_START = Strategy.start


def every_kill(
    app: App, folder: Path, *, late: bool = True, step: int = 1, **hub: Any
) -> tuple[MemoryHub, list[MemoryHub]]:
    """Run an app undisturbed, and once for each (or each `step`-th) call at which its runner may die."""
    calm = MemoryHub(device, **hub)
    outcome = run_to_the_end(calm, app, folder)
    assert outcome.state == "finished", outcome.text
    others = []
    for die_at in range(1, calm.calls, step):
        other = MemoryHub(device, **hub)
        other.die_at, other.late = die_at, late
        outcome = run_to_the_end(other, app, folder)
        assert outcome.state == "finished", f"killed at {die_at}: {outcome.text}"
        others.append(other)
    return calm, others


def weights(reply: Any) -> Any:
    return reply.content["arrays"]["w"].numpy().astype(float)


def told(value: Any) -> Any:
    """Return something of a Result that can be compared."""
    arrays = {name: array.numpy().tolist() for name, array in value.arrays.items()}
    metrics = (value.train_metrics_clientapp, value.evaluate_metrics_clientapp, value.evaluate_metrics_serverapp)
    return arrays, [{number: dict(record) for number, record in one.items()} for one in metrics]


# --- the same as Flower -----------------------------------------------------------------------------------------------


def test_the_loop_logs_and_returns_what_flowers_own_does(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("flwr").setLevel(logging.INFO)
    results: list[Result] = []
    lines = []

    def evaluated(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        return MetricRecord({"sum": float(arrays["w"].numpy().sum()), "round": server_round})

    def stock(grid: Grid, context: Context) -> None:
        config = ConfigRecord({"lr": 0.5})
        results.append(STOCK_START(FedAdam(), grid, initial(), 2, 60, config, None, evaluated))

    def durable(grid: Grid, context: Context) -> None:
        config = ConfigRecord({"lr": 0.5})
        results.append(FedAdam().start(grid, initial(), 2, 60, config, None, evaluated))

    for app in (stock, durable):
        caplog.clear()
        assert run_once(MemoryHub(device, seed=3), app, tmp_path).state == "finished"
        lines.append(
            [r.getMessage() for r in caplog.records if r.name == "flwr" and "finished in" not in r.getMessage()]
        )
    assert told(results[0]) == told(results[1])
    assert lines[0] == lines[1]


def test_start_is_flowers_own_again_afterwards(tmp_path: Path) -> None:
    run_once(MemoryHub(device), trains(FedAvg, rounds=1), tmp_path)
    assert Strategy.start is STOCK_START


def test_the_model_is_the_result_of_the_last_round(tmp_path: Path) -> None:
    hub, results = MemoryHub(device), list[Result]()
    run_once(hub, trains(FedAvg, seen=results), tmp_path)
    model = hub.model()
    assert model is not None
    assert model["arrays"] == results[0].arrays
    row = hub.row()
    assert (row.state, row.server_round, row.num_rounds) == ("finished", 3, 3)
    assert hub.references() == {f"bundle:{hub.run}", f"model:{hub.run}"}


def test_without_rounds_there_is_a_result_and_no_model(tmp_path: Path) -> None:
    results: list[Result] = []
    hub = MemoryHub(device)
    outcome = run_once(hub, trains(FedAvg, rounds=0, seen=results), tmp_path)
    assert outcome.state == "finished" and outcome.model is None and not results[0].arrays


# --- state of strategies ----------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Memory:
    best: float = 0.0
    when: dict[int, tuple[int, str]] = dataclasses.field(default_factory=dict)


class Remembering(FedAvg):
    """A researcher's strategy: it decays a config, and keeps state of many kinds, some of it in helpers."""

    def __init__(self, notes: list[str]) -> None:
        super().__init__()
        self.notes = notes  # somebody else holds it, too
        self.memory = Memory()
        self.window: deque[float] = deque(maxlen=2)
        self.luck = random.Random(1)
        self.noise = np.random.default_rng(2)
        self.old_noise = np.random.RandomState(3)
        self.momentum: dict[str, Any] = {}
        self.alias: Any = None
        self.seen: set[int] = set()
        self.scale = np.float32(1.0)
        self.big = 3**100
        self.fortran = np.asfortranarray(np.arange(6.0).reshape(2, 3))
        self.hook: Callable[[int], int] = lambda value: value + 1

    def configure_train(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> Any:
        config["lr"] = float(config["lr"]) * 0.5
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        arrays, metrics = super().aggregate_train(server_round, replies)
        assert arrays is not None
        self.notes.append(f"round {server_round}")
        self.memory.best += self.luck.random()
        self.memory.when[server_round] = (len(self.notes), "ü\ud800")
        self.window.append(self.memory.best)
        self.seen.add(server_round * 7)
        self.scale = np.float32(self.scale * np.float32(1.1))
        self.big *= 3
        self.fortran = np.asfortranarray(self.fortran * 1.01)
        drawn = self.noise.normal() + self.old_noise.normal() + sum(self.window) + float(self.fortran.sum())
        self.momentum = {name: array.numpy() * self.scale + np.float32(drawn) for name, array in arrays.items()}
        if self.alias is not None:
            assert self.alias is not arrays
        self.alias = arrays
        return ArrayRecord({name: Array(np.asarray(value)) for name, value in self.momentum.items()}), metrics


def test_what_a_strategy_remembers_survives_every_kill(tmp_path: Path) -> None:
    seen: list[Any] = []

    def app(grid: Grid, context: Context) -> None:
        notes: list[str] = []
        config = ConfigRecord({"lr": 1.0})
        strategy = Remembering(notes)
        context.state["begun"] = ConfigRecord({"yes": True})
        result = strategy.start(grid, initial(), num_rounds=3, train_config=config)
        memory = strategy.memory
        seen.append((told(result), notes, config["lr"], memory.best, memory.when, list(strategy.window), strategy.seen))
        assert type(memory) is Memory and strategy.window.maxlen == 2 and type(strategy.scale) is np.float32
        assert strategy.big == 3**103 and strategy.fortran.flags.f_contiguous and strategy.hook(1) == 2

    calm, others = every_kill(app, tmp_path, agents=3, seed=5)
    assert {other.row().model for other in others} == {calm.row().model}
    assert all(one == seen[0] for one in seen)


class Hoarding(FedAvg):
    def __init__(self) -> None:
        super().__init__()
        self.generator = (i for i in range(10))
        self.file = sys.stdout
        self.socket = Unwritable()
        self.count = 0

    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        self.count += 1
        return super().aggregate_train(server_round, replies)


class Unwritable:
    __slots__ = ("thing",)


def test_state_that_cannot_be_kept_is_named_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "fedfleet")
    run_once(MemoryHub(device), trains(Hoarding), tmp_path)
    told = [record.getMessage() for record in caplog.records if record.name == "fedfleet"]
    assert len(told) == 1 and "strategy.socket of type" in told[0] and "Unwritable" in told[0]


def test_two_trainings_with_a_loop_by_hand_between_them_survive_every_kill(tmp_path: Path) -> None:
    seen: list[Any] = []

    def app(grid: Grid, context: Context) -> None:
        def ask(kind: str) -> list[Any]:
            content = RecordDict({"arrays": initial()})
            messages = [Message(content, node, kind) for node in grid.get_node_ids()]
            return [r.metadata.src_node_id for r in grid.send_and_receive(messages)]

        ask("query")
        first = FedAvg().start(grid, initial(), num_rounds=2)
        context.state["between"] = ConfigRecord({"draw": random.random()})
        ask("evaluate")
        second = FedAdam().start(grid, first.arrays, num_rounds=2)
        seen.append((told(first), told(second), ask("query"), context.state["between"]["draw"], random.random()))

    calm, others = every_kill(app, tmp_path, agents=2, step=3)
    assert {other.row().model for other in others} == {calm.row().model}
    assert all(one == seen[0] for one in seen)


def test_strategy_that_waits_for_agents_says_for_how_many(tmp_path: Path) -> None:
    asked: list[int] = []

    class Watched(MemoryHub):
        def nodes(self, k: int, *, at_least: int, unlike: Any, needs: int = 0) -> Any:
            asked.append(needs)
            return super().nodes(k, at_least=at_least, unlike=unlike, needs=needs)

    hub = Watched(device, agents=3)
    run_once(hub, trains(lambda: FedAvg(min_available_nodes=3, fraction_evaluate=0.0), rounds=1), tmp_path)
    assert set(asked) == {3} and hub.row().needs == 0


def test_pushes_that_are_pulled_rounds_later_survive_every_kill(tmp_path: Path) -> None:
    class Pushing(FedAvg):
        """Push in one round, pull in the next, as asynchronous strategies do."""

        def __init__(self) -> None:
            super().__init__()
            self.open: list[str] = []
            self.sums: list[float] = []

        def configure_train(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> Any:
            self.grid = grid
            records = RecordDict({"arrays": arrays, "config": ConfigRecord({"round": server_round})})
            messages = [Message(records, node, "train") for node in grid.get_node_ids()]
            late, self.open = self.open, list(grid.push_messages(messages))
            found: list[Message] = []
            while len(found) < len(late):
                found += grid.pull_messages(late)
            self.sums.append(sum(weights(r).sum() for r in found))
            return []

        def aggregate_train(self, server_round: int, replies: Any) -> Any:
            value = np.float32(sum(self.sums) + server_round)
            return ArrayRecord({"w": Array(np.full((3, 4), value))}), None

    calm, others = every_kill(trains(Pushing, rounds=4), tmp_path, step=2, agents=2, at_once=1)
    assert {other.row().model for other in others} == {calm.row().model}


def test_torchs_generator_is_part_of_a_checkpoint(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")

    def evaluated(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        return MetricRecord({"draw": float(torch.rand(1))})

    calm, others = every_kill(trains(FedAvg, rounds=2, evaluate_fn=evaluated), tmp_path, step=3, seed=4)
    assert all(other.metrics == calm.metrics for other in others)


# --- replies that are not what they should be -------------------------------------------------------------------------


def misbehaves(how: Callable[[RecordDict], Any], part: int = 1) -> Any:
    def client(message: Message, context: Context) -> Any:
        reply = device(message, context)
        if context.node_config["partition-id"] == part and message.metadata.message_type == "train":
            how(reply.content)
        return reply

    return client


def poison(content: Any) -> None:
    content["arrays"]["w"] = Array(np.full((3, 4), np.nan, np.float32))


def reshape(content: Any) -> None:
    content["arrays"]["w"] = Array(np.zeros((4, 3), np.float32))


def add_record(content: Any) -> None:
    content["more"] = MetricRecord({"num-examples": 1})


def add_metric(content: Any) -> None:
    content["metrics"]["surprise"] = 1.0


def rename_record(content: Any) -> None:
    content["other"] = content.pop("arrays")


def overweight(content: Any) -> None:
    content["metrics"]["num-examples"] = 10**12


@pytest.mark.parametrize("how", [poison, reshape, add_record, add_metric, rename_record, overweight])
def test_one_bad_reply_is_left_out_and_the_run_goes_on(
    how: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "fedfleet")
    hub, without = MemoryHub(misbehaves(how), agents=3), list[Result]()
    outcome = run_once(hub, trains(FedAvg, seen=without), tmp_path)
    assert outcome.state == "finished" and hub.row().server_round == 3
    assert len([r for r in caplog.records if "the update gate left out the reply of agent a-" in r.getMessage()]) == 3
    assert np.isfinite(without[0].arrays["w"].numpy()).all()
    alone: list[Result] = []
    run_once(MemoryHub(declining(1), agents=3), trains(FedAvg, seen=alone), tmp_path)
    assert without[0].arrays == alone[0].arrays


def declining(part: int) -> Any:
    def client(message: Message, context: Context) -> Any:
        if context.node_config["partition-id"] == part and message.metadata.message_type == "train":
            context.state["seen"] = ConfigRecord({"times": 1})
            return "paused", "the owner has paused it"
        return device(message, context)

    return client


def test_replies_in_float64_are_the_models_own_dtype_again(tmp_path: Path) -> None:
    def widen(reply: Message) -> None:
        arrays: Any = reply.content["arrays"]
        for name in list(arrays):
            arrays[name] = Array(arrays[name].numpy().astype(np.float64))

    dtypes: set[str] = set()

    class Looking(FedAvg):
        def aggregate_train(self, server_round: int, replies: Any) -> Any:
            for reply in replies:
                dtypes.update(str(a.numpy().dtype) for a in reply.content["arrays"].values())
                dtypes.update(a.dtype for a in reply.content["arrays"].values())
            return super().aggregate_train(server_round, replies)

    def client(message: Message, context: Context) -> Any:
        reply = device(message, context)
        if message.metadata.message_type == "train":
            widen(reply)
        return reply

    results: list[Result] = []
    assert run_once(MemoryHub(client), trains(Looking, seen=results), tmp_path).state == "finished"
    assert dtypes == {"float32"} and {a.dtype for a in results[0].arrays.values()} == {"float32"}


# --- how a run ends ---------------------------------------------------------------------------------------------------


def fails(message: Message, context: Context) -> Message:
    raise ValueError("there is no data on this device")


def test_a_run_without_a_single_result_is_a_failure_that_says_why(tmp_path: Path) -> None:
    hub = MemoryHub(fails)
    outcome = run_once(hub, trains(FedAvg), tmp_path)
    row = hub.row()
    assert (row.state, row.reason, outcome.model) == ("failed", "no_results", None)
    assert "all 6 replies to train messages were failures" in row.text and "there is no data on this device" in row.text


def test_an_app_whose_evaluation_always_fails_has_still_trained(tmp_path: Path) -> None:
    def client(message: Message, context: Context) -> Message:
        return fails(message, context) if message.metadata.message_type == "evaluate" else device(message, context)

    assert run_once(MemoryHub(client), trains(FedAvg), tmp_path).state == "finished"


@pytest.mark.parametrize(
    ("error", "reason", "told"),
    [
        (ValueError("bad luck"), "app_failed", "ValueError: bad luck"),
        (SystemExit(3), "app_failed", "sys.exit(3)"),
        (SystemExit("no config"), "app_failed", "no config"),
        (SystemExit(0), "finished", ""),
        (SystemExit(), "finished", ""),
    ],
)
def test_a_serverapp_that_raises_or_exits_ends_its_run_with_its_last_lines(
    error: BaseException, reason: str, told: str, tmp_path: Path
) -> None:
    def app(grid: Grid, context: Context) -> None:
        raise error

    outcome = run_once(MemoryHub(device), app, tmp_path)
    assert outcome.reason == reason and told in outcome.text


def test_a_lifespan_is_entered_and_left_around_the_app(tmp_path: Path) -> None:
    app, told = ServerApp(), list[str]()

    @app.lifespan()
    def lifespan(context: Context) -> Any:
        told.append("before")
        yield
        told.append("after")

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        told.append("app")
        raise ValueError("in the middle")

    assert run_once(MemoryHub(device), app, tmp_path).reason == "app_failed"
    assert told == ["before", "app", "after"]


def test_a_replaced_runner_stops_whatever_its_app_does(tmp_path: Path) -> None:
    hub = MemoryHub(device)

    class Replaced(FedAvg):
        def aggregate_train(self, server_round: int, replies: Any) -> Any:
            if server_round == 2:
                hub.relaunch()
            return super().aggregate_train(server_round, replies)

    run, position = hub.look()
    with pytest.raises(Fenced):
        execute(trains(Replaced), OldRunner(hub), run, position, scratch=Scratch(tmp_path), run_config={})
    assert hub.row().server_round == 1


class OldRunner:
    """The hub as a runner sees it that keeps the epoch it was launched with."""

    def __init__(self, hub: MemoryHub) -> None:
        self._hub, self._epoch = hub, hub.epoch

    def __getattr__(self, name: str) -> Any:
        def ask(*args: Any, **options: Any) -> Any:
            now, self._hub.epoch = self._hub.epoch, self._epoch if self._hub.epoch == self._epoch else "stale"
            try:
                return getattr(self._hub, name)(*args, **options)
            finally:
                self._hub.epoch = now

        return ask


def test_gate_settings_that_make_no_sense_are_told_before_the_app_runs(tmp_path: Path) -> None:
    hub = MemoryHub(device, gate={"wieght_cap": 3})
    with pytest.raises(Misconfigured, match="no setting 'wieght_cap'"):
        run_once(hub, trains(FedAvg), tmp_path)


def test_a_runs_config_and_number_are_what_the_app_sees(tmp_path: Path) -> None:
    seen: list[Any] = []

    def app(grid: Grid, context: Context) -> None:
        seen.append((grid.run.run_id == context.run_id > 0, context.node_id, grid.run.fab_id, context.run_config))

    run_once(MemoryHub(device), app, tmp_path)
    assert seen == [(True, 1, "test/app", {})]


def test_outcomes_are_values() -> None:
    assert Outcome("finished", "finished") == Outcome("finished", "finished", "", None)
