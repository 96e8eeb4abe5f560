"""The notebooks of `examples/`: their code runs as a script without IPython, and their outputs are stored.

`nox -s notebooks` runs them as they stand, in a kernel, and stores the outputs; here the numbers are smaller.
"""

from __future__ import annotations

import ast
import json
import re
import sys
from typing import Any

import pytest

from tests.docs.pages import COLUMN, ROOT

NOTEBOOKS = {path.stem: path for path in sorted((ROOT / "examples").glob("*.ipynb"))}
# What is smaller here.
IN_TESTS = {
    "fit_a_budget": {
        "MINUTES = 1.0": "MINUTES = 0.02",
        "draw_surfaces(16": "draw_surfaces(4",
        "draw_surfaces(120": "draw_surfaces(12",
    },
    "fleet_on_a_laptop": {"DEVICES = 20": "DEVICES = 4", "max=0.3": "max=0.8"},
    "layer_that_hurts": {
        "draw_surfaces(16": "draw_surfaces(4",
        "draw_surfaces(120": "draw_surfaces(8",
        "samples=4": "samples=2",
        "runs=30": "runs=3",
    },
    "quickstart": {},
}
# What they must have printed; whether a budget is met depends on the machine.
PRINTS = {
    "fleet_on_a_laptop": "COMPLETED ROLLED_BACK",
    "quickstart": "98.66%",
}


def cells(name: str, kind: str = "code") -> list[dict[str, Any]]:
    found = json.loads(NOTEBOOKS[name].read_text(encoding="utf-8"))["cells"]
    return [cell for cell in found if cell["cell_type"] == kind]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_the_code_runs_as_a_script(name, tmp_path, monkeypatch, capsys):
    if name == "fleet_on_a_laptop":
        pytest.importorskip("cryptography", reason="signing needs the extra `fleet`")
    monkeypatch.setitem(sys.modules, "IPython", None)
    monkeypatch.chdir(tmp_path)
    sources = ["".join(cell["source"]) for cell in cells(name)]
    for old, new in IN_TESTS[name].items():
        assert any(old in source for source in sources), old
        sources = [source.replace(old, new) for source in sources]
    names: dict[str, Any] = {"__name__": "__main__"}
    for number, source in enumerate(sources, 1):
        tree = ast.parse(source)
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        where = f"{name}, code cell {number}"
        exec(compile(tree, where, "exec", dont_inherit=True), names)
        if last is not None:  # what a notebook would show
            shown = eval(compile(ast.Expression(last.value), where, "eval", dont_inherit=True), names)
            if shown is not None:
                assert getattr(shown, "_repr_html_", shown.__repr__)()
    assert PRINTS.get(name, "") in capsys.readouterr().out


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_outputs_are_stored(name):
    code = cells(name)
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1)), "nox -s notebooks"
    outputs = [output for cell in code for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert not [output for output in outputs if output.get("name") == "stderr"]
    data = [output.get("data", {}) for output in outputs]
    assert sum("text/html" in each for each in data) >= 3
    assert any("image/png" in each or "<svg" in "".join(each.get("text/html", "")) for each in data)
    stored = json.dumps(outputs)
    assert not re.search(r"/(root|home|work)/\w", stored), "a path of the machine that ran it"


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_code_is_not_wider_than_the_column(name):
    lines = [line for cell in cells(name) for line in "".join(cell["source"]).splitlines()]
    assert [line for line in lines if len(line) > COLUMN] == []


def test_each_notebook_begins_with_its_title():
    for name in NOTEBOOKS:
        assert "".join(cells(name, "markdown")[0]["source"]).startswith("# "), name
