"""OpenVINO's cache folder, verified.

OpenVINO computes with whatever a cached model holds: a flipped bit in it changes outputs, and load has
verified the artifact, not the cache. So the folder gets an index with the SHA-256 of each file. Before
OpenVINO may look into the folder, files that are not in the index, or not as the index has them, are removed;
afterwards, what it wrote is added. Processes that use one folder take turns.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from edgeinfer.atomic import open_regular, write_file
from edgeinfer.errors import OptionsError
from edgeinfer.plain_json import parse_json

__all__ = ["INDEX_NAME", "verified_cache"]

INDEX_NAME = ".edgeinfer-index.json"

_log = logging.getLogger(__name__)
# What OpenVINO reads there: compiled models by a hash, and kernels of GPUs. Nothing else is touched.
_CACHED = re.compile(r"(\d+\.blob|.+\.cl_cache)\Z")


@contextlib.contextmanager
def verified_cache(folder: Path | None) -> Iterator[list[str]]:
    """Let OpenVINO use a cache folder, or none.

    Args:
        folder: It is made if it is not there.

    Yields:
        What was removed and why, in sentences, which are logged as warnings, too.

    Raises:
        OptionsError: The folder cannot be used, or what is damaged in it cannot be removed.
    """
    if folder is None:
        yield []
        return
    with _os_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with _os_errors(folder):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            known, removed = _verify(folder)
            before = {name: _stamp(folder / name) for name in known}
        yield removed
        with _os_errors(folder):
            now = {
                name: known[name] if before.get(name) == _stamp(folder / name) else _sha256(folder / name)
                for name in _cached(folder)
            }
            if now != known or removed:
                _write_index(folder, now)
    finally:
        with contextlib.suppress(OSError):
            # Not only closed: a child that was forked meanwhile has the descriptor, too.
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


def _verify(folder: Path) -> tuple[dict[str, str], list[str]]:
    index = _read_index(folder)
    good: dict[str, str] = {}
    removed = []
    for name in _cached(folder):
        expected, found = index.get(name), _sha256(folder / name)
        if found is not None and found == expected:
            good[name] = found
            continue
        reason = "is not in the index of the cache" if expected is None else "was changed since it was cached"
        (folder / name).unlink()
        removed.append(f"the cached model {folder / name} {reason}, and was removed")
        _log.warning("%s", removed[-1])
    return good, removed


def _cached(folder: Path) -> list[str]:
    return sorted(
        entry.name
        for entry in os.scandir(folder)
        if _CACHED.match(entry.name) and not entry.is_dir(follow_symlinks=False)
    )


def _sha256(path: Path) -> str | None:
    """Return the SHA-256 of a file, or None for what is no regular file with one name."""
    digest = hashlib.sha256()
    try:
        with open_regular(path, alone=True) as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    except OSError:
        return None
    return digest.hexdigest()


def _stamp(path: Path) -> tuple[int, ...]:
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


def _read_index(folder: Path) -> dict[str, str]:
    try:
        with open_regular(folder / INDEX_NAME, alone=True) as file:
            index = parse_json(file.read())
        files = dict(index["files"])
        if index["sha256"] == _digest(files):
            return files
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError):
        pass
    _log.warning("the index of the cache %s is damaged; what it names will be removed", folder)
    return {}


def _write_index(folder: Path, files: Mapping[str, str | None]) -> None:
    known = {name: digest for name, digest in files.items() if digest is not None}
    text = json.dumps({"files": known, "sha256": _digest(known)}, indent=1)
    write_file(folder / INDEX_NAME, text.encode())


def _digest(files: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


@contextlib.contextmanager
def _os_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OptionsError(
            f"The cache folder cannot be used: {error.strerror or error}.",
            where=f"option cache_dir, {folder}",
            expected="a folder that this user may write, on a file system with locks",
            found=str(error.filename or folder),
            hint="Give another folder, or leave cache_dir out.",
        ) from error
