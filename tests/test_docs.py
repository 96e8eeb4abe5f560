"""What the documentation shows works: each Python block runs, names exist, links lead somewhere."""

from __future__ import annotations

import importlib
import re
import shutil
from pathlib import Path

import numpy as np
import onnx.parser
import pytest

import edgeinfer as ei
from edgeinfer.backends.registry import GROUP, backends
from edgeinfer.demo import load_digits, model_path

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
# The pages with Python, each run by a test below.
RUN = {
    "devices.md": 2,
    "estimates.md": 1,
    "feeds.md": 2,
    "fleet-device.md": 1,
    "fleet-releases.md": 1,
    "fleet-rollouts.md": 1,
    "index.md": 2,
    "pruning.md": 1,
    "quantization.md": 3,
    "steady-latency.md": 2,
    "tuning.md": 2,
    "writing_a_backend.md": 1,
    "writing_a_transform.md": 1,
}

# The pages whose Python needs what a test machine lacks; it is only compiled.
NOT_RUN = {"tensorrt.md"}  # a GPU of NVIDIA


def blocks(page: str, language: str = "python") -> list[str]:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def execute(code: str, page: str, names: dict[str, object]) -> dict[str, object]:
    exec(compile(code, page, "exec", dont_inherit=True), names)
    return names


def test_every_page_with_python_is_run_here():
    found = {str(page.relative_to(ROOT / "docs")): len(blocks(str(page))) for page in PAGES}
    assert {page: count for page, count in found.items() if count and page not in NOT_RUN} == RUN
    for page in NOT_RUN:
        for block in blocks(page):
            compile(block, page, "exec", dont_inherit=True)


def test_first_steps(tmp_path, monkeypatch):
    """The page calls its input `input`; the model at hand calls it `images`."""
    shutil.copy(model_path(), tmp_path / "model.onnx")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"x": load_digits().images[:4]}
    for block in blocks("index.md"):
        execute(block.replace('"input"', '"images"'), "index.md", names)
    assert isinstance(names["outputs"], dict)
    assert names["outputs"]["logits"].shape == (4, 10)
    assert ei.Artifact.open("model.edge").manifest.golden is not None


def test_fleet_releases(tmp_path, monkeypatch, capsys):
    pytest.importorskip("cryptography", reason="signing needs the extra `fleet`")
    shutil.copy(model_path(), tmp_path / "model.onnx")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"feeds": [{"images": load_digits().images[:4]}]}
    execute(blocks("fleet-releases.md")[0], "fleet-releases.md", names)
    assert capsys.readouterr().out.startswith("1 ")
    assert (tmp_path / "fleet" / "repository" / "metadata" / "timestamp.json").is_file()


def test_fleet_rollouts(tmp_path, monkeypatch, capsys):
    pytest.importorskip("cryptography", reason="signing needs the extra `fleet`")
    from tests.fleet.toy_fleet import ToyFleet

    release = ToyFleet(tmp_path / "fleet").publish("defects", "1")
    monkeypatch.chdir(tmp_path)
    names = execute(blocks("fleet-rollouts.md")[0], "fleet-rollouts.md", {"release": release})
    assert names["rollout"].state == "RUNNING"
    assert "Forecast" in capsys.readouterr().out
    names["fleet"].close()


def test_fleet_device(tmp_path):
    from tests.fleet.device.kit import Shelf, assign, drive, make_agent

    shelf = Shelf(tmp_path / "repository")
    shelf.desire(assign(shelf.publish("defects", interface="defects/2"), 1))
    with make_agent(tmp_path / "edge", shelf) as agent:
        drive(agent)
        code = blocks("fleet-device.md")[0].replace("/var/lib/edge", str(tmp_path / "edge"))
        names = execute(code.replace('"input"', '"x"'), "fleet-device.md", {"x": np.ones((1, 4), np.float32)})
        assert np.array_equal(names["outputs"]["y"], np.ones((1, 4)))  # type: ignore[index]


def test_feeds(tmp_path, monkeypatch, capsys):
    shutil.copy(model_path(), tmp_path / "model.onnx")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"x": load_digits().images[:6]}
    for block in blocks("feeds.md"):
        execute(block.replace('"input"', '"images"'), "feeds.md", names)
    assert capsys.readouterr().out.splitlines() == [
        "(1, 1, 8, 8)",
        *["(2, 1, 8, 8)"] * 3,
        "(1, 3, 224, 224)",
    ]


@pytest.mark.parametrize("page", ["quantization.md", "pruning.md"])
def test_optimizing_pages(page, tmp_path, monkeypatch, capsys):
    """The pages say `samples` and name a convolution; the model at hand has its own names."""
    shutil.copy(model_path(), tmp_path / "model.onnx")
    monkeypatch.chdir(tmp_path)
    images = load_digits().images[:16]
    names: dict[str, object] = {"samples": [{"images": images[i : i + 4]} for i in range(0, 16, 4)]}
    for block in blocks(page):
        execute("import edgeinfer as ei\n" + block, page, names)
    assert isinstance(names["model"], ei.Model)
    assert names["model"].history
    assert capsys.readouterr().out


