"""Canonical JSON documents: how all parts of the fleet write and read what is signed or hashed.

One value has one form: sorted keys, no spaces, UTF-8, no NaN. A reader refuses every other form, so that the
digest of a document does not depend on who wrote it. Its size is checked before it is parsed.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, TypeVar

import attrs

from edgeinfer.artifact.decode import Hooks, decode
from edgeinfer.errors import EdgeInferError
from edgeinfer.fleet.errors import DocumentError
from edgeinfer.plain_json import parse_json

__all__ = ["canonical_json", "decode_document", "parse_document", "sha256"]

T = TypeVar("T")
_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


@attrs.frozen(kw_only=True)
class _Critical:
    critical: tuple[str, ...] = ()


def canonical_json(value: Any) -> bytes:
    """Return the one form of a JSON value.

    Raises:
        ValueError: It has NaN or infinity, or text that is no Unicode.
        TypeError: It has what JSON has not.
    """
    return _ENCODER.encode(value).encode()


def sha256(data: bytes) -> str:
    """Return the digest, 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def parse_document(data: bytes, *, what: str, max_bytes: int) -> dict[str, Any]:
    """Return the fields of a canonical JSON object.

    Args:
        data: The bytes, from anyone.
        what: What it is to be, for messages.
        max_bytes: The largest size that is parsed.

    Raises:
        DocumentError: It is too large, no JSON object, or not in canonical form.
    """
    if len(data) > max_bytes:
        raise DocumentError(
            f"The {what} is too large.", expected=f"at most {max_bytes} bytes", found=f"{len(data)} bytes"
        )
    try:
        fields = _object(parse_json(data))
        canonical = canonical_json(fields)
    except (ValueError, TypeError) as error:
        raise DocumentError(
            f"The {what} is not readable.",
            expected="a JSON object",
            found=f"{type(error).__name__}: {error}",
        ) from error
    if canonical != data:
        raise DocumentError(
            f"The {what} is not in canonical form.",
            expected="sorted keys, each once, no spaces, UTF-8",
            found=f"{len(data)} bytes that differ from the {len(canonical)} of that form",
        )
    return fields


def decode_document(
    kind: type[T], fields: dict[str, Any], *, what: str, known: frozenset[str], hooks: Hooks | None = None
) -> T:
    """Return a value from the fields of a document. Unknown fields are ignored unless `critical` names them.

    Raises:
        DocumentError: A field is missing or is not of its type, or a critical one is not `known`.
    """
    try:
        critical = decode(_Critical, fields, skip_unknown=True).critical if "critical" in fields else ()
        unknown = sorted(set(critical) - known)
        value = None if unknown else decode(kind, fields, hooks, skip_unknown=True)
    except (ValueError, TypeError, EdgeInferError) as error:
        raise DocumentError(
            f"The {what} does not have the fields of its format.", found=f"{type(error).__name__}: {error}"
        ) from error
    if value is None:
        raise DocumentError(
            f"The {what} has a field that must be understood, and this version does not know it.",
            found=", ".join(unknown),
            hint="Upgrade edgeinfer on this device.",
            facts={"unknown": tuple(unknown)},
        )
    return value


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError("it is no object")
    return value
