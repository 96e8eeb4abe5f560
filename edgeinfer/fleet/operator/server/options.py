"""`ServerOptions`: what a server of a fleet is allowed and told."""

from __future__ import annotations

from typing import Any, final

import attrs

from edgeinfer.errors import OptionsError
from edgeinfer.values import as_tuple

__all__ = ["ServerOptions"]

_LEAST_TOKEN = 16


@final
@attrs.frozen(kw_only=True)
class ServerOptions:
    """How a fleet is served.

    Attributes:
        token: What an operator signs in with, at least 16 characters. None: the page can only be read.
        controller: Whether this process is a controller, too: it moves rollouts on and publishes documents.
        interval: Seconds between two rounds of the controller.
        doorbell: An MQTT broker, `mqtt://` or `mqtts://`, that tells devices to look; None for none.
        doorbell_prefix: What the topics begin with.
        webhooks: URLs that each line of the audit log is sent to.
        webhook_secret: What the webhooks are signed with (HMAC-SHA256); None leaves them unsigned.
        max_body_bytes: The largest request that is read.
        max_waiting: How many reports may wait for the database before devices are told to come again.
    """

    token: str | None = attrs.field(default=None, repr=False)
    controller: bool = True
    interval: float = attrs.field(default=5.0, validator=attrs.validators.gt(0))
    doorbell: str | None = attrs.field(default=None, repr=False)  # it may hold a password
    doorbell_prefix: str = "edgeinfer"
    webhooks: tuple[str, ...] = attrs.field(default=(), converter=as_tuple)
    webhook_secret: str | None = attrs.field(default=None, repr=False)
    max_body_bytes: int = attrs.field(default=8 << 20, validator=attrs.validators.ge(1))
    max_waiting: int = attrs.field(default=50_000, validator=attrs.validators.ge(1))

    @token.validator
    def _long(self, _: object, value: Any) -> None:
        if value is not None and len(value) < _LEAST_TOKEN:
            raise OptionsError(
                "The operator's token is too short.",
                expected=f"at least {_LEAST_TOKEN} characters",
                found=f"{len(value)} characters",
                hint="Make one: python -c 'import secrets; print(secrets.token_urlsafe(32))'.",
            )
