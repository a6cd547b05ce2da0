import dataclasses
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedfleet_coordinator.cli.errors import BadInput
from fedfleet_coordinator.cli.fleet_commands import seconds
from fedfleet_coordinator.cli.submission import Options, check, labels, overrides, prepare
from fedfleet_protocol.blocks import blocks_of
from fedfleet_protocol.trust import check_bundle

QUICKSTART = Path(__file__).parents[3] / "examples" / "quickstart"
DEFAULTS = {"rounds": 3, "rate": 0.5, "save": "", "mix": True, "opt.name": "sgd", "opt.beta": 0.9}


def taken(*given: str) -> dict[str, object]:
    return dict(overrides(given, DEFAULTS, app="lab/app"))


def test_overrides_are_toml_and_keep_their_kinds() -> None:
    assert taken("rounds=5", 'save="x y"', "mix=false") == {"rounds": 5, "save": "x y", "mix": False}
    assert taken("rounds=5 rate=0.25 save='a b'") == {"rounds": 5, "rate": 0.25, "save": "a b"}


def test_a_whole_number_is_taken_where_the_app_has_a_float() -> None:
    values = taken("rate=1")
    assert values == {"rate": 1.0} and isinstance(values["rate"], float)


def test_text_may_leave_its_quotes_out_where_the_app_has_text() -> None:
    assert taken("save=/tmp/model.npz") == {"save": "/tmp/model.npz"}


def test_dotted_keys_of_the_same_table_do_not_push_each_other_out() -> None:
    assert taken("opt.name=adam", "opt.beta=0.5") == {"opt.name": "adam", "opt.beta": 0.5}


def test_a_toml_file_is_taken_whole(tmp_path: Path) -> None:
    file = tmp_path / "more.toml"
    file.write_text('rounds = 9\n[opt]\nname = "adam"\n')
    assert taken(str(file)) == {"rounds": 9, "opt.name": "adam"}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("rounds=many", "text needs quotes"),
        ("rounds=1.5", "takes a whole number there, like 3"),
        ("rounds=true", "takes a whole number"),
        ("mix=1", "takes true or false"),
        ("save=5", "takes text there"),
        ("round=5", "has no configuration 'round'; its [tool.flwr.app.config] has: mix, opt.beta"),
        ("rounds", "takes key=value"),
        ("rounds=1 and more", "takes key=value"),
        ("rounds=[1, 2]", "takes key=value"),
        ("missing.toml", "it has to be a TOML file"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(given: str, says: str) -> None:
    with pytest.raises(BadInput) as refused:
        taken(given)
    assert says in str(refused.value)


def test_prepare_signs_a_bundle_that_agents_can_check() -> None:
    key = Ed25519PrivateKey.generate()
    submission = prepare(
        QUICKSTART, Options(config=("num-server-rounds=1",), select=("site=a",), gate=("norm-bound=5.0",)), key
    )
    request = submission.request
    public = bytes.fromhex(request["publisher"])
    assert submission.digest == blocks_of([submission.bundle]).digest == request["bundle"]
    assert check_bundle(submission.digest, bytes.fromhex(request["signature"]), public, {public: "lab"}) == "lab"
    assert request["app"] == "fedfleet/quickstart"
    assert request["config"] == {"num-server-rounds": 1}
    assert request["selector"] == {"site": "a"} and request["gate"] == {"norm-bound": 5.0}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("norm=5.0", "no setting 'norm'; it has enabled, finite, norm_bound"),
        ("weight_cap=-1", "gate setting weight_cap is -1"),
        ('strict="often"', "it is auto, always or never"),
    ],
)
def test_a_gate_setting_is_checked_before_anything_is_sent(given: str, says: str) -> None:
    with pytest.raises(BadInput, match=r"^--gate: ") as refused:
        prepare(QUICKSTART, Options(gate=(given,)), Ed25519PrivateKey.generate())
    assert says in str(refused.value)


def test_the_same_folder_gives_the_same_bundle() -> None:
    key = Ed25519PrivateKey.generate()
    assert prepare(QUICKSTART, Options(), key).bundle == prepare(QUICKSTART, Options(), key).bundle


