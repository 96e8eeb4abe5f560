"""The HTTP application of a fleet: which path does what.

GET  /desired/DEVICE.json  /metadata/…  /targets/…  /blobs/…      for devices, CDNs and mirrors
POST /reports  /reports/DEVICE  /enroll  /keys/DEVICE             for devices and gateways
GET  /  /rollouts/N  /devices  /events                            the page
POST /login  /logout  /rollouts/N/ACTION                          with the operator's token
GET  /metrics  /healthz                                           for monitoring
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from edgeinfer.fleet.operator.fleet import Fleet
from edgeinfer.fleet.operator.server.controlling import ControllerThread
from edgeinfer.fleet.operator.server.doorbell import Bells
from edgeinfer.fleet.operator.server.enrolling import Enroller
from edgeinfer.fleet.operator.server.files import Files
from edgeinfer.fleet.operator.server.intake import Intake
from edgeinfer.fleet.operator.server.options import ServerOptions
from edgeinfer.fleet.operator.server.receiving import Receiver

__all__ = ["create_app"]


def create_app(fleet: Fleet, options: ServerOptions | None = None) -> Starlette:
    """Return the application; its threads run while it is served (its lifespan).

    Args:
        fleet: The fleet.
        options: How it is served.
    """
    options = options or ServerOptions()
    files = Files(fleet.repository.storage)
    intake = Intake(fleet.database, max_waiting=options.max_waiting)
    receiver = Receiver(intake, options.max_body_bytes)
    enroller = Enroller(fleet.database)

    @contextlib.asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        with contextlib.ExitStack() as stack:
            stack.callback(intake.close)
            bells = Bells(options.doorbell, prefix=options.doorbell_prefix) if options.doorbell else None
            if bells is not None:
                stack.callback(bells.close)
            if options.controller:
                stack.callback(ControllerThread(fleet, options.interval, bells).close)
            yield

    return Starlette(
        routes=[
            _get("/desired/{name}", files.desired),
            _get("/metadata/{path:path}", files.metadata),
            _get("/targets/{path:path}", files.target),
            _get("/blobs/{path:path}", files.blob),
            _post("/reports", receiver.reports),
            _post("/reports/{device}", receiver.reports),
            _post("/enroll", enroller.enroll),
            _post("/keys/{device}", enroller.replace_key),
            _get("/healthz", _healthy),
        ],
        lifespan=lifespan,
    )


async def _healthy(_: Request) -> Response:
    return PlainTextResponse("ok\n")


def _get(path: str, endpoint: Any) -> Route:
    return Route(path, endpoint, methods=["GET"])


def _post(path: str, endpoint: Any) -> Route:
    return Route(path, endpoint, methods=["POST"])
