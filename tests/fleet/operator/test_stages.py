"""Stages, cohorts, durations, windows."""

from __future__ import annotations

import datetime as dt
import zoneinfo
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeinfer.errors import OptionsError
from edgeinfer.fleet import MaintenanceWindow, Site, Stage
from edgeinfer.fleet.operator.cohorts import Candidate, freeze, order
from edgeinfer.fleet.operator.durations import format_duration, parse_duration


def fleet(size: int) -> list[Candidate]:
    return [
        Candidate(
            device=f"d{n}",
            device_class="abc"[n % 3],
            site=f"s{n % 7}",
            labels={"pilot": "yes"} if n < 5 else {},
        )
        for n in range(size)
    ]


@pytest.mark.parametrize(
    ("text", "seconds"), [("6h", 21600), ("1h30m", 5400), ("2d", 172800), (90, 90), ("0s", 0)]
)
def test_durations(text, seconds):
    assert parse_duration(text) == seconds
    assert parse_duration(format_duration(seconds)) == seconds


@pytest.mark.parametrize("bad", ["6", "h", "-1h", "6 hours ago", None, -1, float("nan"), True])
def test_what_is_no_duration_is_refused(bad):
    with pytest.raises(OptionsError, match="not a duration"):
        parse_duration(bad)


@pytest.mark.parametrize(
    "bad",
    [
        {},
        {"count": 1, "percent": 5},
        {"count": 0},
        {"percent": 101},
        {"percent": 0},
        {"count": 5, "growth": 0.5},
    ],
)
def test_stages_that_make_no_sense_are_refused(bad):
    with pytest.raises(OptionsError):
        Stage(**bad)


def test_count_and_percent_are_totals():
    cohorts = freeze(fleet(200), [Stage(count=59), Stage(percent=50), Stage(percent=100)], "s")
    assert [len(cohort) for cohort in cohorts] == [59, 41, 100]


def test_a_group_is_taken_first_where_it_is_asked_for():
    cohorts = freeze(fleet(90), [Stage(group="pilot"), Stage(percent=100)], "s")
    assert {c.device for c in cohorts[0]} == {f"d{n}" for n in range(5)}
    cohorts = freeze(fleet(90), [Stage(group="class=a", percent=50), Stage(percent=100)], "s")
    assert {c.device_class for c in cohorts[0]} == {"a"}
    assert [len(cohort) for cohort in cohorts] == [15, 75]


@settings(deadline=None)
@given(st.integers(1, 120), st.text(max_size=5), st.lists(st.integers(1, 100), min_size=1, max_size=4))
def test_each_device_is_in_one_stage_and_every_prefix_is_stratified(size, salt, percents):
    devices = fleet(size)
    stages = [Stage(percent=percent) for percent in sorted(percents)]
    cohorts = freeze(devices, stages, salt)
    names = [c.device for cohort in cohorts for c in cohort]
    assert len(set(names)) == len(names)
    assert names == [c.device for c in order(devices, salt)][: len(names)]
    of_class = Counter(c.device_class for c in devices)
    taken = Counter(c.device_class for c in devices if c.device in set(names))
    for name, total in of_class.items():
        assert abs(taken[name] - total * len(names) / size) <= 2


@settings(deadline=None)
@given(st.permutations(fleet(40)), st.text(max_size=5))
def test_cohorts_do_not_depend_on_the_order_of_the_inventory(devices, salt):
    stages = [Stage(count=10), Stage(percent=100)]
    assert freeze(devices, stages, salt) == freeze(fleet(40), stages, salt)


def test_another_salt_takes_other_devices_first():
    stages = [Stage(count=10)]
    firsts = {tuple(c.device for c in freeze(fleet(200), stages, f"m/{n}")[0]) for n in range(5)}
    assert len(firsts) == 5


def test_many_small_sites_are_taken_from_in_proportion():
    devices = [Candidate(device=f"d{n}", device_class="a", site=f"s{n // 2}") for n in range(2000)]
    (first,) = freeze(devices, [Stage(percent=10)], "s")
    assert len(first) == 200
    assert len({c.site for c in first}) > 150


def test_the_ramp_grows():
    stage = Stage(percent=100, per_hour=10, growth=2)
    assert [stage.allowance(hours * 3600) for hours in (0, 1, 2, 3)] == [1, 10, 30, 70]
    assert Stage(percent=100, per_hour=10).allowance(2.5 * 3600) == 25


BERLIN = zoneinfo.ZoneInfo("Europe/Berlin")


def at(text: str) -> int:
    return int(dt.datetime.fromisoformat(text).replace(tzinfo=BERLIN).timestamp())


def test_a_window_is_in_the_sites_own_time():
    site = Site(name="x", timezone="Europe/Berlin", windows=[MaintenanceWindow(start="22:00", end="04:00")])
    assert site.open_until(at("2026-07-01T21:59")) is None
    assert site.open_until(at("2026-07-01T22:00")) == at("2026-07-02T04:00")
    assert site.open_until(at("2026-07-02T03:59")) == at("2026-07-02T04:00")
    assert site.open_until(at("2026-07-02T04:00")) is None
    # 22:00 in Berlin is another hour of the day in UTC in winter.
    assert at("2026-01-01T22:00") % 86_400 != at("2026-07-01T22:00") % 86_400


def test_a_window_on_the_night_of_the_change_of_clocks():
    site = Site(name="x", timezone="Europe/Berlin", windows=[MaintenanceWindow(start="01:00", end="05:00")])
    assert site.open_until(at("2026-03-29T01:30")) - at("2026-03-29T01:00") == 3 * 3600  # one hour less
    assert site.open_until(at("2026-10-25T01:30")) - at("2026-10-25T01:00") == 5 * 3600


def test_a_window_opens_on_its_days():
    window = MaintenanceWindow(start="22:00", end="04:00", days=["sat"])
    assert window.open_until(at("2026-07-04T23:00"), BERLIN) is not None  # a Saturday
    assert window.open_until(at("2026-07-05T03:00"), BERLIN) is not None  # its night
    assert window.open_until(at("2026-07-05T23:00"), BERLIN) is None


def test_what_is_no_time_zone_or_day_is_refused():
    with pytest.raises(OptionsError, match="time zone"):
        Site(name="x", timezone="Europe/Atlantis")
    with pytest.raises(OptionsError, match="day of the week"):
        MaintenanceWindow(start="01:00", end="02:00", days=["someday"])
    with pytest.raises(OptionsError, match="time of day"):
        MaintenanceWindow(start="25:00", end="02:00")
