"""What a device runs, without the packages that only making models needs.

`test_layers` holds statically that nothing above the device line imports them. Here they are refused, also in
the processes that are started from there; and, when asked for with `-m venv`, they are really not installed.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import onnx.parser
import pytest

import edgeinfer as ei

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
REFUSED = ("onnx", "onnx_ir", "onnxscript", "sympy", "rich", "cattrs", "PIL")
# Only making and looking at models needs these of the core's dependencies, and a device chooses its runtime.
NOT_ON_DEVICES = {"onnx", "onnx-ir", "onnxscript", "rich", "onnxruntime"}
BACKENDS = ("onnxruntime", "openvino")

# Python runs this file first in every process that has its folder in the path.
REFUSE = f"""
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {REFUSED!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}} (refused by a test)", name=name)

sys.meta_path.insert(0, Refuse())
"""
# What a device does, in one script. Its last line says which packages were imported.
DEVICE = f"""
import sys
import numpy as np
import edgeinfer as ei

path, feeds = sys.argv[1:]
x = np.ones((2, 3), np.float32)
with ei.load(path) as session:
    assert np.array_equal(ei.infer(session, {{"x": x}})["y"], x + x)
    session.check_golden()
    assert len(list(session.stream([{{"x": x}}] * 3))) == 3
    with session.bind({{"x": (2, 3)}}) as bound:
        bound.inputs["x"][...] = x
        bound.run()
    timing = ei.benchmark(session, feeds, runs=3, progress=False)
    assert timing.inputs[0].shape == (2, 3), timing
    assert "2 feeds in turn" in str(timing)
    assert ei.measure.benchmark_in_turns({{"a": session, "b": session}}, runs=2, batch=4).reports["b"].n == 2
    str(session.table()), repr(session), session._repr_html_()
    if session.backend == "onnxruntime":  # only its account of what ran is an ONNX graph
        for ask in (session.execution, lambda: session.profile({{"x": x}}, runs=1)):
            try:
                ask()
            except ei.errors.MissingPackageError as error:
                assert error.facts["package"] == "onnx_ir", error
            else:
                raise AssertionError("something read an ONNX graph")
    else:
        assert session.execution().layers
    try:
        ei.infer(session, {{"x": x[0]}})
    except ei.errors.InputError as error:
        assert "Add the batch axis" in str(error)
    else:
        raise AssertionError("a wrong input was taken")
peak = ei.measure.memory(path, batch=4, runs=1)
assert peak.peak_bytes > 0 and peak.inputs[0].shape == (4, 3)
artifact = ei.Artifact.open(path)
artifact.table()
assert ei.backends()[artifact.manifest.backend].available
assert str(ei.Target.parse("openvino:CPU")) == "openvino:CPU"
made = ei.Preprocessing(size=8)
assert ei.Preprocessing.from_dict(made.to_dict()) == made
print("imported", sorted({{name.split(".")[0] for name in sys.modules}} & set({REFUSED!r})))
"""
COMMANDS = (
    ["run", "{path}", "--json"],
    ["bench", "{path}", "--runs", "3", "--memory", "--feeds", "{feeds}"],
    ["inspect", "{path}"],
    ["doctor"],
)


@pytest.fixture
def site(tmp_path) -> Path:
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(REFUSE)
    return folder


def saved(backend: str, folder: Path) -> tuple[str, str]:
    """An artifact with golden inputs, and a folder of feeds."""
    if backend not in ei.backends() or not ei.backends()[backend].available:
        pytest.skip(f"{backend} is not here")
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17]>
        add (float[N, 3] x) => (float[N, 3] y) { y = Add(x, x) }"""
    )
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    artifact = ei.compile(model, backend).with_golden({"x": x}, {"y": x + x}, rtol=0, atol=0)
    feeds = folder / "feeds"
    feeds.mkdir()
    for index in range(2):
        np.save(feeds / f"{index}.npy", x)
    return str(artifact.save(folder / "model.edge").path), str(feeds)


def process(python: str, arguments: list[str], path: list[Path]) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path)), "ORT_DISABLE_TELEMETRY": "1"}
    return subprocess.run(
        [python, *arguments], capture_output=True, text=True, env=environment, check=False, timeout=300
    )


def ours() -> list[Path]:
    """The folders that this process finds edgeinfer and the example plugin in."""
    return [ROOT, *(Path(entry) for entry in sys.path if entry)]


def test_the_refusal_refuses(site):
    for name in REFUSED:
        done = process(sys.executable, ["-c", f"import {name}"], [site, *ours()])
        assert "refused by a test" in done.stderr


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_device_needs_no_package_that_makes_models(site, tmp_path, backend):
    path, feeds = saved(backend, tmp_path)
    done = process(sys.executable, ["-c", DEVICE, path, feeds], [site, *ours()])
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "imported []"


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_its_commands_work_there(site, tmp_path, command):
    path, feeds = saved("onnxruntime", tmp_path)
    words = [word.format(path=path, feeds=feeds) for word in command]
    done = process(sys.executable, ["-m", "edgeinfer", *words], [site, *ours()])
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_what_needs_a_model_says_what_is_missing(site, tmp_path):
    path, _ = saved("onnxruntime", tmp_path)
    done = process(sys.executable, ["-m", "edgeinfer", "compile", f"{path}/model.onnx"], [site, *ours()])
    assert done.returncode == 2
    assert "onnx" in done.stderr
    assert "pip install edgeinfer" in done.stderr
    assert "Traceback" not in done.stderr


def _requirements(lines: list[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in lines:
        text = line.partition("#")[0].strip()
        if text:
            found.setdefault(re.split(r"[<>=!~;\[ ]", text)[0], []).append(text)
    return found


def test_the_requirements_of_a_device_are_those_of_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    core = _requirements(project["dependencies"])
    device = _requirements((ROOT / "requirements-device.txt").read_text(encoding="utf-8").splitlines())
    assert device == {name: text for name, text in core.items() if name not in NOT_ON_DEVICES}
    assert set(core) >= NOT_ON_DEVICES  # a name that is no dependency any more would hide a new one


@pytest.mark.venv
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_an_environment_with_only_what_a_device_needs(tmp_path, backend):
    """As docs/install.md says it; it takes a minute and the package index."""
    path, feeds = saved(backend, tmp_path)
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=True)
    python = str(environment / "bin" / "python")
    source = tmp_path / "source"
    shutil.copytree(ROOT / "edgeinfer", source / "edgeinfer", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    for arguments in (
        ["-r", str(ROOT / "requirements-device.txt"), backend],
        ["--no-deps", str(source)],
    ):
        done = process(python, ["-m", "pip", "install", "--quiet", *arguments], [])
        assert done.returncode == 0, done.stderr
    listed = process(python, ["-m", "pip", "list", "--format=freeze"], []).stdout
    installed = {line.partition("==")[0].lower() for line in listed.splitlines()}
    assert not installed & {"onnx", "onnx-ir", "onnxscript", "rich", "cattrs"}
    assert {"edgeinfer", backend} <= installed
    done = process(python, ["-c", DEVICE, path, feeds], [])
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "imported []"
