"""Simulated fleets with real trainers: the same seed is the same model, and what devices do wrong is told."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedfleet_coordinator.simulation.devices import Conditions, duration, link
from fedfleet_coordinator.simulation.errors import Unusable
from fedfleet_coordinator.simulation.fleet import Fleet
from fedfleet_coordinator.simulation.session import Simulation
from fedfleet_flower.compat import build_bundle

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

QUICKSTART = Path(__file__).resolve().parents[2] / "examples" / "quickstart"
PROJECT = """
[project]
name = "{name}"
version = "1.0.0"
description = ""
license = "Apache-2.0"
[tool.flwr.app]
publisher = "me"
[tool.flwr.app.components]
serverapp = "{name}.server:app"
clientapp = "{name}.client:app"
[tool.flwr.app.config]
rounds = 2
least = 2
"""
SERVER = """
import numpy as np
from flwr.app import ArrayRecord
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg
app = ServerApp()

@app.main()
def main(grid, context):
    config = context.run_config
    strategy = FedAvg(fraction_evaluate=0.0, min_available_nodes=config["least"], min_train_nodes=config["least"])
    strategy.start(grid=grid, initial_arrays=ArrayRecord([np.zeros(50)]), num_rounds=config["rounds"])
"""
CLIENT = """
import os, random, signal, sys, time
import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
app = ClientApp()

@app.train()
def train(message, context):
    partition = context.node_config["partition-id"]
    calls = int(context.state["count"]["calls"]) + 1 if "count" in context.state else 1
    context.state["count"] = ConfigRecord({"calls": calls})
"""
ANSWER = """
    model = message.content["arrays"].to_numpy_ndarrays()[0]
    model = model + np.random.normal(partition, 1.0, 50) + random.random() + 10 * calls
    metrics = MetricRecord({"num-examples": partition + 1, "calls": calls})
    return Message(RecordDict({"arrays": ArrayRecord([model]), "metrics": metrics}), reply_to=message)
"""
Make = Callable[..., bytes]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Return a function that makes a bundle whose devices do `body` before they answer."""

    def made(body: str = "", *, server: str = SERVER, name: str = "noisy", head: str = CLIENT) -> bytes:
        folder = tmp_path / f"{name}-{len(os.listdir(tmp_path))}"
        (folder / name).mkdir(parents=True)
        (folder / "pyproject.toml").write_text(PROJECT.format(name=name))
        (folder / name / "__init__.py").write_text("")
        (folder / name / "client.py").write_text(head + body + ANSWER)
        (folder / name / "server.py").write_text(server)
        return build_bundle(folder)

    return made


class Ended:
    """A simulation that is over."""

    def __init__(self, simulation: Simulation) -> None:
        self.row = simulation.execute()
        self.snapshot = simulation.snapshot()
        self.told = self.snapshot["simulation"]
        began = self.row.created_wall
        self.spans = [
            (task["agent"], task["n"], task["state"], round(task["settled"] - began, 6))
            for task in simulation.timeline()["tasks"]
        ]
        self.blobs = len(os.listdir(simulation._home / "blobs"))
        self.rows = sum(len(rows) for rows in simulation.hub._store._rows.values())


def simulated(
    bundle: bytes, fleet: Fleet, *, workers: int = 2, config: dict[str, Any] | None = None, **run: Any
) -> Ended:
    with Simulation(bundle, fleet, workers=workers, run={"config": config or {}, **run}) as simulation:
        return Ended(simulation)


def test_the_same_seed_gives_the_same_model_with_any_number_of_workers(make: Make) -> None:
    # Half the devices are slow, some drop out, calls take unequal real time: what is ready first differs each time.
    bundle = make("    time.sleep(random.Random(os.getpid() + partition).random() / 50)\n")
    conditions = Conditions(
        seed=7, compute=duration("lognormal:30s"), link=link("lognormal:1Mbit"), stragglers=(0.5, 4.0), drop_out=0.1
    )
    fleet = Fleet(agents=30, cohort=12, conditions=conditions)
    ended = [simulated(bundle, fleet, workers=workers, quorum="60%", grace_s=5.0) for workers in (1, 2, 4)]
    assert ended[0].row.state == "finished", ended[0].row.text
    assert len({one.row.model for one in ended}) == 1, "bit-identical"
    assert len({one.told["virtual_s"] for one in ended}) == 1
    assert ended[0].spans == ended[1].spans == ended[2].spans
    other = simulated(bundle, Fleet(30, 12, Conditions(seed=8)))
    assert other.row.model != ended[0].row.model


