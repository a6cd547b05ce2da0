"""Real trainers with real apps that behave, raise, exit, crash, hang, print without end, and are killed."""

import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fedfleet_agent.supervisor import Done, Event, Failed, Output, Progressed, Supervisor, Work
from fedfleet_agent.trainer import environment
from fedfleet_flower import compat
from fedfleet_flower.contents import StoredContent, from_records, read_content, write_content
from fedfleet_protocol import handover
from fedfleet_protocol.blocks import blocks_of
from fedfleet_protocol.ids import Digest, Order, agent_id, flower_number, run_id

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

AGENT, RUN = agent_id(bytes(16)), run_id(bytes(range(16)))
PROJECT = """
[project]
name = "tiny"
version = "1.0.0"
description = ""
license = "Apache-2.0"
dependencies = [{dependencies}]
[tool.flwr.app]
publisher = "me"
[tool.flwr.app.components]
serverapp = "tiny.server:app"
clientapp = "tiny.client:app"
[tool.flwr.app.config]
lr = 0.1
rounds = 3
"""
HEAD = """
import os, signal, sys, time
import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
app = ClientApp()

def answer(message, **metrics):
    content = RecordDict({"metrics": MetricRecord(metrics or {"done": 1})})
    if "arrays" in message.content:
        content["arrays"] = message.content["arrays"]
    return Message(content, reply_to=message)

"""
TRAIN = HEAD + "@app.train()\ndef train(message, context):\n"


def bundle(folder: Path, client: str, dependencies: str = "") -> Path:
    app = folder / f"app-{len(os.listdir(folder))}" / "tiny"
    (app / "tiny").mkdir(parents=True)
    (app / "pyproject.toml").write_text(PROJECT.format(dependencies=dependencies))
    (app / "tiny" / "__init__.py").write_text("")
    (app / "tiny" / "client.py").write_text(client)
    (app / "tiny" / "server.py").write_text("from flwr.serverapp import ServerApp\napp = ServerApp()\n")
    path = app.parent / "bundle"
    path.write_bytes(compat.build_bundle(app))
    return path


class Bench:
    """A supervisor, and what an agent would do with it."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.folder = folder
        self.supervisor = Supervisor(folder / "trainers", **options)
        self.count = 0

    def work(self, app: Path, content: RecordDict | None = None, **options: Any) -> Work:
        self.count += 1
        message = self.folder / f"message-{self.count}"
        records = content if content is not None else RecordDict()
        kind, group = options.pop("kind", "train"), options.pop("group", "1")
        write_content(message, from_records(records, message_type=kind, group_id=group))
        settings: dict[str, Any] = {
            "run": RUN, "order": Order(f"{self.count:064x}"), "agent": AGENT, "bundle": app,
            "digest": Digest(str(hash(app.read_bytes()))), "message": message, "state": None, "run_config": {},
            "node_config": {"partition-id": 3, "path": "/data"}, "limit_s": 60.0,
        }  # fmt: skip
        return Work(**{**settings, **options})

    def do(self, work: Work) -> tuple[Done | Failed, list[Event]]:
        self.supervisor.start(work)
        ended: tuple[Done | Failed, list[Event]] = self.wait()
        return ended

    def wait(self, until: Callable[[Event], bool] | None = None) -> Any:
        seen: list[Event] = []
        while True:
            wait_s = self.supervisor.wait_s()
            select.select([self.supervisor], [], [], 60 if wait_s is None else wait_s)
            for event in self.supervisor.poll():
                seen.append(event)
                if until is not None and until(event):
                    return seen
                if isinstance(event, Done | Failed):
                    return event, seen


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.supervisor.close()
    assert not psutil.Process().children(recursive=True)


def reply_of(done: Done | Failed) -> StoredContent:
    assert isinstance(done, Done), done
    assert blocks_of([done.reply.path.read_bytes()]) == done.reply.blocks
    return read_content(done.reply.path)


def printed(events: list[Event], stream: str = "stdout") -> list[str]:
    return [line for e in events if isinstance(e, Output) and e.stream == stream for line in e.lines]


def test_an_app_gets_what_flower_gives_and_its_reply_comes_back(bench: Bench, tmp_path: Path) -> None:
    app = bundle(
        tmp_path,
        TRAIN
        + """
    meta = message.metadata
    print("config", context.run_config, context.node_config)
    print("in", os.path.basename(os.getcwd()))
    return Message(RecordDict({
        "arrays": ArrayRecord([array.numpy() + 1 for array in message.content["arrays"].values()]),
        "ids": ConfigRecord({"run": str(meta.run_id), "me": str(meta.dst_node_id), "from": meta.src_node_id,
            "group": meta.group_id, "type": meta.message_type, "node": str(context.node_id),
            "context": str(context.run_id), "ttl": meta.ttl}),
    }), reply_to=message)
