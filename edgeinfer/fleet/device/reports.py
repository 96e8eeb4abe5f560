"""`Report`: what a device tells of itself, with a code that only the holder of its key can make."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias, final

import attrs

from edgeinfer.artifact.decode import Hooks, decode, encode
from edgeinfer.fleet.device.documents import canonical_json, decode_document, parse_document
from edgeinfer.fleet.device.histogram import Histogram
from edgeinfer.fleet.device.phases import Phase
from edgeinfer.fleet.errors import BadSignatureError, DocumentError
from edgeinfer.values import as_tuple

__all__ = ["MAX_REPORT_BYTES", "Metric", "Report", "SignedReport"]

Metric: TypeAlias = Histogram | float
MAX_REPORT_BYTES = 256 << 10
_MAX_LOG = 20
_CODE_DIGITS = 64
_BEFORE_BODY = len('{"hmac":"","report":') + _CODE_DIGITS


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
        body = canonical_json(encode(self, _ENCODE))
        return b'{"hmac":"%b","report":%b}' % (_code(body, key).encode(), body)

    @classmethod
    def from_bytes(cls, data: bytes, key: bytes) -> Report:
        """Read what `to_bytes` wrote.

        Raises:
            DocumentError: It is no report.
            BadSignatureError: It was not made with this key.
        """
        return SignedReport.parse(data).verified(key)


@final
@attrs.frozen(kw_only=True)
class SignedReport:
    """A report whose code was not checked yet: all that is known is whose it says to be.

    Attributes:
        device: The device's name, to find its key.
    """

    device: str
    _fields: Mapping[str, Any]
    _body: bytes  # what the code is of
    _code: str

    @classmethod
    def parse(cls, data: bytes) -> SignedReport:
        """Read what `Report.to_bytes` wrote, or somebody else.

        Raises:
            DocumentError: It is no report.
        """
        fields = parse_document(data, what="report", max_bytes=MAX_REPORT_BYTES)
        report, code = fields.get("report"), fields.get("hmac")
        if not isinstance(report, dict) or not isinstance(device := report.get("device"), str):
            raise DocumentError("The report names no device.")
        if not isinstance(code, str):
            raise DocumentError("The report has no code.", where=device, expected="hmac")
        # The document is canonical, so its body stands in it as it would be written again.
        alone = len(fields) == 2 and len(code) == _CODE_DIGITS
        body = data[_BEFORE_BODY:-1] if alone else canonical_json(report)
        return cls(device=device, fields=report, body=body, code=code)

    def verified(self, key: bytes) -> Report:
        """Return the report, if it was made with a key.

        Raises:
            DocumentError: It does not have the fields of a report.
            BadSignatureError: It was not made with this key.
        """
        if not hmac.compare_digest(_code(self._body, key).encode(), self._code.encode()):
            raise BadSignatureError("The report was not made with the key of that device.", where=self.device)
        return decode_document(Report, dict(self._fields), what="report", known=_KNOWN, hooks=_DECODE)


def _code(body: bytes, key: bytes) -> str:
    return hmac.new(key, body, hashlib.sha256).hexdigest()


def _metric(value: Any) -> Metric:
    if isinstance(value, dict):
        return Histogram.from_dict(value)
    return float(decode(float, value))


_ENCODE: Hooks = {Phase: lambda phase: phase.value, Histogram: Histogram.to_dict}
_DECODE: Hooks = {Phase: Phase, Metric: _metric}
_KNOWN = frozenset(field.name for field in attrs.fields(Report))
