"""How devices come into the fleet and out of it: tokens, keys that follow one another, and revocation.

A token is a secret for one device and one use; the store keeps its digest alone. When a key is replaced, the
one before goes on for a while, since reports that wait on the device were signed with it.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Mapping
from typing import Any, final

import attrs
import sqlalchemy as sa

from edgeinfer.errors import FleetError
from edgeinfer.fleet.device.identity import DEVICE_NAME
from edgeinfer.fleet.device.reports import Report, SignedReport
from edgeinfer.fleet.errors import BadSignatureError, DocumentError
from edgeinfer.fleet.operator.store.database import Database, dumps, next_value, upsert
from edgeinfer.fleet.operator.store.rollouts import note
from edgeinfer.fleet.operator.store.schema import devices, metadata, slots
from edgeinfer.fleet.operator.store.slots import lock_devices

__all__ = [
    "Enrolled",
    "TokenError",
    "create_token",
    "earlier_keys",
    "forget_keys",
    "redeem",
    "replace_key",
    "tokens",
    "verify_report",
]

KEY_BYTES = 32
GRACE_S = 7 * 86_400  # how long the key before is accepted: reports may wait on a device that is offline
_MOST = 1 << 53  # numbers above it are no counters, and databases refuse them

tokens = sa.Table(
    "enrolment_tokens",
    metadata,
    sa.Column("digest", sa.Text, primary_key=True),
    sa.Column("device", sa.Text, nullable=False),
    sa.Column("device_class", sa.Text, nullable=False, server_default=""),
    sa.Column("site", sa.Text, nullable=False, server_default=""),
    sa.Column("labels", sa.Text, nullable=False, server_default="{}"),
    sa.Column("expires_at", sa.BigInteger, nullable=False),
    sa.Column("used_at", sa.BigInteger, nullable=True),
    sa.Index("enrolment_tokens_of_device", "device"),
)

earlier_keys = sa.Table(
    "earlier_keys",
    metadata,
    sa.Column("device", sa.Text, primary_key=True),
    sa.Column("key", sa.LargeBinary, nullable=False),
    sa.Column("until", sa.BigInteger, nullable=False),
)


class TokenError(FleetError):
    """A token or a key is refused: unknown, expired, used before, or revoked."""


@final
@attrs.frozen(kw_only=True)
class Enrolled:
    """What a device is told when it is enrolled.

    Attributes:
        device: Its name.
        incarnation: Of its life: greater than before if it was known.
        device_class: Its class.
        key: What its reports are signed with.
    """

    device: str
    incarnation: int
    device_class: str
    key: bytes = attrs.field(repr=False)


def create_token(
    database: Database,
    device: str,
    *,
    device_class: str = "",
    site: str = "",
    labels: Mapping[str, str] | None = None,
    lifetime_s: int = 86_400,
) -> str:
    """Return a secret that enrols a device once; tokens of it that were not used are void.

    Args:
        database: The store.
        device: Its name.
        device_class: Its hardware class.
        site: Where it stands.
        labels: Further facts that stages select by.
        lifetime_s: How long the token can be used, in seconds.

    Raises:
        FleetError: That is no name of a device.
    """
    if not DEVICE_NAME.match(device):
        raise FleetError(
            "That is no name of a device.", expected="letters, digits, . _ -, at most 128", found=device
        )
    secret = secrets.token_urlsafe(KEY_BYTES)

    def work(connection: sa.Connection) -> None:
        now = database.now(connection)
        unused = (tokens.c.device == device, tokens.c.used_at.is_(None))
        connection.execute(sa.delete(tokens).where(*unused))
        row = {
            "digest": _digest(secret),
            "device": device,
            "device_class": device_class,
            "site": site,
            "labels": dumps(dict(labels or {})),
            "expires_at": now + lifetime_s,
        }
        connection.execute(sa.insert(tokens), [row])

    database.retrying(work)
    return secret


def redeem(database: Database, secret: str) -> Enrolled:
    """Enrol the device of a token, and return its new key. The token is used up.

    Raises:
        TokenError: It is unknown, expired or used. A device whose token comes a second time is flagged:
            somebody else has its token.
    """

    def work(connection: sa.Connection) -> Enrolled | TokenError:
        now = database.now(connection)
        found = (
            connection.execute(database.locked(sa.select(tokens).where(tokens.c.digest == _digest(secret))))
            .mappings()
            .first()
        )
        if found is None:
            return TokenError("The token is not known.", hint="Make one: edgeinfer fleet enroll.")
        device = found["device"]
        if found["used_at"] is not None:
            connection.execute(
                sa.update(devices).where(devices.c.device == device).values(flag="token used twice")
            )
            _note(connection, now, device, "a token that was used before came again")
            return TokenError("The token was used before.", where=device)
        if found["expires_at"] <= now:
            return TokenError("The token has expired.", where=device)
        connection.execute(sa.update(tokens).where(tokens.c.digest == found["digest"]).values(used_at=now))
        return _enrol(connection, dict(found), now)

    result = database.retrying(work)
    if isinstance(result, TokenError):
        raise result
    return result


def _enrol(connection: sa.Connection, token: Mapping[str, Any], now: int) -> Enrolled:
    device = token["device"]
    before = lock_devices(connection, [device]).get(device)
    enrolled = Enrolled(
        device=device,
        incarnation=1 if before is None else before["incarnation"] + 1,
        device_class=token["device_class"],
        key=secrets.token_bytes(KEY_BYTES),
    )
    row = {
        "device": device,
        "incarnation": enrolled.incarnation,
        "device_class": token["device_class"],
        "site": token["site"],
        "labels": token["labels"],
        "key": enrolled.key,
        "enrolled_at": now,
        "deleted_at": None,
        "flag": "" if before is None else "reflashed",
    }
    columns = tuple(name for name in row if name != "device")
    connection.execute(upsert(connection.dialect.name, devices, columns), [row])
    connection.execute(sa.delete(earlier_keys).where(earlier_keys.c.device == device))
    if before is not None:  # its new life gets its documents again
        _begin_again(connection, device)
    next_value(connection, "enrolled")
    _note(connection, now, device, f"life {enrolled.incarnation} began with a token")
    return enrolled


def _begin_again(connection: sa.Connection, device: str) -> None:
    connection.execute(
        sa.update(slots)
        .where(slots.c.device == device)
        .values(sequence=0, fingerprint="", running="", committed="")
    )
    connection.execute(
        sa.update(devices).where(devices.c.device == device).values(wanted=devices.c.wanted + 1)
    )


def replace_key(database: Database, device: str, body: bytes, code: str, new: bytes) -> None:
    """Take over the key that a device made for itself; the one before goes on for a week.

    Args:
        database: The store.
        device: Its name.
        body: What the device signed; it holds `new`.
        code: The HMAC-SHA256 of `body` with the present key, in hexadecimal.
        new: The new key.

    Raises:
        TokenError: The device is not enrolled, or did not sign with its present key.
    """

    def work(connection: sa.Connection) -> bool:
        row = lock_devices(connection, [device]).get(device)
        if row is None or row["deleted_at"] is not None:
            return False
        now = database.now(connection)
        if not _signed(row["key"], body, code):
            # The answer to an earlier attempt may have been lost: the same again changes nothing.
            before = _earlier(connection, device, now)
            return before is not None and _signed(before, body, code) and row["key"] == new
        if row["key"] == new:
            return True
        connection.execute(sa.update(devices).where(devices.c.device == device).values(key=new))
        kept = {"device": device, "key": row["key"], "until": now + GRACE_S}
        connection.execute(upsert(connection.dialect.name, earlier_keys, ("key", "until")), [kept])
        _note(connection, now, device, "its key was replaced")
        return True

    if not database.retrying(work):
        raise TokenError("The device is not enrolled, or that was not signed with its key.", where=device)


def forget_keys(database: Database, device: str) -> None:
    """Make all keys and tokens of a device void. They never become valid again."""

    def work(connection: sa.Connection) -> None:
        gone = {"key": secrets.token_bytes(KEY_BYTES)}
        connection.execute(sa.update(devices).where(devices.c.device == device).values(gone))
        connection.execute(sa.delete(earlier_keys).where(earlier_keys.c.device == device))
        connection.execute(sa.delete(tokens).where(tokens.c.device == device, tokens.c.used_at.is_(None)))
        _note(connection, database.now(connection), device, "its keys were revoked")

    database.retrying(work)


def verify_report(connection: sa.Connection, row: sa.RowMapping, signed: SignedReport, now: int) -> Report:
    """Return a report that was signed with a key of its device: the present one, or the one before.

    Raises:
        BadSignatureError: It was not.
        DocumentError: It is no report, or has what no database keeps.
    """
    try:
        report = signed.verified(row["key"])
    except BadSignatureError:
        before = _earlier(connection, row["device"], now)
        if before is None:
            raise
        report = signed.verified(before)
    numbers = (report.incarnation, report.sequence, report.at, *report.generation)
    if not all(0 <= number < _MOST for number in numbers):
        raise DocumentError("The report has a counter that is none.", where=report.device)
    return report


def _earlier(connection: sa.Connection, device: str, now: int) -> bytes | None:
    statement = sa.select(earlier_keys.c.key).where(
        earlier_keys.c.device == device, earlier_keys.c.until > now
    )
    return connection.execute(statement).scalar()


def _signed(key: bytes, body: bytes, code: str) -> bool:
    return hmac.compare_digest(hmac.new(key, body, hashlib.sha256).hexdigest().encode(), code.encode())


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _note(connection: sa.Connection, now: int, device: str, what: str) -> None:
    note(connection, now=now, rollout=None, actor="enrolment", action="enrolment", reason=f"{device}: {what}")
