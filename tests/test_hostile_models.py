"""Models made to exhaust whoever reads them: a typed error at once, or within limits that were given."""

from __future__ import annotations

import time

import numpy as np
import onnx
import onnx.helper as make
import onnx.parser
import pytest

import edgeinfer as ei
from edgeinfer.errors import CompileError, InvalidModelError, ModelLoadError, OptionsError
from edgeinfer.graph import confined
from edgeinfer.graph.confined import Limits
from edgeinfer.transforms import Simplify

HEADER = '<ir_version: 10, opset_import: ["": 21]>\n'
X = np.array([-1, 2], np.float32)


def parse(text: str) -> onnx.ModelProto:
    return onnx.parser.parse_model(HEADER + text)


ADD = parse("g (float[2] x) => (float[2] y) { y = Add(x, x) }")


def functions(*bodies: list[str]) -> onnx.ModelProto:
    """A model that calls f0, where the function with the number n calls those of `bodies[n]` in turn."""
    proto = parse("g (float[2] x) => (float[2] y) { y = Relu(x) }")
    opsets = [make.make_opsetid("", 21), make.make_opsetid("own", 1)]
    proto.opset_import.add(domain="own", version=1)
    proto.graph.node[0].CopyFrom(make.make_node("f0", ["x"], ["y"], domain="own"))
    for number, called in enumerate(bodies):
        names = ["a", *(f"t{index}" for index in range(1, len(called))), "b"]
        nodes = [
            make.make_node(name, [names[index]], [names[index + 1]], domain="own" if name[0] == "f" else "")
            for index, name in enumerate(called)
        ]
        proto.functions.add().CopyFrom(make.make_function("own", f"f{number}", ["a"], ["b"], nodes, opsets))
    return proto


def test_functions_that_make_a_trillion_nodes():
    levels = [[f"f{level + 1}"] * 10 for level in range(11)]
    begun = time.process_time()
    with pytest.raises(InvalidModelError, match="too many nodes"):
        ei.Model.load(functions(*levels, ["Relu"] * 10))
    assert time.process_time() - begun < 5  # it did not end before


def test_functions_that_call_each_other():
    with pytest.raises(InvalidModelError, match="in a circle") as caught:
        ei.Model.load(functions(["f1"], ["Relu", "f0"]))
    assert "own::f1" in str(caught.value.where)


def test_functions_that_call_others_are_fine():
    model = functions(["f1", "f1"], ["Neg", "f2"], ["Abs"])
    with ei.load(ei.compile(ei.optimize(model, [Simplify()]), "onnxruntime")) as session:
        np.testing.assert_array_equal(session.infer(X)["y"], np.abs(X))


def test_nodes_in_a_circle():
    proto = parse("g (float[2] x) => (float[2] y) { a = Add(x, x)  y = Relu(a) }")
    proto.graph.node[0].input[1] = "y"
    with pytest.raises(InvalidModelError, match="sorted"):
        ei.Model.load(proto)


def nested(depth: int) -> bytes:
    """Ifs in Ifs, as protobuf's bytes: Python's protobuf cannot make more than 33."""
    inner = make.make_graph(
        [make.make_node("Relu", ["x"], ["r"])], "g", [], [make.make_tensor_value_info("r", 1, [2])]
    ).SerializeToString()
    for _ in range(depth):
        node = onnx.NodeProto(op_type="If", input=["c"], output=["r"]).SerializeToString()
        for name in (b"then_branch", b"else_branch"):
            graph = inner if name == b"then_branch" else flat
            node += field(5, field(1, name) + b"\xa0\x01\x05" + field(6, graph))
        outputs = make.make_tensor_value_info("r", 1, [2]).SerializeToString()
        inner = field(1, node) + field(2, b"g") + field(12, outputs)
    inputs = (make.make_tensor_value_info("x", 1, [2]), make.make_tensor_value_info("c", 9, []))
    graph = inner + b"".join(field(11, value.SerializeToString()) for value in inputs)
    opset = make.make_opsetid("", 21).SerializeToString()
    return b"\x08\x0a" + field(7, graph) + field(8, opset)


