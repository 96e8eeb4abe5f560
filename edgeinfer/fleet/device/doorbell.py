"""`Doorbell`: an MQTT broker tells a device to look for documents now, rather than at its next poll.

It carries nothing else. Who rings without a right makes the device look once a second at most; a ring that is
lost, or a broker that is away, costs the time until the next poll.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from typing import Any, final

from edgeinfer.fleet.device.desired import Desired
from edgeinfer.fleet.device.mqtt import DESIRED, ONLINE, QOS, make_client, start
from edgeinfer.fleet.device.transport import Transport

__all__ = ["Doorbell", "RungTransport", "with_doorbell"]

_LOG = logging.getLogger("edgeinfer.agent")
_LEAST_S = 1.0  # between two rings that are heard


@final
class Doorbell:
    """Rings of one device.

    Args:
        url: Of the broker; see `edgeinfer.fleet.device.mqtt`.
        device: The device's name.
        prefix: What the topics begin with.

    Raises:
        TransportError: The URL is none, or the package paho-mqtt is not installed.
    """

    def __init__(self, url: str, device: str, *, prefix: str = "edgeinfer") -> None:
        self._rang = threading.Event()
        self._heard = -_LEAST_S
        self._topic = f"{prefix}/{DESIRED}/{device}"
        self._online = f"{prefix}/{ONLINE}/{device}"
        # One name, one connection: a clone and its original disconnect each other, which the log shows.
        self._client = make_client(url, f"{prefix}-{device}")
        self._client.will_set(self._online, b"0", qos=QOS, retain=True)
        self._client.on_connect = self._on_connect
        self._client.on_message = self._on_message
        self._client.on_disconnect = self._on_disconnect
        start(self._client, url)

    @property
    def is_connected(self) -> bool:
        """Whether the broker is reached now."""
        return bool(self._client.is_connected())

    def wait(self, seconds: float) -> bool:
        """Wait for a ring, at most so many seconds; return whether it rang.

        A ring that comes sooner than a second after the one before is told by a later call, if not by this.
        """
        end = time.monotonic() + seconds
        if not self._rang.wait(seconds):
            return False
        early, left = (max(0.0, at - time.monotonic()) for at in (self._heard + _LEAST_S, end))
        time.sleep(min(early, left))
        if early > left:
            return False
        self._rang.clear()
        self._heard = time.monotonic()
        return True

    def close(self) -> None:
        """Say goodbye, and disconnect."""
        if self._client.is_connected():
            self._client.publish(self._online, b"0", qos=QOS, retain=True).wait_for_publish(2.0)
        self._client.disconnect()
        self._client.loop_stop()

    def _on_connect(self, client: Any, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        if reason.is_failure:
            _LOG.warning("the doorbell's broker refuses: %s", reason)
            return
        client.subscribe(self._topic, qos=QOS)
        client.publish(self._online, b"1", qos=QOS, retain=True)
        self._rang.set()  # what was rung meanwhile is lost

    def _on_message(self, _client: Any, _data: Any, _message: Any) -> None:
        self._rang.set()

    def _on_disconnect(self, _client: Any, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        if reason.is_failure:
            _LOG.info("the doorbell is disconnected: %s", reason)


@final
class RungTransport:
    """A transport whose `wait` ends when the doorbell rings."""

    def __init__(self, transport: Transport, doorbell: Doorbell) -> None:
        self._transport = transport
        self._doorbell = doorbell

    def desired(self, etag: str | None) -> Desired | None:
        """See `Transport`."""
        return self._transport.desired(etag)

    def send(self, reports: Sequence[bytes]) -> int:
        """See `Transport`."""
        return self._transport.send(reports)

    def wait(self, seconds: float) -> bool:
        """See `Transport`."""
        return self._doorbell.wait(seconds)

    def close(self) -> None:
        """See `Transport`."""
        self._doorbell.close()
        self._transport.close()


def with_doorbell(transport: Transport, url: str | None, device: str) -> Transport:
    """Return a transport that a broker rings at; without a URL, the transport itself."""
    return transport if url is None else RungTransport(transport, Doorbell(url, device))
