"""The payload of an artifact: its files, described when they are written and verified when they are read."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
from collections.abc import Mapping
from pathlib import Path
from typing import final

import attrs

from edgeinfer.artifact.manifest import FileEntry
from edgeinfer.atomic import Content, FolderReader
from edgeinfer.errors import ArtifactIntegrityError, OptionsError
from edgeinfer.values import as_tuple

__all__ = ["IN_MEMORY_BYTES", "Payload", "check_options", "describe_file", "read_verified"]

# Files up to this size are read, checked and handed on as bytes; larger ones are mapped.
IN_MEMORY_BYTES = 1 << 30


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


def read_verified(reader: FolderReader, path: Path, entry: FileEntry) -> bytes | mmap.mmap:
    """Return the contents of a file, in memory or mapped, after a check of their size and hash."""

    def broken(what: str, expected: object, found: object) -> ArtifactIntegrityError:
        return ArtifactIntegrityError(
            what,
            where=str(path),
            expected=expected,
            found=found,
            hint="The artifact is damaged or was changed; copy it again from its source.",
        )

    try:
        with reader.open(path.name) as file:
            size = os.fstat(file.fileno()).st_size
            if size != entry.size:
                raise broken(
                    "A file of the artifact has the wrong size.", f"{entry.size} bytes", f"{size} bytes"
                )
            content: bytes | mmap.mmap = (
                file.read(size)
                if size <= IN_MEMORY_BYTES
                else mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
            )
    except OSError as error:
        raise broken(
            f"A file of the artifact cannot be read: {error.strerror or error}.",
            "a regular file with one name, no link",
            error.strerror or error,
        ) from error
    digest = hashlib.sha256(content).hexdigest()
    if digest != entry.sha256:
        raise broken("A file of the artifact has the wrong contents.", f"SHA-256 {entry.sha256}", digest)
    return content


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
