"""`HttpTransport`: assignments from any HTTP(S) server of a repository, reports to one that takes them.

GET  URL/desired/DEVICE.json     with If-None-Match; 200, 304 or 404
POST URL/reports/DEVICE          reports, one a line; 200 or 204: all accepted,
200 with {"accepted": n}: the first n, those in "refused" finally
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

from edgeinfer.fleet.device.assignment import MAX_ASSIGNMENTS_BYTES
from edgeinfer.fleet.device.desired import Desired
from edgeinfer.fleet.errors import TransportError
from edgeinfer.plain_json import parse_json

__all__ = ["HttpTransport"]

_LOG = logging.getLogger("edgeinfer.agent")
_TIMEOUT_S = 30.0
_MAX_BODY_BYTES = 4 << 20
_MAX_ANSWER_BYTES = 1 << 16


@final
class HttpTransport:
    """Documents over HTTP(S).

    Args:
        url: Of the repository.
        device: The device's name.
        key: Not needed: reports are signed, and the server is trusted with nothing.
        headers: Further headers, such as an authorization.
        sleep: How to wait.
    """

    def __init__(
        self,
        url: str,
        *,
        device: str,
        key: bytes = b"",
        headers: Mapping[str, str] | None = None,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        import urllib3

        del key
        self._url = url.rstrip("/")
        self._device = device
        self._headers = {"User-Agent": "edgeinfer", **(headers or {})}
        self._sleep = sleep
        self._pool = urllib3.PoolManager(timeout=urllib3.Timeout(_TIMEOUT_S), retries=False, maxsize=1)

    def desired(self, etag: str | None) -> Desired | None:
        """See `Transport`."""
        headers = {"If-None-Match": etag} if etag else {}
        response = self._ask("GET", f"desired/{self._device}.json", headers=headers)
        try:
            if response.status in (304, 404):
                return None
            if response.status != 200:
                raise TransportError("The server gave no assignments.", found=f"HTTP {response.status}")
            data = self._read(response, MAX_ASSIGNMENTS_BYTES)
        finally:
            response.release_conn()
        return Desired(data=data, etag=response.headers.get("ETag", ""))

    def send(self, reports: Sequence[bytes]) -> int:
        """See `Transport`."""
        reports = _fitting(reports)
        headers = {"Content-Type": "application/jsonl"}
        response = self._ask("POST", f"reports/{self._device}", headers=headers, body=b"\n".join(reports))
        try:
            if response.status not in (200, 202, 204):
                raise TransportError("The server takes no reports.", found=f"HTTP {response.status}")
            answer = self._read(response, _MAX_ANSWER_BYTES)
        finally:
            response.release_conn()
        try:
            fields = parse_json(answer)
            accepted = fields["accepted"]
        except (ValueError, KeyError, TypeError):
            return len(reports)
        if fields.get("refused"):
            _LOG.warning("the server refused reports of this device: %s", str(fields["refused"])[:500])
        return accepted if type(accepted) is int and 0 <= accepted <= len(reports) else len(reports)

    def wait(self, seconds: float) -> bool:
        """Wait; HTTP rings no bell."""
        self._sleep(seconds)
        return False

    def close(self) -> None:
        """Close the connections."""
        self._pool.clear()

    def _ask(self, method: str, path: str, *, headers: Mapping[str, str], body: bytes | None = None) -> Any:
        where = f"{self._url}/{path}"
        try:
            return self._pool.request(
                method, where, headers={**self._headers, **headers}, body=body, preload_content=False
            )
        except Exception as error:  # urllib3 has many, and http.client some of its own
            raise TransportError(
                f"The server cannot be reached: {type(error).__name__}: {error}", where=where
            ) from error

    def _read(self, response: Any, max_bytes: int) -> bytes:
        try:
            data: bytes = response.read(max_bytes + 1)
        except Exception as error:
            raise TransportError(f"Reading broke off: {type(error).__name__}: {error}") from error
        if len(data) > max_bytes:
            raise TransportError("The server gives more than can be right.", expected=f"{max_bytes} bytes")
        return data


def _fitting(reports: Sequence[bytes]) -> Sequence[bytes]:
    """Return the first reports that fit into one request, at least one."""
    size = 0
    for count, report in enumerate(reports):
        size += len(report) + 1
        if size > _MAX_BODY_BYTES and count:
            return reports[:count]
    return reports
