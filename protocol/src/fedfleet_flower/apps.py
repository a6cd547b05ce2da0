"""A bundle's folder as a Flower app: what its pyproject.toml says, what it needs, and its two callables."""

import importlib
import importlib.metadata
import importlib.util
import shlex
import sys
import tomllib
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from flwr.app import UserConfig
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from packaging.requirements import InvalidRequirement, Requirement

from fedfleet_flower.errors import AppRaised, BadBundle, BadConfig, MissingPackages

_PROJECT = "pyproject.toml"
_MAX_PROJECT_BYTES = 1 << 20
_FRAMES = 12
_App = TypeVar("_App", ClientApp, ServerApp)


@dataclass(frozen=True, slots=True)
class AppDescription:
    """What an app's pyproject.toml says.

    Attributes:
        name: `publisher/project`, as Flower spells an app's id.
        client_ref, server_ref: `module:attribute`.
        config: the default run configuration, flattened with dots.
        dependencies: requirement lines as written.
    """

    name: str
    version: str
    client_ref: str
    server_ref: str
    config: UserConfig = field(default_factory=dict)
    dependencies: tuple[str, ...] = ()


def describe_app(folder: Path) -> AppDescription:
    """Return what the app in `folder` says of itself.

    Raises:
        BadBundle: there is no pyproject.toml, or it lacks what a Flower app needs.
    """
    table = _read_project(folder)
    project, app = _table(table, "project"), _table(table, "tool", "flwr", "app")
    components = _table(app, "components", of="tool.flwr.app")
    dependencies = project.get("dependencies", [])
    if not isinstance(dependencies, list):
        raise BadBundle(f"{_PROJECT}: dependencies in [project] is not a list")
    try:
        config = flatten(app.get("config", {}))
    except BadConfig as error:
        raise BadBundle(f"{_PROJECT}: {error}") from error
    return AppDescription(
        name=f"{_text(app, 'publisher', 'tool.flwr.app')}/{_text(project, 'name', 'project')}",
        version=_text(project, "version", "project"),
        client_ref=_text(components, "clientapp", "tool.flwr.app.components"),
        server_ref=_text(components, "serverapp", "tool.flwr.app.components"),
        config=config,
        dependencies=tuple(str(line) for line in dependencies),
    )


def flatten(config: dict[str, Any], prefix: str = "") -> UserConfig:
    """Return a nested configuration with the keys joined by dots.

    Raises:
        BadConfig: a value is not a bool, an integer, a float or text.
    """
    flat: UserConfig = {}
    for key, value in config.items():
        if isinstance(value, dict):
            flat.update(flatten(value, f"{prefix}{key}."))
        elif isinstance(value, bool | int | float | str):
            flat[prefix + key] = value
        else:
            raise BadConfig(f"{prefix}{key} is of type {type(value).__name__}; use text, a number or true and false")
    return flat


def run_config(app: AppDescription, overrides: UserConfig) -> UserConfig:
    """Return the app's defaults with `overrides` in their place, types as given, as Flower does.

    Raises:
        BadConfig: an override names what the app's configuration does not have.
    """
    unknown = sorted(set(overrides) - set(app.config))
    if unknown:
        known = ", ".join(sorted(app.config)) or "none"
        raise BadConfig(f"{app.name} has no configuration {', '.join(unknown)}; it has: {known}")
    return {**app.config, **overrides}


def check_packages(app: AppDescription) -> tuple[str, ...]:
    """Return warnings on requirements that cannot be read or name other versions than those installed.

    Only what is not there at all is refused: apps pin what they were written with and run with more than that.

    Raises:
        MissingPackages: something is not installed here; it names all of it.
    """
    missing: list[Requirement] = []
    warnings: list[str] = []
    for line in app.dependencies:
        try:
            requirement = Requirement(line)
        except InvalidRequirement:
            warnings.append(f"the requirement {line!r} is not one that packaging tools understand; it was not checked")
            continue
        if requirement.marker is not None and not requirement.marker.evaluate():
            continue
        version = _installed(requirement.name)
        if version is None:
            missing.append(requirement)
        elif version and not requirement.specifier.contains(version, prereleases=True):
            warnings.append(f"the app asks for {line!r}; version {version} is installed and is used")
    if missing:
        names = [requirement.name for requirement in missing]
        raise MissingPackages(tuple(names), _missing_text(app, names, [_without_marker(each) for each in missing]))
    return tuple(warnings)