def test_a_device_keeps_its_state_from_call_to_call_and_knows_its_partition(make: Make) -> None:
    ended = simulated(make(), Fleet(agents=3), config={"rounds": 3})
    metrics = {entry["round"]: entry["values"]["calls"] for entry in ended.snapshot["metrics"]}
    assert metrics == {1: 1, 2: 2, 3: 3}


def test_state_follows_acceptance(make: Make) -> None:
    """Two of three replies are enough: the third device's work is refused each time, and so is the state it left."""
    slow = Conditions(compute=duration("uniform:10s:40s"))
    ended = simulated(make(), Fleet(agents=3, conditions=slow), config={"rounds": 3}, quorum="2", grace_s=0.0)
    assert ended.told["missed"] == 3
    assert ended.told["exchanges"] == {"quorum": 3}
    assert [entry["values"]["calls"] for entry in ended.snapshot["metrics"]] == [1, 2, 3]


def test_time_is_virtual(make: Make) -> None:
    conditions = Conditions(compute=duration("30min"), link=link("80kbit"))
    ended = simulated(make(), Fleet(agents=2, conditions=conditions))
    # Each message has some 600 bytes, each way 10 kB/s.
    assert 3600.1 < ended.told["virtual_s"] < 3601
    assert ended.row.ended_wall is not None
    assert ended.row.started_wall is not None
    assert ended.row.ended_wall - ended.row.started_wall == pytest.approx(ended.told["virtual_s"], abs=1e-3)


def test_drop_outs_are_waited_for_until_the_deadline(make: Make) -> None:
    fleet = Fleet(agents=40, conditions=Conditions(seed=4, compute=duration("1s"), drop_out=0.25))
    ended = simulated(make(), fleet, deadline_s=600.0)
    assert ended.row.state == "finished"
    assert ended.told["virtual_s"] == 1200.0
    assert ended.told["exchanges"] == {"deadline": 2}
    assert ended.told["dropped_out"] == ended.told["missed"] == 80 - ended.told["replies"]
    assert 10 < ended.told["missed"] < 30


def test_a_quorum_and_its_grace_close_an_exchange_before_the_stragglers_are_done(make: Make) -> None:
    fleet = Fleet(agents=20, conditions=Conditions(seed=1, compute=duration("10s"), stragglers=(0.3, 10.0)))
    ended = simulated(make(), fleet, quorum="50%", grace_s=20.0, config={"rounds": 1})
    assert ended.told["virtual_s"] == 30.0
    assert ended.told["exchanges"] == {"quorum": 1}
    assert 0 < ended.told["missed"] < 10


def test_who_cannot_make_the_deadline_is_not_called(make: Make) -> None:
    fleet = Fleet(agents=4, conditions=Conditions(compute=duration("uniform:50s:150s")))
    ended = simulated(make(), fleet, deadline_s=100.0, config={"rounds": 1})
    assert ended.told["calls"] == ended.told["replies"] < 4


def test_a_client_app_that_raises_is_an_error_reply(make: Make) -> None:
    ended = simulated(make("    if partition == 1:\n        raise ValueError('no data')\n"), Fleet(agents=4))
    assert ended.row.state == "finished"
    assert ended.told["errors"] == 2


def test_if_all_raise_the_run_fails_and_says_why(make: Make) -> None:
    ended = simulated(make("    raise ValueError('no data')\n"), Fleet(agents=3))
    assert (ended.row.state, ended.row.reason) == ("failed", "no_results")
    assert "no data" in ended.row.text


@pytest.mark.parametrize("how", ["os._exit(3)", "os.kill(os.getpid(), signal.SIGSEGV)", "sys.exit(2)"])
def test_a_client_app_that_ends_its_process_is_called_once_more_and_then_declined(make: Make, how: str) -> None:
    ended = simulated(make(f"    if partition == 1:\n        {how}\n"), Fleet(agents=5), config={"rounds": 1})
    assert ended.row.state == "finished"
    assert ended.told["declined"] == {"killed": 1}
    assert ended.told["replies"] == 4
    assert ended.told["crashes"] == 2


def test_a_process_that_dies_once_changes_nothing(make: Make, tmp_path: Path) -> None:
    mark = tmp_path / "died"
    body = f"    if partition == 1 and not os.path.exists({str(mark)!r}):\n        open({str(mark)!r}, 'w').close()\n"
    ended = simulated(make(body + "        os._exit(3)\n"), Fleet(agents=5))
    undisturbed = simulated(make(body + "        os._exit(3)\n"), Fleet(agents=5))
    assert (ended.told["crashes"], undisturbed.told["crashes"]) == (1, 0)
    assert ended.row.model == undisturbed.row.model is not None


