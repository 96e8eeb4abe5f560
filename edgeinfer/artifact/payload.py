"""The payload of an artifact: its files, and what a manifest says of them."""

from __future__ import annotations

import hashlib
import json
import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import final

import attrs

from edgeinfer.artifact.manifest import FileEntry
from edgeinfer.atomic import Content
from edgeinfer.errors import OptionsError
from edgeinfer.values import as_tuple

__all__ = ["Payload", "check_options", "describe_file"]


@final
@attrs.frozen(kw_only=True)
class Payload:
    """What a backend's `compile` returns and its `load` takes.

    Attributes:
        entry: The file that the runtime opens first.
        files: The contents, by plain file name: bytes, the mapping of a file that was verified, or the path
            of a file that holds them.
        kind: `portable` (an ONNX graph that any machine with this backend takes) or `device-bound`
            (an engine or a blob).
        device: The device name within the backend, such as `CPU`.
        requires: What must match where it is loaded: for each fact (see `Capabilities.facts`) the accepted
            values, in which `*` stands for anything.
        options: The options that it was compiled with, as JSON-compatible values. None may name a file.
        notes: What a person should know of it, such as an option that no artifact can keep.
    """

    entry: str
    files: Mapping[str, Content]
    kind: str = attrs.field(default="portable", validator=attrs.validators.in_(("portable", "device-bound")))
    device: str = ""
    requires: Mapping[str, tuple[str, ...]] = attrs.field(factory=dict)
    options: Mapping[str, object] = attrs.field(factory=dict)
    notes: tuple[str, ...] = attrs.field(default=(), converter=as_tuple)

    def read(self, name: str | None = None) -> bytes:
        """Return the contents of one file, the entry by default."""
        content = self.files[name or self.entry]
        return content.read_bytes() if isinstance(content, Path) else bytes(content)

    def view(self, name: str | None = None) -> memoryview:
        """Return the contents of one file without a copy; a file on disk is mapped."""
        content = self.files[name or self.entry]
        if not isinstance(content, Path):
            return memoryview(content)
        with content.open("rb") as file:
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def describe_file(content: Content) -> FileEntry:
    """Return the SHA-256 and the size of a file's contents."""
    if not isinstance(content, Path):
        return FileEntry(sha256=hashlib.sha256(content).hexdigest(), size=len(content))
    digest, size = hashlib.sha256(), 0
    with content.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
            size += len(chunk)
    return FileEntry(sha256=digest.hexdigest(), size=size)


def check_options(options: Mapping[str, object], backend: str) -> None:
    """Raise `OptionsError` unless a manifest can keep the options."""
    try:
        json.dumps(options)
    except (TypeError, ValueError, RecursionError) as error:
        raise OptionsError(
            f"An option cannot be kept in an artifact: {error}.",
            where=f"options of {backend!r}",
            expected="strings, numbers, booleans, and lists and mappings of them",
            found=options,
        ) from error
