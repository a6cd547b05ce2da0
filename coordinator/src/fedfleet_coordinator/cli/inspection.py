"""An app's source as it is read before anything is sent: what could not work on any device is found here.

Nothing of the app is run: the user's machine may lack what the app needs. So a name that its module may bind in a way
that is not seen in the source is left to the module.
"""

import ast
import importlib.util
from collections.abc import Iterator
from pathlib import Path

from fedfleet_coordinator.cli.errors import BadInput


def inspect_app(folder: Path, *, clientapp: str, serverapp: str) -> None:
    """Return if both references lead to a name in a module, and each file of the app that they import can be parsed.

    Args:
        folder: the app's, with its pyproject.toml.
        clientapp, serverapp: as in [tool.flwr.app.components], `module:name`.

    Raises:
        BadInput: one does not; it names the file, what is wrong, and the remedy.
    """
    seen: dict[Path, ast.Module] = {}
    for component, reference in (("clientapp", clientapp), ("serverapp", serverapp)):
        where = f"{folder / 'pyproject.toml'}: {component} names {reference}"
        module, colon, name = reference.partition(":")
        if not module or not colon or not name:
            raise BadInput(f"{where}; write it as module:name, like app.{component[:-3]}_app:app")
        file = _file_of(folder, module)
        if file is None:
            if not _is_here(folder, module) and _is_installed(module):
                continue
            raise BadInput(
                f"{where}, but there is no {module.replace('.', '/')}.py in {folder}; "
                "correct the name in [tool.flwr.app.components] or add the file"
            )
        _follow(folder, file, seen)
        attribute = name.partition(".")[0]
        if not _may_bind(seen[file], attribute):
            raise BadInput(f"{where}, but {file} has no {attribute!r}; bind it there, or correct the name")


def _follow(folder: Path, first: Path, seen: dict[Path, ast.Module]) -> None:
    """Parse a file and, one after the other, the app's own files that it imports."""
    waiting = [first]
    while waiting:
        file = waiting.pop()
        if file in seen:
            continue
        seen[file] = _parsed(file)
        for module in _imports(seen[file], _package_of(folder, file)):
            found = _file_of(folder, module)
            if found is not None:
                waiting.append(found)


def _parsed(file: Path) -> ast.Module:
    try:
        return ast.parse(file.read_bytes(), str(file))
    except SyntaxError as error:
        raise BadInput(f"{file}, line {error.lineno or 1}: {error.msg}; correct it, then run again") from error
    except (OSError, ValueError) as error:
        raise BadInput(f"{file} cannot be read as Python: {error}") from error


def _imports(tree: ast.Module, package: tuple[str, ...]) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            origin = ".".join((*above, *([node.module] if node.module else [])))
            if origin:
                yield origin
                yield from (f"{origin}.{alias.name}" for alias in node.names)


def _may_bind(tree: ast.Module, name: str) -> bool:
    """Return whether the module binds the name, or does things at the end of which it may be bound."""
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=found, ctx=ast.Store()) if found == name:
                return True
            case ast.FunctionDef(name=found) | ast.ClassDef(name=found) if found in (name, "__getattr__"):
                return True
            case ast.alias(name=imported, asname=asname):
                if imported == "*" or (asname or imported.partition(".")[0]) == name:
                    return True
            case ast.Call(func=ast.Name(id="globals" | "vars" | "exec" | "setattr")):
                return True
    return False


def _file_of(folder: Path, module: str) -> Path | None:
    base = folder.joinpath(*module.split("."))
    for file in (base / "__init__.py", base.with_name(f"{base.name}.py")):
        if file.is_file():
            return file
    return None


def _package_of(folder: Path, file: Path) -> tuple[str, ...]:
    return file.parent.relative_to(folder).parts


def _is_here(folder: Path, module: str) -> bool:
    root = module.partition(".")[0]
    return (folder / root).is_dir() or (folder / f"{root}.py").is_file()


def _is_installed(module: str) -> bool:
    """Return whether the reference leads into an installed package, which devices may have as well."""
    try:
        return importlib.util.find_spec(module.partition(".")[0]) is not None
    except (ImportError, ValueError):
        return False
