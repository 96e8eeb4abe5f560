"""GET /events: server-sent events that say that something changed. One look at the store serves all pages."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import final

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from edgeinfer.fleet.operator.server.overview import stamp
from edgeinfer.fleet.operator.store.database import Database

__all__ = ["Events"]

_LOOK_S = 1.0
_ALIVE_S = 15.0
_MOST = 200  # open pages


@final
class Events:
    """Tells open pages of changes.

    Args:
        database: The store.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._stamp = ""
        self._changed = asyncio.Event()
        self._open = 0
        self._looking: asyncio.Task[None] | None = None

    async def events(self, request: Request) -> Response:
        """Answer with a stream that lasts as long as the page."""
        if self._open >= _MOST:
            return Response("too many open pages\n", 503, {"Retry-After": "60"})
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return StreamingResponse(self._stream(request), headers=headers, media_type="text/event-stream")

    async def close(self) -> None:
        """End the streams."""
        if self._looking is not None:
            self._looking.cancel()
        self._stamp = ""
        self._changed.set()

    async def _stream(self, request: Request) -> AsyncIterator[str]:
        self._open += 1
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look())
        try:
            yield "retry: 3000\n\n"
            while not await request.is_disconnected():
                changed = self._changed
                try:
                    await asyncio.wait_for(changed.wait(), _ALIVE_S)
                except asyncio.TimeoutError:
                    yield ": alive\n\n"
                    continue
                if not self._stamp:  # the server ends
                    return
                yield f"data: {self._stamp}\n\n"
        finally:
            self._open -= 1

    async def _look(self) -> None:
        self._stamp = await run_in_threadpool(self._read)
        while self._open:
            await asyncio.sleep(_LOOK_S)
            found = await run_in_threadpool(self._read)
            if found != self._stamp:
                self._stamp = found
                self._changed.set()
                self._changed = asyncio.Event()

    def _read(self) -> str:
        with self._database.reading() as connection:
            return stamp(connection)
