"""All transports pass one conformance suite: in one process, folder, HTTP, and HTTP with an MQTT doorbell."""

from __future__ import annotations

import shutil

import pytest

from edgeinfer.fleet.device.doorbell import Doorbell, RungTransport
from edgeinfer.fleet.device.http_transport import HttpTransport
from edgeinfer.fleet.device.transport import FolderTransport, MemoryTransport, open_transport
from edgeinfer.fleet.operator.server.doorbell import Bells
from edgeinfer.testing.transport_checks import CHECKS, DEVICES, key_of
from tests.fleet.served import broker, served, until


class MemoryWire:
    def __init__(self, _folder):
        self.ends = {name: MemoryTransport() for name in DEVICES}

    def open(self, device):
        return self.ends[device]

    def put(self, device, document):
        self.ends[device].put(document)

    def reported(self, device):
        return self.ends[device].reports

    def cut(self):
        return False

    def close(self):
        pass


class FolderWire:
    def __init__(self, folder):
        self.folder = folder / "repository"
        (self.folder / "desired").mkdir(parents=True)

    def open(self, device):
        return open_transport(str(self.folder), device=device, key=key_of(device))

    def put(self, device, document):
        (self.folder / "desired" / f"{device}.new").write_bytes(document)
        (self.folder / "desired" / f"{device}.new").rename(self.folder / "desired" / f"{device}.json")

    def reported(self, device):
        return [path.read_bytes() for path in (self.folder / "reports" / device).glob("*.json")]

    def cut(self):
        shutil.rmtree(self.folder)
        return True

    def close(self):
        pass


class HttpWire:
    def __init__(self, folder):
        self.context = served(folder / "fleet")
        self.served = self.context.__enter__()
        for name in DEVICES:
            self.served.fleet.devices.add(name, key=key_of(name))
        self.is_open = True

    def open(self, device):
        return open_transport(self.served.url, device=device, key=key_of(device))

    def put(self, device, document):
        self.served.fleet.repository.storage.replace(f"desired/{device}.json", document)

    def reported(self, device):
        return self.served.logged(device)

    def cut(self):
        if self.is_open:
            self.context.__exit__(None, None, None)
        self.is_open = False
        return True

    def close(self):
        self.cut()


class MqttWire(HttpWire):
    def __init__(self, folder):
        self.broker = broker(folder)
        self.bells_url = self.broker.__enter__().url
        super().__init__(folder)
        self.bells = Bells(self.bells_url)
        until(lambda: self.bells.is_connected)

    def open(self, device):
        return RungTransport(super().open(device), Doorbell(self.bells_url, device))

    def put(self, device, document):
        super().put(device, document)
        self.bells.ring(device)

    def close(self):
        self.bells.close()
        super().close()
        self.broker.__exit__(None, None, None)


@pytest.fixture(
    scope="module", params=[MemoryWire, FolderWire, HttpWire, MqttWire], ids=lambda kind: kind.__name__
)
def wire(request, tmp_path_factory):
    found = request.param(tmp_path_factory.mktemp("wire"))
    yield found
    found.close()


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_conformance(check, wire):
    check(wire)


class _Broken(MemoryWire):
    """A wire whose transports have one fault each."""

    def __init__(self, **faults):
        super().__init__(None)
        for transport in self.ends.values():
            for name, fault in faults.items():
                setattr(transport, name, fault)


@pytest.mark.parametrize(
    ("faults", "failing"),
    [
        ({"send": lambda reports: len(reports)}, "check_reports"),  # says so and drops them
        ({"send": lambda reports: 0}, "check_many_reports"),
        ({"desired": lambda etag: None}, "check_documents"),
        ({"wait": lambda seconds: True}, "check_wait"),
    ],
)
def test_the_suite_finds_faults(faults, failing, monkeypatch):
    monkeypatch.setattr("edgeinfer.testing.transport_checks._PATIENCE_S", 0.2)
    check = next(check for check in CHECKS if check.__name__ == failing)
    with pytest.raises(AssertionError):
        check(_Broken(**faults))


@pytest.mark.parametrize(("url", "kind"), [("http://h/x", HttpTransport), ("https://h/x", HttpTransport),
                                           ("/tmp", FolderTransport)])  # fmt: skip
def test_a_url_finds_its_transport(url, kind):
    assert type(open_transport(url, device="d", key=b"k")) is kind


def test_the_entry_points_name_the_transports():
    from pathlib import Path

    try:
        import tomllib
    except ImportError:
        import tomli as tomllib
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    points = project["entry-points"]["edgeinfer.transports"]
    expected = f"{HttpTransport.__module__}:{HttpTransport.__name__}"
    assert points == {"http": expected, "https": expected}