""",
    )
    content = RecordDict({"arrays": ArrayRecord([np.arange(300_000.0)]), "config": ConfigRecord({"server-round": 1})})
    done, events = bench.do(bench.work(app, content, run_config={"lr": 0.5}))
    stored = reply_of(done)
    assert (stored.manifest.message_type, stored.manifest.group_id) == ("train", "1")
    found = stored.records()
    array = found["arrays"]["0"]
    assert isinstance(array, Array)
    np.testing.assert_array_equal(array.numpy(), np.arange(300_000.0) + 1)
    run, node = str(flower_number(RUN)), str(flower_number(AGENT))
    ids: dict[str, Any] = dict(found["ids"])
    assert 0 < ids.pop("ttl") <= 60
    assert ids == {
        "run": run, "context": run, "me": node, "node": node, "from": 1, "group": "1", "type": "train",
    }  # fmt: skip
    assert printed(events) == ["config {'lr': 0.5, 'rounds': 3} {'partition-id': 3, 'path': '/data'}", "in scratch"]
    assert isinstance(done, Done)
    assert done.state is None


def test_a_warm_trainer_answers_at_once(bench: Bench, tmp_path: Path) -> None:
    app = bundle(tmp_path, TRAIN + "    return answer(message, pid=os.getpid())\n")
    first, _ = bench.do(bench.work(app))
    before = time.monotonic()
    second, _ = bench.do(bench.work(app))
    assert time.monotonic() - before < 0.3
    assert reply_of(first).records() == reply_of(second).records()


def test_query_evaluate_and_custom_messages_find_their_functions(bench: Bench, tmp_path: Path) -> None:
    app = bundle(
        tmp_path,
        HEAD
        + """
@app.train("mine")
def mine(message, context): return answer(message, mine=1)
@app.evaluate()
def evaluate(message, context): return answer(message, evaluate=1)
@app.query()
def query(message, context): return answer(message, query=1)
""",
    )
    for kind, name in (("train.mine", "mine"), ("evaluate", "evaluate"), ("query", "query")):
        done, _ = bench.do(bench.work(app, kind=kind))
        stored = reply_of(done)
        assert stored.manifest.message_type == kind
        assert dict(stored.records()["metrics"]) == {name: 1}
    done, _ = bench.do(bench.work(app, kind="train"))
    failure = reply_of(done).failure
    assert failure is not None
    assert "No train function registered" in failure.reason


def test_state_is_handed_in_and_out_and_a_failed_call_leaves_it(bench: Bench, tmp_path: Path) -> None:
    app = bundle(
        tmp_path,
        TRAIN
        + """
    count = context.state.setdefault("count", MetricRecord({"calls": 0}))
    count["calls"] += 1
    context.state["head"] = ArrayRecord([np.full(100_000, count["calls"], np.float32)])
    if message.content["config"]["raise"]:
        raise RuntimeError("after the state was changed")
    return answer(message, calls=count["calls"])
""",
    )

    def call(state: Path | None, fail: bool = False) -> Done:
        done, _ = bench.do(bench.work(app, RecordDict({"config": ConfigRecord({"raise": fail})}), state=state))
        assert isinstance(done, Done)
        return done

    first = call(None)
    assert first.state is not None
    kept = first.state.path.rename(tmp_path / "state")
    assert call(kept, fail=True).state is None
    second = call(kept)
    for _ in range(2):  # the same attempt again starts from the same state
        second = call(kept)
        assert dict(reply_of(second).records()["metrics"]) == {"calls": 2}
    assert second.state is not None
    head = read_content(second.state.path).records()["head"]["0"]
    assert isinstance(head, Array)
    assert head.numpy()[-1] == 2


def test_mods_run_and_a_reply_with_wrong_ids_is_put_right(bench: Bench, tmp_path: Path) -> None:
    client = (
        HEAD.replace("app = ClientApp()", "")
        + """
