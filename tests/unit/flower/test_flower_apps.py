"""Bundles and apps: made as `flwr build` does, unpacked with limits, refused in words."""

import shlex
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from flwr.cli.build import build_fab_from_disk

from fedfleet_flower import compat
from fedfleet_flower.apps import (
    AppDescription,
    check_packages,
    describe_app,
    load_client_app,
    load_server_app,
    run_config,
)
from fedfleet_flower.bundles import BundleLimits, unpack_bundle
from fedfleet_flower.errors import AppRaised, BadBundle, BadConfig, MissingPackages

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
serverapp = "tiny_{name}.parts:made.server"
clientapp = "tiny_{name}.parts:client"
[tool.flwr.app.config]
rounds = 3
lr = 0.1
[tool.flwr.app.config.model]
name = "mlp"
wide = false
"""
PARTS = """
from types import SimpleNamespace
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
client = ClientApp()
made = SimpleNamespace(server=ServerApp())
"""


def write_app(folder: Path, name: str, *, parts: str = PARTS, dependencies: str = "") -> Path:
    package = folder / f"tiny_{name}"
    package.mkdir(parents=True)
    (folder / "pyproject.toml").write_text(PROJECT.format(name=name, dependencies=dependencies))
    (package / "__init__.py").write_text("")
    (package / "parts.py").write_text(parts)
    return folder


def described(*dependencies: str) -> AppDescription:
    return AppDescription("me/tiny", "1", "a:b", "c:d", {"rounds": 3, "lr": 0.1}, dependencies)


@pytest.fixture(autouse=True)
def import_path() -> Iterator[None]:
    path, modules = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if name.startswith("tiny_"):
            del sys.modules[name]


def test_a_bundle_is_what_flwr_build_makes_and_unpacks_to_the_app(tmp_path: Path) -> None:
    app = write_app(tmp_path / "tiny", "whole")
    (app / "data.bin").write_bytes(b"not packed by flwr")
    bundle = compat.build_bundle(app)
    assert bundle == build_fab_from_disk(app)
    (tmp_path / "bundle").write_bytes(bundle)
    folder = tmp_path / "unpacked"
    unpack_bundle(tmp_path / "bundle", folder)
    found = describe_app(folder)
    assert (found.name, found.version) == ("me/tiny", "1.0.0")
    assert found.config == {"rounds": 3, "lr": 0.1, "model.name": "mlp", "model.wide": False}
    assert type(load_client_app(folder, found)).__name__ == "ClientApp"
    assert type(load_server_app(folder, found)).__name__ == "ServerApp"


def test_a_folder_that_is_no_app_is_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(BadBundle, match="no pyproject"):
        compat.build_bundle(tmp_path)
    (tmp_path / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    with pytest.raises(BadBundle, match="cannot be bundled"):
        compat.build_bundle(tmp_path)
    with pytest.raises(BadBundle, match=r"\[tool\]"):
        describe_app(tmp_path)
    (tmp_path / "pyproject.toml").write_text("[project\n")
    with pytest.raises(BadBundle, match="cannot be read"):
        describe_app(tmp_path)


def test_overrides_take_the_place_of_defaults_with_the_types_they_have() -> None:
    assert run_config(described(), {"rounds": 5, "lr": 1}) == {"rounds": 5, "lr": 1}
    with pytest.raises(BadConfig, match="no configuration round; it has: lr, rounds"):
        run_config(described(), {"round": 5})


def test_only_what_is_not_installed_is_refused_and_all_of_it_is_named() -> None:
    with pytest.raises(MissingPackages, match="not-there, neither-this") as caught:
        check_packages(described("numpy>=1", "not-there==1.0", "neither-this[x]; python_version > '3'"))
    assert caught.value.names == ("not-there", "neither-this")
    command = str(caught.value).rpartition("; install them into its Python: ")[2]
    assert shlex.split(command) == [sys.executable, "-m", "pip", "install", "not-there==1.0", "neither-this[x]"]


def test_other_versions_and_unreadable_requirements_are_warnings() -> None:
    warnings = check_packages(
        described("numpy==0.1", "numpy >= ???", "not-there; python_version < '3'", "flwr[simulation]>=1")
    )
    assert len(warnings) == 2
    assert "is installed and is used" in warnings[0]
    assert "was not checked" in warnings[1]


@pytest.mark.parametrize(
    ("parts", "error", "text"),
    [
        ("raise RuntimeError('no data here')", AppRaised, "no data here"),
        ("import sys; sys.exit(4)", AppRaised, "SystemExit: 4"),
        ("import not_there.inside", MissingPackages, "not_there"),
        ("from tiny_{name} import gone", AppRaised, "gone"),
        ("import tiny_{name}.gone", BadBundle, "tiny_"),
        ("other = 1", AppRaised, "client"),
        ("client = 1", BadBundle, "is of type int and not a ClientApp"),
        ("client = (", AppRaised, "SyntaxError"),
    ],
)
def test_an_app_that_cannot_be_loaded_says_why(
    tmp_path: Path, request: pytest.FixtureRequest, parts: str, error: type[Exception], text: str
) -> None:
    name = f"n{abs(hash(request.node.name))}"
    folder = write_app(tmp_path, name, parts=parts.replace("{name}", name))
    with pytest.raises(error, match=text) as caught:
        load_client_app(folder, describe_app(folder))
    assert type(caught.value) is error


def pack(path: Path, files: dict[str, bytes], *, mode: int = 0) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            archive.writestr(info, data)
    return path


@pytest.mark.parametrize("name", ["../out", "/etc/out", "a/../../out", "a\\..\\out", "c:out"])
def test_a_path_out_of_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    bundle = pack(tmp_path / "bundle", {"fine": b"", name: b"x"})
    with pytest.raises(BadBundle, match="outside its folder"):
        unpack_bundle(bundle, tmp_path / "in" / "folder")
    assert not (tmp_path / "in" / "folder").exists()
    assert not (tmp_path / "out").exists()


def test_links_in_a_bundle_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadBundle, match="a link or a device"):
        unpack_bundle(pack(tmp_path / "bundle", {"key": b"/etc/passwd"}, mode=0o120777), tmp_path / "folder")


@pytest.mark.parametrize(
    "limits", [BundleLimits(files=1), BundleLimits(file_bytes=900), BundleLimits(total_bytes=1500)]
)
def test_a_bundle_larger_than_its_limits_is_refused(tmp_path: Path, limits: BundleLimits) -> None:
    bundle = pack(tmp_path / "bundle", {"a": bytes(1000), "b": bytes(1000)})
    unpack_bundle(bundle, tmp_path / "all")
    with pytest.raises(BadBundle):
        unpack_bundle(bundle, tmp_path / "folder", limits=limits)
    assert not (tmp_path / "folder").exists()


@pytest.mark.parametrize("damage", ["empty", "text", "cut", "flipped"])
def test_a_damaged_bundle_is_refused_and_leaves_nothing(tmp_path: Path, damage: str) -> None:
    bundle = pack(tmp_path / "bundle", {"a": bytes(range(256)) * 50, "b": b"x"})
    data = bytearray(bundle.read_bytes())
    if damage == "flipped":
        data[60] ^= 255
    bundle.write_bytes({"empty": b"", "text": b"hello", "cut": bytes(data[:-30])}.get(damage, bytes(data)))
    with pytest.raises(BadBundle, match="cannot be unpacked"):
        unpack_bundle(bundle, tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


def test_a_file_where_a_folder_should_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadBundle):
        unpack_bundle(pack(tmp_path / "bundle", {"a": b"x", "a/b": b"y"}), tmp_path / "folder")
