"""Models that the reader of the wire format refuses, and models that were damaged."""

from __future__ import annotations

import hashlib

import numpy as np
import onnx
import onnx.parser
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

import edgeinfer as ei
from edgeinfer.backends.onnx_wire import (
    ExternalTensor,
    MalformedModelError,
    look_through,
    move_external,
)
from edgeinfer.errors import (
    EdgeInferError,
)
from tests.backends.hand_made import SECRET, X, add, artifact_of, in_a_branch, outside, weight


@pytest.fixture(params=["onnxruntime", "openvino"])
def backend(request) -> str:
    pytest.importorskip(request.param)
    return request.param


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
