"""`Manifest`: what is known about an artifact, and its JSON form.

The JSON ends in a SHA-256 of all of it, so that a flipped bit in the manifest is found as surely as one in a
payload file. What is below `annotations` is known *about* the artifact: where it comes from, what it costs.
All other fields say what runs and what it takes to accept it; `identity_digest` is over them alone.

Fields that this version does not know are kept and written again, unless `critical` names one: then a reader
that ignored it would do something wrong, and this one refuses. See docs/adr/0010.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from typing import Any, final

import attrs
import numpy as np

from edgeinfer.artifact.decode import decode, encode
from edgeinfer.artifact.history import HistoryEntry
from edgeinfer.artifact.signature import Signature, TensorSpec
from edgeinfer.errors import ArtifactFormatError, ArtifactIntegrityError
from edgeinfer.plain_json import parse_json

__all__ = [
    "FORMAT_VERSION",
    "GOLDEN_NAME",
    "MANIFEST_NAME",
    "Cost",
    "FileEntry",
    "Golden",
    "Manifest",
    "decode_manifest",
    "encode_manifest",
    "identity_digest",
]

FORMAT_VERSION = 2
MANIFEST_NAME = "manifest.json"
GOLDEN_NAME = "golden.npz"
# Format 1 had these beside the fields that say what runs.
_ANNOTATIONS = ("backend_version", "model_digest", "history", "target", "cost", "notes")
# What is about the fields and not one of them.
_FRAME = ("annotations", "format_version", "manifest_sha256")
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,200}\Z")
_SHA256 = re.compile(r"[0-9a-f]{64}\Z")
_NON_NEGATIVE = attrs.validators.ge(0)


@final
@attrs.frozen(kw_only=True)
class FileEntry:
    """The SHA-256 (hexadecimal) and size in bytes of one file."""

    sha256: str = attrs.field(validator=attrs.validators.matches_re(_SHA256))
    size: int = attrs.field(validator=_NON_NEGATIVE)


@final
@attrs.frozen(kw_only=True)
class Cost:
    """What running the artifact costs.

    Attributes:
        latency_p50_ms: Median latency of one inference, or None when it was not measured.
        latency_p99_ms: 99th percentile of the same.
        peak_bytes: Peak resident memory of a process that runs it.
        disk_bytes: Size of the payload.
        measured_on: The machine and device of the measurement; empty for an estimate.
    """

    latency_p50_ms: float | None = None
    latency_p99_ms: float | None = None
    peak_bytes: int | None = None
    disk_bytes: int | None = None
    measured_on: str = ""

    def describe(self) -> str:
        """Return one line for people."""
        parts = []
        if self.latency_p50_ms is not None:
            parts.append(f"p50 {self.latency_p50_ms:.3f} ms")
        if self.latency_p99_ms is not None:
            parts.append(f"p99 {self.latency_p99_ms:.3f} ms")
        if self.peak_bytes is not None:
            parts.append(f"peak {self.peak_bytes / 1e6:.0f} MB")
        if self.disk_bytes is not None:
            parts.append(f"disk {self.disk_bytes / 1e6:.2f} MB")
        if self.measured_on:
            parts.append(f"measured on {self.measured_on}")
        return ", ".join(parts) or "not measured"


@final
@attrs.frozen(kw_only=True, eq=False)
class Golden:
    """Inputs, the outputs that a device must reproduce from them, and the tolerances of `numpy.allclose`.

    The manifest keeps the tolerances; the arrays are in `golden.npz`, whose hash it has. They are part of the
    identity: they decide whether a device accepts the artifact.
    """

    rtol: float = attrs.field(validator=_NON_NEGATIVE)
    atol: float = attrs.field(validator=_NON_NEGATIVE)
    inputs: Mapping[str, np.ndarray] = attrs.field(factory=dict, repr=False)
    outputs: Mapping[str, np.ndarray] = attrs.field(factory=dict, repr=False)
    npz: bytes = attrs.field(default=b"", repr=False)


def _check_files(_: object, __: object, files: Mapping[str, FileEntry]) -> None:
    for name in files:
        if not _FILE_NAME.match(name) or name == MANIFEST_NAME:
            raise ValueError(f"{name!r} is not a plain file name")


@final
@attrs.frozen(kw_only=True)
class _Source:
    """A manifest as it was read: all of its fields, and what this version understood of them."""

    fields: Mapping[str, Any]
    known: Mapping[str, Any]


@final
@attrs.frozen(kw_only=True)
class Manifest:
    """All that a device must know to accept an artifact, and annotations.

    Attributes:
        format_version: Of this format.
        critical: Names of fields that a reader must know; one that does not refuses the artifact.
        kind: `portable` or `device-bound`.
        backend: The backend's name.
        device: The device name within the backend.
        requires: What must match where it is loaded: accepted values by fact; `*` stands for anything.
        options: The options that it was compiled with. None of them names a file.
        entry: The file that the runtime opens first.
        files: SHA-256 and size of each file.
        signature: Inputs and outputs.
        golden: Golden inputs and outputs, if given.
        backend_version: Annotation: the version of the runtime that compiled it.
        model_digest: Annotation: the digest of the model that was compiled.
        history: Annotation: the transforms that made that model.
        target: Annotation: the target that `optimize` was given, if any.
        cost: Annotation: measured or estimated cost.
        notes: Annotation: what else there is to say.
        source: How it was read, so that what this version does not know is written again.
    """

    format_version: int = FORMAT_VERSION
    critical: tuple[str, ...] = ()
    kind: str = attrs.field(validator=attrs.validators.in_(("portable", "device-bound")))
    backend: str
    device: str = ""
    requires: Mapping[str, tuple[str, ...]] = attrs.field(factory=dict)
    options: Mapping[str, object] = attrs.field(factory=dict)
    entry: str
    files: Mapping[str, FileEntry] = attrs.field(validator=_check_files)
    signature: Signature
    golden: Golden | None = None
    backend_version: str = ""
    model_digest: str = ""
    history: tuple[HistoryEntry, ...] = ()
    target: str | None = None
    cost: Cost = attrs.field(factory=Cost)
    notes: tuple[str, ...] = ()
    source: _Source | None = attrs.field(default=None, eq=False, repr=False, metadata={"json": False})

    def __attrs_post_init__(self) -> None:
        if self.entry not in self.files or self.entry == GOLDEN_NAME:
            raise ValueError(f"the entry {self.entry!r} is not among the files of the payload")


def identity_digest(manifest: Manifest) -> str:
    """Return the SHA-256, 64 hexadecimal digits, of what runs: all fields but the annotations.

    Fields that are empty do not count, so that one that a later version adds changes no digest.
    """
    fields = _fields_of(manifest)
    return _digest({name: value for name, value in fields.items() if name not in _FRAME and _counts(value)})


def encode_manifest(manifest: Manifest) -> bytes:
    """Return the JSON, with `manifest_sha256` over all other fields."""
    fields = _fields_of(manifest)
    fields["manifest_sha256"] = _digest(fields)
    return json.dumps(fields, sort_keys=True, indent=1).encode() + b"\n"


def decode_manifest(text: bytes, *, where: str) -> Manifest:
    """Read what `encode_manifest` wrote, also that of format 1.

    Raises:
        ArtifactFormatError: It is not a manifest, of another format version, or has a critical field that
            this version does not know.
        ArtifactIntegrityError: Its own SHA-256 does not match.
    """
    fields, version = _checked(text, where)
    try:
        if version == 1:
            fields = {**_nested(fields), "format_version": FORMAT_VERSION}
        _refuse_unknown(_strings(fields.get("critical", [])), where)
        manifest = _structured(fields)
    except ArtifactFormatError:
        raise
    except Exception as error:  # JSON may hold anything anywhere
        raise ArtifactFormatError(
            "The manifest does not have the fields of its format.",
            where=where,
            expected=f"the fields of format {version}",
            found=f"{type(error).__name__}: {error}",
            hint="Compile the model again.",
        ) from error
    return attrs.evolve(manifest, source=_Source(fields=fields, known=_fields_of(manifest)))


def _checked(text: bytes, where: str) -> tuple[dict[str, Any], int]:
    """Return the fields without the hash, which was right, and their format version."""
    try:
        fields = parse_json(text)
        version = fields["format_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactFormatError(
            "The manifest is not readable.",
            where=where,
            expected="a JSON object with format_version",
            found=f"{type(error).__name__}: {error}",
            hint="Copy the artifact again from its source.",
        ) from error
    if type(version) is not int or version not in (1, FORMAT_VERSION):
        raise ArtifactFormatError(
            "The artifact has another format version.",
            where=where,
            expected=f"1 to {FORMAT_VERSION}",
            found=version,
            hint="Upgrade edgeinfer, or compile the model again with this version.",
        )
    digest = fields.pop("manifest_sha256", None)
    if digest != _digest(fields):
        raise ArtifactIntegrityError(
            "The manifest was changed after it was written.",
            where=where,
            expected=f"SHA-256 {digest}",
            found=_digest(fields),
            hint="Copy the artifact again from its source.",
        )
    return fields, version


def _structured(fields: dict[str, Any]) -> Manifest:
    flat = {name: value for name, value in fields.items() if name not in _ANNOTATIONS}
    flat |= {name: value for name, value in fields["annotations"].items() if name in _ANNOTATIONS}
    manifest = decode(Manifest, flat, _DECODE, skip_unknown=True)
    if (manifest.golden is None) == (GOLDEN_NAME in manifest.files):
        raise ValueError(f"`golden` and the file {GOLDEN_NAME} belong together, and one is missing")
    return manifest


def _refuse_unknown(critical: tuple[str, ...], where: str) -> None:
    unknown = sorted(set(critical) - _KNOWN)
    if unknown:
        raise ArtifactFormatError(
            "The artifact has a field that must be understood, and this version does not know it.",
            where=where,
            expected=f"critical fields among {', '.join(sorted(_KNOWN))}",
            found=", ".join(unknown),
            hint="Upgrade edgeinfer.",
            facts={"unknown": tuple(unknown)},
        )


def _fields_of(manifest: Manifest) -> dict[str, Any]:
    """Return the JSON's fields but the hash. What was read and not changed since is as it was read."""
    fields = _nested(encode(manifest, _ENCODE))
    source = manifest.source
    return fields if source is None else _with_unknown(fields, source.known, source.fields)


