"""Pictures of what several things did over time."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from edgeinfer.timeline import Span, timeline

SVG = "{http://www.w3.org/2000/svg}"


def test_a_span_is_as_long_as_it_took_and_has_the_colour_of_its_kind():
    rows = {
        "a": [Span(start=0, end=1, kind=0, label="<waits>"), Span(start=1, end=4, kind=2, label="runs")],
        "b": [Span(start=0, end=4, kind=0, label="waits")],
    }
    root = ET.fromstring(timeline(rows, title="t", x="seconds", legend=[(0, "waits"), (2, "runs")]))
    first, second, third = root.iter(f"{SVG}rect")
    assert first.find(f"{SVG}title").text == "<waits>"
    assert float(second.get("width")) == pytest.approx(3 * float(first.get("width")), rel=0.01)
    assert float(third.get("y")) > float(first.get("y"))
    assert first.get("style") == third.get("style") != second.get("style")
    assert {"a", "b", "seconds", "waits", "runs"} <= {text.text for text in root.iter(f"{SVG}text")}


def test_nothing_is_said():
    assert "nothing to show" in timeline({}, title="t", x="seconds")
