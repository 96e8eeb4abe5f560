"""How documents come and reports go: a folder, HTTP, entry points; and a USB stick for an agent that runs."""

from __future__ import annotations

import hashlib
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

import edgeinfer as ei
from edgeinfer.fleet.device.assignment import Assignment, SignedAssignments
from edgeinfer.fleet.device.http_transport import HttpTransport
from edgeinfer.fleet.device.importing import ask_for_import
from edgeinfer.fleet.device.phases import Phase
from edgeinfer.fleet.device.transport import FolderTransport, MemoryTransport, open_transport
from edgeinfer.fleet.errors import TransportError
from tests.fleet.device.kit import DEVICE, OPTIONS, PassingChecker, artifact_folder, running


class Server:
    """A server of one document that takes reports, as long as it is told to."""

    document: bytes | None = b"{}"
    status = 200
    takes = 10

    def __init__(self) -> None:
        outer = self
        self.reports: list[bytes] = []
        self.conditions: list[str | None] = []

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                outer.conditions.append(self.headers.get("If-None-Match"))
                data = outer.document
                etag = f'"{hashlib.sha256(data or b"").hexdigest()}"'
                if outer.status != 200:
                    self.answer(outer.status, b"", etag)
                elif data is None or self.path != f"/desired/{DEVICE}.json":
                    self.answer(404, b"", etag)
                elif self.headers.get("If-None-Match") == etag:
                    self.answer(304, b"", etag)
                else:
                    self.answer(200, data, etag)

            def do_POST(self) -> None:
                lines = self.rfile.read(int(self.headers["Content-Length"])).splitlines()
                outer.reports += lines[: outer.takes]
                self.answer(outer.status, b'{"accepted": %d}' % min(len(lines), outer.takes), "")

            def answer(self, status: int, data: bytes, etag: str) -> None:
                self.send_response(status)
                self.send_header("ETag", etag)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02})
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def server():
    server = Server()
    yield server
    server.close()


def test_http(server):
    transport = open_transport(f"{server.url}/", device=DEVICE, key=b"")
    assert isinstance(transport, HttpTransport)
    found = transport.desired(None)
    assert found is not None
    assert found.data == b"{}"
    assert transport.desired(found.etag) is None
    assert server.conditions == [None, found.etag]
    server.document = b'{"new": 1}'
    assert transport.desired(found.etag).data == b'{"new": 1}'
    server.document = None
    assert transport.desired(None) is None
    assert transport.send([b"1", b"2", b"3"]) == 3
    server.takes = 2
    assert transport.send([b"4", b"5", b"6"]) == 2
    assert server.reports == [b"1", b"2", b"3", b"4", b"5"]
    server.status = 503
    with pytest.raises(TransportError, match="no assignments"):
        transport.desired(None)
    with pytest.raises(TransportError, match="no reports"):
        transport.send([b"7"])
    server.status, server.document = 200, b"x" * (1 << 19)
    with pytest.raises(TransportError, match="more than can be right"):
        transport.desired(None)
    transport.close()


def test_no_server():
    transport = HttpTransport("http://127.0.0.1:1", device=DEVICE)
    with pytest.raises(TransportError, match="cannot be reached"):
        transport.desired(None)
    transport.close()


def test_a_folder_keeps_reports_once_and_may_be_read_only(tmp_path):
    transport = open_transport(str(tmp_path), device=DEVICE, key=b"")
    assert isinstance(transport, FolderTransport)
    assert transport.desired(None) is None
    assert transport.send([b"1", b"2"]) == 2
    assert transport.send([b"2", b"3"]) == 2
    assert len(list((tmp_path / "reports" / DEVICE).glob("*.json"))) == 3
    (tmp_path / "blocked").write_text("no folder")
    with pytest.raises(TransportError, match="not there"):
        FolderTransport(tmp_path / "blocked", DEVICE).send([b"1"])
    with pytest.raises(TransportError, match="not there"):
        FolderTransport(tmp_path / "gone", DEVICE).desired(None)


def test_an_unknown_scheme_is_refused():
    with pytest.raises(TransportError, match="no transport for 'carrier-pigeon'"):
        open_transport("carrier-pigeon://loft", device=DEVICE, key=b"")


def test_an_agent_that_runs_imports_a_stick(tmp_path):
    pytest.importorskip("cryptography", reason="signing needs it")
    from edgeinfer.fleet.operator.assigning import signer_of
    from edgeinfer.fleet.operator.usb import export_usb

    fleet = ei.fleet.open(tmp_path / "fleet")
    release = fleet.publish("m", artifact_folder())
    assignment = Assignment(
        device=DEVICE, incarnation=1, model="m", generation=(1, 1), release=release.digest, version="1"
    )
    document = SignedAssignments(
        device=DEVICE, incarnation=1, issued_at=int(time.time()), assignments=(assignment,)
    )
    (tmp_path / "fleet" / "repository" / "desired").mkdir()
    signed = document.to_bytes(signer_of(fleet.repository.keys)(document.payload()))
    (tmp_path / "fleet" / "repository" / "desired" / f"{DEVICE}.json").write_bytes(signed)
    export_usb(fleet.repository, tmp_path / "stick")
    agent = ei.fleet.Agent(
        tmp_path / "dev",
        source=str(tmp_path / "nowhere"),  # there is no network, and never was
        root=fleet.root,
        device=DEVICE,
        options=OPTIONS,
        checker=PassingChecker(),
        transport=MemoryTransport(),
    )
    thread = threading.Thread(target=agent.run)
    thread.start()
    ask_for_import(tmp_path / "dev", tmp_path / "stick")
    end = time.monotonic() + 60
    while running(tmp_path / "dev") != {"m": "1"} or agent.phase is not Phase.COMMITTED:
        assert time.monotonic() < end, agent.phase
        time.sleep(0.05)
    agent.stop()
    thread.join()
    # The reports went back on the stick.
    assert list((tmp_path / "stick" / "reports" / DEVICE).glob("*.json"))