def _nested(flat: dict[str, Any]) -> dict[str, Any]:
    """Move the annotations below a field of their own."""
    fields = {name: value for name, value in flat.items() if name not in _ANNOTATIONS}
    return {**fields, "annotations": {name: flat[name] for name in _ANNOTATIONS if name in flat}}


def _with_unknown(now: dict[str, Any], known: Mapping[str, Any], read: Mapping[str, Any]) -> dict[str, Any]:
    """Return `now` with what was `read` but is not `known`; unknown parts of a changed value go with it."""
    kept = {name: value for name, value in read.items() if name not in known}
    for name, value in now.items():
        if name in read and value == known[name]:
            kept[name] = read[name]
        elif name in read and name in ("annotations", "files"):
            kept[name] = _with_unknown(value, known[name], read[name])
        else:
            kept[name] = value
    return kept


def _counts(value: object) -> bool:
    return value is not None and value not in ("", [], {})


def _digest(fields: Mapping[str, Any]) -> str:
    canonical = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


def _spec(value: Any) -> TensorSpec:
    shape = value.get("shape")
    for dim in shape if isinstance(shape, list) else ():
        if not (dim is None or isinstance(dim, str) or (type(dim) is int and dim >= 0)):
            raise ValueError(f"{dim!r} is no dimension")
    if not (shape is None or isinstance(shape, list)):
        raise ValueError(f"{shape!r} is no shape")
    return TensorSpec(name=_exactly(value["name"], str), dtype=_exactly(value["dtype"], str), shape=shape)


