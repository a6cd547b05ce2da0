"""The commands against a real HTTPS server with real certificates, whose answers the tests choose."""

import io
import json
import os
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from fedfleet_coordinator.cli import context, main
from fedfleet_coordinator.cli.client import Away, Client
from fedfleet_coordinator.cli.context import Context
from fedfleet_coordinator.cli.errors import BadInput, Refusal, Unreachable
from fedfleet_coordinator.pki import CAS, Pki
from tests.unit.cli.snapshots import AGENTS, RUN, snapshot, timeline

pytestmark = pytest.mark.integration
Answer = tuple[int, bytes]


class StandIn:
    """A server on loopback that asks for the user's certificate; `answers` decides what it says to each path."""

    def __init__(self, folder: Path, pki: Pki, port: int = 0) -> None:
        self.answers: dict[str, Callable[[], Answer]] = {}
        self.events: list[list[bytes]] = []
        self.asked: list[tuple[str, bytes]] = []
        stand_in = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                stand_in.asked.append((f"{self.command} {self.path}", body))
                if self.path.endswith("/events") and stand_in.events:
                    self._stream(stand_in.events.pop(0))
                    return
                answer = stand_in.answers.get(self.path.partition("?")[0])
                status, data = answer() if answer else (404, b'{"code": "not_found", "text": "there is no such thing"}')
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def do_POST(self) -> None:
                self.do_GET()

            def _stream(self, pieces: list[bytes]) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "text/event-stream")
                self.send_header("Connection", "close")
                self.end_headers()
                for piece in pieces:
                    if not piece:
                        time.sleep(1.0)
                    self.wfile.write(piece)
                    self.wfile.flush()
                self.close_connection = True

            def log_message(self, *arguments: object) -> None:
                pass

        chain, key = pki.issue_service("api", ["127.0.0.1"], now_wall=time.time())
        (folder / "api.pem").write_bytes(chain + key)
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.minimum_version = ssl.TLSVersion.TLSv1_3
        tls.load_cert_chain(folder / "api.pem")
        tls.load_verify_locations(cadata="\n".join(pki.ca_pem(name) for name in CAS))
        tls.verify_mode = ssl.CERT_REQUIRED
        self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.server.daemon_threads = True
        self.server.socket = tls.wrap_socket(self.server.socket, server_side=True)
        self.server.handle_error = lambda *arguments: None  # type: ignore[method-assign]
        self.port = self.server.server_address[1]
        self._thread = threading.Thread(target=self.server.serve_forever, args=(0.02,))
        self._thread.start()

    def says(self, path: str, data: Any, status: int = 200) -> None:
        raw = data if isinstance(data, bytes) else json.dumps(data).encode()
        self.answers[path] = lambda: (status, raw)

    def close(self) -> None:
        self.server.shutdown()
        self._thread.join()
        self.server.server_close()


