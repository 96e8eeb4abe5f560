"""Pictures are SVG that any reader takes, whatever the figures."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeinfer.charts import Bar, Line, Point, bars, histogram, scatter

SVG = "{http://www.w3.org/2000/svg}"
anything = st.floats(allow_nan=True, allow_infinity=True, width=32)
names = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), max_size=60)


def parsed(svg: str) -> ET.Element:
    root = ET.fromstring(svg)
    for element in root.iter():
        assert element.tag.startswith(SVG)
        assert element.tag.removeprefix(SVG) not in ("script", "image", "use", "foreignObject")
        for name in ("x", "y", "cx", "cy", "width", "height", "r"):
            assert "nan" not in element.get(name, "")
            assert "inf" not in element.get(name, "")
            if name in ("width", "height"):
                assert float(element.get(name, "0")) >= 0
    return root


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(anything, anything, names), max_size=8))
def test_any_points(points):
    svg = scatter([Point(x=x, y=y, label=n, mark=n) for x, y, n in points], title="t", x="x", y="y")
    parsed(svg)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(names, anything), max_size=8))
def test_any_bars(items):
    parsed(bars([Bar(name=name, value=value) for name, value in items], title="t", unit="ms"))


@settings(max_examples=40, deadline=None)
@given(st.lists(anything, max_size=30), st.lists(anything, max_size=5))
def test_any_histogram(values, others):
    parsed(histogram(values, others=others, title="t", x="ms", lines=[Line(label="p50", x=1.0)]))


def test_every_point_has_a_mark_and_a_tooltip_at_its_place():
    root = parsed(
        scatter(
            [Point(x=1, y=1, label="a"), Point(x=3, y=2, label="<b>")],
            title="T & t",
            x="ms",
            y="accuracy",
            path=[(1, 1), (3, 2)],
            lines=[Line(label="limit", x=2.0)],
        )
    )
    circles = list(root.iter(f"{SVG}circle"))
    assert [circle.find(f"{SVG}title").text for circle in circles] == ["a", "<b>"]
    assert float(circles[0].get("cx")) < float(circles[1].get("cx"))
    assert float(circles[0].get("cy")) > float(circles[1].get("cy"))  # more is higher up
    texts = [text.text for text in root.iter(f"{SVG}text")]
    assert {"T & t", "limit", "ms", "accuracy"} <= set(texts)


def test_the_label_of_a_limit_lies_within_the_picture():
    for at in (1.0, 2.0, 3.0):
        lines = [Line(label="a limit of 12.5 ms", x=at)]
        root = parsed(scatter([Point(x=1, y=1), Point(x=3, y=2)], title="t", x="ms", y="y", lines=lines))
        (label,) = (text for text in root.iter(f"{SVG}text") if text.text == "a limit of 12.5 ms")
        x, width = float(label.get("x")), 7 * len(label.text)
        left = x if label.get("text-anchor") == "start" else x - width
        assert 0 <= left <= left + width <= 640 + 7


def test_marks_of_points_that_are_close_do_not_cover_each_other():
    points = [Point(x=1.0, y=1, mark="best"), Point(x=1.01, y=1, mark="float"), Point(x=2, y=2)]
    root = parsed(scatter(points, title="t", x="ms", y="y"))
    heights = {text.text: float(text.get("y")) for text in root.iter(f"{SVG}text")}
    assert abs(heights["best"] - heights["float"]) >= 12


def test_a_mark_does_not_cover_the_label_of_a_limit():
    points = [Point(x=1.0, y=0.0), Point(x=5.7, y=1.0, mark="float")]
    drawn = scatter(points, title="t", x="ms", y="metric", lines=[Line(label="limit 5.91 ms", x=5.91)])
    heights = {
        text.text: float(text.get("y")) for text in ET.fromstring(drawn).iter() if text.tag.endswith("text")
    }
    assert abs(heights["float"] - heights["limit 5.91 ms"]) >= 12


def test_bars_are_as_long_as_their_values_say():
    root = parsed(bars([Bar(name="a", value=1), Bar(name="b", value=4)], title="t", unit="ms"))
    lengths = [float(rect.get("width")) for rect in root.iter(f"{SVG}rect")]
    assert lengths[1] == pytest.approx(4 * lengths[0], rel=0.02)


def test_a_histogram_counts_every_value():
    root = parsed(histogram([1.0] * 5 + [2.0] * 3, title="t", x="ms"))
    counts = [int(rect.find(f"{SVG}title").text.split()[0]) for rect in root.iter(f"{SVG}rect")]
    assert sum(counts) == 8


def test_a_few_slow_runs_do_not_make_all_others_one_bar():
    values = [1.0 + 0.01 * number for number in range(95)] + [60.0] * 5
    drawn = histogram(values, title="t", x="ms")
    assert drawn.count("<rect") > 15
    assert "in the last bar also 5 beyond it" in drawn
    assert "beyond" not in histogram([1.0, 2.0, 3.0], title="t", x="ms")


def test_nothing_to_show_is_said():
    assert "nothing to show" in scatter([], title="t", x="x", y="y")
