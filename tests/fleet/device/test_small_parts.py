"""The histogram, the clock, the journal, reports: parts with their own algebra."""

from __future__ import annotations

import attrs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeinfer.fleet.device.agreement import agreement
from edgeinfer.fleet.device.clock import DeviceClock
from edgeinfer.fleet.device.histogram import Histogram
from edgeinfer.fleet.device.identity import Identity
from edgeinfer.fleet.device.journal import Change, Floors, Journal, State, Update
from edgeinfer.fleet.device.phases import Phase
from edgeinfer.fleet.device.reports import Report, SignedReport
from edgeinfer.fleet.device.spool import Spool
from edgeinfer.fleet.errors import AgentError, BadSignatureError, FleetError, JournalError

MAGNITUDES = st.floats(1e-6, 1e6) | st.floats(-1e6, -1e-6) | st.just(0.0)
VALUES = st.lists(MAGNITUDES, min_size=1, max_size=200)


@given(VALUES, st.floats(0, 1), st.sampled_from([0.005, 0.01, 0.1]))
@settings(max_examples=150, deadline=None)
def test_a_quantile_is_within_the_stated_error(values, q, error):
    found = Histogram(values, relative_error=error).quantile(q)
    exact = sorted(values)[int(q * (len(values) - 1))]
    assert abs(found - exact) <= error * abs(exact) * (1 + 1e-9) + 1e-9


@given(VALUES, MAGNITUDES)
@settings(max_examples=100, deadline=None)
def test_counts_above_a_limit(values, limit):
    found = Histogram(values).count_above(limit)
    slack = 0.021 * abs(limit) + 1e-9
    assert sum(v > limit + slack for v in values) <= found <= sum(v > limit for v in values)


@given(VALUES, VALUES)
@settings(max_examples=100, deadline=None)
def test_merging_is_counting_all(a, b):
    merged = Histogram(a)
    merged.merge(Histogram(b))
    both = Histogram(a + b)
    assert merged.count == both.count == len(a) + len(b)
    assert merged.sum == pytest.approx(both.sum, rel=1e-9, abs=1e-6)
    for q in (0, 0.5, 0.99, 1):
        assert merged.quantile(q) == both.quantile(q)
    assert Histogram.from_dict(merged.to_dict()) == merged


@pytest.mark.parametrize(
    "change",
    [
        {"positive": {"1": -1}},
        {"positive": {"1": 1.5}},
        {"positive": {"999999": 1}},
        {"zero": -1},
        {"sum": float("nan")},
        {"min": 5.0, "max": 1.0},
        {"relative_error": 7},
        {"positive": "x"},
    ],
)
def test_a_histogram_from_elsewhere_is_checked(change):
    with pytest.raises(FleetError):
        Histogram.from_dict({**Histogram([1.0, 2.0]).to_dict(), **change})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_is_not_counted(value):
    with pytest.raises(FleetError, match="cannot be counted"):
        Histogram([value])


class Clocks:
    def __init__(self, wall: float) -> None:
        self.wall, self.mono = wall, 0.0

    def make(self, floor: int) -> DeviceClock:
        return DeviceClock(floor, wall=lambda: self.wall, monotonic=lambda: self.mono, max_jump_s=1000.0)


@pytest.mark.parametrize("wall", [0.0, 1e12])
def test_a_clock_in_1970_or_far_ahead_is_not_believed_and_time_goes_on(wall):
    clocks = Clocks(wall)
    clock = clocks.make(5000)
    assert not clock.trusted
    assert clock.now() == 5000
    clocks.mono += 70
    assert (clock.now(), clock.floor) == (5070, 5070)
    clocks.wall = 5500.0
    assert clock.trusted
    assert clock.now() == 5500


def test_a_wrong_clock_moves_no_floor_and_a_signed_time_does():
    clocks = Clocks(5900.0)
    clock = clocks.make(5000)
    assert clock.now() == 5900
    assert clock.floor == 5000  # set right later, nothing stays refused
    clock.raise_floor(9000)
    assert clock.now() == 9000
    clock.raise_floor(100)
    assert clock.floor == 9000


def test_a_device_that_knows_nothing_believes_its_clock():
    clock = Clocks(123.0).make(0)
    assert clock.trusted
    assert (clock.now(), clock.floor) == (123, 0)


