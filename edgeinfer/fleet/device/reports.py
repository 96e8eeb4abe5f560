"""`Report`: what a device tells of itself, with a code that only the holder of its key can make."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias, final

import attrs

from edgeinfer.artifact.decode import Hooks, encode
from edgeinfer.fleet.device.documents import canonical_json, decode_document, parse_document
from edgeinfer.fleet.device.histogram import Histogram
from edgeinfer.fleet.device.phases import Phase
from edgeinfer.fleet.errors import BadSignatureError, DocumentError
from edgeinfer.values import as_tuple

__all__ = ["MAX_REPORT_BYTES", "Metric", "Report"]

Metric: TypeAlias = Histogram | float
MAX_REPORT_BYTES = 256 << 10
_MAX_LOG = 20


def _last(lines: Iterable[str]) -> tuple[str, ...]:
    return as_tuple(lines)[-_MAX_LOG:]


@final
@attrs.frozen(kw_only=True)
class Report:
    """One report.

    Attributes:
        device: The device's name.
        incarnation: Of this life of the device; a reflashed one has a greater one.
        sequence: Ascending; a greater one replaces what was known.
        at: When, by the device's clock, in seconds since 1970.
        model: The model that it is about; empty for the device itself.
        generation: (epoch, n) of the assignment that it answers; (0, 0) without one.
        phase: Where the update stands.
        code: Why, in one word for programs, such as `latency_p99_ms` or `journal_lost`.
        digest: Of the release that is really loaded; empty where there is none.
        facts: What the device is: architecture, runtimes, class.
        metrics: Measured figures and distributions.
        log: The last messages for people, at most 20.
    """

    device: str
    incarnation: int
    sequence: int
    at: int
    model: str = ""
    generation: tuple[int, int] = (0, 0)
    phase: Phase
    code: str = ""
    digest: str = ""
    facts: Mapping[str, Any] = attrs.field(factory=dict)
    metrics: Mapping[str, Metric] = attrs.field(factory=dict)
    log: tuple[str, ...] = attrs.field(default=(), converter=_last)

    def to_bytes(self, key: bytes) -> bytes:
        """Return the canonical document, with its HMAC-SHA256.

        Args:
            key: The device's key, which the operator has, too.
        """
        fields = encode(self, _ENCODE)
        return canonical_json({"hmac": _code(fields, key), "report": fields})

    @classmethod
    def from_bytes(cls, data: bytes, key: bytes) -> Report:
        """Read what `to_bytes` wrote.

        Raises:
            DocumentError: It is no report.
            BadSignatureError: It was not made with this key.
        """
        fields = parse_document(data, what="report", max_bytes=MAX_REPORT_BYTES)
        report, code = fields.get("report"), fields.get("hmac")
        if not isinstance(report, dict) or not isinstance(code, str):
            raise DocumentError("The report has no body or no code.", expected="report and hmac")
        if not hmac.compare_digest(_code(report, key).encode(), code.encode()):
            raise BadSignatureError(
                "The report was not made with the key of that device.", where=str(report.get("device"))
            )
        known = frozenset(field.name for field in attrs.fields(cls))
        return decode_document(cls, report, what="report", known=known, hooks=_DECODE)

    @staticmethod
    def claimed_device(data: bytes) -> str:
        """Return the device that a report says to be of, before its code is checked (to find the key).

        Raises:
            DocumentError: It is no report.
        """
        fields = parse_document(data, what="report", max_bytes=MAX_REPORT_BYTES)
        report = fields.get("report")
        device = report.get("device") if isinstance(report, dict) else None
        if not isinstance(device, str):
            raise DocumentError("The report names no device.")
        return device


def _code(fields: Mapping[str, Any], key: bytes) -> str:
    return hmac.new(key, canonical_json(fields), hashlib.sha256).hexdigest()


def _metric(value: Any) -> Metric:
    if isinstance(value, dict):
        return Histogram.from_dict(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{value!r} is no number and no histogram")
    return float(value)


_ENCODE: Hooks = {Phase: lambda phase: phase.value, Histogram: Histogram.to_dict}
_DECODE: Hooks = {Phase: Phase, Metric: _metric}