def test_an_app_that_cannot_be_loaded_is_told_before_anything_runs(make: Make) -> None:
    with pytest.raises(Unusable, match=r"cannot be loaded.*No module named 'nowhere'|needs packages.*nowhere"):
        simulated(make(head="import nowhere\n" + CLIENT), Fleet(agents=2))


def test_a_process_that_dies_while_loading_is_told(make: Make) -> None:
    with pytest.raises(Unusable, match="exit status 7"):
        simulated(make(head="import os\nos._exit(7)\n" + CLIENT), Fleet(agents=2))


def test_an_app_that_waits_for_more_agents_than_there_will_be_is_told(make: Make) -> None:
    ended = simulated(make(), Fleet(agents=100, cohort=5), config={"least": 50})
    assert (ended.row.state, ended.row.reason) == ("failed", "too_few_agents")
    assert "waits for 50 agents and is given 5" in ended.row.text


LATE = """
import numpy as np
from flwr.app import ArrayRecord, Message, RecordDict
from flwr.serverapp import ServerApp
app = ServerApp()

@app.main()
def main(grid, context):
    nodes = list(grid.get_node_ids())
    def content():
        return RecordDict({"arrays": ArrayRecord([np.zeros(50)])})
    waiting = set(grid.push_messages([Message(content(), node, "train") for node in nodes]))
    order = []
    while waiting:
        for reply in grid.pull_messages(waiting):
            waiting.discard(reply.metadata.reply_to_message_id)
            order.append(nodes.index(reply.metadata.src_node_id))
            if len(order) < 12:  # whoever is done is asked again at once
                waiting |= set(grid.push_messages([Message(content(), reply.metadata.src_node_id, "train")]))
    print("ORDER", order)
"""


PULL = """
import numpy as np
from flwr.app import ArrayRecord, Message, RecordDict
from flwr.serverapp import ServerApp
app = ServerApp()

@app.main()
def main(grid, context):
    nodes = list(grid.get_node_ids())
    content = RecordDict({"arrays": ArrayRecord([np.zeros(50)])})
    waiting = set(grid.push_messages([Message(content, node, "train", ttl=100.0) for node in nodes]))
    while waiting:
        for reply in grid.pull_messages(waiting):
            waiting.discard(reply.metadata.reply_to_message_id)
            print("PULLED", nodes.index(reply.metadata.src_node_id), reply.has_error())
"""


def test_pulled_replies_come_in_the_order_of_virtual_time(make: Make, capfd: pytest.CaptureFixture[str]) -> None:
    fleet = Fleet(agents=2, conditions=Conditions(seed=0, compute=duration("100s"), stragglers=(0.5, 3.0)))
    assert [fleet.conditions.pace(i).compute_s for i in range(2)] in ([100.0, 300.0], [300.0, 100.0])
    ended = simulated(make(server=LATE, name="pulling"), fleet)
    assert ended.row.state == "finished", ended.row.text
    line = next(line for line in capfd.readouterr().out.splitlines() if line.startswith("ORDER"))
    quick = "01"[fleet.conditions.pace(1).compute_s < 200]
    order = line.removeprefix("ORDER ").strip("[]").split(", ")
    assert order[:2] == [quick, quick]
    assert order[:8].count(quick) == 6, order


def test_late_replies_are_pulled_and_those_that_never_come_are_given_up(
    make: Make, capfd: pytest.CaptureFixture[str]
) -> None:
    """One device is late, one drops out: its error comes a deadline after the exchange's own."""
    conditions = Conditions(seed=1, compute=duration("10s"), stragglers=(0.3, 20.0), drop_out=0.3)
    found = [(conditions.pace(i).compute_s, conditions.drops_out(i, 1)) for i in range(3)]
    assert sorted(found) == [(10.0, False), (10.0, True), (200.0, False)], found
    ended = simulated(make(server=PULL, name="late"), Fleet(3, conditions=conditions), deadline_s=100.0, late="keep")
    assert ended.row.state == "finished", ended.row.text
    lines = [line for line in capfd.readouterr().out.splitlines() if line.startswith("PULLED")]
    order = [(10.0, False), (200.0, False), (10.0, True)]
    assert lines == [f"PULLED {found.index(device)} {device[1]}" for device in order]
    assert ended.told["virtual_s"] == 200.0


