"""Files on the device's own disk: read within a bound, named durably, switched by one rename."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

from edgeinfer.atomic import open_regular
from edgeinfer.plain_json import parse_json

__all__ = ["fsync_folder", "read_bounded", "read_json", "replace_file", "switch_link"]


def read_bounded(path: Path, max_bytes: int) -> bytes:
    """Read a regular file.

    Raises:
        OSError: It cannot be read, or is none.
        ValueError: It is larger than `max_bytes`.
    """
    with open_regular(path) as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise ValueError(f"{path} is larger than {max_bytes} bytes")
    return data


def read_json(path: Path, max_bytes: int) -> Any:
    """Read a JSON document. Raises OSError and ValueError as `read_bounded`, ValueError for no JSON."""
    return parse_json(read_bounded(path, max_bytes))


def fsync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_file(path: Path, data: bytes, *, durable: bool) -> None:
    """Make a file hold `data`, or leave it as it was. It has one writer at a time.

    Args:
        path: The file. Its draft is beside it, of a fixed name, so that nothing is left behind by a crash.
        data: The contents.
        durable: Also after power loss. Else only other processes see it entirely or not at all.

    Raises:
        OSError: Of what failed.
    """
    draft = path.with_name(f".{path.name}.draft")
    try:
        with draft.open("wb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
        raise
    if durable:
        fsync_folder(path.parent)


def switch_link(link: Path, target: str) -> None:
    """Make a symbolic link point to `target`, by one rename, and durably.

    Raises:
        OSError: Of what failed. Before the rename the link is as it was. After it, the link points to the
            new target, though perhaps not durably.
    """
    draft = link.with_name(f".{link.name}.draft")
    draft.unlink(missing_ok=True)
    draft.symlink_to(target)
    draft.replace(link)
    fsync_folder(link.parent)
