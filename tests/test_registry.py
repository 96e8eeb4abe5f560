"""Discovery of backends: listing imports nothing, duplicates and broken plugins are named."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

import edgeinfer as ei
from edgeinfer.backends.registry import GROUP, get_backend
from edgeinfer.errors import (
    BackendUnavailableError,
    BrokenBackendError,
    DuplicateBackendError,
    UnknownBackendError,
)


def _distribution(folder: Path, name: str, entries: str, module: str | None = None) -> None:
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{GROUP}]\n{entries}\n")
    if module is not None:
        (folder / f"{name}.py").write_text(module)


@pytest.fixture
def site(tmp_path, monkeypatch) -> Path:
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_ours_are_registered_like_everybodys():
    assert {"onnxruntime", "openvino", "tensorrt"} <= set(ei.backends())


def test_entrypoints_and_importlib_metadata_find_the_same():
    ours = {(name, value) for name, entry in ei.backends().items() for value in entry.values}
    theirs = {(point.name, point.value) for point in importlib.metadata.entry_points(group=GROUP)}
    assert ours == theirs


def test_listing_imports_no_backend():
    code = (
        "import sys, edgeinfer\n"
        "names = list(edgeinfer.backends())\n"
        "bad = {'onnxruntime', 'openvino', 'tensorrt', 'tensorrt_rtx', 'onnx', 'edgeinfer_numpy_plugin'}\n"
        "print(names, bad & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("set()\n"), done.stdout


def test_unknown_backend_lists_the_known():
    with pytest.raises(UnknownBackendError, match="'onnxruntmie'") as caught:
        get_backend("onnxruntmie")
    assert "onnxruntime" in caught.value.expected


def test_duplicates_are_an_error_that_names_both(site):
    _distribution(site, "first_dist", "twice = first_dist:Backend")
    _distribution(site, "second_dist", "twice = second_dist:Backend")
    assert "twice" in ei.backends()
    with pytest.raises(DuplicateBackendError) as caught:
        get_backend("twice")
    assert "first_dist 1.0" in str(caught.value)
    assert "second_dist 1.0" in str(caught.value)
    get_backend("onnxruntime")  # others are not disturbed


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        ("raise RuntimeError('no licence found')", "no licence found"),
        ("import a_package_that_is_not_installed", "a_package_that_is_not_installed"),
        ("Other = 1", "Backend"),
        ("class Backend:\n    name = 'broken'", "is not a backend"),
        ("class Backend:\n    def __init__(self): raise ValueError('no device node')", "no device node"),
    ],
)
def test_a_broken_plugin_is_listed_with_its_reason_and_raises_when_used(site, module, reason):
    name = f"broken_{abs(hash(module))}"
    _distribution(site, name, f"{name} = {name}:Backend", module)
    entry = ei.backends()[name]
    assert not entry.available
    assert reason in entry.reason
    with pytest.raises(BrokenBackendError, match=reason):
        get_backend(name)
    assert name in str(ei.backends().table())


def test_another_api_version_is_refused(site):
    module = (
        "class Backend:\n    name = 'old'\n    api_version = 0\n"
        "    def capabilities(self): ...\n    def compile(self, model, options): ...\n"
        "    def load(self, payload, options): ...\n"
    )
    _distribution(site, "old_dist", "old = old_dist:Backend", module)
    with pytest.raises(BrokenBackendError, match="another version") as caught:
        get_backend("old")
    assert (caught.value.expected, caught.value.found) == (1, 0)


def test_a_missing_runtime_says_what_to_install(site):
    module = (
        "from edgeinfer.backends.protocol import Capabilities\n"
        "class Backend:\n    name = 'absent'\n    api_version = 1\n"
        "    def capabilities(self): return Capabilities(available=False, reason='libabsent.so not found')\n"
        "    def compile(self, model, options): ...\n    def load(self, payload, options): ...\n"
    )
    _distribution(site, "absent_dist", "absent = absent_dist:Backend", module)
    from edgeinfer.backends.registry import require_available

    with pytest.raises(BackendUnavailableError, match="not available here") as caught:
        require_available(get_backend("absent"))
    assert "libabsent.so" in caught.value.found
    assert "documentation of absent_dist" in caught.value.hint


def test_backends_is_a_function_and_a_package():
    import edgeinfer.backends.protocol

    assert ei.backends is edgeinfer.backends
    assert "onnxruntime" in ei.backends()
    assert "onnxruntime" in ei.backends()._repr_html_()