def test_tuning(tmp_path, monkeypatch, capsys):
    """The page is about a real model; the one at hand needs fewer minutes and keeps other limits."""
    shutil.copy(model_path(), tmp_path / "model.onnx")
    monkeypatch.chdir(tmp_path)
    digits = load_digits()
    names: dict[str, object] = {"images": digits.images[:32], "labels": digits.labels[:32]}
    names["samples"] = [{"images": image[None]} for image in digits.images[:16]]
    for block in blocks("tuning.md"):
        code = block.replace("minutes=30", "minutes=0.02").replace("latency_p50_ms=8", "latency_p50_ms=8000")
        execute(code.replace('"120 MiB"', '"1 GiB"'), "tuning.md", names)
    assert isinstance(names["result"], ei.TuningResult)
    assert ei.Artifact.open("model.edge").manifest.backend == "openvino"
    assert "<svg" in (tmp_path / "report.html").read_text()
    assert "Tuning for openvino:CPU" in capsys.readouterr().out


@pytest.mark.parametrize("page", ["devices.md", "estimates.md"])
def test_pages_on_devices(page, tmp_path, monkeypatch, capsys):
    shutil.copy(model_path(), tmp_path / "model.onnx")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in blocks(page):
        execute(block, page, names)
    assert "raspberry-pi-5" in capsys.readouterr().out


def test_the_catalog_of_the_page_is_one(tmp_path, monkeypatch):
    (code,) = blocks("devices.md", "toml")
    (tmp_path / "devices.toml").write_text(code)
    monkeypatch.setenv("EDGEINFER_DEVICES", str(tmp_path / "devices.toml"))
    profile = ei.devices.profiles()["our-box@QUIET"]
    assert profile.number("power_w") == 5.0
    assert profile.main.operations_s("float32") == 7e10


def test_steady_latency(tmp_path, monkeypatch):
    """The page calls its input `input`; the model at hand calls it `images`."""
    for name in ("model.edge", "small.edge"):
        ei.compile(model_path(), "onnxruntime").save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"x": load_digits().images[:1]}
    for block in blocks("steady-latency.md"):
        execute(block.replace('"input"', '"images"'), "steady-latency.md", names)
    assert names["session"].closed  # type: ignore[attr-defined]


def test_writing_a_transform():
    transform = execute(blocks("writing_a_transform.md")[0], "writing_a_transform.md", {})["RemoveDropout"]
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]>
        g (float[2] x) => (float[2] y, float[2] z)
        { [inner] a = Dropout (x)  y = Relu (a)  [outer] z = Dropout (y) }"""
    )
    report = ei.optimize(model, [transform()]).report  # type: ignore[operator]
    assert [node for node, _ in report.applied] == ["inner"]
    assert [node for node, _ in report.skipped] == ["outer"]


def test_writing_a_backend():
    """The block that runs the suite is a test module; the plugin of these tests is the backend."""
    if "numpy-reference" not in backends():
        pytest.skip("the plugin package is not installed")
    code = blocks("writing_a_backend.md")[0].replace("my-runtime", "numpy-reference")
    names = execute(code, "writing_a_backend.md", {})
    check = importlib.import_module("edgeinfer.testing.conformance").CHECKS[0]
    names["test_conformance"](check)  # type: ignore[operator]
    assert f'[project.entry-points."{GROUP}"]' in blocks("writing_a_backend.md", "toml")[0]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_names_exist(page):
    """Every `ei.name` and `edgeinfer.module.name` that a page mentions can be imported."""
    text = page.read_text(encoding="utf-8")
    for name in set(re.findall(r"\bei\.(\w+)", text)):
        assert hasattr(ei, name), name
    for dotted in set(re.findall(r"`(edgeinfer(?:\.\w+)+)", text)) - {GROUP}:
        module, _, name = dotted.rpartition(".")
        found = importlib.import_module(module)
        assert hasattr(found, name) or importlib.import_module(dotted), dotted


def public_names() -> dict[str, set[str]]:
    """The names that docs/stability.md lists, by module."""
    text = (ROOT / "docs" / "stability.md").read_text(encoding="utf-8")
    sections = re.findall(r"^### `([\w.]+)`\n(.*?)(?=^###|\Z)", text, re.DOTALL | re.MULTILINE)
    # They come behind the sentence that says what the module is for.
    return {module: set(re.findall(r"`(\w+)`", body.strip().split("\n\n")[1])) for module, body in sections}


@pytest.mark.parametrize("module", public_names())
def test_every_public_name_is_listed(module):
    found = set(importlib.import_module(module).__all__)
    listed = public_names()[module]
    assert found - listed == set(), "docs/stability.md lacks them"
    assert listed - found == set(), "docs/stability.md lists what is not there"


def test_every_public_module_is_listed():
    """All modules that are names of `edgeinfer`, and those that authors of backends are told to import."""
    assert {f"edgeinfer.{name}" for name in ei._MODULES} - {"edgeinfer.backends"} <= set(public_names())
    text = (ROOT / "docs" / "writing_a_backend.md").read_text(encoding="utf-8")
    named = set(re.findall(r"\bedgeinfer\.backends\.\w+", text))
    assert named
    assert named <= set(public_names())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_exist(page):
    text = page.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert "://" in link or (page.parent / link).exists(), link
    for path in re.findall(r"`((?:edgeinfer|tests|benchmarks|examples|docs)/[\w/.]+)`", text):
        assert (ROOT / path).exists(), path


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
