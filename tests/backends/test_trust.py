"""An artifact, however hostile, makes no runtime touch a file outside of it. The hashes here are right."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import helper, numpy_helper

import edgeinfer as ei
from edgeinfer.backends import onnx_payload
from edgeinfer.backends.onnx_wire import (
    look_through,
)
from edgeinfer.errors import (
    ArtifactError,
    ArtifactFormatError,
    ArtifactTrustError,
    CompileError,
)
from tests.backends.hand_made import HEADER, SECRET, X, add, artifact_of, in_a_branch, outside, weight


@pytest.fixture(params=["onnxruntime", "openvino"])
def backend(request) -> str:
    pytest.importorskip(request.param)
    return request.param


# Models that name files


def in_a_constant(location: str) -> onnx.ModelProto:
    constant = helper.make_node("Constant", [], ["w"], value=outside(weight(), location))
    return add([], [constant, helper.make_node("Add", ["x", "w"], ["y"])])


def in_a_function(location: str) -> onnx.ModelProto:
    constant = helper.make_node("Constant", [], ["w"], value=outside(weight(), location))
    function = helper.make_function(
        "local", "F", ["x"], ["y"], [constant, helper.make_node("Add", ["x", "w"], ["y"])],
        [helper.make_opsetid("", 21)],
    )  # fmt: skip
    model = add([], [helper.make_node("F", ["x"], ["y"], domain="local")], functions=[function])
    model.opset_import.append(helper.make_opsetid("local", 1))
    return model


def in_a_sparse_tensor(location: str) -> onnx.ModelProto:
    model = add([], [helper.make_node("Add", ["x", "w"], ["y"])])
    sparse = helper.make_sparse_tensor(
        outside(weight(), location), numpy_helper.from_array(np.arange(16)), [16]
    )
    model.graph.sparse_initializer.append(sparse)
    return model


PLACES: list[Callable[[str], onnx.ModelProto]] = [
    lambda location: add([outside(weight(), location)]),
    in_a_constant,
    in_a_branch,
    in_a_function,
    in_a_sparse_tensor,
]


@pytest.mark.parametrize("place", PLACES, ids=["initializer", "constant", "branch", "function", "sparse"])
def test_a_model_that_names_a_file_is_refused_wherever_it_does(place, backend, tmp_path, monkeypatch):
    (tmp_path / "secret").write_bytes(SECRET)
    monkeypatch.chdir(tmp_path)
    folder = artifact_of(place("secret").SerializeToString(), backend, tmp_path / "a.edge")
    with pytest.raises(ArtifactTrustError, match="not in the artifact") as caught:
        ei.load(folder)
    assert caught.value.found == "'secret'"
    assert "model.onnx, tensor" in str(caught.value.where)


LOCATIONS = [
    "secret", "./secret", "../secret", "a/../../secret", "/etc/passwd", "*/_ORT_MEM_ADDR_/*",
    "model.onnx", "manifest.json", "link", "", ".", "data.bin/../../secret", "./data.bin", "DATA.BIN",
]  # fmt: skip


@pytest.mark.parametrize("location", LOCATIONS)
def test_only_files_of_the_artifact_are_read(location, backend, tmp_path, monkeypatch):
    (tmp_path / "secret").write_bytes(SECRET)
    monkeypatch.chdir(tmp_path)
    model = add([outside(weight(), location, offset=0, length=16)]).SerializeToString()
    folder = artifact_of(model, backend, tmp_path / "a.edge", {"data.bin": bytes(range(16))})
    (folder / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(ArtifactTrustError, match="not in the artifact"):
        ei.load(folder)


@pytest.mark.parametrize("kind", ["symlink", "hard link", "pipe"])
def test_a_data_file_is_a_plain_file(kind, backend, tmp_path):
    model = add([outside(weight(), "data.bin")]).SerializeToString()
    folder = artifact_of(model, backend, tmp_path / "a.edge", {"data.bin": SECRET})
    with ei.load(folder) as session:
        assert bytes(session.infer(X)["y"]) == SECRET
    (folder / "data.bin").rename(tmp_path / "outside")
    if kind == "symlink":
        (folder / "data.bin").symlink_to(tmp_path / "outside")
    elif kind == "hard link":
        (folder / "data.bin").hardlink_to(tmp_path / "outside")
    else:
        os.mkfifo(folder / "data.bin")
    with pytest.raises(ArtifactError, match="cannot be read"):
        ei.load(folder)


@pytest.mark.parametrize(
    "entries",
    [
        {"offset": 1},
        {"offset": 17},
        {"offset": 10**17},
        {"length": 17},
        {"offset": 8, "length": 16},
        {"length": 8},
    ],
    ids=str,
)
def test_a_tensor_that_is_not_in_its_file(entries, backend, tmp_path):
    model = add([outside(weight(), "data.bin", **entries)]).SerializeToString()
    folder = artifact_of(model, backend, tmp_path / "a.edge", {"data.bin": SECRET})
    with pytest.raises((ArtifactFormatError, CompileError)):
        ei.load(folder)


@pytest.mark.parametrize(
    "entries",
    [{"offset": -1}, {"offset": "1_0"}, {"offset": "0x10"}, {"length": " 16"}, {"length": "9" * 30}],
    ids=str,
)
def test_offsets_and_lengths_are_plain_numbers(entries, backend, tmp_path):
    model = add([outside(weight(), "data.bin", **entries)]).SerializeToString()
    folder = artifact_of(model, backend, tmp_path / "a.edge", {"data.bin": SECRET})
    with pytest.raises(ArtifactFormatError, match="offset or length"):
        ei.load(folder)


def test_large_models_are_loaded_from_memory(backend, tmp_path, monkeypatch):
    """As if every file were larger than 1 GiB: weights beside the graph, mapped after the check."""
    monkeypatch.setattr(onnx_payload, "EXTERNAL_THRESHOLD_BYTES", 0)
    monkeypatch.setattr("edgeinfer.artifact.artifact.IN_MEMORY_BYTES", 0)
    rng = np.random.default_rng(0)
    proto = onnx.parser.parse_model(
        HEADER + "g (float[N, 64] x) => (float[N, 64] y) { h = MatMul(x, a) r = Relu(h) y = MatMul(r, b) }"
    )
    for name in "ab":
        array = rng.standard_normal((64, 64)).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    x = rng.standard_normal((2, 64)).astype(np.float32)
    artifact = ei.compile(proto, backend)
    assert set(artifact.manifest.files) == {"model.onnx", "model.onnx.data"}
    folder = artifact.save(tmp_path / "large.edge").path or Path()
    monkeypatch.chdir("/")
    with ei.load(artifact) as one, ei.load(folder) as two:
        found = one.infer(x)["y"]
        np.testing.assert_array_equal(two.infer(x)["y"], found)
        assert two.execution().layers  # it creates the session again
    monkeypatch.setattr(onnx_payload, "EXTERNAL_THRESHOLD_BYTES", 1 << 30)
    with ei.load(ei.compile(proto, backend)) as small:
        np.testing.assert_allclose(small.infer(x)["y"], found, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("embed_mode", [0, 1, 2])
def test_contexts_of_providers_are_in_the_model(embed_mode):
    node = helper.make_node("EPContext", ["x"], ["y"], domain="com.microsoft", embed_mode=embed_mode)
    node.name = "context"
    found = look_through(add([], [node]).SerializeToString())[1]
    assert found == ([] if embed_mode == 1 else ["context"])


def test_a_context_in_a_file_is_refused(backend, tmp_path):
    node = helper.make_node(
        "EPContext", ["x"], ["y"], domain="com.microsoft", embed_mode=0, ep_cache_context="/etc/passwd"
    )
    folder = artifact_of(add([], [node]).SerializeToString(), backend, tmp_path / "a.edge")
    with pytest.raises(ArtifactTrustError, match="open a file"):
        ei.load(folder)


XML = b'<?xml version="1.0"?><net name="a" version="11"><layers/></net>'


@pytest.mark.parametrize(
    "model",
    [
        b"",
        b"\0",
        b"\0\0\0\0ORTM" + bytes(60),
        b"\0\0\0\0TFL3" + bytes(60),
        XML,
        b"\n" + XML,
        b" " + XML,
        b"a" * 99,
    ],
    ids=str,
)
def test_another_format_under_the_name_of_a_model(model, backend, tmp_path):
    with pytest.raises(ArtifactFormatError, match="not readable"):
        ei.load(artifact_of(model, backend, tmp_path / "a.edge"))
