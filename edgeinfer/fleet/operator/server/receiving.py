"""POST /reports and /reports/DEVICE: what devices say, one report a line."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import final

import attrs
from starlette.requests import Request
from starlette.responses import Response

from edgeinfer.fleet.device.identity import DEVICE_NAME
from edgeinfer.fleet.operator.server.bodies import TooLarge, answer, read_body
from edgeinfer.fleet.operator.server.intake import BusyError, Intake
from edgeinfer.fleet.operator.store.ingested import Refusal

__all__ = ["Receiver"]

_LOG = logging.getLogger(__name__)
_MOST = 2_000  # reports a request
_RETRY_S = "30"


@final
class Receiver:
    """Takes reports of devices, or of a gateway that has many of them.

    Nobody is believed for where a report comes from: each carries the HMAC of its device's key. What is
    refused is logged and named in the answer; the rest is taken in.

    Args:
        intake: Where they go.
        max_bytes: The largest request.
    """

    def __init__(self, intake: Intake, max_bytes: int) -> None:
        self._intake = intake
        self._max_bytes = max_bytes

    async def reports(self, request: Request) -> Response:
        """Answer 200 with `accepted` (how many need not be sent again) and `refused`, 403, 413 or 503."""
        device = request.path_params.get("device", "")
        if device and not DEVICE_NAME.match(device):
            return self._refuse(request, 404, "that is no name of a device")
        try:
            body = await read_body(request, self._max_bytes)
        except TooLarge:
            return self._refuse(request, 413, f"more than {self._max_bytes} bytes")
        documents = body.split(b"\n")
        if documents[-1] == b"":
            documents.pop()
        if len(documents) > _MOST:
            return self._refuse(request, 413, f"more than {_MOST} reports")
        # A report has its device in canonical form; the code that is checked later proves that it is its own.
        own = b'"device":"%b"' % device.encode()
        foreign = {index for index, document in enumerate(documents) if device and own not in document}
        taken = [index for index in range(len(documents)) if index not in foreign]
        try:
            found = await self._intake.submit([documents[index] for index in taken]) if taken else ()
        except BusyError as error:
            return answer(503, {"Retry-After": _RETRY_S}, error=error.what)
        refused = [
            *(attrs.evolve(refusal, index=taken[refusal.index]) for refusal in found),
            *(Refusal(index=index, device="", reason=f"It is not of {device}.") for index in foreign),
        ]
        self._log(request, refused)
        if device and documents and len(refused) == len(documents) and _is_unknown(found):
            return answer(403, error="The device is not enrolled, or was removed.")
        lines = [{"index": r.index, "reason": r.reason} for r in sorted(refused, key=lambda r: r.index)]
        return answer(200, accepted=len(documents), refused=lines)

    def _refuse(self, request: Request, status: int, reason: str) -> Response:
        _LOG.warning("refused a request of %s: %s", _peer(request), reason)
        return answer(status, error=reason)

    def _log(self, request: Request, refused: Sequence[Refusal]) -> None:
        for refusal in refused[:10]:
            _LOG.warning("refused a report of %s (%r): %s", _peer(request), refusal.device, refusal.reason)
        if len(refused) > 10:
            _LOG.warning("refused %d more reports of %s", len(refused) - 10, _peer(request))


def _is_unknown(refused: Sequence[Refusal]) -> bool:
    return bool(refused) and all("not enrolled" in r.reason or "was removed" in r.reason for r in refused)


def _peer(request: Request) -> str:
    return request.client.host if request.client else "?"