STATE = State(
    sequence=7,
    floors=Floors(time=5, metadata={"root": 2}, generations={"m": (1, 2)}),
    update=Update(
        phase=Phase.STAGING,
        changes=(Change(model="m", generation=(1, 2), release="ab", start_before=9),),
        attempts=1,
    ),
)


def test_the_journal_keeps_what_it_is_given(tmp_path):
    journal = Journal(tmp_path)
    assert journal.load() is None
    journal.save(STATE)
    assert journal.load() == STATE


@given(st.integers(0, 10_000), st.integers(1, 255))
@settings(max_examples=60, deadline=None)
def test_a_journal_with_a_changed_byte_is_not_read(tmp_path_factory, place, flip):
    journal = Journal(tmp_path_factory.mktemp("journal"))
    journal.save(STATE)
    data = bytearray(journal.path.read_bytes())
    data[place % len(data)] ^= flip
    journal.path.write_bytes(data)
    with pytest.raises(JournalError, match="damaged"):
        journal.load()


def test_a_report_is_read_with_the_key_alone():
    key = bytes(32)
    report = Report(
        device="d",
        incarnation=1,
        sequence=2,
        at=3,
        model="m",
        generation=(1, 2),
        phase=Phase.SOAKING,
        metrics={"latency_ms": Histogram([1.0, 2.0]), "x": 2.0},
        log=[str(n) for n in range(30)],
    )
    data = report.to_bytes(key)
    assert Report.from_bytes(data, key) == report
    assert len(report.log) == 20
    assert SignedReport.parse(data).device == "d"
    with pytest.raises(BadSignatureError):
        Report.from_bytes(data, bytes(31) + b"x")
    with pytest.raises(BadSignatureError):
        Report.from_bytes(data.replace(b'"soaking"', b'"staging"'), key)


def test_the_spool_is_bounded_and_begins_anew_when_damaged(tmp_path):
    spool = Spool(tmp_path / "spool.db", max_reports=3)
    for n in range(1, 8):
        spool.add(n, bytes([n]))
    assert [n for n, _ in spool.first(10)] == [5, 6, 7]
    spool.remove(6)
    assert spool.first(10) == [(7, b"\x07")]
    spool.close()
    (tmp_path / "spool.db").write_bytes(b"x" * 8192)
    spool = Spool(tmp_path / "spool.db")
    assert spool.first(10) == []
    assert spool.lost == 1
    spool.close()


def test_an_identity_is_made_up_once_and_refused_when_damaged(tmp_path):
    first = Identity.at(tmp_path, None, None)
    assert Identity.at(tmp_path, None, None) == first
    assert (tmp_path / "device.json").stat().st_mode & 0o077 == 0
    assert "key" not in repr(first)
    renamed = Identity.at(tmp_path, "camera-9", "cameras")
    assert (renamed.device, renamed.key) == ("camera-9", first.key)
    with pytest.raises(AgentError, match="no name"):
        Identity.at(tmp_path, "../x", None)
    (tmp_path / "device.json").write_text("{}")
    with pytest.raises(AgentError, match="cannot be read"):
        Identity.at(tmp_path, None, None)


@pytest.mark.parametrize(
    ("found", "expected", "share"),
    [
        ([[0.1, 0.9], [0.8, 0.2]], [[0.4, 0.6], [0.4, 0.6]], 0.5),
        ([[1.04]], [[1.0]], 1.0),
        ([[1.06]], [[1.0]], 0.0),
        ([[np.nan, 1.0]], [[0.0, 1.0]], 0.0),
        ([1.0, 2.0], [[1.0, 2.0]], 0.0),
    ],
)
def test_agreement(found, expected, share):
    ours, theirs = np.array(found, np.float32), np.array(expected, np.float32)
    assert agreement({"y": ours}, {"y": theirs}) == share
    assert agreement({}, {"y": theirs}) == 0.0


def test_every_phase_says_whether_it_is_durable_and_final():
    volatile = {phase for phase in Phase if not phase.durable}
    assert volatile == {Phase.PRECHECK, Phase.DOWNLOADING, Phase.READY}
    assert all(phase.durable for phase in Phase if phase.final)
    assert attrs.has(Update)
