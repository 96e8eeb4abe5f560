"""`Artifact`: what `compile` makes. A directory with `manifest.json` and payload files.

The manifest says all that a device must know to accept the payload, and it names the SHA-256 and size of
every file, and of itself. `Artifact.open` checks all of them before a byte can reach a vendor's parser,
and what it hands on are the bytes that it checked. `save` is atomic: another process sees the old
artifact or the new one, never a part of one, also after power loss.
"""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, final

import attrs
import numpy as np

from edgeinfer.artifact.golden import pack_golden, unpack_golden
from edgeinfer.artifact.history import HistoryEntry
from edgeinfer.artifact.inputs import InputValidator
from edgeinfer.artifact.manifest import (
    GOLDEN_NAME,
    MANIFEST_NAME,
    Cost,
    FileEntry,
    Golden,
    Manifest,
    decode_manifest,
    encode_manifest,
    identity_digest,
)
from edgeinfer.artifact.payload import Payload, check_options, describe_file
from edgeinfer.artifact.signature import Signature
from edgeinfer.atomic import Content, FolderReader, write_folder
from edgeinfer.errors import (
    ArtifactError,
    ArtifactFormatError,
    ArtifactIntegrityError,
    ArtifactSaveError,
)

if TYPE_CHECKING:
    from edgeinfer.display import Table

__all__ = ["Artifact", "Cost", "FileEntry", "Golden", "Manifest", "Payload"]

MAX_MANIFEST_BYTES = 64 << 20
# Files up to this size are read, checked and handed on as bytes; larger ones are mapped.
IN_MEMORY_BYTES = 1 << 30
# How often an artifact that is replaced while it is read is opened again.
_ATTEMPTS = 50


class CompiledFrom(Protocol):
    """What a manifest keeps of the model that was compiled."""

    @property
    def signature(self) -> Signature:
        """The inputs and outputs."""
        ...

    @property
    def digest(self) -> str:
        """The SHA-256 of the canonical graph."""
        ...

    @property
    def history(self) -> tuple[HistoryEntry, ...]:
        """The transforms that made it."""
        ...

    @property
    def target(self) -> str | None:
        """The target that it was optimized for, if any."""
        ...