def mod(message, context, call):
    reply = call(message, context)
    again = Message(reply.content, reply_to=reply)
    again.metadata.message_type, again.metadata.group_id = "query", "wrong"
    return again
app = ClientApp(mods=[mod])
@app.train()
def train(message, context): return answer(message)
"""
    )
    done, _ = bench.do(bench.work(bundle(tmp_path, client), group="7"))
    manifest = reply_of(done).manifest
    assert (manifest.message_type, manifest.group_id) == ("train", "7")


def test_an_app_that_raises_answers_with_flowers_error_and_its_traceback(bench: Bench, tmp_path: Path) -> None:
    app = bundle(tmp_path, TRAIN + "    raise ZeroDivisionError('no data on this device')\n")
    done, events = bench.do(bench.work(app))
    failure = reply_of(done).failure
    assert isinstance(done, Done)
    assert done.failed
    assert failure is not None
    assert failure.code == compat.CLIENT_APP_RAISED_EXCEPTION
    assert failure.reason.startswith("<class 'ZeroDivisionError'>:<'no data on this device'>")
    assert "client.py" in failure.reason
    assert "ZeroDivisionError: no data on this device" in printed(events, "stderr")
    assert bench.supervisor.pids()  # it stays warm


@pytest.mark.parametrize(
    ("body", "code", "text"),
    [
        ("    return 3", 2, "returned int and not a Message"),
        ("    return None", 2, "returned NoneType"),
        ("    return Message(Error(6, 'mine'), reply_to=message)", 6, "mine"),
        ("    return Message(RecordDict({'c': ConfigRecord({'n': 2**80})}), reply_to=message)", 2, "cannot be sent"),
        ("    context.state = {}; return answer(message)", 2, "context.state is of type dict"),
    ],
)
def test_what_is_no_reply_becomes_an_error(bench: Bench, tmp_path: Path, body: str, code: int, text: str) -> None:
    done, _ = bench.do(bench.work(bundle(tmp_path, TRAIN + body + "\n")))
    failure = reply_of(done).failure
    assert failure is not None
    assert failure.code == code
    assert text in failure.reason


@pytest.mark.parametrize(
    ("body", "code", "text"),
    [
        ("    sys.exit(4)", "app", r"sys.exit\(4\)"),
        ("    print('bye', flush=True); os._exit(5)", "app", r"exit status 5.*bye"),
        ("    os.kill(os.getpid(), signal.SIGSEGV)", "app", r"signal 11 \(Segmentation fault\).*client.py"),
        ("    os.abort()", "app", r"signal 6"),
        ("    raise KeyboardInterrupt", "app", r"KeyboardInterrupt"),
        ("    os.kill(os.getpid(), signal.SIGKILL)", "outside", r"from outside by signal 9"),
        ("    os.kill(os.getppid(), signal.SIGKILL); time.sleep(60)", "outside", r"from outside by signal 9"),
        ("    open('big', 'wb').write(bytes(3 << 20)); return answer(message)", "ok", r"File too large"),
    ],
    ids=["exit", "_exit", "segfault", "abort", "interrupt", "killed", "keeper killed", "large file"],
)
def test_an_app_that_ends_its_process_is_told_apart_from_one_that_was_killed(
    tmp_path: Path, body: str, code: str, text: str
) -> None:
    free = handover.Sandbox(confine=False, minimum="none")  # confined, an app cannot kill its keeper
    sandbox = free if "getppid" in body else handover.Sandbox()
    bench = Bench(tmp_path, limits=handover.Limits(file_bytes=2 << 20), sandbox=lambda: sandbox)
    try:
        ended, _ = bench.do(bench.work(bundle(tmp_path, TRAIN + body + "\n")))
        if code == "ok":
            failure = reply_of(ended).failure
            assert failure is not None
            assert text in failure.reason
        else:
            assert isinstance(ended, Failed), ended
            assert ended.code == code
            assert re.search(text, ended.text, re.DOTALL), ended.text
            # The next order meets a fresh process.
            app = bundle(tmp_path, TRAIN + "    return answer(message)\n")
            assert isinstance(bench.do(bench.work(app))[0], Done)
    finally:
        bench.supervisor.close()
    assert not psutil.Process().children(recursive=True)


def test_a_trainer_killed_from_outside_says_so(bench: Bench, tmp_path: Path) -> None:
    app = bundle(tmp_path, TRAIN + "    print('ready')\n    time.sleep(60)\n")
    for number, who in ((signal.SIGKILL, 1), (signal.SIGTERM, 1), (signal.SIGKILL, 0)):
        bench.supervisor.start(bench.work(app))
        bench.wait(lambda event: isinstance(event, Output))
        family = psutil.Process().children(recursive=True)
        os.kill(family[who].pid, number)
        ended, _ = bench.wait()
        assert isinstance(ended, Failed)
        assert ended.code == "outside"
        assert not psutil.Process().children(recursive=True)


def test_a_trainer_killed_between_two_orders_is_replaced(bench: Bench, tmp_path: Path) -> None:
    app = bundle(tmp_path, TRAIN + "    return answer(message)\n")
    bench.do(bench.work(app))
    os.kill(psutil.Process().children(recursive=True)[1].pid, signal.SIGKILL)
    time.sleep(0.2)
    assert isinstance(bench.do(bench.work(app))[0], Done)


def test_a_trainer_that_hangs_gives_no_progress_and_is_ended_with_its_children(bench: Bench, tmp_path: Path) -> None:
    app = bundle(
        tmp_path,
        TRAIN
        + """
    import subprocess
    subprocess.Popen(["sleep", "600"], start_new_session=True)
    subprocess.Popen(["sh", "-c", "sleep 601 &"], start_new_session=True).wait()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print("ready")
    while True: time.sleep(1)
