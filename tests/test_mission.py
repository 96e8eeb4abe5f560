"""The demonstration: the mission from end to end, as `edgeinfer demo` runs it, with fewer devices."""

from __future__ import annotations

import json

import pytest

from edgeinfer.cli import main

pytest.importorskip("tuf", reason="the mission needs the extra `fleet`")
DEVICES = 12
SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.slow
def test_the_mission_ends_as_it_should(tmp_path, capsys):
    page = tmp_path / "demo.html"
    arguments = ["demo", "--devices", str(DEVICES), "--minutes", "0.01", "--html", str(page), "--json"]
    assert main(arguments) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["good"], found["bad"]) == ("COMPLETED", "ROLLED_BACK")
    # Where others use the machine a device may find the good one too slow, too; the gate lets three of ten.
    assert DEVICES - 3 <= found["running"] <= DEVICES
    results = found["tuned"]["results"]
    assert set(results) == {"camera", "line"}
    for result in results.values():
        best = result["trials"][result["chosen"]] if result["chosen"] is not None else None
        assert best is not None
        assert best["violations"] == []
        assert best["drop"] <= 0.02
    html = page.read_text(encoding="utf-8")
    assert html.count("What each device did with release") == 4  # a title and a heading in each picture
    assert "refused it" in html
    assert "rejected" in html
    assert "http://" not in html.replace(SVG.strip("{}"), "")  # it needs no other file
    assert "https://" not in html
