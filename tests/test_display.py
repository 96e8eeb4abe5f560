"""Tables for terminals and notebooks, and progress."""

from __future__ import annotations

import io
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

import edgeinfer as ei
from edgeinfer.demo import model_path
from edgeinfer.display import Steps, Table, track
from edgeinfer.terminal import to_rich


def rendered(table: Table, width: int = 60) -> str:
    stream = io.StringIO()
    Console(file=stream, width=width).print(to_rich(table))
    return stream.getvalue()


class _Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags: list[str] = []
        self.text = ""

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)

    def handle_data(self, data):
        self.text += data


@given(st.text(alphabet="<>&'\"abc[]/", min_size=1))
def test_cells_are_escaped_in_html_and_are_no_markup_in_rich(text):
    table = Table(title=text, columns=("a",), rows=[(text,)], footer=text)
    parser = _Tags()
    parser.feed(table.to_html())
    assert set(parser.tags) == {"div", "strong", "table", "thead", "tbody", "tr", "th", "td"}
    assert parser.text.count(text) >= 3
    assert text in rendered(table, 500)


def test_headless_tables_have_no_head():
    table = Table(columns=("", ""), rows=[("backend", "toy")])
    assert "<thead>" not in table.to_html()
    assert str(table) == "backend  toy"
    assert "─" not in rendered(table)


def test_a_table_without_rows_is_its_title_and_footer():
    table = Table(title="What ran", columns=("a",), rows=[], footer="nothing")
    assert "<table" not in table.to_html()
    assert rendered(table).split() == ["What", "ran", "nothing"]


def test_titles_are_not_folded_to_the_table():
    table = Table(title="A title that is longer than the table", columns=("a",), rows=[(1,)])
    assert "A title that is longer than the table" in rendered(table)


def test_long_cells_are_folded_and_lose_nothing():
    table = Table(columns=("a", "b"), rows=[("x" * 50, "y" * 50)])
    shown = rendered(table, 40)
    assert shown.count("x") == 50
    assert shown.count("y") == 50
    assert max(map(len, shown.splitlines())) <= 40


def test_lines_of_a_cell_stay_lines():
    assert "one<br>two" in Table(columns=("a",), rows=[("one\ntwo",)]).to_html()


@pytest.mark.parametrize("what", ["model", "artifact", "session", "report", "backends"])
def test_what_people_look_at_in_a_notebook_has_html(what):
    artifact = ei.compile(model_path(), "onnxruntime")
    with ei.load(artifact) as session:
        shown = {
            "model": ei.Model.load(model_path()),
            "artifact": artifact,
            "session": session,
            "report": ei.inspect(model_path()),
            "backends": ei.backends(),
        }[what]
        html = shown._repr_html_()
    parser = _Tags()
    parser.feed(html)
    assert parser.tags.count("table") >= 1
    assert len(parser.text) > 20


def test_progress_is_quiet_when_nobody_watches(capsys):
    assert list(track(range(3), "Counting")) == [0, 1, 2]
    assert capsys.readouterr() == ("", "")


def test_progress_is_shown_when_asked_for(capsys):
    assert list(track(iter(range(3)), "Counting", total=3, progress=True)) == [0, 1, 2]
    assert capsys.readouterr().out == ""


def test_steps_say_where_they_are_and_what_is_left(capsys, caplog):
    caplog.set_level("INFO", logger="edgeinfer")
    with Steps("Search", 3, progress=True) as step:
        step("reading")
        step("trying")
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "Search, step 1 of 3: reading"
    assert said[1].startswith("Search, step 2 of 3: trying (0 s so far, about 0 s left)")
    assert said[2].startswith("Search: done in")
    assert [record.getMessage() for record in caplog.records] == said
    assert {record.name for record in caplog.records} == {"edgeinfer"}


def test_steps_that_fail_are_not_done_and_are_quiet_when_asked(capsys):
    with pytest.raises(ValueError, match="broken"), Steps("Search", 3, progress=False) as step:  # noqa: PT012
        step("reading")
        raise ValueError("broken")
    assert capsys.readouterr().err == ""