""",
    )
    bench.supervisor.start(bench.work(app, limit_s=8.0))
    bench.wait(lambda event: isinstance(event, Output))
    time.sleep(2.5)
    bench.supervisor.poll()
    ended, events = bench.wait()
    assert isinstance(ended, Failed)
    assert ended.code == "deadline"
    assert not [event for event in events if isinstance(event, Progressed)]
    assert not [
        p for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"] in (["sleep", "600"], ["sleep", "601"])
    ]


def test_a_trainer_that_works_gives_progress_and_a_stopped_one_does_not(bench: Bench, tmp_path: Path) -> None:
    app = bundle(tmp_path, TRAIN + "    print('ready')\n    while True: sum(range(1000))\n")
    bench.supervisor.start(bench.work(app, limit_s=8.0))
    bench.wait(lambda event: isinstance(event, Output))
    bench.wait(lambda event: isinstance(event, Progressed))
    for process in psutil.Process().children(recursive=True):
        process.suspend()
    bench.supervisor.poll()
    before = time.monotonic()
    ended, events = bench.wait()
    assert isinstance(ended, Failed)
    assert ended.code == "deadline"
    assert time.monotonic() - before > 1.5
    assert not [event for event in events if isinstance(event, Progressed)]


def test_printing_100_mb_hurts_nobody(bench: Bench, tmp_path: Path) -> None:
    app = bundle(
        tmp_path,
        TRAIN
        + """
    block = ("x" * 99 + "\\n") * 10_000
    for _ in range(100):
        sys.stdout.write(block)
    os.write(2, b"y" * 30_000_000)
    print("the end")
    return answer(message)
""",
    )
    before = psutil.Process().memory_info().rss
    started = time.monotonic()
    done, events = bench.do(bench.work(app))
    assert isinstance(done, Done)
    assert time.monotonic() - started < 30
    assert psutil.Process().memory_info().rss - before < 20 << 20
    lines = printed(events)
    dropped = sum(event.dropped for event in events if isinstance(event, Output))
    assert len(lines) + len(printed(events, "stderr")) < 20_000
    assert len(lines) + dropped == 1_000_001
    assert max(len(line) for line in lines + printed(events, "stderr")) <= 1000


def test_c_code_that_holds_the_lock_and_prints_does_not_block(bench: Bench, tmp_path: Path) -> None:
    app = bundle(
        tmp_path,
        TRAIN
        + """
    import ctypes
    ctypes.PyDLL(None).puts(b"z" * 1_000_000)
    return answer(message)
