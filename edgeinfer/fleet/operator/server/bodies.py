"""Bodies of requests, read up to a limit; and answers in JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from edgeinfer.plain_json import parse_json

__all__ = ["TooLarge", "answer", "fields_of", "read_body"]


class TooLarge(Exception):  # noqa: N818 (an answer, no error of ours)
    """The body is larger than the limit."""


async def read_body(request: Request, max_bytes: int) -> bytes:
    """Return the body. Raises TooLarge before more than that is in memory."""
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > max_bytes:
        raise TooLarge
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > max_bytes:
            raise TooLarge
        parts.append(part)
    return b"".join(parts)


def fields_of(body: bytes) -> Mapping[str, Any]:
    """Return the fields of a JSON object; none of anything else."""
    try:
        found = parse_json(body)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def answer(status: int, headers: Mapping[str, str] | None = None, **fields: Any) -> Response:
    """Return a JSON object."""
    return Response(json.dumps(fields), status, dict(headers or {}), "application/json")