flat = make.make_graph(
    [make.make_node("Neg", ["x"], ["r"])], "g", [], [make.make_tensor_value_info("r", 1, [2])]
).SerializeToString()


def field(number: int, content: bytes) -> bytes:
    size, encoded = len(content), b""
    while size > 0x7F:
        encoded += bytes((size & 0x7F | 0x80,))
        size >>= 7
    return bytes((number << 3 | 2,)) + encoded + bytes((size,)) + content


def test_graphs_in_graphs():
    feed = {"x": X, "c": np.array(True)}
    with ei.load(ei.compile(nested(12), "onnxruntime")) as session:
        np.testing.assert_array_equal(session.infer(feed)["r"], [0, 2])
    for depth in (40, 3000):
        with pytest.raises(ModelLoadError, match="not an ONNX model"):
            ei.Model.load(nested(depth))


# What is small and makes a compiler compute something large, in a child process with limits.

BOMB = """g (float[2] x) => (float[2] y) {
    o = Constant <value = float[1] {1.0}> ()  s = Constant <value = int64[1] {17179869184}> ()
    e = Tile (o, s)  m = ReduceSum <keepdims = 0> (e)  y = Add (x, m)
}"""


def test_constants_that_take_all_memory():
    pytest.importorskip("openvino")
    with pytest.raises(CompileError) as caught:
        ei.compile(parse(BOMB).SerializeToString(), "openvino", limits={"max_bytes": 1 << 30})
    assert "bad_alloc" in str(caught.value) or "memory" in str(caught.value)


def test_a_compiler_that_does_not_end():
    with pytest.raises(CompileError, match="took too long") as caught:
        ei.compile(ADD.SerializeToString(), "onnxruntime", limits=Limits(timeout_s=0.05))
    assert "timeout_s" in str(caught.value)


@pytest.mark.parametrize(
    ("ending", "told"),
    [("os.abort()", "SIGABRT"), ("sys.exit(3)", "exit code 3"), ("print('[]')", "exit code 0")],
)
def test_a_compiler_that_dies(ending, told, tmp_path, monkeypatch):
    (tmp_path / "dying_child.py").write_text(f"import os, sys\nprint('why', file=sys.stderr)\n{ending}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(confined, "_CHILD", "dying_child")
    with pytest.raises(CompileError, match="without an answer") as caught:
        ei.compile(ADD.SerializeToString(), "onnxruntime", limits=True)
    assert told in str(caught.value)
    assert "why" in str(caught.value)


def test_a_confined_compiler_makes_the_same_artifact(tmp_path):
    path = tmp_path / "add.onnx"
    path.write_bytes(ADD.SerializeToString())
    artifact = ei.compile(path, "onnxruntime", limits=True, options={"threads": 1})
    assert artifact.digest == ei.compile(path, "onnxruntime", options={"threads": 1}).digest
    assert artifact.path is None
    with ei.load(artifact) as session:
        np.testing.assert_array_equal(session.infer(X)["y"], 2 * X)


def test_a_confined_compiler_refuses_with_the_same_error(tmp_path):
    with pytest.raises(ModelLoadError, match="no such model file") as caught:
        ei.compile(tmp_path / "none.onnx", "onnxruntime", limits=True)
    assert caught.value.where == str(tmp_path / "none.onnx")


@pytest.mark.parametrize(
    ("source", "arguments"),
    [
        (ADD, {"limits": True}),
        (b"", {"limits": {"seconds": 3}}),
        (b"", {"limits": 3}),
        (b"", {"limits": {"timeout_s": 0}}),
        (b"", {"limits": True, "cache_dir": "x"}),
        (b"", {"limits": True, "options": {"x": object()}}),
    ],
)
def test_limits_that_are_none(source, arguments):
    with pytest.raises(OptionsError):
        ei.compile(source, "onnxruntime", **arguments)