""",
    )
    assert isinstance(bench.do(bench.work(app, limit_s=20.0))[0], Done)


def test_missing_packages_are_named(bench: Bench, tmp_path: Path) -> None:
    app = bundle(tmp_path, TRAIN + "    return answer(message)\n", '"not-there>=1", "numpy", "nor-this"')
    failed, _ = bench.do(bench.work(app))
    assert isinstance(failed, Failed)
    assert failed.code == "packages"
    assert "not-there, nor-this" in failed.text
    failed, _ = bench.do(bench.work(bundle(tmp_path, "import neither_here")))
    assert isinstance(failed, Failed)
    assert (failed.code, "neither_here" in failed.text) == ("packages", True)


@pytest.mark.parametrize(
    ("client", "code", "text"),
    [
        ("raise RuntimeError('no shard here')", "bundle", "no shard here"),
        ("import sys; sys.exit(1)", "bundle", "SystemExit"),
        ("app = 3", "bundle", "not a ClientApp"),
        ("import os; os._exit(3)", "bundle", "exit status 3"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "outside", "signal 9"),
    ],
)
def test_an_app_that_cannot_be_loaded_says_why(bench: Bench, tmp_path: Path, client: str, code: str, text: str) -> None:
    failed, _ = bench.do(bench.work(bundle(tmp_path, client)))
    assert isinstance(failed, Failed)
    assert failed.code == code
    assert text in failed.text


def test_a_broken_bundle_is_refused(bench: Bench, tmp_path: Path) -> None:
    path = tmp_path / "bundle"
    path.write_bytes(b"not a zip file")
    failed, _ = bench.do(bench.work(path))
    assert isinstance(failed, Failed)
    assert failed.code == "bundle"


def test_an_app_over_its_memory_is_ended_and_told_why(tmp_path: Path) -> None:
    bench = Bench(tmp_path, limits=handover.Limits(memory_bytes=300 << 20))
    try:
        app = bundle(tmp_path, TRAIN + "    kept = [bytearray(10 << 20) for _ in range(60)]\n    time.sleep(60)\n")
        failed, _ = bench.do(bench.work(app))
        assert isinstance(failed, Failed)
        assert failed.code == "app"
        assert "allows 300 MB" in failed.text
    finally:
        bench.supervisor.close()


def test_a_cancelled_order_says_no_more(bench: Bench, tmp_path: Path) -> None:
    app = bundle(tmp_path, TRAIN + "    print('ready')\n    time.sleep(60)\n")
    work = bench.work(app)
    bench.supervisor.start(work)
    bench.wait(lambda event: isinstance(event, Output))
    bench.supervisor.cancel(work.order)
    assert bench.supervisor.working is None
    assert bench.supervisor.poll() == []
    assert not psutil.Process().children(recursive=True)


def test_only_so_many_trainers_are_kept_and_those_of_ended_runs_go(tmp_path: Path) -> None:
    bench = Bench(tmp_path, warm=2)
    app = bundle(tmp_path, TRAIN + "    return answer(message)\n")
    runs = [run_id(bytes([i] * 16)) for i in range(3)]
    try:
        for run in runs:
            bench.do(bench.work(app, run=run))
        assert len(bench.supervisor.pids()) == 2
        bench.supervisor.over(runs[0])
        bench.supervisor.over(runs[2])
        assert len(bench.supervisor.pids()) == 1
    finally:
        bench.supervisor.close()


def test_an_idle_trainer_is_ended(tmp_path: Path) -> None:
    bench = Bench(tmp_path, idle_s=0.5)
    try:
        bench.do(bench.work(bundle(tmp_path, TRAIN + "    return answer(message)\n")))
        wait_s = bench.supervisor.wait_s()
        assert wait_s is not None
        assert wait_s <= 0.5
        time.sleep(0.6)
        bench.supervisor.poll()
        assert bench.supervisor.pids() == []
    finally:
        bench.supervisor.close()


@pytest.mark.parametrize(
    "trick",
    [
        "os.symlink('/etc/passwd', path)",
        "os.link(SECRET, path)",
        "open(path, 'wb').write(b'short')",
        "os.mkdir(path)",
        "pass",
    ],
)
def test_a_hostile_trainer_cannot_make_the_agent_send_what_it_names(tmp_path: Path, trick: str) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"x" * 64)
    client = (
        HEAD
        + f"""
