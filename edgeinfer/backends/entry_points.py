"""Entry points of one group, found without parsing those of all installed distributions.

`entrypoints` does the parsing. But it parses every file of every distribution, which takes longer than
loading a small model where many are installed; so the files that do not name the group are passed over here.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["Point", "points_of"]


class Point(NamedTuple):
    """One entry point.

    Attributes:
        name: Its name.
        value: What it points to, `module:attribute` or `module`.
        distribution: The distribution that registers it, as `name version`.
    """

    name: str
    value: str
    distribution: str


def points_of(group: str) -> list[Point]:
    """Return the entry points of a group in the order of `sys.path`.

    A distribution that comes again later in the path is passed over, as `entrypoints` does it, and so is an
    entry that does not parse: its name is then unknown.
    """
    import entrypoints

    found = []
    for parser, owner in _files(group, entrypoints):
        for name, text in parser[group].items() if group in parser else ():
            try:
                point = entrypoints.EntryPoint.from_string(text, name)
            except entrypoints.BadEntryPoint:
                continue
            value = f"{point.module_name}:{point.object_name}" if point.object_name else point.module_name
            found.append(Point(name, value, f"{owner.name} {owner.version}"))
    return found


def _files(group: str, entrypoints: Any) -> Iterator[tuple[Any, Any]]:
    """Yield the parsed files that name the group, each with its distribution."""
    needle = group.encode()
    seen: set[str] = set()
    for folder in sys.path:
        if folder.endswith(".egg") or Path(folder).is_file():
            yield from entrypoints.iter_files_distros(path=[folder])
            continue
        for info in _distributions(folder):
            owner = entrypoints.Distribution.from_name_version(info.stem)
            try:
                data = (info / "entry_points.txt").read_bytes()
            except OSError:  # most distributions have none
                continue
            if owner.name in seen:
                continue
            seen.add(owner.name)
            if needle in data:
                parser = entrypoints.CaseSensitiveConfigParser(delimiters=("=",))
                parser.read_string(data.decode("utf-8", errors="replace"), source=str(info))
                yield parser, owner


def _distributions(folder: str) -> list[Path]:
    try:
        with os.scandir(folder or ".") as entries:  # a folder of packages has hundreds of entries
            names = [entry.name for entry in entries if entry.name.endswith((".dist-info", ".egg-info"))]
    except OSError:  # the path names folders that are not there
        return []
    return [Path(folder, name) for name in sorted(names)]