PROJECT = """
[project]
name = "tiny"
version = "1.0.0"
[tool.flwr.app]
publisher = "me"
[tool.flwr.app.components]
serverapp = "tiny.server:app"
clientapp = "tiny.client:app"
"""
APP = {
    "pyproject.toml": PROJECT,
    "tiny/__init__.py": "",
    "tiny/other.py": "",
    "tiny/client.py": "from tiny import other\nfrom flwr.clientapp import ClientApp\napp = ClientApp()\n",
    "tiny/server.py": "from flwr.serverapp import ServerApp\napp = ServerApp()\n",
}


def app_folder(folder: Path) -> Path:
    for name, text in APP.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def test_an_app_that_is_well_formed_is_taken(tmp_path: Path) -> None:
    assert prepare(app_folder(tmp_path), Options(), Ed25519PrivateKey.generate()).request["app"] == "me/tiny"


@pytest.mark.parametrize(
    ("file", "text", "says"),
    [
        ("pyproject.toml", PROJECT.partition("[tool.flwr.app.components]")[0], "[tool.flwr.app.components]"),
        ("pyproject.toml", PROJECT.replace("tiny.client:app", "tiny.clients:app"), "clientapp names tiny.clients:app"),
        ("pyproject.toml", PROJECT.replace("tiny.server:app", "tiny.server"), "module:name"),
        ("tiny/client.py", "def train(:\n", "client.py, line 1"),
        ("tiny/other.py", "x = 1\n  y = 2\n", "other.py, line 2"),
        ("tiny/server.py", "application = 1\n", "server.py has no 'app'"),
        ("tiny/server.py", None, "server.py"),
    ],
)
def test_an_app_that_cannot_work_is_refused_with_the_file_before_anything_is_sent(
    tmp_path: Path, file: str, text: str | None, says: str
) -> None:
    place = app_folder(tmp_path) / file
    place.write_text(text) if text is not None else place.unlink()
    with pytest.raises(BadInput) as refused:
        prepare(tmp_path, Options(), Ed25519PrivateKey.generate())
    assert says in str(refused.value)


@pytest.mark.parametrize(
    "text",
    [
        "from tiny.client import app\n",
        "from tiny.client import *\n",
        "import sys\nif sys:\n    app = 1\nelse:\n    app = 2\n",
        "app: object = 1\n",
        "def __getattr__(name): return 1\n",
        "globals()['app'] = 1\n",
    ],
)
def test_a_name_that_may_be_there_when_the_module_runs_is_left_to_it(tmp_path: Path, text: str) -> None:
    (app_folder(tmp_path) / "tiny" / "server.py").write_text(text)
    prepare(tmp_path, Options(), Ed25519PrivateKey.generate())


@pytest.mark.parametrize(("make", "says"), [(False, "is not a folder"), (True, "pyproject.toml")])
def test_a_folder_that_is_no_app_is_refused_in_words(tmp_path: Path, make: bool, says: str) -> None:
    folder = tmp_path / "app"
    if make:
        folder.mkdir()
    with pytest.raises(BadInput, match=says):
        prepare(folder, Options(), Ed25519PrivateKey.generate())


@pytest.mark.parametrize(
    "change",
    [
        {"quorum": "0"}, {"quorum": "120%"}, {"quorum": "most"}, {"quorum": ""}, {"min_agents": 0},
        {"deadline_s": 0.0}, {"deadline_s": float("nan")}, {"grace_s": -1.0}, {"late": "maybe"},
    ],
)  # fmt: skip
def test_numbers_that_make_no_sense_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(BadInput, match="takes"):
        check(dataclasses.replace(Options(), **change))  # type: ignore[arg-type]


def test_labels_come_one_by_one_or_in_a_list() -> None:
    assert labels(("site=a", "arm=64,gpu=no"), "--select") == {"site": "a", "arm": "64", "gpu": "no"}
    with pytest.raises(BadInput, match="--select site=a"):
        labels(("site",), "--select")


def test_lengths_of_time_are_spelled_with_their_unit() -> None:
    assert [seconds(text) for text in ("90", "90s", "30m", "1h", "7d", "1.5h")] == [90, 90, 1800, 3600, 604800, 5400]
    for text in ("", "h", "0", "1 hour", "-1h"):
        with pytest.raises(BadInput, match="no length of time"):
            seconds(text)