@final
@attrs.frozen(eq=False, repr=False)
class Artifact:
    """A compiled model with its manifest, in memory or on disk.

    Attributes:
        manifest: All that is known about it.
        payload: Its files.
        path: The directory that it was opened from or saved to, if any.
    """

    manifest: Manifest
    payload: Payload
    path: Path | None = None

    @classmethod
    def of_payload(
        cls,
        payload: Payload,
        *,
        model: CompiledFrom,
        backend: str,
        backend_version: str,
        cost: Cost | None = None,
    ) -> Artifact:
        """Describe a fresh payload. Called by `edgeinfer.compile`."""
        check_options(payload.options, backend)
        files = {name: describe_file(content) for name, content in payload.files.items()}
        disk_bytes = sum(entry.size for entry in files.values())
        try:
            manifest = Manifest(
                kind=payload.kind,
                backend=backend,
                backend_version=backend_version,
                device=payload.device,
                requires=payload.requires,
                options=payload.options,
                entry=payload.entry,
                files=files,
                signature=model.signature,
                model_digest=model.digest,
                history=model.history,
                target=model.target,
                cost=cost or Cost(disk_bytes=disk_bytes),
                notes=payload.notes,
            )
        except ValueError as error:
            raise ArtifactFormatError(
                f"The payload cannot be an artifact: {error}.",
                where=f"backend {backend!r}",
                expected=f"plain file names, the entry among them, not {MANIFEST_NAME} or {GOLDEN_NAME}",
                found=f"entry {payload.entry!r} of {', '.join(map(repr, files)) or 'no files'}",
                hint="This is a defect in the backend.",
            ) from error
        return cls(manifest, payload)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Artifact:
        """Read an artifact and verify every file of it.

        Raises:
            ArtifactFormatError: It is not an artifact, or of a format version that is not known.
            ArtifactIntegrityError: A file is missing, or its size or SHA-256 is not the manifest's.
        """
        folder = Path(path)
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                reader = FolderReader(folder)
            except (OSError, ValueError) as error:  # ValueError: a null byte in the path
                raise _not_opened(folder, error) from error
            with reader:
                try:
                    return cls._read(reader, folder)
                except ArtifactError:
                    # Another process may have replaced it meanwhile; then the next attempt reads the new one.
                    if attempt == _ATTEMPTS or not reader.replaced():
                        raise
        raise AssertionError  # the last attempt returns or raises

    @classmethod
    def _read(cls, reader: FolderReader, folder: Path) -> Artifact:
        try:
            with reader.open(MANIFEST_NAME) as file:
                text = file.read(MAX_MANIFEST_BYTES)
        except OSError as error:
            raise ArtifactFormatError(
                f"The directory has no readable {MANIFEST_NAME}: {error.strerror or error}.",
                where=str(folder),
                expected=f"{MANIFEST_NAME}, a regular file with one name",
                hint="Give the directory that Artifact.save wrote.",
            ) from error
        manifest = decode_manifest(text, where=str(folder / MANIFEST_NAME))
        files = {name: _verified(reader, folder / name, entry) for name, entry in manifest.files.items()}
        payload = Payload(
            entry=manifest.entry,
            files={name: content for name, content in files.items() if name != GOLDEN_NAME},
            kind=manifest.kind,
            device=manifest.device,
            requires=manifest.requires,
            options=manifest.options,
            notes=manifest.notes,
        )
        if manifest.golden is not None:
            manifest = attrs.evolve(
                manifest,
                golden=unpack_golden(
                    manifest.golden,
                    bytes(files[GOLDEN_NAME]),
                    manifest.signature,
                    where=str(folder / GOLDEN_NAME),
                ),
            )
        return cls(manifest, payload, folder)

    @property
    def signature(self) -> Signature:
        """The inputs and outputs."""
        return self.manifest.signature

    @property
    def digest(self) -> str:
        """The SHA-256 of what runs: files, signature, options, requirements. It identifies the artifact.

        What is known about it besides, such as its cost and the history of its model, does not change it.
        """
        return identity_digest(self.manifest)

    @property
    def disk_bytes(self) -> int:
        """The size of all files but the manifest."""
        return sum(entry.size for entry in self.manifest.files.values())

    def with_golden(
        self,
        inputs: Mapping[str, np.ndarray],
        outputs: Mapping[str, np.ndarray],
        *,
        rtol: float,
        atol: float,
    ) -> Artifact:
        """Return this artifact with inputs and the outputs that a device must reproduce from them.

        Args:
            inputs: One feed, by input name.
            outputs: The expected outputs, by output name.
            rtol: Relative tolerance, as in `numpy.allclose`.
            atol: Absolute tolerance, as in `numpy.allclose`.

        Raises:
            InputError: The inputs do not fit the signature.
            ArtifactError: An output is unknown, or a tolerance is negative.
        """
        inputs = InputValidator(self.signature).check(inputs)
        outputs = {name: np.asarray(array) for name, array in outputs.items()}
        unknown = outputs.keys() - {spec.name for spec in self.signature.outputs}
        if unknown or not (rtol >= 0 and atol >= 0):
            raise ArtifactError(
                "Those golden outputs do not fit the artifact.",
                expected=f"outputs {', '.join(spec.name for spec in self.signature.outputs)}, "
                "tolerances of 0 or more",
                found=f"outputs {', '.join(outputs)}, rtol {rtol}, atol {atol}",
            )
        golden = pack_golden(inputs, outputs, rtol=rtol, atol=atol)
        files = {**self.manifest.files, GOLDEN_NAME: describe_file(golden.npz)}
        return attrs.evolve(self, manifest=attrs.evolve(self.manifest, files=files, golden=golden))

    def with_cost(self, cost: Cost) -> Artifact:
        """Return this artifact with a measured cost in its manifest; the digest stays."""
        return attrs.evolve(self, manifest=attrs.evolve(self.manifest, cost=cost))

    def with_notes(self, *notes: str) -> Artifact:
        """Return this artifact with further notes in its manifest; the digest stays."""
        return attrs.evolve(self, manifest=attrs.evolve(self.manifest, notes=(*self.manifest.notes, *notes)))

    def save(self, path: str | os.PathLike[str]) -> Artifact:
        """Write the artifact as a directory, atomically. An artifact that is there is replaced.

        Returns:
            The artifact with its `path`.

        Raises:
            ArtifactSaveError: It cannot be written. What was there before is untouched.
        """
        folder = Path(path)
        if folder.exists() and not (folder / MANIFEST_NAME).is_file():
            raise ArtifactSaveError(
                "There is something else at that path.",
                where=str(folder),
                expected="an artifact, or nothing",
                found="a file" if folder.is_file() else "a directory without manifest.json",
                hint="Choose another path or remove it yourself.",
            )
        contents: dict[str, Content] = dict(self.payload.files)
        if self.manifest.golden is not None:
            contents[GOLDEN_NAME] = self.manifest.golden.npz
        contents[MANIFEST_NAME] = encode_manifest(self.manifest)
        try:
            write_folder(folder, contents)
        except (OSError, ValueError) as error:  # ValueError: a null byte in the path
            raise ArtifactSaveError(
                f"The artifact cannot be written: {getattr(error, 'strerror', None) or error}.",
                where=str(folder),
                hint=f"Check that {str(folder.parent)!r} exists, is writable and has "
                f"{self.disk_bytes / 1e6:.1f} MB free. Nothing was left behind.",
            ) from error
        return attrs.evolve(self, path=folder)

    def table(self) -> Table:
        """Return an overview for people."""
        from edgeinfer.display import Table

        m = self.manifest
        rows: list[tuple[object, ...]] = [
            ("backend", f"{m.backend} {m.backend_version}, device {m.device or 'default'}"),
            ("kind", m.kind),
            *((f"needs {fact}", " or ".join(values)) for fact, values in m.requires.items()),
            ("inputs and outputs", m.signature.describe()),
            ("size", f"{self.disk_bytes / 1e6:.2f} MB in {len(m.files)} files"),
            ("cost", m.cost.describe()),
            ("transforms", ", ".join(entry.name for entry in m.history) or "none"),
            ("golden inputs", "yes" if m.golden else "no"),
            ("digest", self.digest[:12]),
            *(("note", note) for note in m.notes),
        ]
        return Table(title=f"Artifact {self.path or '(in memory)'}", columns=("", ""), rows=tuple(rows))

    def __repr__(self) -> str:
        m = self.manifest
        where = f" at {self.path}" if self.path else ""
        return f"<Artifact {m.backend}:{m.device} {m.kind}, {self.disk_bytes / 1e6:.2f} MB{where}>"

    def _repr_html_(self) -> str:
        return self.table().to_html()


def _not_opened(folder: Path, error: OSError | ValueError) -> ArtifactFormatError:
    reason = getattr(error, "strerror", None) or str(error)
    if isinstance(error, FileNotFoundError):
        what = "There is no such artifact."
    elif isinstance(error, NotADirectoryError):
        what = "An artifact is a directory."
    else:
        what = f"The artifact cannot be opened: {reason}."
    return ArtifactFormatError(
        what,
        where=str(folder),
        expected=f"a directory with {MANIFEST_NAME}",
        found=reason,
        hint="Give the directory that Artifact.save wrote.",
    )


def _verified(reader: FolderReader, path: Path, entry: FileEntry) -> bytes | mmap.mmap:
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
