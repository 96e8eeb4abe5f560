"""The journal of a tuning run: one JSON object a line, synced to disk before anything is built on it.

A killed process leaves at most one line that is not complete; it is cut off when the journal is opened again.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, final

from edgeinfer.errors import TuningError
from edgeinfer.plain_json import parse_json

__all__ = ["Journal", "read_records"]


@final
class Journal:
    """An open journal; a context manager. One process at a time has it.

    Args:
        path: The file; it is made if it is not there.

    Attributes:
        records: What it holds, oldest first.

    Raises:
        TuningError: It cannot be opened, is in use, or a line before the last is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise TuningError(f"The journal cannot be opened: {error.strerror}.", where=str(path)) from error
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._descriptor)
            raise TuningError(
                "The journal is in use by another process.",
                where=str(path),
                hint="Wait for that tuning run, or give another journal.",
            ) from error
        with os.fdopen(os.dup(self._descriptor), "rb") as file:
            data = file.read()
        self.records, length = read_records(data, where=str(path))
        os.ftruncate(self._descriptor, length)
        os.lseek(self._descriptor, length, os.SEEK_SET)
        _sync_folder(path.parent)

    def append(self, record: Mapping[str, Any]) -> None:
        """Write a record, and return when it is on the disk.

        Raises:
            TuningError: It cannot be written; a full disk, for instance.
        """
        line = json.dumps(record, allow_nan=False, separators=(",", ":")).encode() + b"\n"
        try:
            written = 0
            while written < len(line):
                written += os.write(self._descriptor, line[written:])
            os.fsync(self._descriptor)
        except OSError as error:
            raise TuningError(
                f"The journal cannot be written: {error.strerror}.", where=str(self.path)
            ) from error
        self.records.append(json.loads(line))

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._descriptor)


def read_records(data: bytes, *, where: str) -> tuple[list[dict[str, Any]], int]:
    """Return the complete records, and how many bytes they take.

    Args:
        data: The bytes of a journal.
        where: For the error message.

    Raises:
        TuningError: A line before the last one is no record.
    """
    records: list[dict[str, Any]] = []
    length = 0
    for number, line in _lines(data):
        try:
            record = _object(parse_json(line))
        except (ValueError, TypeError) as error:
            if length + len(line) == len(data):
                break  # the end that a killed process left
            raise TuningError(
                "The journal is damaged.",
                where=f"{where}, line {number}",
                found=str(error),
                hint="It is not the last line, so no interrupted write explains it. Begin a new journal.",
            ) from error
        records.append(record)
        length += len(line)
    return records, length


def _lines(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Go through the lines that are complete."""
    for number, line in enumerate(data.split(b"\n")[:-1], 1):
        yield number, line + b"\n"


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError(f"{value!r} is no object")
    return value


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
