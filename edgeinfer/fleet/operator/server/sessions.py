"""Who may act: an operator who signed in with the token, or a program that sends it.

The session is a cookie that the server signs with a key derived from the token, so that a new token ends all
sessions. Forms carry a code of their session against forgery (CSRF), and the browser's own word on where a
request comes from (`Sec-Fetch-Site`, `Origin`) must agree.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
import time
from typing import final
from urllib.parse import urlsplit

import attrs
from starlette.requests import Request
from starlette.responses import Response

__all__ = ["COOKIE", "Sessions", "Visitor"]

COOKIE = "edgeinfer-session"
_LIFETIME_S = 12 * 3600
_NAME = re.compile(r"[^\w .@-]")


@final
@attrs.frozen(kw_only=True)
class Visitor:
    """Who asks.

    Attributes:
        name: For the audit log; empty for who may only read.
        csrf: What the forms of this session carry; empty where no form is needed, since a program sends the
            token with each request.
    """

    name: str = ""
    csrf: str = attrs.field(default="", repr=False)


@final
class Sessions:
    """Signs operators in and recognizes them.

    Args:
        token: The operators' token; None lets nobody in.
    """

    def __init__(self, token: str | None) -> None:
        self._token = token
        self._key = hashlib.sha256(b"edgeinfer session\0" + (token or secrets.token_hex()).encode()).digest()

    @property
    def is_possible(self) -> bool:
        """Whether anybody can sign in."""
        return self._token is not None

    def fits(self, token: str) -> bool:
        """Whether that is the token."""
        if self._token is None:
            return False
        ours, theirs = (
            hashlib.sha256(text.encode(errors="replace")).digest() for text in (self._token, token)
        )
        return hmac.compare_digest(ours, theirs)

    def visitor(self, request: Request) -> Visitor:
        """Return who asks."""
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and self.fits(token.strip()):
            return Visitor(name="token")
        payload, _, code = request.cookies.get(COOKIE, "").rpartition(".")
        if self._token is None or not hmac.compare_digest(self._code(payload).encode(), code.encode()):
            return Visitor()
        expires, _, name = base64.urlsafe_b64decode(payload).decode().partition(" ")
        if int(expires) < time.time():
            return Visitor()
        return Visitor(name=name, csrf=self._code("csrf " + payload))

    def sign_in(self, response: Response, name: str, *, secure: bool) -> None:
        """Give a visitor a session."""
        shown = _NAME.sub("", name).strip()[:64] or "operator"
        nonce = f"{int(time.time()) + _LIFETIME_S} {shown}"
        payload = base64.urlsafe_b64encode(nonce.encode()).decode()
        response.set_cookie(
            COOKIE,
            f"{payload}.{self._code(payload)}",
            max_age=_LIFETIME_S,
            httponly=True,
            samesite="strict",
            secure=secure,
        )

    def may_post(self, request: Request, visitor: Visitor, csrf: str) -> bool:
        """Whether a request that changes something comes from a page of ours, or from a program."""
        if not visitor.name:
            return False
        if not visitor.csrf:
            return True
        return is_same_site(request) and hmac.compare_digest(
            visitor.csrf.encode(), csrf.encode(errors="replace")
        )

    def _code(self, text: str) -> str:
        return hmac.new(self._key, text.encode(), hashlib.sha256).hexdigest()


def is_same_site(request: Request) -> bool:
    """Whether the browser says that a page of this server sent the request, or says nothing."""
    if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        return False
    origin = request.headers.get("origin")
    return origin is None or urlsplit(origin).netloc == request.headers.get("host")
