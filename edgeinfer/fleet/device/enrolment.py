"""`enroll`: a one-time token becomes a device's name, its key and its root of trust. `replace_key` renews it.

A token is `SECRET.VERSION.DIGEST`: the secret that the server takes once, and the version and SHA-256 of the
`root.json` that this device is to trust. So the server, and who sits between, cannot hand over a root of
their own.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from pathlib import Path
from typing import final
from urllib.parse import urlsplit

import attrs

from edgeinfer.artifact.decode import DecodeError, decode
from edgeinfer.fleet.device.documents import canonical_json, sha256
from edgeinfer.fleet.device.identity import DEVICE_NAME, Identity
from edgeinfer.fleet.device.local_files import replace_file
from edgeinfer.fleet.device.locations import open_location, read_bytes
from edgeinfer.fleet.device.trust import TrustedRepository
from edgeinfer.fleet.errors import AgentError, TransportError, TrustError
from edgeinfer.plain_json import parse_json

__all__ = ["EnrolmentToken", "enroll", "replace_key"]

_TOKEN = re.compile(r"([A-Za-z0-9_-]{22,})\.(\d{1,9})\.([0-9a-f]{64})\Z")
_TIMEOUT_S = 30.0
_MAX_BYTES = 1 << 16
_MAX_ROOT_BYTES = 1 << 20
_KEY_BYTES = 32


@final
@attrs.frozen(kw_only=True)
class EnrolmentToken:
    """What the operator gives to whoever sets a device up.

    Attributes:
        secret: What the server takes once.
        root_version: Of the `root.json` that is trusted.
        root_digest: Its SHA-256.
    """

    secret: str = attrs.field(repr=False)
    root_version: int
    root_digest: str

    @classmethod
    def parse(cls, text: str) -> EnrolmentToken:
        """Read what `str` wrote.

        Raises:
            AgentError: It is no token.
        """
        match = _TOKEN.match(text.strip())
        if match is None:
            raise AgentError(
                "That is no token of enrolment.",
                expected="SECRET.VERSION.DIGEST",
                hint="Make one: edgeinfer fleet enroll.",
            )
        return cls(secret=match[1], root_version=int(match[2]), root_digest=match[3])

    def __str__(self) -> str:
        return f"{self.secret}.{self.root_version}.{self.root_digest}"


@attrs.frozen(kw_only=True)
class _Answer:
    device: str = attrs.field(validator=attrs.validators.matches_re(DEVICE_NAME))
    incarnation: int
    device_class: str
    key: str


def enroll(folder: Path, url: str, token: str) -> Identity:
    """Make a device a member of a fleet: its identity and its root of trust are then in its folder.

    Args:
        folder: Of the agent, such as `/var/lib/edge`.
        url: Of the fleet's server: HTTPS, or HTTP on this machine.
        token: What `edgeinfer fleet enroll` printed.

    Raises:
        AgentError: It is no token, or the server refuses it.
        TrustError: The server's root is not the one of the token. The token is then not used.
        TransportError: The server cannot be reached, or it is not HTTPS.
    """
    _require_https(url)
    parsed = EnrolmentToken.parse(token)
    root = read_bytes(
        open_location(url), f"metadata/{parsed.root_version}.root.json", max_bytes=_MAX_ROOT_BYTES
    )
    if sha256(root) != parsed.root_digest:
        raise TrustError(
            "The server's root of trust is not the one of the token.",
            where=url,
            expected=parsed.root_digest,
            found=sha256(root),
        )
    folder.mkdir(parents=True, exist_ok=True)
    TrustedRepository(folder / "metadata", url, root=root)
    status, body = _post(f"{url.rstrip('/')}/enroll", canonical_json({"token": parsed.secret}))
    if status != 200:
        raise AgentError(
            "The server does not enrol this device.", where=url, found=f"HTTP {status}: {body[:200]!r}"
        )
    try:
        answer = decode(_Answer, parse_json(body), skip_unknown=True)
        identity = Identity(
            device=answer.device,
            incarnation=answer.incarnation,
            device_class=answer.device_class,
            key=answer.key,
        )
    except (ValueError, TypeError, DecodeError) as error:
        raise AgentError("The server's answer is not understood.", where=url, found=str(error)) from error
    identity.save(folder)
    return identity


def replace_key(folder: Path, url: str) -> Identity:
    """Make a new key for a device, and tell the server; a running agent takes it at its next start.

    It can be done again after any failure. Reports that were signed with the key before are accepted for a
    week.

    Args:
        folder: Of the agent.
        url: Of the fleet's server: HTTPS, or HTTP on this machine.

    Raises:
        AgentError: The device has no identity yet, or the server refuses.
        TransportError: The server cannot be reached, or it is not HTTPS.
    """
    _require_https(url)
    identity = Identity.load(folder)
    if identity is None:
        raise AgentError("This device has no identity yet.", where=str(folder), hint="Enroll it first.")
    draft = folder / "device.json.next"
    # Kept before it is told, so that an answer that is lost leaves no device with a key that nobody knows.
    if not draft.exists():
        replace_file(draft, secrets.token_bytes(_KEY_BYTES).hex().encode(), durable=True)
        draft.chmod(0o600)
    new = draft.read_text(encoding="ascii")
    body = canonical_json({"device": identity.device, "key": new})
    code = hmac.new(identity.key_bytes, body, hashlib.sha256).hexdigest()
    status, text = _post(f"{url.rstrip('/')}/keys/{identity.device}", body, {"Edgeinfer-Hmac": code})
    if status != 204:
        raise AgentError(
            "The server does not take the new key.", where=url, found=f"HTTP {status}: {text[:200]!r}"
        )
    renewed = attrs.evolve(identity, key=new)
    renewed.save(folder)
    draft.unlink()
    return renewed


def _require_https(url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme == "https" or (
        parts.scheme == "http" and parts.hostname in ("127.0.0.1", "::1", "localhost")
    ):
        return
    raise TransportError("Keys are exchanged over HTTPS only.", expected="https://…", found=url)


def _post(url: str, body: bytes, headers: dict[str, str] | None = None) -> tuple[int, bytes]:
    import urllib3

    sent = {"Content-Type": "application/json", "User-Agent": "edgeinfer", **(headers or {})}
    try:
        with urllib3.PoolManager(timeout=urllib3.Timeout(_TIMEOUT_S), retries=False) as pool:
            response = pool.request("POST", url, headers=sent, body=body, preload_content=False)
            data: bytes = response.read(_MAX_BYTES)
            response.close()
            return response.status, data
    except Exception as error:  # urllib3 has many, and http.client some of its own
        raise TransportError(
            f"The server cannot be reached: {type(error).__name__}: {error}", where=url
        ) from error