def load_client_app(folder: Path, app: AppDescription) -> ClientApp:
    """Return the app's ClientApp; its code ran at import, with `folder` on the import path from now on.

    Raises:
        MissingPackages: an import inside it found nothing.
        AppRaised: importing it raised or exited.
        BadBundle: the reference leads nowhere, or to something else.
    """
    return _load(folder, app, app.client_ref, ClientApp)


def load_server_app(folder: Path, app: AppDescription) -> ServerApp:
    """Return the app's ServerApp; otherwise as `load_client_app`."""
    return _load(folder, app, app.server_ref, ServerApp)


def last_lines(error: BaseException, frames: int = _FRAMES) -> str:
    """Return the end of an exception's traceback, shortened to its last frames."""
    return "".join(traceback.format_exception(error, limit=-frames)).rstrip()


def _load(folder: Path, app: AppDescription, reference: str, kind: type[_App]) -> _App:
    module_name, _, path = reference.partition(":")
    if not module_name or not path:
        raise BadBundle(f"{reference!r} in {_PROJECT} is not of the form module:attribute")
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        found: object = importlib.import_module(module_name)
        for name in path.split("."):
            found = getattr(found, name)
    except ModuleNotFoundError as error:
        raise _not_found(folder, app, reference, error) from error
    except AttributeError as error:
        raise AppRaised(f"{reference} cannot be loaded: {last_lines(error)}") from error
    except (Exception, SystemExit) as error:
        raise AppRaised(f"importing {module_name} ended with an error:\n{last_lines(error)}") from error
    if not isinstance(found, kind):
        raise BadBundle(f"{reference} is of type {type(found).__name__} and not a {kind.__name__}")
    return found


def _not_found(
    folder: Path, app: AppDescription, reference: str, error: ModuleNotFoundError
) -> BadBundle | MissingPackages:
    name = error.name or ""
    root = name.partition(".")[0]
    own = (
        (folder / root).is_dir()
        or (folder / f"{root}.py").is_file()
        or root == reference.partition(":")[0].partition(".")[0]
    )
    if not root or own:
        return BadBundle(f"{reference} cannot be loaded: {error}")
    return MissingPackages(
        (root,), _missing_text(app, [f"{root} (a module; its package may be called otherwise)"], [root])
    )


def _missing_text(app: AppDescription, names: list[str], wanted: list[str]) -> str:
    command = shlex.join([sys.executable, "-m", "pip", "install", *wanted])
    return (
        f"{app.name} needs packages that are not installed here: {', '.join(names)}; "
        f"install them into its Python: {command}"
    )


def _without_marker(requirement: Requirement) -> str:
    """Return what pip is to install; that the marker holds here is known."""
    return str(requirement).partition(";")[0].strip() if requirement.url is None else str(requirement)


def _installed(name: str) -> str | None:
    """Return the installed version, or an empty text if only a module of that name can be imported."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        pass
    try:
        return "" if importlib.util.find_spec(name.replace("-", "_")) else None
    except (ImportError, ValueError):
        return None


def _read_project(folder: Path) -> dict[str, Any]:
    path = folder / _PROJECT
    if not path.is_file():
        raise BadBundle(f"there is no {_PROJECT}: this is not a Flower app")
    if path.stat().st_size > _MAX_PROJECT_BYTES:
        raise BadBundle(f"{_PROJECT} is larger than {_MAX_PROJECT_BYTES} bytes")
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadBundle(f"{_PROJECT} cannot be read: {error}") from error


def _table(table: dict[str, Any], *names: str, of: str = "") -> dict[str, Any]:
    for name in names:
        of = f"{of}.{name}".lstrip(".")
        found = table.get(name)
        if not isinstance(found, dict):
            raise BadBundle(f"{_PROJECT} has no section [{of}]: this is not a Flower app")
        table = found
    return table


def _text(table: dict[str, Any], key: str, section: str) -> str:
    value = table.get(key)
    if not isinstance(value, str) or not value.strip():
        raise BadBundle(f'{_PROJECT} has no "{key}" in [{section}]')
    return value
