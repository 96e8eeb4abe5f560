"""What the server lets in and what it does not, over real sockets."""

from __future__ import annotations

import http.client
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy.exc import OperationalError

from edgeinfer.fleet.device.blobs import blob_path
from edgeinfer.fleet.device.documents import sha256
from edgeinfer.fleet.device.http_transport import HttpTransport
from edgeinfer.fleet.device.phases import Phase
from edgeinfer.fleet.device.reports import Report
from edgeinfer.fleet.errors import TransportError
from edgeinfer.fleet.operator.server.options import ServerOptions
from tests.fleet.served import report, served

KEY = b"k" * 32


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with served(tmp_path_factory.mktemp("server") / "fleet", ServerOptions(max_body_bytes=1 << 20)) as found:
        for name in ("a", "b", "fuzzed"):
            found.fleet.devices.add(name, key=KEY + name.encode())
        yield found


def test_reports_of_a_device_are_taken_in(server):
    status, answer = server.post("/reports/a", report("a", 1, KEY + b"a", code="fine", log=("hello",)))
    assert (status, answer) == (200, {"accepted": 1, "refused": []})
    assert [row["phase"] for row in server.fleet.devices if row["device"] == "a"] == ["committed"]


def test_a_gateway_sends_reports_of_several_devices(server):
    body = b"\n".join([report("a", 2, KEY + b"a"), report("b", 2, KEY + b"b")]) + b"\n"
    assert server.post("/reports", body) == (200, {"accepted": 2, "refused": []})


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (report("b", 5, KEY + b"b"), "It is not of a."),
        (report("a", 5, KEY + b"b"), "not made with the key"),
        (b"not a report", "It is not of a."),
        (b'{"device":"a"}', "names no device"),
        (b'{"hmac":"00","report":{"device":"a"}}', "not made with the key"),
        (report("a", 2**60, KEY + b"a"), "a counter that is none"),
        (report("a", 5, KEY + b"a", code="zero \0"), "a zero character"),
        (report("a", 5, KEY + b"a", log=("x" * 300_000,)), "too large"),
        (report("a", 5, KEY + b"a")[:-1], "not readable"),
        (report("a", 5, KEY + b"a").replace(b"committed", b"COMMITTED"), "not made with the key"),
    ],
)
def test_a_bad_report_is_refused_and_logged_and_the_rest_goes_on(server, bad, reason, caplog):
    before = server.logged("a")
    sequence = 100 + before
    good = [report("a", sequence, KEY + b"a"), report("a", sequence + 1, KEY + b"a")]
    status, answer = server.post("/reports/a", b"\n".join([good[0], bad, good[1]]))
    assert status == 200
    assert [refused["index"] for refused in answer["refused"]] == [1]
    assert reason in answer["refused"][0]["reason"]
    assert server.logged("a") == before + 2
    assert any("refused a report" in line and reason in line for line in caplog.messages)


def test_a_replayed_report_changes_nothing(server):
    sent = [report("b", number, KEY + b"b", digest=digit * 64) for number, digit in ((10, "c"), (11, "d"))]
    server.post("/reports/b", b"\n".join(sent))
    before = server.logged("b")
    assert server.post("/reports/b", sent[0]) == (200, {"accepted": 1, "refused": []})
    assert server.logged("b") == before
    assert next(row["running"] for row in server.fleet.devices if row["device"] == "b") == "d" * 64
    assert server.row("b")["flag"] == ""


def test_clones_and_reflashed_devices_are_flagged(server):
    key = server.fleet.devices.add("cloned")
    for code in ("one", "other"):
        server.post("/reports/cloned", report("cloned", 7, key, code=code))
    assert server.row("cloned")["flag"] == "clone"
    key = server.fleet.devices.add("reflashed")
    server.post("/reports/reflashed", report("reflashed", 7, key))
    server.post("/reports/reflashed", report("reflashed", 1, key, incarnation=2))
    assert server.row("reflashed")["flag"] == "reflashed"
    server.post("/reports/reflashed", report("reflashed", 8, key))
    assert server.row("reflashed")["flag"] == "clone"


@pytest.mark.parametrize("name", ["unknown", "removed"])
def test_a_device_that_is_not_enrolled_is_told_and_keeps_its_reports(server, name):
    if name == "removed":
        server.fleet.devices.add(name, key=KEY)
        server.fleet.devices.remove(name)
    assert server.post(f"/reports/{name}", report(name, 1, KEY))[0] == 403
    with pytest.raises(TransportError, match="takes no reports"):
        HttpTransport(server.url, device=name).send([report(name, 1, KEY)])


def test_too_much_is_refused_before_it_is_in_memory(server):
    assert server.post("/reports/a", b"x" * (1 << 21))[0] == 413
    endless = (b"x" * 65536 for _ in range(100))  # without a length
    try:
        status = server.ask("POST", "/reports/a", body=endless, chunked=True).status
    except OSError:  # the server may close while it is still being written to
        status = 413
    assert status == 413
    assert server.post("/reports", b"\n" * 10_000)[0] == 413
    assert server.post("/enroll", b"x" * 100_000)[0] == 413


