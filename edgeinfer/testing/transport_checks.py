"""The conformance suite for transports of a fleet, as plain functions.

A transport's author writes a `Wire`: how a test puts documents where devices find them, and sees what they
report. Then one test:

    @pytest.mark.parametrize("check", transport_checks.CHECKS, ids=lambda check: check.__name__)
    def test_conformance(check, wire):
        check(wire)

Each check uses a device of its own, so that one wire serves all. Reports are signed by the checks; the wire
has the keys of `DEVICES` enrolled, where it checks codes.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias

from edgeinfer.fleet.device.phases import Phase
from edgeinfer.fleet.device.reports import Report
from edgeinfer.fleet.device.transport import Transport
from edgeinfer.fleet.errors import TransportError

__all__ = ["CHECKS", "DEVICES", "Wire", "key_of"]

_PATIENCE_S = 20.0


def key_of(device: str) -> bytes:
    """Return the key of a device of the checks."""
    return hashlib.sha256(device.encode()).digest()


class Wire(Protocol):
    """Both ends of a transport."""

    def open(self, device: str) -> Transport:
        """Return a device's end."""
        ...

    def put(self, device: str, document: bytes) -> None:
        """Make this the document of a device, and ring if the transport can."""
        ...

    def reported(self, device: str) -> Sequence[bytes] | int:
        """Return what was reported of a device, or how many of its reports arrived."""
        ...

    def cut(self) -> bool:
        """Make the other end unreachable, for good; False where that cannot be."""
        ...


def check_nothing_yet(wire: Wire) -> None:
    """A device without a document gets None, whatever it asks with."""
    transport = wire.open("conformance-nothing")
    assert transport.desired(None) is None
    assert transport.desired("some-etag") is None
    transport.close()


def check_documents(wire: Wire) -> None:
    """The bytes of a document come unchanged, once; a new one comes with another etag."""
    transport = wire.open("conformance-documents")
    before = None
    for document in (b'{"a":1}', '{"ü":"\\u0000 ,"}'.encode(), bytes(range(256)) * 300):
        wire.put("conformance-documents", document)
        found = transport.desired(before)
        assert found is not None, "a new document was not given"
        assert found.data == document, f"{len(found.data)} bytes of {len(document)} came"
        assert found.etag, "an empty etag cannot be asked with"
        assert found.etag != before, "two documents have one etag"
        assert transport.desired(found.etag) is None, "the same document came twice"
        again = transport.desired(None)
        assert again is not None, "a document that was fetched before is gone"
        assert again == found
        before = found.etag
    transport.close()


def check_each_its_own(wire: Wire) -> None:
    """A device gets no other device's document, also where one name begins with the other."""
    names = ("conformance-own", "conformance-own-2")
    ends = [wire.open(name) for name in names]
    wire.put(names[0], b'{"of":"the first"}')
    assert ends[1].desired(None) is None, "a device got another device's document"
    wire.put(names[1], b'{"of":"the second"}')
    for transport, expected in zip(ends, (b'{"of":"the first"}', b'{"of":"the second"}'), strict=True):
        found = transport.desired(None)
        assert found is not None
        assert found.data == expected
        transport.close()


def check_reports(wire: Wire) -> None:
    """All reports arrive, as they are, once each; nothing is nothing."""
    transport = wire.open("conformance-reports")
    assert transport.send([]) == 0
    sent = [_report("conformance-reports", sequence) for sequence in range(1, 8)]
    _send_all(transport, sent[:1])
    _send_all(transport, sent[1:])
    _assert_arrived(wire, "conformance-reports", sent)
    transport.close()


def check_duplicates(wire: Wire) -> None:
    """A report whose acceptance was not heard of is sent again; that is accepted, and counts once."""
    transport = wire.open("conformance-duplicates")
    sent = [_report("conformance-duplicates", sequence) for sequence in (1, 2)]
    _send_all(transport, sent)
    _send_all(transport, sent)
    found = wire.reported("conformance-duplicates")
    assert (found if isinstance(found, int) else len(set(found))) == 2
    transport.close()


def check_many_reports(wire: Wire) -> None:
    """Some MiB of reports arrive, if they are offered again from where `send` stopped."""
    transport = wire.open("conformance-many")
    sent = [_report("conformance-many", sequence, log="x" * 150_000) for sequence in range(1, 41)]
    _send_all(transport, sent)
    _assert_arrived(wire, "conformance-many", sent)
    transport.close()


def check_damaged_reports(wire: Wire) -> None:
    """A damaged report, such as of a bad disk, does not keep those behind it from arriving."""
    transport = wire.open("conformance-damaged")
    good = [_report("conformance-damaged", sequence) for sequence in (1, 2)]
    _send_all(transport, [good[0], b"\x00\xff not a report", b"{}", good[1]])
    found = wire.reported("conformance-damaged")
    assert found >= 2 if isinstance(found, int) else set(good) <= set(found)
    transport.close()


def check_wait(wire: Wire) -> None:
    """`wait` ends in time; if it says that something is new, it says so when there is."""
    transport = wire.open("conformance-wait")
    begun = time.monotonic()
    while transport.wait(0.05):  # what came at the start, such as of connecting
        assert time.monotonic() - begun < _PATIENCE_S, "it rings without end"
    timer = threading.Timer(0.2, wire.put, ["conformance-wait", b'{"new":1}'])
    timer.start()
    transport.wait(3.0)  # True at once, or False after that time
    timer.join()
    assert transport.desired(None) is not None
    transport.close()


def check_unreachable(wire: Wire) -> None:
    """What cannot be reached is a TransportError, and neither "no news" nor another error. The last check."""
    transport = wire.open("conformance-unreachable")
    wire.put("conformance-unreachable", b'{"a":1}')
    if not wire.cut():
        transport.close()
        return
    for name, call in (
        ("desired", lambda: transport.desired(None)),
        ("send", lambda: transport.send([_report("conformance-unreachable", 1)])),
    ):
        try:
            call()
        except TransportError:
            continue
        raise AssertionError(f"{name}: expected TransportError, but nothing was raised")
    transport.close()


_Check: TypeAlias = Callable[[Wire], None]
CHECKS: tuple[_Check, ...] = (
    check_nothing_yet,
    check_documents,
    check_each_its_own,
    check_reports,
    check_duplicates,
    check_many_reports,
    check_damaged_reports,
    check_wait,
    check_unreachable,
)
DEVICES = tuple(
    f"conformance-{name}"
    for name in ("nothing", "documents", "own", "own-2", "reports", "duplicates", "many", "damaged", "wait",
                 "unreachable")
)  # fmt: skip


def _report(device: str, sequence: int, log: str = "") -> bytes:
    report = Report(device=device, incarnation=1, sequence=sequence, at=1_800_000_000, model="m",
                    phase=Phase.COMMITTED, digest="a" * 64, log=(log,) if log else ())  # fmt: skip
    return report.to_bytes(key_of(device))


def _send_all(transport: Transport, reports: Sequence[bytes]) -> None:
    left = list(reports)
    while left:
        count = transport.send(left)
        assert 0 < count <= len(left), f"send() returned {count} of {len(left)}"
        left = left[count:]


def _assert_arrived(wire: Wire, device: str, sent: Sequence[bytes]) -> None:
    found = wire.reported(device)
    if isinstance(found, int):
        assert found == len(sent), f"{found} of {len(sent)} reports arrived"
    else:
        assert set(found) == set(sent), f"{len(set(found))} of {len(sent)} reports arrived"