SECRET = {str(secret)!r}
import fedfleet_flower.contents as contents
def write_content(path, content):
    from fedfleet_protocol.blocks import blocks_of
    {trick}
    return blocks_of([b"x" * 64])
contents.write_content = write_content
@app.train()
def train(message, context): return answer(message)
"""
    )
    bench = Bench(tmp_path)
    try:
        failed, _ = bench.do(bench.work(bundle(tmp_path, client)))
        assert isinstance(failed, Failed), failed
        assert secret.read_bytes() == b"x" * 64
        assert os.listdir(tmp_path / "trainers" / "done") == []
    finally:
        bench.supervisor.close()


def test_no_process_outlives_the_agent(tmp_path: Path) -> None:
    app = bundle(
        tmp_path,
        TRAIN
        + """
    import subprocess
    subprocess.Popen(["sleep", "602"], start_new_session=True)
    print("ready")
    time.sleep(60)
""",
    )
    write_content(tmp_path / "message", from_records(RecordDict(), message_type="train"))
    script = f"""
import select, time
from pathlib import Path
from fedfleet_agent.supervisor import Supervisor, Work, Output
s = Supervisor(Path({str(tmp_path / "trainers")!r}))
s.start(Work(run={RUN!r}, order="1" * 64, agent={AGENT!r}, bundle=Path({str(app)!r}), digest="x", limit_s=60,
    message=Path({str(tmp_path / "message")!r}), state=None, run_config={{}}, node_config={{}}))
while not any(isinstance(event, Output) for event in s.poll()):
    select.select([s], [], [], 1)
print("ready", flush=True)
time.sleep(60)
"""
    for stopped in (False, True):
        with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as agent:
            assert agent.stdout is not None
            assert agent.stdout.readline() == b"ready\n"
            family = psutil.Process(agent.pid).children(recursive=True)
            assert len(family) >= 3
            if stopped:
                for process in family[:2]:
                    process.suspend()
            agent.kill()
        _, alive = psutil.wait_procs(family, 5)
        assert not alive, alive


def test_the_environment_of_a_trainer_holds_no_secrets() -> None:
    own = {
        "PATH": "/bin",
        "HOME": "/h",
        "LC_ALL": "C",
        "FEDFLEET_TOKEN": "t",
        "AWS_SECRET_ACCESS_KEY": "k",
        "HF_TOKEN": "h",
    }
    kept = environment(own)
    assert {name: kept[name] for name in own if name in kept} == {"PATH": "/bin", "HOME": "/h", "LC_ALL": "C"}
    assert kept["FLWR_TELEMETRY_ENABLED"] == "0"


def test_a_trainer_that_listens_on_a_socket_is_used_like_a_child(tmp_path: Path) -> None:
    deep = tmp_path / ("a-long-name" * 12)
    folder = deep / "trainers" / "trainer"
    folder.mkdir(parents=True)
    path = deep / "socket"
    command = [sys.executable, "-m", "fedfleet_trainer", "--socket", str(path), "--handover", str(folder)]
    with subprocess.Popen(command) as process:
        try:
            while not path.exists():
                time.sleep(0.02)
            assert path.stat().st_mode & 0o777 == 0o600
            time.sleep(0.05)
            bench = Bench(deep, attach=path)
            app = bundle(deep, TRAIN + "    return answer(message)\n")
            done, _ = bench.do(bench.work(app, RecordDict({"metrics": MetricRecord({"a": 1})})))
            reply_of(done)
            bench.supervisor.close()
            assert process.wait(5) == 0
        finally:
            process.kill()


@pytest.mark.parametrize(("option", "missing"), [("key", "the agent's key"), ("journal", "the agent's journal")])
def test_an_app_is_not_loaded_where_it_could_reach_what_the_owner_guards(
    tmp_path: Path, option: str, missing: str
) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "secret").write_text("secret")
    guarded: dict[str, Any] = {option: str(tmp_path / "home" / "secret")}
    sandbox = handover.Sandbox(readable=(str(tmp_path / "home"),), **guarded)
    bench = Bench(tmp_path, sandbox=lambda: sandbox)
    try:
        ended, _ = bench.do(bench.work(bundle(tmp_path, "print('loaded', flush=True)\n" + TRAIN + "    pass\n")))
        assert isinstance(ended, Failed)
        assert ended.code == "isolation"
        assert missing in ended.text and "name a narrower folder" in ended.text
    finally:
        bench.supervisor.close()


def test_an_app_writes_its_own_folder_and_neither_its_orders_nor_the_agents_blobs(tmp_path: Path) -> None:
    body = """
    import pathlib
    seen = {}
    hand = pathlib.Path.cwd().parents[1]
    handed = next(hand.glob("message-*"))
    for name, path, mode in (("order", handed, "r+b"), ("blob", BLOB, "rb"), ("new", hand / "x", "wb"),
                             ("own", "own", "wb"), ("other", pathlib.Path("/tmp/x"), "wb")):
        try:
            open(path, mode).close()
            seen[name] = 1
        except PermissionError:
            seen[name] = 0
    return answer(message, **seen)
