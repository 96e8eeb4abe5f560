"""Budgets: what is accepted, and what a measurement breaks."""

from __future__ import annotations

import json
import math

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import edgeinfer as ei
from edgeinfer.artifact.manifest import Cost
from edgeinfer.budget import format_bytes, parse_bytes
from edgeinfer.errors import OptionsError

POSITIVE = st.floats(1e-6, 1e12)
LIMITS = {
    "latency_p50_ms": POSITIVE,
    "latency_p99_ms": POSITIVE,
    "peak_bytes": st.integers(1, 1 << 50),
    "disk_bytes": st.integers(1, 1 << 50),
    "power_w": POSITIVE,
    "temperature_c": st.floats(-200, 1000),
    "max_drop": st.floats(0, 1e6),
    "min_sqnr_db": st.floats(-200, 200),
}
FIGURES = {name: {"max_drop": "drop", "min_sqnr_db": "sqnr_db"}.get(name, name) for name in LIMITS}
MEASURED = st.fixed_dictionaries(
    {}, optional=dict.fromkeys(FIGURES.values(), st.none() | st.floats(-1e13, 1e13) | st.just(math.nan))
)
BUDGETS = st.fixed_dictionaries({}, optional=LIMITS).map(lambda values: ei.Budget(**values))


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("120 MiB", 120 << 20),
        ("1.5 GB", 1_500_000_000),
        ("512kB", 512_000),
        ("2 kib", 2048),
        (" 7 ", 7),
        ("0.5 TiB", 1 << 39),
        (3.0, 3),
        (".5 MB", 500_000),
    ],
)
def test_sizes_are_numbers_or_text(text, size):
    assert parse_bytes(text) == size
    assert ei.Budget(peak_bytes=text).peak_bytes == size
    assert ei.Budget(disk_bytes=text).disk_bytes == size


@pytest.mark.parametrize(
    "value", ["", "MB", "-1 MB", "1 XB", "1 MB/s", "1,5 GB", math.inf, math.nan, True, [], "0"]
)
def test_what_is_no_size_is_refused(value):
    with pytest.raises(OptionsError, match="peak_bytes"):
        ei.Budget(peak_bytes=value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("latency_p50_ms", 0),
        ("latency_p99_ms", -1.0),
        ("power_w", "5"),
        ("temperature_c", math.nan),
        ("max_drop", -0.01),
        ("min_sqnr_db", math.inf),
        ("latency_p50_ms", True),
    ],
)
def test_a_limit_out_of_its_range_is_refused(name, value):
    with pytest.raises(OptionsError, match=name):
        ei.Budget(**{name: value})


@settings(deadline=None)
@given(BUDGETS)
def test_a_budget_survives_json(budget):
    assert ei.Budget.from_dict(json.loads(json.dumps(budget.to_dict()))) == budget


def test_an_unknown_limit_is_refused():
    with pytest.raises(OptionsError, match="latency_ms"):
        ei.Budget.from_dict({"latency_ms": 3})


def test_it_is_frozen():
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        ei.Budget().power_w = 3


@settings(deadline=None)
@given(BUDGETS, MEASURED)
def test_each_limit_passes_or_is_reported(budget, measured):
    found = {violation.limit: violation for violation in budget.check(measured)}
    for name, allowed in budget.limits.items():
        figure = measured.get(FIGURES[name])
        violation = found.pop(name, None)
        if figure is None or math.isnan(figure):
            assert violation is not None
            assert violation.not_measured
            assert violation.ratio is None
        elif (figure < allowed) if name == "min_sqnr_db" else (figure > allowed):
            assert violation is not None
            assert violation.excess > 0
            assert violation.ratio > 1 or math.isclose(violation.ratio, 1)
            assert violation.figure == figure
        else:
            assert violation is None
        if violation is not None:
            assert violation.allowed == allowed
            assert name in violation.describe()
            json.dumps(violation.to_dict(), allow_nan=False)
    assert not found, "a limit that is not set was reported"


def test_by_how_much():
    budget = ei.Budget(latency_p99_ms=10, peak_bytes="100 MB", max_drop=0.01, min_sqnr_db=20, power_w=5)
    figures = {"latency_p99_ms": 15.0, "peak_bytes": 90e6, "drop": 0.03, "sqnr_db": 10.0}
    found = {violation.limit: violation for violation in budget.check(figures)}
    assert found.keys() == {"latency_p99_ms", "max_drop", "min_sqnr_db", "power_w"}
    assert found["latency_p99_ms"].ratio == 1.5
    assert found["latency_p99_ms"].excess == 5
    assert found["max_drop"].ratio == pytest.approx(3)
    assert found["min_sqnr_db"].ratio == 2
    assert found["min_sqnr_db"].excess == 10
    assert found["power_w"].not_measured
    assert found["power_w"].describe() == "power_w: not measured (limit 5 W)"
    assert found["latency_p99_ms"].describe() == "latency_p99_ms: 15 ms where 10 ms is allowed, 1.50x"


def test_a_cost_can_be_checked():
    budget = ei.Budget(latency_p50_ms=1, disk_bytes=10)
    (late,) = budget.check(Cost(latency_p50_ms=2.0, disk_bytes=5))
    assert late.limit == "latency_p50_ms"
    assert [v.not_measured for v in budget.check(Cost())] == [True, True]


def test_a_figure_that_is_no_number_is_an_error():
    with pytest.raises(OptionsError, match="latency_p50_ms"):
        ei.Budget(latency_p50_ms=1).check({"latency_p50_ms": "fast"})


def test_it_is_shown():
    html = ei.Budget(latency_p99_ms=10, peak_bytes="1.5 GB", min_sqnr_db=20)._repr_html_()
    assert "at most 1.5 GB" in html
    assert "at least 20 dB" in html
    assert "no limits" in ei.Budget()._repr_html_()


@settings(deadline=None)
@given(st.integers(0, 1 << 50))
def test_sizes_for_people_can_be_read_back(size):
    assert parse_bytes(format_bytes(size)) == pytest.approx(size, rel=1e-3)