def test_what_nobody_needs_any_more_is_gone(make: Make) -> None:
    few = simulated(make(), Fleet(agents=20, cohort=10), config={"rounds": 2})
    many = simulated(make(), Fleet(agents=20, cohort=10), config={"rounds": 12})
    assert many.blobs <= few.blobs <= 4, "bundle, model, and nothing of the rounds"
    assert many.rows - few.rows <= 10 + 10, "a row of metrics per round, and devices that hold a state"


MEASURED = """
import os, resource, sys
from pathlib import Path
from fedfleet_coordinator.simulation.fleet import Fleet
from fedfleet_coordinator.simulation.session import Simulation
if __name__ == "__main__":
    agents, cohort = int(sys.argv[2]), int(sys.argv[3])
    run = {"config": {"rounds": 3}}
    with Simulation(Path(sys.argv[1]).read_bytes(), Fleet(agents, cohort or None), workers=1, run=run) as simulation:
        row = simulation.execute()
        assert row.state == "finished", row.text
        assert simulation.pool.made == 3 * (cohort or agents)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def test_memory_is_flat_in_the_number_of_clients(make: Make, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    bundle.write_bytes(make(head=CLIENT.partition("    calls =")[0] + "    calls = 1\n"))

    def peaks(agents: int, cohort: int) -> list[int]:
        command = [sys.executable, "-c", MEASURED, str(bundle), str(agents), str(cohort)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return [int(kilobytes) for kilobytes in done.stdout.split()[-2:]]

    base, child = peaks(100, 50)
    for agents, cohort, most_kb in ((1_000_000, 50, 4_000), (2000, 0, 40_000)):
        found, child_found = peaks(agents, cohort)
        assert found - base < most_kb, f"{agents} agents: {found} KB, against {base}"
        assert child_found - child < 4_000


def command(*words: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    line = [sys.executable, "-m", "fedfleet_coordinator.cli", "simulate", *words]
    return subprocess.run(line, capture_output=True, text=True, cwd=folder, check=False, timeout=100)


def test_the_command_shows_saves_and_draws(tmp_path: Path) -> None:
    done = command(
        str(QUICKSTART), "--agents", "20", "--cohort", "5", "--compute", "lognormal:30s", "--stragglers", "0.2:5x",
        "--link", "lognormal:10Mbit", "--save", "model.npz", "-o", "run.png", "--log", "log", folder=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "20 agents, 5 at a time" in done.stdout
    assert "round 3 train: loss" in done.stdout
    assert "weights: " in done.stdout, "what the ServerApp prints"
    with np.load(tmp_path / "model.npz") as model:
        assert [array.shape for array in model.values()] == [(3,)]
    assert (tmp_path / "run.png").read_bytes().startswith(b"\x89PNG")
    assert "weights: " in (tmp_path / "log").read_text()


def test_the_command_tells_programs_the_same_each_time(tmp_path: Path) -> None:
    answers = []
    for workers in ("1", "2"):
        done = command(str(QUICKSTART), "--agents", "6", "--seed", "3", "--workers", workers, "--json", folder=tmp_path)
        assert done.returncode == 0, done.stderr
        answers.append(json.loads(done.stdout))
    first, second = answers
    assert first["model"] == second["model"]
    assert first["metrics"] == second["metrics"]
    assert first["simulation"] == second["simulation"]
    assert [one["reason"] for one in first["closed"]] == ["all"] * 6


def test_the_command_fails_as_a_run_on_a_fleet_does(tmp_path: Path) -> None:
    done = command(str(QUICKSTART), "--agents", "3", "--drop-out", "100%", "--json", folder=tmp_path)
    assert done.returncode == 1
    assert json.loads(done.stdout)["reason"] == "no_results"
    assert "no_results" in json.loads(done.stderr)["error"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("nowhere",), "is not a folder"),
        ((str(QUICKSTART), "--link", "fast"), "--link is written like 10Mbit"),
        ((str(QUICKSTART), "--cohort", "500"), "--agents 100"),
        ((str(QUICKSTART), "-c", "speed=1"), "has no configuration 'speed'"),
        ((str(QUICKSTART), "-o", "run.gif"), ".png"),
        ((str(QUICKSTART), "--save", "no/model.npz"), "there is no folder no"),
    ],
)
def test_the_command_refuses_what_it_cannot_use(words: tuple[str, ...], told: str, tmp_path: Path) -> None:
    done = command(*words, folder=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert told in done.stderr
    assert "Traceback" not in done.stderr
