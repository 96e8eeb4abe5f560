"""Each block of code of the documentation works: Python runs, a page as one program; commands are real ones.

What cannot run here has a mark with the reason in front of it; see `pages.py`. The marks are listed below.
"""

from __future__ import annotations

import importlib
import os
import re
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import onnx.parser
import pytest

import edgeinfer as ei
from edgeinfer.backends.registry import GROUP, backends
from edgeinfer.cli import _parser
from edgeinfer.fleet.device.transport import GROUP as TRANSPORTS
from tests.docs.pages import PAGES, ROOT, SHELLS, TEXTS, blocks, shell_commands

Names = dict[str, Any]
WITH_PYTHON = [page for page in PAGES if any(not block.not_run for block in blocks(page, "python"))]
WITH_COMMANDS = [page for page in TEXTS if blocks(page, *SHELLS)]

# Why blocks of Python are not run, and how many there are. Add to it with care: what is not run gets wrong.
NOT_RUN = {
    "fails on TensorRT 11, as the text says": 1,
    "needs a PostgreSQL server": 1,
    "needs a device that is reached over ssh": 1,
    "needs an NVIDIA GPU": 5,
    "needs the recipe of a tuning run": 1,
    "the page on tuning runs the same call": 1,
}


# A core that this process may use; pages name the first one.
HERE = {"pin_cores=0": f"pin_cores={min(os.sched_getaffinity(0))}"}


def run_page(page: str, names: Names, **replaced: str) -> Names:
    """Run the blocks of a page one after the other in one namespace."""
    for number, block in enumerate(blocks(page, "python"), 1):
        if block.not_run:
            continue
        code = block.in_tests()
        for old, new in {**HERE, **replaced}.items():
            code = code.replace(old, new)
        exec(compile(code, f"{page}, block {number}", "exec", dont_inherit=True), names)
    return names


# ---- what a page needs beside the model and the samples, and what it must have done ----


def _devices_of(page_names: Names) -> AbstractContextManager[None]:
    from tests.fleet.toy_fleet import ToyFleet

    page_names["release"] = ToyFleet(Path("fleet")).publish("defects", "1")
    return nullcontext()


def _two_variants(_: Names) -> AbstractContextManager[None]:
    for name in ("model.edge", "small.edge"):
        ei.compile("model.onnx", "onnxruntime").save(name)
    return nullcontext()


PREPARE: dict[str, Callable[[Names], AbstractContextManager[None]]] = {
    "fleet-rollouts.md": _devices_of,
    "steady-latency.md": _two_variants,
}


def _start(names: Names, printed: str) -> None:
    assert names["outputs"]["logits"].shape == (4, 10)
    assert ei.Artifact.open("model.edge").manifest.golden is not None


def _feeds(names: Names, printed: str) -> None:
    assert printed.splitlines() == ["(1, 1, 8, 8)", "(2, 1, 8, 8)", "(2, 1, 8, 8)", "(1, 3, 224, 224)"]


def _optimized(names: Names, printed: str) -> None:
    assert isinstance(names["model"], ei.Model)
    assert names["model"].history
    assert printed


def _tuning(names: Names, printed: str) -> None:
    assert isinstance(names["result"], ei.TuningResult)
    assert ei.Artifact.open("model.edge").manifest.backend == "openvino"
    assert "<svg" in Path("report.html").read_text()
    assert "Tuning for openvino:CPU" in printed


def _devices(names: Names, printed: str) -> None:
    assert "raspberry-pi-5" in printed


def _releases(names: Names, printed: str) -> None:
    assert printed.startswith("1 ")
    assert Path("fleet/repository/metadata/timestamp.json").is_file()


def _rollouts(names: Names, printed: str) -> None:
    assert names["rollout"].state == "RUNNING"
    assert "Forecast" in printed
    names["fleet"].close()


def _steady(names: Names, printed: str) -> None:
    assert names["session"].closed


CHECK: dict[str, Callable[[Names, str], None]] = {
    "devices.md": _devices,
    "estimates.md": _devices,
    "feeds.md": _feeds,
    "fleet-releases.md": _releases,
    "fleet-rollouts.md": _rollouts,
    "pruning.md": _optimized,
    "quantization.md": _optimized,
    "start.md": _start,
    "steady-latency.md": _steady,
    "tuning.md": _tuning,
}
# They need more than a namespace; each has its own test below.
OWN_TEST = {"fleet-device.md", "writing_a_backend.md", "writing_a_transform.md", "writing_a_transport.md"}


@pytest.mark.parametrize("page", [page for page in WITH_PYTHON if page not in OWN_TEST])
def test_the_python_of_a_page_runs(page, names, capsys):
    with PREPARE.get(page, lambda _: nullcontext())(names):
        run_page(page, names)
    CHECK.get(page, lambda *_: None)(names, capsys.readouterr().out)


def test_tables_of_pages_name_pages():
    assert {*PREPARE, *CHECK, *OWN_TEST} <= set(WITH_PYTHON)


def test_what_is_not_run_compiles_and_has_a_known_reason():
    found = [block for page in TEXTS for block in blocks(page, "python") if block.not_run]
    for block in found:
        compile(block.code, block.page, "exec", dont_inherit=True)
    assert Counter(block.not_run for block in found) == NOT_RUN


