"""Reading the files by which Linux describes a machine."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable
from pathlib import Path
from typing import final

import attrs

__all__ = ["Tree", "cores_of", "pairs"]

_MAX_BYTES = 4 << 20
_CHUNK_BYTES = 64 << 10


@final
@attrs.frozen
class Tree:
    """A file system; `/`, or a folder that holds a recording of another machine's files."""

    root: Path = attrs.field(default=Path("/"), converter=Path)

    def read(self, path: str) -> str:
        """Return a file's text without white space and null bytes at its ends; empty where there is none."""
        try:
            with self._at(path).open("rb", buffering=0) as file:
                # In small reads: the kernel allocates as much as it is asked for, and refuses 4 MiB for the
                # files of /proc/sys (fs/proc/proc_sysctl.c).
                parts = iter(lambda: file.read(_CHUNK_BYTES), b"")
                data = b"".join(itertools.islice(parts, _MAX_BYTES // _CHUNK_BYTES))
                return data.decode("utf-8", "replace").strip("\0 \n\t")
        except OSError:  # not there, not for this user, or a driver that refuses
            return ""

    def number(self, path: str) -> int | None:
        """Return the whole number that a file holds, or None."""
        text = self.read(path)
        return int(text) if re.fullmatch(r"-?[0-9]{1,30}", text) else None

    def entries(self, path: str) -> list[str]:
        """Return the names in a folder, in their natural order (`zone2` before `zone10`)."""
        try:
            names = [entry.name for entry in self._at(path).iterdir()]
        except OSError:
            return []
        return sorted(
            names, key=lambda name: [int(p) if p.isdigit() else p for p in re.split(r"(\d+)", name)]
        )

    def exists(self, path: str) -> bool:
        """Whether there is such a file or folder, and this user may know."""
        try:
            return self._at(path).exists()
        except OSError:
            return False

    def link(self, path: str) -> str:
        """Return the last part of what a symbolic link points to; empty where it is none."""
        try:
            return self._at(path).readlink().name
        except OSError:
            return ""

    def _at(self, path: str) -> Path:
        return self.root / path.lstrip("/")


def cores_of(text: str) -> tuple[int, ...]:
    """Read a list of cores as the kernel writes it: `0-3,8`."""
    found: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        match = re.fullmatch(r"([0-9]{1,5})(?:-([0-9]{1,5}))?", part.strip())
        if match is not None:
            found.update(range(int(match[1]), int(match[2] or match[1]) + 1))
    return tuple(sorted(found))


def pairs(text: str, separator: str = ":") -> Iterable[tuple[str, str]]:
    """Go through lines of the form `key : value`."""
    for line in text.splitlines():
        key, found, value = line.partition(separator)
        if found:
            yield key.strip(), value.strip()