"""
    bench = Bench(tmp_path)
    try:
        app = bundle(tmp_path, TRAIN + body.replace("BLOB", repr(str(tmp_path / "message-1"))))
        ended, _ = bench.do(bench.work(app))
        stored = reply_of(ended)
        assert stored.failure is None, stored.failure
        assert stored.records()["metrics"] == MetricRecord({"order": 0, "blob": 0, "new": 0, "own": 1, "other": 0})
    finally:
        bench.supervisor.close()


def test_a_fork_bomb_ends_and_leaves_nothing(tmp_path: Path) -> None:
    body = """
    while True:
        if os.fork() == 0:
            os.setsid()
            time.sleep(60)
            os._exit(0)
        time.sleep(0.002)
"""
    bench = Bench(tmp_path, limits=handover.Limits(processes=60))
    try:
        ended, _ = bench.do(bench.work(bundle(tmp_path, TRAIN + body)))
        assert isinstance(ended, Failed)
        assert "[limits] processes" in ended.text
    finally:
        bench.supervisor.close()
    assert not psutil.Process().children(recursive=True)


def test_a_link_in_place_of_the_apps_folder_does_not_make_the_agent_send_its_own_files(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    body = f"""
    made = os.path.dirname(os.getcwd())
    os.rename(made, made + "-before")
    os.symlink({str(tmp_path / "home")!r}, made)
    return answer(message)
"""
    free = handover.Sandbox(confine=False, minimum="none")
    bench = Bench(tmp_path, sandbox=lambda: free)
    try:
        ended, _ = bench.do(bench.work(bundle(tmp_path, TRAIN + body)))
        assert isinstance(ended, Failed)
        assert ended.code == "app" and "no folder" in ended.text
        # The trainer wrote where it could have without the link; the agent took nothing from there.
        assert [path.name for path in (tmp_path / "home").iterdir()] == ["reply-1"]
        assert os.listdir(tmp_path / "trainers" / "done") == []
    finally:
        bench.supervisor.close()


def test_an_app_that_fills_its_folder_with_small_files_is_ended(tmp_path: Path) -> None:
    body = """
    os.mkdir("deep")
    for number in range(3000):
        with open(f"deep/{number}", "wb") as file:
            file.write(bytes(100_000))
        time.sleep(0.005)
    return answer(message)
"""
    bench = Bench(tmp_path, limits=handover.Limits(folder_bytes=20_000_000))
    try:
        ended, _ = bench.do(bench.work(bundle(tmp_path, TRAIN + body)))
        assert isinstance(ended, Failed)
        assert ended.code == "app" and "[limits] scratch_mb" in ended.text
    finally:
        bench.supervisor.close()
