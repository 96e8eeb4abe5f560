"""The doorbell, with a real broker: it only says "look again", and everything works without it."""

from __future__ import annotations

import datetime as dt
import ipaddress
import logging

import pytest

from edgeinfer.fleet.device.doorbell import Doorbell
from edgeinfer.fleet.device.mqtt import make_client
from edgeinfer.fleet.errors import TransportError
from edgeinfer.fleet.operator.server.doorbell import Bells, RingingShelf
from edgeinfer.fleet.operator.simulator.world import MemoryShelf
from tests.fleet.served import Broker, broker, until


@pytest.fixture(scope="module")
def mosquitto(tmp_path_factory):
    with broker(tmp_path_factory.mktemp("broker")) as found:
        yield found


def connected(url, device="d"):
    bell = Doorbell(url, device)
    until(lambda: bell.is_connected)
    while bell.wait(0.2):  # connecting rings: what was rung before is lost
        pass
    return bell


def test_a_new_document_rings_at_its_device_alone(mosquitto):
    own, other = connected(mosquitto.url, "own"), connected(mosquitto.url, "other")
    bells = Bells(mosquitto.url)
    until(lambda: bells.is_connected)
    shelf = RingingShelf(MemoryShelf(), bells)
    shelf.put("own", b"{}")
    assert own.wait(10.0)
    assert not other.wait(0.3)
    for each in (own, other, bells):
        each.close()


def test_the_last_will_says_who_is_gone(mosquitto):
    bells = Bells(mosquitto.url)
    staying, dying = connected(mosquitto.url, "staying"), connected(mosquitto.url, "dying")
    until(lambda: bells.online >= {"staying", "dying"})
    dying._client._sock_close()  # as after a power loss: no goodbye
    dying._client.loop_stop()
    until(lambda: "dying" not in bells.online)
    assert "staying" in bells.online
    staying.close()
    until(lambda: "staying" not in bells.online)
    bells.close()


def test_a_broker_that_dies_is_found_again_and_rings(tmp_path):
    mosquitto = Broker(tmp_path)
    bell = connected(mosquitto.url)
    mosquitto.kill()
    until(lambda: not bell.is_connected)
    assert not bell.wait(0.1)
    mosquitto.start()
    try:
        assert bell.wait(20.0), "what was rung meanwhile is lost, so the device must look"
    finally:
        bell.close()
        mosquitto.kill()


def test_a_broker_that_is_not_there_stops_nobody():
    bell = Doorbell("mqtt://127.0.0.1:1", "d")
    assert not bell.wait(0.05)
    bell.close()


def test_ringing_without_end_makes_a_device_look_once_a_second(mosquitto, monkeypatch):
    slept = []
    bell = connected(mosquitto.url, "rung")
    monkeypatch.setattr("edgeinfer.fleet.device.doorbell.time.sleep", slept.append)
    bells = Bells(mosquitto.url)
    until(lambda: bells.is_connected)
    for _ in range(2):
        bells.ring("rung")
        assert bell.wait(10.0)
    assert 0.0 < slept[-1] <= 1.0
    bell.close()
    bells.close()


def test_two_devices_with_one_name_show_in_the_log(mosquitto, caplog):
    caplog.set_level(logging.INFO, "edgeinfer.agent")
    first = connected(mosquitto.url, "twin")
    second = Doorbell(mosquitto.url, "twin")
    until(lambda: any("the doorbell is disconnected" in line for line in caplog.messages))
    first.close()
    second.close()


# paho leaves the socket of a handshake that fails to the garbage collector.
@pytest.mark.filterwarnings("ignore:Exception ignored in.*SSLSocket:pytest.PytestUnraisableExceptionWarning")
def test_tls_with_an_authority_of_ones_own(tmp_path):
    certificate, key = _certificate(tmp_path)
    with broker(tmp_path, tls=(certificate, key)) as mosquitto:
        secure = mosquitto.url.replace("mqtt://", "mqtts://")
        bell = connected(f"{secure}?ca={certificate}")
        bell.close()
        for url in (secure, mosquitto.url):  # an authority that nobody knows, and no TLS
            refused = Doorbell(url, "d")
            assert not refused.wait(0.5)
            assert not refused.is_connected
            refused.close()
    with pytest.raises(TransportError, match="certificates"):
        make_client(f"{secure}?ca={tmp_path}/none", "d")


@pytest.mark.parametrize("url", ["http://h", "mqtt://", "nonsense"])
def test_other_urls_are_refused(url):
    with pytest.raises(TransportError, match="no URL of an MQTT broker"):
        make_client(url, "d")


def _certificate(folder):
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = dt.datetime.now(dt.timezone.utc)
    alternative = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(alternative, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    certificate, private = folder / "server.crt", folder / "server.key"
    certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    form = serialization.PrivateFormat.PKCS8
    private.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))
    private.chmod(0o644)
    return certificate, private