@given(
    data=st.one_of(
        st.binary(max_size=200),
        st.recursive(
            st.none() | st.integers() | st.floats() | st.text(),
            lambda s: st.lists(s, max_size=3) | st.dictionaries(st.text(), s, max_size=3),
            max_leaves=6,
        ).map(lambda v: json.dumps(v).encode()),
    )
)
@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_whatever_comes_the_server_answers(server, data):
    for path in ("/reports", "/reports/fuzzed", "/enroll", "/keys/fuzzed", "/login", "/rollouts/1/start"):
        assert server.ask("POST", path, body=data).status < 500, path
    assert server.row("fuzzed")["seen_at"] == 0


@given(
    st.builds(
        dict,
        sequence=st.integers(-(2**70), 2**70),
        incarnation=st.integers(-3, 2**65),
        at=st.integers(-(2**80), 2**80),
        generation=st.tuples(st.integers(-(2**65), 2**65), st.integers(-(2**65), 2**65)),
        code=st.text(max_size=20),
        digest=st.text(max_size=20),
        model=st.text(max_size=20),
        log=st.lists(st.text(max_size=20), max_size=2),
        phase=st.sampled_from(Phase),
        metrics=st.dictionaries(
            st.text(max_size=5) | st.just("latency_ms"), st.floats(-1e300, 1e300), max_size=2
        ),
    )
)
@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_a_device_with_a_key_cannot_stop_the_others(server, fields):
    """Signed nonsense is kept or refused; never does the batch fail, in which others' reports are."""
    try:
        document = Report(device="fuzzed", **fields).to_bytes(KEY + b"fuzzed")
    except (ValueError, UnicodeEncodeError):
        return
    status, answer = server.post("/reports", document)
    assert status == 200
    assert all("cannot be kept" not in refused["reason"] for refused in answer["refused"])


def test_a_database_that_is_away_makes_devices_come_again(server, monkeypatch):
    def broken(*_):
        raise OperationalError("insert", {}, Exception("disk I/O error"))

    monkeypatch.setattr("edgeinfer.fleet.operator.server.intake.ingest", broken)
    response = server.ask("POST", "/reports/a", body=report("a", 9_000, KEY + b"a"))
    assert (response.status, response.headers["Retry-After"]) == (503, "30")
    monkeypatch.undo()
    assert server.post("/reports/a", report("a", 9_000, KEY + b"a"))[0] == 200


def test_one_report_that_nobody_thought_of_does_not_keep_the_others_out(server, monkeypatch):
    from edgeinfer.fleet.operator.server import intake

    real = intake.ingest

    def ingest(database, documents):
        if any(b"poison" in document for document in documents):
            raise ZeroDivisionError
        return real(database, documents)

    monkeypatch.setattr(intake, "ingest", ingest)
    body = [
        report("a", 9_100 + n, KEY + b"a", code=code) for n, code in enumerate(("fine", "poison", "fine"))
    ]
    _, answer = server.post("/reports/a", b"\n".join(body))
    assert [(r["index"], r["reason"]) for r in answer["refused"]] == [
        (1, "It cannot be kept: ZeroDivisionError.")
    ]


def test_blobs_come_in_ranges_and_nothing_else_of_the_disk(server):
    data = bytes(range(256)) * 300
    path = f"blobs/{blob_path(sha256(data))}"
    server.fleet.repository.storage.create(path, data)
    whole = server.ask("GET", f"/{path}")
    assert whole.data == data
    etag = whole.headers["ETag"]
    part = server.ask("GET", f"/{path}", headers={"Range": "bytes=70000-", "If-Range": etag})
    assert (part.status, part.data) == (206, data[70000:])
    assert part.headers["Content-Range"] == f"bytes 70000-{len(data) - 1}/{len(data)}"
    other = server.ask("GET", f"/{path}", headers={"Range": "bytes=70000-", "If-Range": '"other"'})
    assert (other.status, other.data) == (200, data)
    assert server.ask("GET", f"/{path}", headers={"If-None-Match": etag}).status == 304
    assert server.ask("GET", f"/{path}", headers={"Range": "bytes=99999999-"}).status == 416
    secret = server.fleet.repository.keys.folder.name
    for bad in (
        f"/blobs/../../{secret}/root.json",
        f"/blobs/%2e%2e/%2e%2e/{secret}/root.json",
        "/metadata/.publishing",
        "/desired/.published",
        "/desired/a.json%00",
        "/targets/%2e%2e/metadata/root.json",
        "/blobs/sha256",
        "/blobs//etc/passwd",
        "/desired/../metadata/root.json",
    ):
        connection = http.client.HTTPConnection(server.url.removeprefix("http://"))  # urllib3 would tidy up
        connection.request("GET", bad)
        assert connection.getresponse().status == 404, bad
        connection.close()


def test_metadata_is_asked_for_again_and_numbered_metadata_is_not(server):
    first = server.ask("GET", "/metadata/timestamp.json")
    assert first.status == 200
    assert first.headers["Cache-Control"] == "no-cache"
    again = server.ask("GET", "/metadata/timestamp.json", headers={"If-None-Match": first.headers["ETag"]})
    assert (again.status, again.data) == (304, b"")
    assert "immutable" in server.ask("GET", "/metadata/1.root.json").headers["Cache-Control"]
