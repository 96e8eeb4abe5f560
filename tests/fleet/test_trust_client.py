"""The client of the metadata itself: crashes, mirrors, networks that are down."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from edgeinfer.fleet.device.trust import TrustedRepository
from edgeinfer.fleet.errors import (
    LocationError,
    StorageError,
    TrustError,
)
from tests.fleet.http_server import serving
from tests.fleet.toy_fleet import ToyFleet


@pytest.fixture
def fleet(tmp_path):
    return ToyFleet(tmp_path)


@pytest.fixture
def server(fleet):
    with serving(fleet.public) as found:
        yield found


# -- the client itself -------------------------------------------------------------------------------------


def test_a_crash_while_root_is_linked_does_not_brick_the_client(fleet, server, tmp_path):
    """python-tuf removes root.json and then makes the link again; here it is killed in between."""
    code = (
        "import os, sys\n"
        "from edgeinfer.fleet.device.trust import TrustedRepository\n"
        "os.symlink = lambda *_: os._exit(9)\n"
        f"TrustedRepository({str(fleet.folder / 'device')!r}, {server.url!r}, root=None, "
        f"clock=lambda: {fleet.now}).refresh()\n"
    )
    release = fleet.publish("m", "1")
    fleet.device(source=server.url).refresh()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 9, done.stderr
    assert not os.path.lexists(fleet.folder / "device" / "root.json")
    again = TrustedRepository(fleet.folder / "device", server.url, root=None, clock=lambda: fleet.now)
    assert again.release("m", "1", release.digest) == release


def test_a_cache_that_cannot_be_written_is_said(fleet, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="cannot be kept"):
        fleet.device("file")


def test_without_a_root_nothing_is_trusted(tmp_path):
    with pytest.raises(TrustError, match="no root of trust"):
        TrustedRepository(tmp_path / "empty", tmp_path, root=None)
    device = TrustedRepository(tmp_path / "garbage", tmp_path, root=b"{}")
    with pytest.raises(TrustError):
        device.refresh()


def test_mirrors_are_tried_in_turn(fleet, server, tmp_path):
    release = fleet.publish("m", "1")
    server.status["metadata/timestamp.json"] = 503
    sources = ["http://127.0.0.1:9", tmp_path / "nothing", server.url, fleet.public]
    assert fleet.device(source=sources).release("m", "1", release.digest) == release


def test_a_release_may_come_from_another_mirror_than_the_metadata(fleet, server):
    release = fleet.publish("m", "1")
    server.status[f"targets/models/m/1/{release.digest}.release.json"] = 404
    assert fleet.device(source=[server.url, fleet.public]).release("m", "1", release.digest) == release


def test_a_network_that_is_down_is_told_from_distrust(fleet, server):
    with pytest.raises(LocationError) as caught:
        fleet.device(source="http://127.0.0.1:9").refresh()
    assert caught.value.transient
    server.status["metadata/timestamp.json"] = 500
    with pytest.raises(LocationError):
        fleet.device(source=server.url).refresh()
    server.replaced["metadata/1.snapshot.json"] = b"{}"
    server.status.clear()
    with pytest.raises(TrustError):
        fleet.device(source=["http://127.0.0.1:9", server.url]).refresh()


ABSENT = {"cryptography", "onnx", "onnx_ir", "onnxscript", "sympy", "rich", "cattrs", "sqlalchemy"}


def test_a_device_needs_neither_cryptography_nor_what_makes_models(fleet):
    release = fleet.publish("m", "1")
    code = f"""
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {ABSENT!r}:
            raise ImportError(name)
sys.meta_path.insert(0, Refuse())
from edgeinfer.fleet.device import assignment, delta, download, golden
from edgeinfer.fleet.device.trust import TrustedRepository
device = TrustedRepository(
    {str(fleet.folder / "bare")!r}, {str(fleet.public)!r}, root={fleet.root!r}, clock=lambda: {fleet.now}
)
print(device.release("m", "1", {release.digest!r}).version, device.assignment_keys.threshold)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["1", "1"], done.stderr
