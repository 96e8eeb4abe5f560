"""POST /enroll and /keys/DEVICE: devices come in with a one-time token, and replace their keys."""

from __future__ import annotations

import logging
from typing import final

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from edgeinfer.fleet.device.identity import DEVICE_NAME
from edgeinfer.fleet.operator.server.bodies import TooLarge, answer, fields_of, read_body
from edgeinfer.fleet.operator.store.database import Database
from edgeinfer.fleet.operator.store.enrolment import TokenError, redeem, replace_key

__all__ = ["Enroller"]

_LOG = logging.getLogger(__name__)
_MOST_BYTES = 16 << 10


@final
class Enroller:
    """Enrols devices.

    Args:
        database: The store.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def enroll(self, request: Request) -> Response:
        """{"token"} gives {"device", "incarnation", "device_class", "key"}; 403 where it is refused."""
        try:
            fields = fields_of(await read_body(request, _MOST_BYTES))
        except TooLarge:
            return answer(413, error="the request is too large")
        token = fields.get("token")
        if not isinstance(token, str) or not token.isascii():
            return answer(400, error='a JSON object with "token" is needed')
        try:
            found = await run_in_threadpool(redeem, self._database, token)
        except TokenError as error:
            _LOG.warning("refused to enrol a device: %s (%s)", error.what, error.where)
            return answer(403, error=error.what)
        _LOG.info("enrolled %s, life %d", found.device, found.incarnation)
        return answer(
            200,
            device=found.device,
            incarnation=found.incarnation,
            device_class=found.device_class,
            key=found.key.hex(),
        )

    async def replace_key(self, request: Request) -> Response:
        """The body is {"device", "key"}, signed in the header `Edgeinfer-Hmac` with the present key."""
        device = request.path_params["device"]
        try:
            body = await read_body(request, _MOST_BYTES)
        except TooLarge:
            return answer(413, error="the request is too large")
        fields = fields_of(body)
        try:
            new = bytes.fromhex(fields.get("key", ""))
        except (TypeError, ValueError):
            new = b""
        named = fields.get("device") == device and DEVICE_NAME.match(device)
        if not named or not 16 <= len(new) <= 64:
            return answer(400, error='a JSON object with "device" and "key" is needed')
        code = request.headers.get("edgeinfer-hmac", "")
        try:
            await run_in_threadpool(replace_key, self._database, device, body, code, new)
        except TokenError as error:
            _LOG.warning("refused to replace a key: %s (%s)", error.what, error.where)
            return answer(403, error=error.what)
        return Response(status_code=204)
