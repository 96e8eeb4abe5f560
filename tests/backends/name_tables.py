"""The kept names of the vendor's API, and the source of the adapter that uses them."""

from __future__ import annotations

import ast
import functools
import json
from pathlib import Path
from typing import Any

import edgeinfer.backends
from edgeinfer.backends.tensorrt_ import flavours as tensorrt_flavours
from tests.backends import tensorrt_names

NAMES = json.loads(tensorrt_names.PATH.read_text())
VERSIONS: dict[str, str] = NAMES["versions"]
FOLDER = Path(edgeinfer.backends.__file__).parent
SOURCES = {path.stem.removeprefix("tensorrt_"): path for path in FOLDER.glob("tensorrt_/*.py")}


@functools.cache
def trees() -> dict[str, ast.Module]:
    """Return the adapter's files, parsed."""
    return {file: ast.parse(path.read_text()) for file, path in SOURCES.items()}


def kinds(owner: str, name: str, version: str) -> list[str]:
    """What a name is in a version: a method, a property, …; empty where it is not there."""
    if owner == "module":
        there = any(
            has(version, versions) for m in NAMES["classes"][name].values() for versions in m.values()
        )
        return ["class"] if there else []
    members = NAMES["classes"][owner].get(name, {})
    return [kind for kind, versions in members.items() if has(version, versions)]


def has(version: str, versions: Any) -> bool:
    """Whether a version is among those of an entry."""
    return versions == "all" or version in versions


@functools.cache
def flavour_of(version: str) -> tensorrt_flavours.Flavour:
    """Return the row of the adapter's table that a version of the bindings belongs to."""
    kind = version.split(" ")[0]
    name = f"tensorrt-{kind}" if kind in ("lean", "rtx") else "tensorrt"
    return tensorrt_flavours._row(name, VERSIONS[version])