def _exactly(value: Any, kind: type) -> Any:
    """Refuse what a conversion would bend into the type, such as 5 for a str."""
    if type(value) is not kind:
        raise TypeError(f"{value!r} is not of type {kind.__name__}")
    return value


def _strings(value: Any) -> tuple[str, ...]:
    return tuple(_exactly(item, str) for item in _exactly(value, list))


def _spec_fields(spec: TensorSpec) -> dict[str, object]:
    shape = None if spec.shape is None else list(spec.shape)
    return {"name": spec.name, "dtype": str(spec.dtype), "shape": shape}


def _golden(value: Any) -> Golden:
    return Golden(rtol=decode(float, value["rtol"]), atol=decode(float, value["atol"]))


def _signature_fields(signature: Signature) -> dict[str, object]:
    """Without optional inputs a signature is what it was before there were any, for older readers."""
    names = ("inputs", "outputs", *(("optional",) if signature.optional else ()))
    return {name: [_spec_fields(spec) for spec in getattr(signature, name)] for name in names}


_ENCODE: dict[Any, Callable[[Any], Any]] = {
    Signature: _signature_fields,
    TensorSpec: _spec_fields,
    Golden: lambda golden: {"rtol": golden.rtol, "atol": golden.atol},
}
_DECODE = {TensorSpec: _spec, Golden: _golden}
_KNOWN = frozenset(field.name for field in attrs.fields(Manifest)) - {"source"}
