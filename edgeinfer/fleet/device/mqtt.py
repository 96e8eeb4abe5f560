"""A client of an MQTT 5 broker, as devices and controllers use it: a URL, TLS, and a last will.

mqtt://[USER:PASSWORD@]HOST[:1883]
mqtts://[USER:PASSWORD@]HOST[:8883][?ca=FILE&cert=FILE&key=FILE]     ca: None: the system's authorities
"""

from __future__ import annotations

import logging
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from edgeinfer.fleet.errors import TransportError

__all__ = ["DESIRED", "ONLINE", "QOS", "make_client", "start"]

_LOG = logging.getLogger("edgeinfer.mqtt")
DESIRED, ONLINE = (
    "desired",
    "online",
)  # PREFIX/desired/DEVICE rings; PREFIX/online/DEVICE is 1 or, as last will, 0
QOS = 1
_KEEPALIVE_S = 60
_PORTS = {"mqtt": 1883, "mqtts": 8883}


def make_client(url: str, client_id: str) -> Any:
    """Return a paho client for the broker of a URL, not connected yet.

    Raises:
        TransportError: The URL is none of a broker, or the package paho-mqtt is not installed.
    """
    try:
        from paho.mqtt.client import Client, MQTTv5
        from paho.mqtt.enums import CallbackAPIVersion
    except ImportError as error:
        raise TransportError(
            "The doorbell needs a package that is not installed.", where=url, hint="pip install paho-mqtt"
        ) from error
    parts = urlsplit(url)
    if parts.scheme not in _PORTS or not parts.hostname:
        raise TransportError(
            "That is no URL of an MQTT broker.",
            expected="mqtt://HOST or mqtts://HOST",
            found=parts.scheme or "none",
        )
    client = Client(CallbackAPIVersion.VERSION2, client_id=client_id, protocol=MQTTv5)
    if parts.username is not None:
        client.username_pw_set(unquote(parts.username), unquote(parts.password or ""))
    if parts.scheme == "mqtts":
        files = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        try:
            client.tls_set(ca_certs=files.get("ca"), certfile=files.get("cert"), keyfile=files.get("key"))
        except (OSError, ValueError) as error:
            raise TransportError("The broker's certificates cannot be read.", found=str(error)) from error
    client.reconnect_delay_set(min_delay=1, max_delay=120)
    client.max_queued_messages_set(10_000)  # to a broker that is away; what is lost is polled for
    return client


def start(client: Any, url: str) -> None:
    """Connect in the background, again and again until it succeeds; a broker that is away stops nobody."""
    parts = urlsplit(url)
    # A new session each time: a resumed one has a queue that the broker may have cut (its default is 1,000).
    client.connect_async(
        parts.hostname, parts.port or _PORTS[parts.scheme], keepalive=_KEEPALIVE_S, clean_start=True
    )
    client.loop_start()