class Site:
    """A stand-in, and the context that leads to it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pki = Pki.create(folder / "pki", now_wall=time.time())
        self.hub = StandIn(folder, self.pki)
        chain, key = self.pki.issue_user("ada", now_wall=time.time())
        (folder / "user.pem").write_bytes(chain)
        (folder / "user.key").write_bytes(key)
        (folder / "ca.pem").write_text(self.pki.ca_pem("services"))
        names = ("ca.pem", "user.pem", "user.key", "publisher.pem")
        self.context = Context(f"https://127.0.0.1:{self.hub.port}", *(folder / name for name in names))
        context.save(self.context, folder / "context.toml")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    made = Site(tmp_path)
    monkeypatch.setenv(context.VARIABLE, str(tmp_path / "context.toml"))
    monkeypatch.setenv("COLUMNS", "160")
    yield made
    made.hub.close()


@pytest.fixture
def fedfleet(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def typed(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fedfleet", *words])
        with pytest.raises(SystemExit) as end:
            main()
        said = capfd.readouterr()
        return int(end.value.code or 0), said.out, said.err

    return typed


@pytest.fixture
def typing(monkeypatch: pytest.MonkeyPatch) -> Callable[[io.StringIO], None]:
    def types(what: io.StringIO) -> None:
        monkeypatch.setattr(sys, "stdin", what)

    return types


Typed = Callable[..., tuple[int, str, str]]
Typing = Callable[[io.StringIO], None]


def event(**changes: Any) -> bytes:
    return b"data: " + json.dumps(snapshot(**changes)).encode() + b"\n\n"


def test_a_run_is_watched_over_a_stream_that_breaks(site: Site) -> None:
    whole = event(server_round=2)
    site.hub.events = [
        [b": hello\n\n", event(), whole[:50]],
        [whole[:10], whole[10:], event(state="finished", ended=1010.0)],
    ]
    site.hub.says(f"/v1/runs/{RUN}", snapshot())
    with Client(site.context) as client:
        seen = list(client.watch(RUN))
    assert [(item["state"], item["server_round"]) for item in seen if not isinstance(item, Away)] == [
        ("running", 1), ("running", 1), ("running", 2), ("finished", 1),
    ]  # fmt: skip


def test_a_stream_may_be_silent_for_longer_than_a_connection_may_take(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedfleet_coordinator.cli.client.CONNECT_S", 0.5)
    site.hub.events = [[event(), b"", event(state="finished", ended=1010.0)]]
    with Client(site.context) as client:
        assert [isinstance(item, Away) for item in client.watch(RUN)] == [False, False]


def test_a_watcher_waits_for_a_coordinator_that_is_away(site: Site) -> None:
    site.hub.events = [[event()]]
    port, seen = site.hub.port, []
    with Client(site.context) as client:
        for item in client.watch(RUN):
            seen.append(item)
            if len(seen) == 1:
                site.hub.close()
            elif isinstance(item, Away) and len(seen) == 3:
                site.hub = StandIn(site.folder, site.pki, port)
                site.hub.events = [[event(state="finished", attempts=2)]]
    assert any(isinstance(item, Away) and "does not answer" in item.why for item in seen)
    assert not isinstance(seen[-1], Away) and seen[-1]["state"] == "finished"


def test_a_run_that_is_not_there_ends_the_watch(site: Site) -> None:
    with Client(site.context) as client, pytest.raises(Refusal, match="no such thing"):
        list(client.watch(RUN))


def test_a_submission_whose_answer_is_lost_is_made_again_under_the_same_id(site: Site) -> None:
    port = site.hub.port

    def falls_silent() -> Answer:
        raise ConnectionError("the answer is lost")

    site.hub.answers["/v1/runs"] = falls_silent
    with Client(site.context) as client:
        thread = threading.Timer(0.3, lambda: site.hub.says("/v1/runs", {"run": RUN}))
        thread.start()
        assert client.submit({"app": "x"}) == RUN
        thread.join()
    names = {json.loads(body)["run"] for _, body in site.hub.asked}
    assert port == site.hub.port and len(site.hub.asked) >= 2 and len(names) == 1


def test_a_server_of_another_fleet_is_not_believed(site: Site, tmp_path: Path) -> None:
    other = Pki.create(tmp_path / "other", now_wall=time.time())
    (tmp_path / "ca.pem").write_text(other.ca_pem("services"))
    with Client(site.context) as client, pytest.raises(Unreachable, match="another fleet"):
        client.get("/v1/runs")
    assert site.hub.asked == []


def test_certificates_that_are_gone_are_said_to_be(site: Site, tmp_path: Path) -> None:
    (tmp_path / "user.key").unlink()
    with pytest.raises(BadInput, match="fedfleet up"):
        Client(site.context)


def test_bytes_that_are_not_json_are_refused(site: Site) -> None:
    site.hub.says("/v1/runs", b"<html>")
    with Client(site.context) as client, pytest.raises(Refusal, match="not JSON"):
        client.get("/v1/runs")


def test_runs_are_listed_for_people_and_for_programs(site: Site, fedfleet: Typed) -> None:
    site.hub.says("/v1/runs", {"runs": [snapshot(), snapshot(state="failed", text="no [disk]")]})
    code, out, _ = fedfleet("runs")
    assert code == 0 and RUN in out and "1/8" in out and "no [disk]" in out
    code, out, _ = fedfleet("runs", "--json")
    assert code == 0 and json.loads(out)[0]["run"] == RUN


def test_a_run_is_shown_by_how_its_id_begins(site: Site, fedfleet: Typed) -> None:
    site.hub.says("/v1/runs", [snapshot()])
    site.hub.says(f"/v1/runs/{RUN}", snapshot())
    code, out, _ = fedfleet("runs", "show", "r-00")
    assert code == 0 and "battery: the battery is at 11%" in out
    code, _, err = fedfleet("runs", "show", "r-zz")
    assert code == 2 and "there is no run whose id begins with r-zz" in err


def test_following_a_run_that_fails_exits_with_one_and_the_reason(site: Site, fedfleet: Typed) -> None:
    site.hub.events = [[event(), event(state="failed", reason="app_failed", text="ValueError: no")]]
    code, out, err = fedfleet("runs", "show", RUN, "-f")
    assert code == 1
    assert "exchange 3 train: 3 agents asked" in out
    assert f"error: run {RUN} failed (app_failed): ValueError: no; see fedfleet logs {RUN}" in err


def test_logs_are_followed_until_the_run_has_ended(site: Site, fedfleet: Typed) -> None:
    batches = [
        [{"seq": 1, "source": "serverapp", "line": "hello", "at": 1000.0}],
        [{"seq": 2, "source": AGENTS[0], "line": "x", "at": 1.0}],
    ]
    site.hub.answers[f"/v1/runs/{RUN}/logs"] = lambda: (
        200,
        json.dumps({"lines": batches.pop(0) if batches else []}).encode(),
    )
    site.hub.says(f"/v1/runs/{RUN}", snapshot(state="finished"))
    code, out, _ = fedfleet("logs", "-f", RUN)
    assert code == 0 and "serverapp" in out and "hello" in out
    assert any("after=2" in path for path, _ in site.hub.asked)


def test_agents_are_listed_with_why_they_may_not_train(site: Site, fedfleet: Typed) -> None:
    row = {
        "agent": AGENTS[0],
        "labels": {"site": "a"},
        "state": "active",
        "online": True,
        "eligible": False,
        "code": "load",
        "text": "busy",
        "seen": 1.0,
    }
    site.hub.says("/v1/agents", [row, row | {"agent": AGENTS[1], "labels": {"site": "b"}}])
    code, out, _ = fedfleet("agents", "--select", "site=a")
    assert code == 0 and "no, load: busy" in out and AGENTS[1] not in out


def test_a_token_is_printed_alone_on_its_line(site: Site, fedfleet: Typed) -> None:
    site.hub.says("/v1/tokens", {"token": "fft1." + "x" * 300})
    code, out, _ = fedfleet("token", "create", "--label", "site=a", "--uses", "3", "--expires", "2h")
    assert code == 0 and out == "fft1." + "x" * 300 + "\n"
    assert json.loads(site.hub.asked[-1][1]) == {"labels": {"site": "a"}, "uses": 3, "expires_s": 7200}


def test_an_agent_is_revoked_and_a_run_is_stopped(site: Site, fedfleet: Typed) -> None:
    site.hub.says(f"/v1/agents/{AGENTS[0]}/revoke", {"agent": AGENTS[0], "state": "revoked"})
    site.hub.says(f"/v1/runs/{RUN}/stop", {"run": RUN, "state": "stopped"})
    assert fedfleet("revoke", AGENTS[0], "--yes")[:2] == (0, f"agent {AGENTS[0]} is revoked\n")
    assert fedfleet("stop", RUN)[:2] == (0, "the run is stopped\n")
    assert fedfleet("revoke", "edge-7")[0] == 2


class Terminal(io.StringIO):
    """A person who types."""

    def isatty(self) -> bool:
        return True


def test_a_revocation_that_nobody_confirmed_is_not_sent(site: Site, fedfleet: Typed, typing: Typing) -> None:
    site.hub.says(f"/v1/agents/{AGENTS[0]}/revoke", {"agent": AGENTS[0], "state": "revoked"})
    typing(io.StringIO("y\n"))  # a script
    code, _, err = fedfleet("revoke", AGENTS[0])
    assert code == 2 and "--yes" in err
    typing(Terminal("n\n"))
    code, out, err = fedfleet("revoke", AGENTS[0])
    assert code == 2 and AGENTS[0] in err and "revoked" not in out
    assert not any("revoke" in path for path, _ in site.hub.asked)
    typing(Terminal("y\n"))
    assert fedfleet("revoke", AGENTS[0])[0] == 0


def test_stop_asks_a_person_and_no_script(site: Site, fedfleet: Typed, typing: Typing) -> None:
    site.hub.says(f"/v1/runs/{RUN}/stop", {"run": RUN, "state": "stopped"})
    typing(Terminal("n\n"))
    assert fedfleet("stop", RUN)[0] == 2
    assert site.hub.asked == []
    assert fedfleet("stop", RUN, "--yes")[0] == 0
    typing(io.StringIO())
    assert fedfleet("stop", RUN)[0] == 0


def test_an_agent_that_is_online_was_seen_now(site: Site, fedfleet: Typed) -> None:
    row = {"agent": AGENTS[0], "labels": {}, "state": "active", "online": True, "eligible": True, "seen": 1.0}
    site.hub.says("/v1/agents", [row, row | {"agent": AGENTS[1], "online": False}])
    lines = fedfleet("agents")[1].splitlines()
    assert lines[1].split()[-1] == "now" and "1970" in lines[2]


def test_a_picture_without_a_name_is_called_like_its_run(
    site: Site, fedfleet: Typed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    site.hub.says(f"/v1/runs/{RUN}", snapshot())
    site.hub.says(f"/v1/runs/{RUN}/timeline", timeline())
    code, out, _ = fedfleet("plot", RUN)
    assert code == 0 and str(tmp_path / f"{RUN}.png") in out and (tmp_path / f"{RUN}.png").stat().st_size > 5000


def test_a_picture_of_a_run_is_drawn(site: Site, fedfleet: Typed, tmp_path: Path) -> None:
    site.hub.says(f"/v1/runs/{RUN}", snapshot())
    site.hub.says(f"/v1/runs/{RUN}/timeline", timeline())
    code, out, _ = fedfleet("plot", RUN, "-o", str(tmp_path / "x.png"))
    assert code == 0 and "x.png" in out and (tmp_path / "x.png").stat().st_size > 5000


def test_a_model_becomes_a_file_that_numpy_reads(site: Site, fedfleet: Typed, tmp_path: Path) -> None:
    import numpy as np
    from flwr.app import ArrayRecord, MetricRecord, RecordDict

    from fedfleet_flower.contents import from_records

    weights = np.arange(6, dtype=np.float32).reshape(2, 3)
    records = RecordDict({"arrays": ArrayRecord([weights]), "metrics": MetricRecord({"loss": 1.0})})
    site.hub.says(f"/v1/runs/{RUN}/model", b"".join(from_records(records).pieces()))
    code, out, _ = fedfleet("model", "get", RUN, "-o", str(tmp_path / "m.npz"), "--json")
    assert code == 0 and json.loads(out)["arrays"] == {"0": ["float32", [2, 3]]}
    with np.load(tmp_path / "m.npz") as stored:
        assert np.array_equal(stored["0"], weights)


def test_a_model_that_is_none_is_refused_in_words(site: Site, fedfleet: Typed, tmp_path: Path) -> None:
    site.hub.says(f"/v1/runs/{RUN}/model", b"not a model")
    code, _, err = fedfleet("model", "get", RUN, "-o", str(tmp_path / "m.npz"))
    assert code == 2 and "FFRECORD" in err and list(tmp_path.glob("*.npz*")) == []


def test_doctor_exits_with_four_when_something_is_not_well(site: Site, fedfleet: Typed) -> None:
    site.hub.says("/v1/doctor", {"checks": [{"name": "broker", "ok": False, "text": "the broker cannot be reached"}]})
    code, out, err = fedfleet("doctor")
    assert code == 4 and "the broker cannot be reached" in out and "broker" in err


def test_nobody_there_is_exit_code_three_also_for_programs(site: Site, fedfleet: Typed) -> None:
    site.hub.close()
    code, _, err = fedfleet("agents")
    assert code == 3 and "does not answer" in err and "fedfleet up" in err and "Traceback" not in err
    code, _, err = fedfleet("agents", "--json")
    assert code == 3 and json.loads(err)["exit_code"] == 3
    site.hub = StandIn(site.folder, site.pki)


def test_a_refusal_is_exit_code_four(site: Site, fedfleet: Typed) -> None:
    site.hub.says("/v1/agents", {"code": "certificate", "text": "the certificate expired"}, status=403)
    assert fedfleet("agents") == (4, "", "error: the certificate expired\n")


def test_no_context_and_wrong_usage_are_exit_code_two(
    site: Site, fedfleet: Typed, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert fedfleet("runs", "show")[0] == 2
    assert fedfleet("frobnicate")[0] == 2
    monkeypatch.setenv(context.VARIABLE, os.devnull + "/nowhere")
    code, _, err = fedfleet("agents")
    assert code == 2 and "Traceback" not in err


def test_every_command_has_examples_in_its_help(site: Site, fedfleet: Typed) -> None:
    commands = [
        "up",
        "demo",
        "run",
        "runs show",
        "logs",
        "stop",
        "plot",
        "model get",
        "agents",
        "explain",
        "revoke",
        "doctor",
    ]
    for command in [*commands, "token create", "token list"]:
        code, out, _ = fedfleet(*command.split(), "--help")
        assert code == 0 and "For example" in out and f"fedfleet {command.split()[0]}" in out, command
