"""Bundles as folders: what a zip from a publisher may put on a disk, and what it may not."""

import errno
import os
import shutil
import stat
import zipfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from fedfleet_flower.errors import BadBundle

_PIECE = 1 << 20
_NAMES = (errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.EILSEQ)


@dataclass(frozen=True, slots=True)
class BundleLimits:
    """How much a bundle may unpack to."""

    files: int = 10_000
    file_bytes: int = 256 << 20
    total_bytes: int = 1 << 30


DEFAULT_LIMITS = BundleLimits()


def unpack_bundle(bundle: Path, folder: Path, *, limits: BundleLimits = DEFAULT_LIMITS) -> None:
    """Unpack a bundle into `folder`, which must not exist yet; it exists only if everything was taken.

    Raises:
        BadBundle: it is not a zip file, holds links, paths that lead out of the folder, or more than the limits allow.
        OSError: the disk is full or not writable.
    """
    folder.mkdir(parents=True)
    try:
        with zipfile.ZipFile(bundle) as archive:
            members = _checked(archive.infolist(), limits)
            for member in members:
                with archive.open(member) as source:
                    _extract(source, folder / member.filename, member.file_size)
    except (zipfile.BadZipFile, NotImplementedError, EOFError, RuntimeError, ValueError) as error:
        _discard(folder)
        raise BadBundle(f"the bundle cannot be unpacked: {error}") from error
    except OSError as error:
        _discard(folder)
        if error.errno in _NAMES:
            raise BadBundle(f"the bundle holds a file whose name cannot be used: {error.strerror}") from error
        raise
    except BaseException:
        _discard(folder)
        raise


def _checked(members: list[zipfile.ZipInfo], limits: BundleLimits) -> list[zipfile.ZipInfo]:
    if len(members) > limits.files:
        raise BadBundle(f"the bundle holds {len(members)} files; at most {limits.files} are taken")
    files = [member for member in members if not member.is_dir()]
    seen: set[str] = set()
    total = 0
    for member in files:
        name = member.filename
        path = PurePosixPath(name)
        if not path.parts or path.is_absolute() or ".." in path.parts or set(name) & {"\\", "\0", ":"}:
            raise BadBundle(f"the bundle holds a file {name[:80]!r} that would lie outside its folder")
        kind = stat.S_IFMT(member.external_attr >> 16)
        if kind not in (0, stat.S_IFREG):
            raise BadBundle(f"the bundle holds {name[:80]!r}, which is a link or a device and not a file")
        if str(path) in seen:
            raise BadBundle(f"the bundle holds {name[:80]!r} twice")
        seen.add(str(path))
        total += member.file_size
        if member.file_size > limits.file_bytes or total > limits.total_bytes:
            raise BadBundle(
                f"the bundle unpacks to more than {limits.total_bytes} bytes, or one of its files to more than "
                f"{limits.file_bytes}"
            )
    return files


def _extract(source: IO[bytes], target: Path, size: int) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    with open(fd, "wb") as file:
        left = size
        # zipfile stops at the size the directory claims, which was checked; the count does not rely on that.
        while piece := source.read(_PIECE):
            left -= len(piece)
            if left < 0:
                raise BadBundle(f"{target.name[:80]!r} in the bundle is longer than it claims")
            file.write(piece)


def _discard(folder: Path) -> None:
    with suppress(OSError):
        shutil.rmtree(folder)
