"""`serve` runs the server of a fleet until it is told to end; `background` for as long as a block lasts."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from typing import Any

from edgeinfer.errors import FleetError
from edgeinfer.fleet.operator.fleet import Fleet
from edgeinfer.fleet.operator.server.options import ServerOptions

__all__ = ["background", "serve"]

_KEEP_ALIVE_S = 75  # longer than devices' polls would tie up sockets, shorter costs a handshake each
_GRACE_S = 5


def serve(
    fleet: Fleet,
    options: ServerOptions | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 8080,
    certificate: str | os.PathLike[str] | None = None,
    key: str | os.PathLike[str] | None = None,
) -> None:
    """Serve a fleet until SIGTERM or SIGINT.

    Args:
        fleet: The fleet.
        options: How it is served.
        host: The address to listen at.
        port: The port.
        certificate: The file of the server's TLS certificate; None leaves TLS to a proxy in front.
        key: The file of its key.

    Raises:
        FleetError: The packages of the extra `fleet` are not installed.
    """
    config = _config(fleet, options, host=host, port=port, ssl_certfile=certificate, ssl_keyfile=key)
    _uvicorn().Server(config).run()


@contextlib.contextmanager
def background(fleet: Fleet, options: ServerOptions | None = None) -> Iterator[str]:
    """Serve a fleet at a free port of this machine, in a thread; yields its URL. For tests and trials."""
    listening = socket.create_server(("127.0.0.1", 0))
    config = _config(fleet, options, log_level="warning")
    server = _uvicorn().Server(config)
    started = threading.Event()
    thread = threading.Thread(target=_run, args=(server, listening, started), daemon=True)
    thread.start()
    started.wait(30.0)
    try:
        if not server.started:
            raise FleetError("The server did not start.")
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listening.close()


def _run(server: Any, listening: socket.socket, started: threading.Event) -> None:
    import asyncio

    async def work() -> None:
        waiting = asyncio.create_task(server.serve(sockets=[listening]))
        while not server.started and not waiting.done():
            await asyncio.sleep(0.005)
        started.set()
        await waiting

    asyncio.run(work())


def _config(fleet: Fleet, options: ServerOptions | None, **values: Any) -> Any:
    uvicorn = _uvicorn()
    from edgeinfer.fleet.operator.server.app import create_app

    return uvicorn.Config(
        create_app(fleet, options),
        lifespan="on",
        access_log=False,
        server_header=False,
        ws="none",
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=_GRACE_S,
        **values,
    )


def _uvicorn() -> Any:
    try:
        import starlette  # noqa: F401
        import uvicorn
    except ImportError as error:
        raise FleetError(
            "Serving a fleet needs packages that are not installed.",
            found=str(error),
            hint="pip install 'edgeinfer[fleet]'",
        ) from error
    return uvicorn
