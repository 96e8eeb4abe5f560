"""Webhooks: each line of the audit log goes to the URLs that the operator named, in order, at least once."""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import threading
from collections.abc import Mapping, Sequence
from typing import Any, final

import sqlalchemy as sa

from edgeinfer.fleet.operator.store.database import Database, raise_value, value_of
from edgeinfer.fleet.operator.store.schema import audit

__all__ = ["Webhooks"]

_LOG = logging.getLogger(__name__)
_TIMEOUT_S = 10.0
_LONGEST_S = 300.0
_BATCH = 100


@final
class Webhooks:
    """Sends lines of the audit log. One that fails is tried again, later and later; the others go on.

    Each line is one POST of a JSON object with `id`, `at`, `rollout`, `actor`, `action`, `reason`. The header
    `Edgeinfer-Signature` is `sha256=` and the HMAC-SHA256 of the body.

    Args:
        database: The store; it keeps what was sent, so that a restart repeats one line at most.
        urls: Where to.
        secret: What they are signed with; None leaves them unsigned.
        interval: Seconds between two looks.
    """

    def __init__(
        self, database: Database, urls: Sequence[str], secret: str | None, *, interval: float = 1.0
    ) -> None:
        self._database = database
        self._secret = secret
        self._interval = interval
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._work, args=(url,), name="edgeinfer-webhook", daemon=True)
            for url in urls
        ]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """End after the line that is being sent."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _work(self, url: str) -> None:
        name = f"webhook/{hashlib.sha256(url.encode()).hexdigest()[:16]}"
        failures = 0
        while not self._stop.is_set():
            try:
                for line in self._next(name):
                    self._send(url, line)
                    with self._database.transaction() as connection:
                        raise_value(connection, name, line["id"])
                failures = 0
            except Exception as error:  # of the database, urllib3, sockets
                failures += 1
                _LOG.warning("a webhook waits: %s: %s", type(error).__name__, error)
            self._stop.wait(min(_LONGEST_S, self._interval * 2.0 ** min(failures, 12)))

    def _next(self, name: str) -> Sequence[Mapping[str, Any]]:
        with self._database.reading() as connection:
            sent = value_of(connection, name)
            newest = connection.execute(sa.select(sa.func.max(audit.c.id))).scalar() or 0
            statement = sa.select(audit).where(audit.c.id > sent).order_by(audit.c.id).limit(_BATCH)
            found = [dict(row) for row in connection.execute(statement).mappings()] if sent else []
        if not sent:  # a new hook hears what happens from now on
            with self._database.transaction() as connection:
                raise_value(connection, name, max(1, newest))
        return found

    def _send(self, url: str, line: Mapping[str, Any]) -> None:
        import urllib3

        body = json.dumps(dict(line), sort_keys=True).encode()
        headers = {"Content-Type": "application/json", "User-Agent": "edgeinfer"}
        if self._secret is not None:
            code = hmac.new(self._secret.encode(), body, hashlib.sha256).hexdigest()
            headers["Edgeinfer-Signature"] = f"sha256={code}"
        with urllib3.PoolManager(timeout=urllib3.Timeout(_TIMEOUT_S), retries=False) as pool:
            response = pool.request("POST", url, body=body, headers=headers, redirect=False)
        if not 200 <= response.status < 300:
            raise OSError(f"HTTP {response.status}")