def test_marks_are_marks_in_front_of_python():
    for page, path in TEXTS.items():
        marks = [block for block in blocks(page) if block.mark.startswith(("not run", "in tests"))]
        assert all(block.language == "python" for block in marks), page
        text = path.read_text(encoding="utf-8")
        assert text.count("<!-- not run") + text.count("<!-- in tests") == len(marks), page


def test_fleet_device(tmp_path):
    from tests.fleet.device.kit import Shelf, assign, drive, make_agent

    shelf = Shelf(tmp_path / "repository")
    shelf.desire(assign(shelf.publish("defects", interface="defects/2"), 1))
    with make_agent(tmp_path / "edge", shelf) as agent:
        drive(agent)
        names = run_page(
            "fleet-device.md",
            {"x": np.ones((1, 4), np.float32)},
            **{"/var/lib/edge": str(tmp_path / "edge"), '"input"': '"x"'},
        )
        assert np.array_equal(names["outputs"]["y"], np.ones((1, 4)))


def test_writing_a_transform():
    transform = run_page("writing_a_transform.md", {})["RemoveDropout"]
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]>
        g (float[2] x) => (float[2] y, float[2] z)
        { [inner] a = Dropout (x)  y = Relu (a)  [outer] z = Dropout (y) }"""
    )
    report = ei.optimize(model, [transform()]).report
    assert [node for node, _ in report.applied] == ["inner"]
    assert [node for node, _ in report.skipped] == ["outer"]


def test_writing_a_backend():
    """The block that runs the suite is a test module; the plugin of these tests is the backend."""
    if "numpy-reference" not in backends():
        pytest.skip("the plugin package is not installed")
    names = run_page("writing_a_backend.md", {}, **{"my-runtime": "numpy-reference"})
    check = importlib.import_module("edgeinfer.testing.conformance").CHECKS[0]
    names["test_conformance"](check)
    assert f'[project.entry-points."{GROUP}"]' in blocks("writing_a_backend.md", "toml")[0].code


def test_writing_a_transport():
    """The transport of the page passes the suite as the page runs it."""
    names = run_page("writing_a_transport.md", {})
    for check in names["transport_checks"].CHECKS:
        names["REACHABLE"]["server"] = True
        names["test_conformance"](check)
    (registered,) = blocks("writing_a_transport.md", "toml")
    assert f'[project.entry-points."{TRANSPORTS}"]' in registered.code


def test_the_catalog_of_the_page_is_one(tmp_path, monkeypatch):
    (block,) = blocks("devices.md", "toml")
    (tmp_path / "devices.toml").write_text(block.code)
    monkeypatch.setenv("EDGEINFER_DEVICES", str(tmp_path / "devices.toml"))
    profile = ei.devices.profiles()["our-box@QUIET"]
    assert profile.number("power_w") == 5.0
    assert profile.main.operations_s("float32") == 7e10


def test_an_input_of_the_wrong_layout_is_told_as_the_page_says():
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]>
        g (float[1, 3, 8, 8] input) => (float[1, 3, 8, 8] y) { y = Relu (input) }"""
    )
    with (
        ei.load(ei.compile(model, "onnxruntime")) as session,
        pytest.raises(ei.errors.InputError) as caught,
    ):
        session.infer(np.zeros((1, 8, 8, 3), np.float32))
    assert "input.transpose(0, 3, 1, 2)" in str(caught.value.hint)


# ---- commands ----


@pytest.mark.parametrize("page", WITH_COMMANDS)
def test_commands_are_commands(page, capsys):
    """The real parser takes each `edgeinfer …`; scripts and extras that are named are there."""
    extras = _extras()
    for words in shell_commands(page):
        program = Path(words[0]).name
        if program == "edgeinfer":
            _parse(page, words, capsys)
        elif program.startswith("python") and len(words) > 1 and words[1].endswith(".py"):
            assert (ROOT / words[1]).is_file(), words
        elif "install" in words:
            named = {name for word in words if "[" in word for name in word.partition("[")[2][:-1].split(",")}
            assert named <= extras, words


@pytest.mark.parametrize("command", ["fleet rollout plan fleet/", "optimize model.onnx --trasform Simplify"])
def test_a_wrong_command_is_found(command, capsys):
    with pytest.raises(pytest.fail.Exception, match="a page"):
        _parse("a page", ["edgeinfer", *command.split()], capsys)


@pytest.mark.parametrize("page", TEXTS)
def test_commands_in_the_text_exist(page, capsys):
    """`edgeinfer fleet init` in the text: the words up to the first argument are commands."""
    for words in re.findall(r"`edgeinfer ([^`]+)`", TEXTS[page].read_text(encoding="utf-8")):
        choices = _choices(_parser())
        for word in words.split():
            if not choices:
                break
            assert word in choices or not re.fullmatch("[a-z-]+", word), f"{page}: edgeinfer {words}"
            choices = _choices(choices[word]) if word in choices else {}


def _parse(page: str, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    try:
        _parser().parse_args(words[1:])
    except SystemExit as end:
        if end.code:  # it is 0 of --help and --version
            pytest.fail(f"{page}: {' '.join(words)}\n{capsys.readouterr().err}")


def _choices(parser: Any) -> dict[str, Any]:
    found = [action.choices for action in parser._actions if isinstance(action.choices, dict)]
    return found[0] if found else {}


def _extras() -> set[str]:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    section = project.partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    return set(re.findall(r"^([\w-]+) = \[", section, re.MULTILINE))
