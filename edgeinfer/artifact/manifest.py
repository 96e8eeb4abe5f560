"""`Manifest`: what is known about an artifact, and its JSON form.

The JSON is canonical (sorted keys, no spaces) and ends in a SHA-256 of itself, so that a flipped bit in the
manifest is found as surely as one in a payload file.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any, final

import attrs
import cattrs
import numpy as np
from cattrs.gen import make_dict_unstructure_fn

from edgeinfer.artifact.signature import Signature, TensorSpec
from edgeinfer.errors import ArtifactFormatError, ArtifactIntegrityError
from edgeinfer.model.model import HistoryEntry

__all__ = ["FORMAT_VERSION", "Cost", "FileEntry", "Golden", "Manifest", "decode_manifest", "encode_manifest"]

FORMAT_VERSION = 1
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

    The manifest keeps the tolerances; the arrays are in `golden.npz`.
    """

    rtol: float = attrs.field(validator=_NON_NEGATIVE)
    atol: float = attrs.field(validator=_NON_NEGATIVE)
    inputs: Mapping[str, np.ndarray] = attrs.field(factory=dict, repr=False)
    outputs: Mapping[str, np.ndarray] = attrs.field(factory=dict, repr=False)
    npz: bytes = attrs.field(default=b"", repr=False)


def _check_files(_: object, __: object, files: Mapping[str, FileEntry]) -> None:
    for name in files:
        if not _FILE_NAME.match(name) or name == "manifest.json":
            raise ValueError(f"{name!r} is not a plain file name")


@final
@attrs.frozen(kw_only=True)
class Manifest:
    """All that a device must know to accept an artifact.

    Attributes:
        format_version: Of this format.
        kind: `portable` or `device-bound`.
        backend: The backend's name.
        backend_version: The version of the runtime that compiled it.
        device: The device name within the backend.
        requires: What must match where it is loaded: accepted values by fact; `*` stands for anything.
        options: The options that it was compiled with.
        entry: The file that the runtime opens first.
        files: SHA-256 and size of each file.
        signature: Inputs and outputs.
        model_digest: The digest of the model that was compiled.
        history: The transforms that made that model.
        target: The target that `optimize` was given, if any.
        cost: Measured or estimated cost.
        golden: Golden inputs and outputs, if given.
    """

    format_version: int = FORMAT_VERSION
    kind: str = attrs.field(validator=attrs.validators.in_(("portable", "device-bound")))
    backend: str
    backend_version: str = ""
    device: str = ""
    requires: Mapping[str, tuple[str, ...]] = attrs.field(factory=dict)
    options: Mapping[str, object] = attrs.field(factory=dict)
    entry: str
    files: Mapping[str, FileEntry] = attrs.field(validator=_check_files)
    signature: Signature
    model_digest: str = ""
    history: tuple[HistoryEntry, ...] = ()
    target: str | None = None
    cost: Cost = attrs.field(factory=Cost)
    golden: Golden | None = None

    def __attrs_post_init__(self) -> None:
        if self.entry not in self.files:
            raise ValueError(f"the entry {self.entry!r} is not among the files")


def encode_manifest(manifest: Manifest) -> bytes:
    """Return the canonical JSON, with `manifest_sha256` over all other fields."""
    fields: dict[str, Any] = _CONVERTER.unstructure(manifest)
    fields["manifest_sha256"] = _digest(fields)
    return json.dumps(fields, sort_keys=True, indent=1).encode() + b"\n"


def decode_manifest(text: bytes, *, where: str) -> Manifest:
    """Read what `encode_manifest` wrote.

    Raises:
        ArtifactFormatError: It is not a manifest, or of another format version.
        ArtifactIntegrityError: Its own SHA-256 does not match.
    """
    try:
        fields = json.loads(text)
        version = fields["format_version"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ArtifactFormatError("The manifest is not readable.", where=where, found=str(error)) from error
    if version != FORMAT_VERSION:
        raise ArtifactFormatError(
            "The artifact has another format version.",
            where=where,
            expected=FORMAT_VERSION,
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
    try:
        return _CONVERTER.structure(fields, Manifest)
    except Exception as error:  # cattrs raises a family of its own
        message = "; ".join(cattrs.transform_error(error)) if isinstance(error, Exception) else ""
        raise ArtifactFormatError(
            "The manifest does not have the fields of its format.", where=where, found=message or str(error)
        ) from error


def _digest(fields: Mapping[str, Any]) -> str:
    canonical = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


def _make_converter() -> cattrs.Converter:
    converter = cattrs.Converter(forbid_extra_keys=True)
    converter.register_unstructure_hook(
        TensorSpec,
        lambda spec: {
            "name": spec.name,
            "dtype": str(spec.dtype),
            "shape": None if spec.shape is None else list(spec.shape),
        },
    )
    converter.register_structure_hook(TensorSpec, lambda value, _: TensorSpec(**value))
    # Without optional inputs a signature is what it was before there were any, for older readers.
    converter.register_unstructure_hook(
        Signature, make_dict_unstructure_fn(Signature, converter, _cattrs_omit_if_default=True)
    )
    converter.register_structure_hook_func(
        lambda cls: cls == Mapping[str, object], lambda value, _: dict(value)
    )
    converter.register_structure_hook(HistoryEntry, lambda value, _: HistoryEntry(**value))
    converter.register_unstructure_hook(Golden, lambda golden: {"rtol": golden.rtol, "atol": golden.atol})
    converter.register_structure_hook(Golden, lambda value, _: Golden(rtol=value["rtol"], atol=value["atol"]))
    return converter


_CONVERTER = _make_converter()
