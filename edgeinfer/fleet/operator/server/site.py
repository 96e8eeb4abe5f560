"""The page of those who operate a fleet: to read for everyone who reaches it, to act with the token."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import final
from urllib.parse import parse_qs

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from edgeinfer.errors import EdgeInferError, FleetError
from edgeinfer.fleet.operator.fleet import Fleet
from edgeinfer.fleet.operator.pictures import canary_picture, legend
from edgeinfer.fleet.operator.record import State
from edgeinfer.fleet.operator.regression import Regression
from edgeinfer.fleet.operator.rollout import Rollout
from edgeinfer.fleet.operator.server import overview, pages
from edgeinfer.fleet.operator.server.bodies import TooLarge, answer, read_body
from edgeinfer.fleet.operator.server.sessions import COOKIE, Sessions, Visitor, is_same_site

__all__ = ["Site"]

_MOST_BYTES = 16 << 10
_ACTIONS = ("start", "pause", "hold", "resume", "approve", "abort", "rollback")


@final
class Site:
    """The pages.

    Args:
        fleet: The fleet.
        token: What operators sign in with; None lets nobody act.
        acted: Called after something was done, such as to wake the controller.
    """

    def __init__(self, fleet: Fleet, token: str | None, acted: Callable[[], object]) -> None:
        self._fleet = fleet
        self._sessions = Sessions(token)
        self._acted = acted

    async def rollouts(self, request: Request) -> Response:
        """GET /: all rollouts, and what devices said last."""
        return self._page(request, "Rollouts", await run_in_threadpool(self._rollouts))

    async def rollout(self, request: Request) -> Response:
        """GET /rollouts/N."""
        number = request.path_params["number"]
        try:
            title, body, state = await run_in_threadpool(self._rollout, number)
        except FleetError:
            return self._page(request, "There is no such rollout", "", status=404)
        visitor = self._sessions.visitor(request)
        if visitor.csrf:
            body += pages.actions_form(number, _possible(state), visitor.csrf)
        return self._page(request, title, body)

    async def devices(self, request: Request) -> Response:
        """GET /devices."""
        return self._page(request, "Devices", await run_in_threadpool(self._devices))

    async def device(self, request: Request) -> Response:
        """GET /devices/NAME."""
        name = request.path_params["name"]
        return self._page(request, f"Device {name}", await run_in_threadpool(self._device, name))

    async def login(self, request: Request) -> Response:
        """GET /login: the form; POST: sign in."""
        if request.method == "GET":
            return self._page(request, "Sign in", pages.login_form())
        fields = await _form(request)
        if fields is None or not is_same_site(request):
            return answer(400, error="that form is refused")
        if not self._sessions.fits(fields.get("token", "")):
            return self._page(request, "Sign in", pages.login_form(wrong=True), status=403)
        response = RedirectResponse("/", 303)
        self._sessions.sign_in(response, fields.get("name", ""), secure=request.url.scheme == "https")
        return response

    async def logout(self, request: Request) -> Response:
        """POST /logout."""
        response = RedirectResponse("/", 303)
        if is_same_site(request):
            response.delete_cookie(COOKIE)
        return response

    async def act(self, request: Request) -> Response:
        """POST /rollouts/N/ACTION."""
        number, action = request.path_params["number"], request.path_params["action"]
        fields = await _form(request)
        visitor = self._sessions.visitor(request)
        if fields is None or action not in _ACTIONS:
            return answer(400, error="that form is refused")
        if not self._sessions.may_post(request, visitor, fields.get("csrf", "")):
            return answer(403, error="sign in first, and act from this page")
        try:
            await run_in_threadpool(self._act, number, action, fields.get("reason", ""), visitor)
        except EdgeInferError as error:
            if not visitor.csrf:
                return answer(409, error=str(error))
            return self._page(request, "That was not done", f"<pre>{escape(str(error))}</pre>", status=409)
        self._acted()
        return answer(200, done=action) if not visitor.csrf else RedirectResponse(f"/rollouts/{number}", 303)

    def _act(self, number: int, action: str, reason: str, visitor: Visitor) -> None:
        rollout = Rollout(self._fleet.database, number)
        if action == "start":
            rollout.start(actor=visitor.name)
        else:
            getattr(rollout, action)(reason=reason, actor=visitor.name)

    def _rollouts(self) -> str:
        rows = []
        for status in (rollout.status() for rollout in reversed(self._fleet.rollouts[-20:])):
            record = status.record
            bars = "".join(pages._bar(counts) for counts in status.stages)
            rows.append(
                (
                    _link("rollouts", str(record.id)),
                    record.model,
                    record.release_version,
                    pages.Html(f"<span class='state'>{escape(status.state)}</span>"),
                    pages.Html(bars),
                )
            )
        with self._fleet.database.reading() as connection:
            said, audit = (
                overview.last_reports(connection, limit=15),
                overview.audit_lines(connection, limit=15),
            )
        columns = ("rollout", "model", "version", "state", "one bar a stage")
        return (
            pages.table(columns, rows, empty="No rollout was planned yet: edgeinfer fleet rollout plan.")
            + (legend() if rows else "")
            + f"<h2>What devices said last</h2>{pages.report_table(said)}"
            + f"<h2>Audit log</h2>{pages.audit_table(audit)}"
        )

    def _rollout(self, number: int) -> tuple[str, str, State]:
        status = Rollout(self._fleet.database, number).status()
        record = status.record
        pictures = []
        with self._fleet.database.reading() as connection:
            classes: dict[str, dict[str, int]] = {}
            for row in overview.members_by_class(connection, number):
                classes.setdefault(row["device_class"], {})[row["outcome"]] = int(row["devices"])
            failures = overview.failures(connection, number, record.model)
            for gate in record.specification.gates:
                if isinstance(gate, Regression):
                    stage = min(record.stage, record.last)
                    pictures.append(
                        canary_picture(gate, *overview.changes(connection, number, stage, gate.metric))
                    )
            audit = overview.audit_lines(connection, number)
        body = pages.rollout_page(status, classes, failures, pictures, audit)
        return f"Rollout {number} of {record.model} {record.release_version}", body, record.state

    def _devices(self) -> str:
        with self._fleet.database.reading() as connection:
            classes, flags = overview.by_class(connection), overview.flagged(connection)
        counted = [
            (row["device_class"] or "(none)", row["phase"] or "nothing", row["devices"]) for row in classes
        ]
        flagged = [(_link("devices", row["device"]), row["site"], row["flag"]) for row in flags]
        return (
            pages.table(
                ("class", "phase of the last update", "devices"), counted, empty="No device is enrolled yet."
            )
            + "<h2>To be looked at</h2>"
            + pages.table(("device", "site", "why"), flagged)
        )

    def _device(self, name: str) -> str:
        with self._fleet.database.reading() as connection:
            said = overview.last_reports(connection, name)
        return pages.report_table(said)

    def _page(self, request: Request, title: str, body: str, *, status: int = 200) -> Response:
        visitor = self._sessions.visitor(request)
        nonce = secrets.token_urlsafe(16)
        text = pages.document(
            title, body, nonce=nonce, user=visitor.name, can_sign_in=self._sessions.is_possible
        )
        return HTMLResponse(text, status, _headers(nonce))


def _headers(nonce: str) -> Mapping[str, str]:
    policy = (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'nonce-{nonce}'; connect-src 'self'; "
        "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
    )
    return {
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "same-origin",
        "Cache-Control": "no-store",
    }


def _possible(state: State) -> Sequence[str]:
    """Return what can be done with a rollout in this state; the commands themselves decide."""
    if state in (State.PAUSED, State.HELD, State.FAILED):
        return ("resume", "abort", "rollback")
    return {
        State.DRAFT: ("start",),
        State.RUNNING: ("pause", "hold", "abort", "rollback"),
        State.AWAITING_APPROVAL: ("approve", "pause", "hold", "abort", "rollback"),
        State.COMPLETED: ("rollback",),
        State.ABORTED: ("rollback",),
    }.get(state, ())


def _link(folder: str, name: str) -> pages.Html:
    return pages.Html(f"<a href='/{folder}/{escape(name)}'>{escape(name)}</a>")


async def _form(request: Request) -> Mapping[str, str] | None:
    """Return the fields of a form; None where it is too large or none."""
    try:
        text = (await read_body(request, _MOST_BYTES)).decode()
        return {name: values[-1] for name, values in parse_qs(text, max_num_fields=20).items()}
    except (TooLarge, ValueError):
        return None
