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
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from edgeinfer.fleet.operator.fleet import Fleet
from edgeinfer.fleet.operator.server.controlling import ControllerThread
from edgeinfer.fleet.operator.server.doorbell import Bells
from edgeinfer.fleet.operator.server.enrolling import Enroller
from edgeinfer.fleet.operator.server.events import Events
from edgeinfer.fleet.operator.server.files import Files
from edgeinfer.fleet.operator.server.intake import Intake
from edgeinfer.fleet.operator.server.metrics import Metrics
from edgeinfer.fleet.operator.server.options import ServerOptions
from edgeinfer.fleet.operator.server.receiving import Receiver
from edgeinfer.fleet.operator.server.site import Site
from edgeinfer.fleet.operator.server.webhooks import Webhooks

__all__ = ["create_app"]


def create_app(fleet: Fleet, options: ServerOptions | None = None) -> Starlette:
    """Return the application; its threads run while it is served (its lifespan).

    Args:
        fleet: The fleet.
        options: How it is served.
    """
    options = options or ServerOptions()
    database = fleet.database
    files, enroller, events = Files(fleet.repository.storage), Enroller(database), Events(database)
    intake = Intake(database, max_waiting=options.max_waiting)
    receiver, metrics = Receiver(intake, options.max_body_bytes), Metrics(database, intake)

    def acted() -> None:
        if metrics.controller is not None:
            metrics.controller.wake()

    @contextlib.asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        with contextlib.ExitStack() as stack:
            stack.callback(intake.close)
            if options.doorbell is not None:
                metrics.bells = Bells(options.doorbell, prefix=options.doorbell_prefix)
                stack.callback(metrics.bells.close)
            if options.controller:
                metrics.controller = ControllerThread(fleet, options.interval, metrics.bells)
                stack.callback(metrics.controller.close)
            if options.webhooks:
                hooks = Webhooks(database, options.webhooks, options.webhook_secret)
                stack.callback(hooks.close)
            yield
            await events.close()

    async def figures(_: Request) -> Response:
        text = await run_in_threadpool(metrics.text)
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")

    site = Site(fleet, options.token, acted)
    routes = [
        _get("/desired/{name}", files.desired),
        _get("/metadata/{path:path}", files.metadata),
        _get("/targets/{path:path}", files.target),
        _get("/blobs/{path:path}", files.blob),
        _post("/reports", receiver.reports),
        _post("/reports/{device}", receiver.reports),
        _post("/enroll", enroller.enroll),
        _post("/keys/{device}", enroller.replace_key),
        _get("/", site.rollouts),
        _get("/rollouts/{number:int}", site.rollout),
        _post("/rollouts/{number:int}/{action}", site.act),
        _get("/devices", site.devices),
        _get("/devices/{name}", site.device),
        _get("/login", site.login),
        _post("/login", site.login),
        _post("/logout", site.logout),
        _get("/events", events.events),
        _get("/metrics", figures),
        _get("/healthz", _healthy),
    ]
    return Starlette(routes=routes, lifespan=lifespan)


async def _healthy(_: Request) -> Response:
    return PlainTextResponse("ok\n")


def _get(path: str, endpoint: Any) -> Route:
    return Route(path, endpoint, methods=["GET"])


def _post(path: str, endpoint: Any) -> Route:
    return Route(path, endpoint, methods=["POST"])
