"""`BadNetwork`: a TCP proxy that delays, cuts and partitions.

Each connection keeps its own order, as TCP does; what several connections carry overtakes each other.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
from typing import final

__all__ = ["BadNetwork"]

_CHUNK = 1 << 16


@final
class BadNetwork:
    """A proxy to one port of this machine, in a thread of its own. A context manager.

    Args:
        port: Where it leads.
        delay_s: How long a piece is on its way, on average; each connection keeps its own order.
        cut: The probability that a connection is cut at a piece.
        partition: The share of the time in which nothing passes and nobody can connect.
        partition_s: How long that then lasts, on average.
        seed: Of all chance.

    Attributes:
        port: Where to connect to.
        cuts: Connections that were cut.
        partitions: How often there was a partition.
    """

    def __init__(self, port: int, *, delay_s: float = 0.0, cut: float = 0.0, partition: float = 0.0,
                 partition_s: float = 1.0, seed: int = 0) -> None:  # fmt: skip
        self._to = port
        self._delay_s, self._cut = delay_s, cut
        self._partition, self._partition_s = partition, partition_s
        self._random = random.Random(seed)  # noqa: S311 (a simulation)
        self._open = asyncio.Event()
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.port = self.cuts = self.partitions = 0

    def __enter__(self) -> BadNetwork:
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._main.cancel)
        self._thread.join()

    def _run(self) -> None:
        self._main = self._loop.create_task(self._serve())
        with contextlib.suppress(asyncio.CancelledError):
            self._loop.run_until_complete(self._main)
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()

    async def _serve(self) -> None:
        self._open.set()
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        async with server:
            while True:
                share = self._partition
                await asyncio.sleep(self._partition_s * (1 - share) / share if share else 3600.0)
                if share:
                    self.partitions += 1
                    self._open.clear()
                    await asyncio.sleep(self._random.expovariate(1 / self._partition_s))
                    self._open.set()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self._open.is_set():
            writer.close()
            return
        try:
            back, forth = await asyncio.open_connection("127.0.0.1", self._to)
        except OSError:
            writer.close()
            return
        ways = [asyncio.ensure_future(self._pass(*way)) for way in ((reader, forth), (back, writer))]
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for way in ways:
            way.cancel()
        for end in (writer, forth):
            end.close()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(_CHUNK):
                if self._random.random() < self._cut:
                    self.cuts += 1
                    writer.write(data[: len(data) // 2])  # in the middle of what is being said
                    await writer.drain()
                    return
                if self._delay_s:
                    await asyncio.sleep(self._random.expovariate(1 / self._delay_s))
                await self._open.wait()
                writer.write(data)
                await writer.drain()
