"""An artifact, however hostile, makes no runtime touch a file outside of it. The hashes here are right."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

import edgeinfer as ei
from edgeinfer.artifact.manifest import _digest
from edgeinfer.backends import onnx_payload
from edgeinfer.backends.onnx_wire import (
    ExternalTensor,
    MalformedModelError,
    look_through,
    move_external,
)
from edgeinfer.errors import (
    ArtifactError,
    ArtifactFormatError,
    ArtifactTrustError,
    CompileError,
    EdgeInferError,
)

HEADER = '<ir_version: 10, opset_import: ["": 21]>\n'
SECRET = b"0123456789abcdef"
X = np.zeros(16, np.uint8)


@pytest.fixture(params=["onnxruntime", "openvino"])
def backend(request) -> str:
    pytest.importorskip(request.param)
    return request.param


def weight(name: str = "w") -> TensorProto:
    return numpy_helper.from_array(np.zeros(16, np.uint8), name)


def add(
    weights: list[TensorProto], nodes: list[onnx.NodeProto] | None = None, **more: Any
) -> onnx.ModelProto:
    nodes = nodes or [helper.make_node("Add", ["x", "w"], ["y"], name="add")]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "g",
        [value("x", TensorProto.UINT8, [16])],
        [value("y", TensorProto.UINT8, [16])],
        weights,
    )
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)], **more)


def outside(tensor: TensorProto, location: str, **entries: object) -> TensorProto:
    """Make a tensor external."""
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def artifact_of(model: bytes, backend: str, folder: Path, files: dict[str, bytes] | None = None) -> Path:
    """Write an artifact with that model, as somebody who can compute hashes would."""
    ei.compile(add([weight()]), backend).save(folder)
    for name, content in {"model.onnx": model, **(files or {})}.items():
        (folder / name).write_bytes(content)
    return sign(folder, files={"model.onnx": model, **(files or {})})


def sign(folder: Path, *, files: dict[str, bytes] | None = None, **changes: object) -> Path:
    path = folder / "manifest.json"
    fields = json.loads(path.read_bytes())
    del fields["manifest_sha256"]
    for name, content in (files or {}).items():
        fields["files"][name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    fields |= changes
    path.write_text(json.dumps({**fields, "manifest_sha256": _digest(fields)}))
    return folder


# Models that name files


def in_a_constant(location: str) -> onnx.ModelProto:
    constant = helper.make_node("Constant", [], ["w"], value=outside(weight(), location))
    return add([], [constant, helper.make_node("Add", ["x", "w"], ["y"])])


def in_a_branch(location: str) -> onnx.ModelProto:
    def branch(tensor: TensorProto) -> onnx.GraphProto:
        nodes = [helper.make_node("Add", ["x", tensor.name], [f"{tensor.name}_y"])]
        output = helper.make_tensor_value_info(f"{tensor.name}_y", TensorProto.UINT8, [16])
        return helper.make_graph(nodes, "branch", [], [output], [tensor])

    branches = {
        "then_branch": branch(outside(weight("a"), location)),
        "else_branch": branch(weight("b")),
    }
    condition = numpy_helper.from_array(np.array(True), "c")
    return add([condition], [helper.make_node("If", ["c"], ["y"], **branches)])


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


# The reader of the wire format


def strict(model: onnx.ModelProto) -> list[tuple[str, str]]:
    return [(tensor.name, tensor.location) for tensor in look_through(model.SerializeToString())[0]]


@given(data=st.data())
@settings(max_examples=100, deadline=None, derandomize=True)
def test_every_external_tensor_is_found_and_can_be_moved(data):
    names = data.draw(st.lists(st.text("abc", min_size=1, max_size=3), unique=True, max_size=4))
    weights = [outside(weight(name), f"{name}.bin", offset=3, length=16) for name in names]
    attributes = {f"v{name}": outside(weight(name), f"{name}.attr") for name in names}
    inner = helper.make_graph([], "inner", [], [], [outside(weight(name), "inner.bin") for name in names])
    node = helper.make_node("F", ["x"], ["y"], domain="local", inner=inner, **attributes)
    model = add([weight("inline"), *weights], [node])
    expected = [(name, f"{name}.attr") for name in sorted(names)]
    assert sorted(strict(model)) == sorted(
        [*expected, *((name, "inner.bin") for name in names), *((name, f"{name}.bin") for name in names)]
    )

    def place(tensor: ExternalTensor) -> tuple[str, int, int]:
        return f"moved/{tensor.location}", tensor.offset + 1, 7

    moved = onnx.ModelProto.FromString(move_external(model.SerializeToString(), place))
    for tensor in moved.graph.initializer:
        if tensor.name != "inline":
            entries = {entry.key: entry.value for entry in tensor.external_data}
            assert entries == {"location": f"moved/{tensor.name}.bin", "offset": "4", "length": "7"}
    for tensor in (*moved.graph.initializer, *moved.graph.node[0].attribute[0].g.initializer):
        tensor.ClearField("external_data")
    unmoved = onnx.ModelProto.FromString(model.SerializeToString())
    assert len(moved.graph.node) == len(unmoved.graph.node)
    assert moved.graph.initializer[0] == unmoved.graph.initializer[0]


def field(number: int, content: bytes, *, cut: bool = False) -> bytes:
    """Encode a field of bytes; with `cut` under a key of 33 bits that a lenient parser cuts off."""
    key = number << 3 | 2 | (1 << 32 if cut else 0)
    return varint(key) + varint(len(content)) + content


def varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])


def pair(key: bytes, value: bytes) -> bytes:
    return field(13, field(1, key) + field(2, value))


GRAPH = add([]).graph.SerializeToString()
LOCATION = pair(b"location", b"secret")


@pytest.mark.parametrize(
    "model",
    [
        field(7, GRAPH + field(5, LOCATION, cut=True)),
        field(7, GRAPH) + field(7, GRAPH + field(5, LOCATION), cut=True),
        field(7, GRAPH) + field(7, field(5, LOCATION)),  # parsers merge two graphs
        field(7, GRAPH + field(1, field(5, field(5, LOCATION) + field(5, LOCATION)))),  # and two tensors
        field(7, GRAPH + field(5, LOCATION + pair(b"location", b"x"))),
        field(7, GRAPH + field(5, pair(b"offset", b"1") + field(8, b"location"))),
        field(7, GRAPH + b"\x2b" + field(5, LOCATION) + b"\x2c"),  # a group
        field(7, GRAPH + field(5, LOCATION)[:-1]),
        field(7, GRAPH + field(5, LOCATION) + b"\xff" * 11),
        field(7, GRAPH + field(5, pair(b"location", b"\xff"))),
        varint(7 << 3 | 2) + varint(1 << 40) + GRAPH + LOCATION,
        b"\x00\x00" + field(7, GRAPH + field(5, LOCATION)),
    ],
    ids=lambda model: hashlib.sha256(model).hexdigest()[:6],
)
def test_what_parsers_would_understand_differently_is_refused(model):
    with pytest.raises(MalformedModelError):
        look_through(model)


def test_messages_within_messages_are_limited():
    graph = field(5, LOCATION)
    for _ in range(60):
        graph = field(1, field(5, field(6, graph)))
    with pytest.raises(MalformedModelError, match="messages within"):
        look_through(field(7, graph))


@given(seed=st.integers(0, 10**6), count=st.integers(1, 4))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_damaged_models_are_read_or_refused(seed, count):
    rng = np.random.default_rng(seed)
    model = bytearray(in_a_branch("location").SerializeToString())
    for _ in range(count):
        model[int(rng.integers(len(model)))] = int(rng.integers(256))
    try:
        found = look_through(bytes(model))[0]
    except MalformedModelError:
        return
    assert all(isinstance(tensor.location, str) for tensor in found)


@pytest.mark.parametrize("seed", range(25))
def test_a_damaged_model_with_the_right_hash_is_a_typed_error_or_runs(seed, backend, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(seed)
    model = bytearray(add([outside(weight(), "data.bin", offset=0, length=16)]).SerializeToString())
    for _ in range(int(rng.integers(1, 4))):
        model[int(rng.integers(len(model)))] = int(rng.integers(256))
    folder = artifact_of(bytes(model), backend, tmp_path / "a.edge", {"data.bin": SECRET})
    before = sorted(tmp_path.rglob("*"))
    try:
        with ei.load(folder) as session:
            session.infer(X)
    except EdgeInferError as error:
        assert error.what  # noqa: PT017 (either is right)
    assert sorted(tmp_path.rglob("*")) == before
