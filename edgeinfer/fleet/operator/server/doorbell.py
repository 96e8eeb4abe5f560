"""The controller's side of the doorbell: rings when a device's document has changed."""

from __future__ import annotations

import secrets
from typing import Any, final

from edgeinfer.fleet.device.mqtt import DESIRED, ONLINE, QOS, make_client, start
from edgeinfer.fleet.operator.publisher import Shelf

__all__ = ["Bells", "RingingShelf"]

_EXPIRES_S = 60  # a ring that is older tells a device nothing that its poll did not


@final
class Bells:
    """Rings at devices, and hears which of them are connected to the broker.

    Args:
        url: Of the broker; see `edgeinfer.fleet.device.mqtt`.
        prefix: What the topics begin with.

    Attributes:
        online: The devices that are connected, as they and the broker say: for people, nothing depends on it.
    """

    def __init__(self, url: str, *, prefix: str = "edgeinfer") -> None:
        from paho.mqtt.packettypes import PacketTypes
        from paho.mqtt.properties import Properties

        self.online: set[str] = set()
        self._prefix = prefix
        self._properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        self._properties.MessageExpiryInterval = _EXPIRES_S
        self._client = make_client(url, f"{prefix}-controller-{secrets.token_hex(4)}")
        self._client.on_connect = self._on_connect
        self._client.on_message = self._on_message
        start(self._client, url)

    @property
    def is_connected(self) -> bool:
        """Whether the broker is reached now."""
        return bool(self._client.is_connected())

    def ring(self, device: str) -> None:
        """Tell a device to look; nothing is waited for."""
        self._client.publish(f"{self._prefix}/{DESIRED}/{device}", qos=QOS, properties=self._properties)

    def close(self) -> None:
        """Disconnect."""
        self._client.disconnect()
        self._client.loop_stop()

    def _on_connect(self, client: Any, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        self.online.clear()
        if not reason.is_failure:
            client.subscribe(f"{self._prefix}/{ONLINE}/+", qos=QOS)

    def _on_message(self, _client: Any, _data: Any, message: Any) -> None:
        device = message.topic.rpartition("/")[2]
        (self.online.add if message.payload == b"1" else self.online.discard)(device)


@final
class RingingShelf:
    """A shelf of documents that rings at the device of each."""

    def __init__(self, shelf: Shelf, bells: Bells) -> None:
        self._shelf = shelf
        self._bells = bells

    def put(self, device: str, document: bytes) -> None:
        """See `Shelf`."""
        self._shelf.put(device, document)
        self._bells.ring(device)

    def anchor(self) -> int:
        """See `Shelf`."""
        return self._shelf.anchor()

    def set_anchor(self, number: int) -> None:
        """See `Shelf`."""
        self._shelf.set_anchor(number)
